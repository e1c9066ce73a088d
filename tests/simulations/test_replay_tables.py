import io

import pytest
from rich.console import Console

from fedprofile.simulations.replay_tables import show


def value(mean, half=0.01):
    if mean is None:
        return dict.fromkeys(("mean", "low", "high"))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def group(name, users, mean):
    policies = dict.fromkeys(("frozen", "daily", "every event"), value(mean))
    return {
        "name": name,
        "moments": 3 * users,
        "users": users,
        "ndcg_at_k": policies,
        "gain": value(mean),
    }


def found(**more):
    groups = [group("all moments", 40, 0.25), group("1 event known", 3, None)]
    lists = [
        {
            "name": name,
            "known": known,
            "ndcg_at_k": value(0.1),
            "hr_at_k": value(0.3),
            "gain": gain,
            "hr_gain": gain,
        }
        for name, known, gain in (
            ("popularity", None, None),
            ("no event", 0, value(0.005)),
            ("last event", 1, value(-0.02)),
        )
    ]
    spread = {"median": 0.456, "p95": 1.0}
    return {
        "k": 10,
        "smallest_group": 20,
        "replay": {"all": [*groups, group("2 events known", 0, None)], "new": groups[1:]},
        "latency": {"moments": 300, "update_ms": spread, "list_ms": spread},
        "cold_start": {"users": 40, "lists": lists},
        **more,
    }


def shown(content, width=80):
    out = io.StringIO()
    show(content, Console(file=out, width=width, highlight=False))
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 140])
def test_groups_of_few_users_are_named_and_left_out(width):
    text = shown(found(), width)
    assert "all moments" in text
    assert text.count("1 event known (3)") == 2
    assert "left out is 1 group of fewer than 20 users" in text
    assert "2 events known" not in text  # there are no such moments
    assert "new items, mean over users: nothing to show" in text
    assert max(map(len, text.splitlines())) <= width


def test_cold_starts_stand_beside_popularity_in_80_columns():
    text = shown(found())
    quality = "0.1000 [0.0900, 0.1100]"
    assert f"│ popularity │ {quality} │  0.3000 │                            │" in text
    assert f"│ no event   │ {quality} │  0.3000 │ +0.0050 [-0.0050, +0.0150] │" in text
    assert f"│ last event │ {quality} │ 0.3000* │ -0.0200 [-0.0300, -0.0100] │" in text
    few = shown(found(cold_start={"users": 7, "lists": []}))
    assert "for 7 test users: fewer than 20, nothing to show" in few


def test_latency_is_told_where_it_was_measured():
    assert "learns an event in 0.46 ms (95 %: 1.00)" in shown(found())
    assert "learns an event" not in shown(found(latency=None))
