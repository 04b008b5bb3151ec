"""Signals: raised before the first iteration, remembered after it, obeyed at once the second time."""

import signal

import pytest

from basicsr_compat.pipeline.stops import Stops, ValidationStopped, orderly_stops


@pytest.fixture
def obeyed():
    """SIGINT, which a shell has its background jobs ignore, is as Python has it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_first_iteration_is_an_exception(number, obeyed):
    with pytest.raises(SystemExit if number == signal.SIGTERM else KeyboardInterrupt):
        with orderly_stops():
            signal.raise_signal(number)


def test_a_second_signal_is_not_waited_for_and_handlers_are_put_back(obeyed):
    before = signal.getsignal(signal.SIGTERM)
    with orderly_stops() as stops:
        stops.iteration = 3
        signal.raise_signal(signal.SIGTERM)
        assert stops.signal == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with orderly_stops():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_stop_is_after_the_running_iteration_and_ends_a_validation():
    stops = Stops()
    assert not stops.wanted() and stops.exit_code() == 0
    stops.iteration, stops.signal = 3, signal.SIGTERM
    assert stops.due() and stops.agreed == (3, signal.SIGTERM) and stops.exit_code() == 128 + signal.SIGTERM
    with pytest.raises(ValidationStopped):
        stops.check()
