import pytest

from fedprofile.common.errors import ServerError
from fedprofile.server.attendance import EMPTY_ROUNDS, Attendance
from fedprofile.server.strategy import RoundRecord


def record(trained):
    return RoundRecord(
        round=1,
        sampled=3,
        trained=trained,
        rejected={} if trained else {"declined-idle": 2, "no-reply": 1},
        ignored={},
        update_norm=0.0,
        noise_norm=0.0,
        seconds=0.0,
    )


def test_rounds_without_anybody_stop_a_server_only_in_a_row():
    attendance = Attendance()
    for trained in (0, 0, 1, 0, 0, 2):
        attendance.after(record(trained))
    for _ in range(EMPTY_ROUNDS - 1):
        attendance.after(record(0))
    with pytest.raises(ServerError, match="declined-idle 2, no-reply 1"):
        attendance.after(record(0))
