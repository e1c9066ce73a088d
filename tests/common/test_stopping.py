"""Commands that run until they are told to stop."""

import os
import signal
import time

import pytest

from fedprofile.common.stopping import stopped_by_signals


def send(number):
    """Python handles a signal between two steps of its own."""
    os.kill(os.getpid(), number)
    time.sleep(10)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT], ids=lambda sent: sent.name)
def test_a_signal_stops_the_command_and_nothing_after_it(sent):
    class Handled(Exception):
        pass

    def before(*_):
        raise Handled

    first = signal.signal(sent, before)
    try:
        with stopped_by_signals() as stop:
            assert not stop.is_set()
            os.kill(os.getpid(), sent)
            assert stop.wait(60)
        with pytest.raises(Handled):
            send(sent)
    finally:
        signal.signal(sent, first)
