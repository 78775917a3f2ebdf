import os
import signal
import time

import pytest

from pipelines.stopping import Interrupted, StopSignals


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_the_second_ends(signum: int) -> None:
    before = signal.getsignal(signum)
    with pytest.raises(Interrupted) as caught, StopSignals() as signals:  # noqa: PT012 - the order is the point
        os.kill(os.getpid(), signum)
        assert signals.signum == signum
        os.kill(os.getpid(), signum)
    assert caught.value.signum == signum
    assert signal.getsignal(signum) is before


def test_a_wait_ends_as_soon_as_a_stop_is_asked_for() -> None:
    with StopSignals() as signals:
        signals.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        begun = time.monotonic()
        with pytest.raises(Interrupted):
            signals.sleep(3600)
        assert time.monotonic() - begun < 60
