"""Signals: SIGTERM and Ctrl-C end a training run after an iteration, the same one on all ranks."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

from basicsr_compat.pipeline.distributed import key_value_store


class ValidationStopped(Exception):
    """A signal ended a validation early."""


class Stop(NamedTuple):
    """The last iteration of a training run, and the signal that caused it."""

    iteration: int
    signal: int

    @property
    def name(self) -> str:
        """The name of the signal, such as SIGTERM."""
        return signal.Signals(self.signal).name


class Stops:
    """The signals that this process got, and the stop that all ranks agreed on."""

    def __init__(self) -> None:
        self.signal: int | None = None  # that this process got
        self.iteration: int | None = None  # that runs, or ran last; None: none has begun
        self.agreed: Stop | None = None
        self._world_size, self._accumulate, self._ahead = 1, 1, 0

    def coordinate(self, world_size: int, accumulate: int, ahead: int) -> None:
        """Set what a common stop depends on.

        Args:
            accumulate: iterations between two in which the ranks synchronize their gradients.
            ahead: iterations by which a process runs ahead of its device.
        """
        self._world_size, self._accumulate, self._ahead = world_size, accumulate, ahead

    def wanted(self) -> bool:
        """Whether any rank got a signal after its first iteration began; if so, sets `agreed`, equal on all ranks."""
        if self.agreed is not None or self.iteration is None:
            return self.agreed is not None
        if self._world_size == 1:
            if self.signal is not None:
                self.agreed = Stop(self.iteration, self.signal)
            return self.agreed is not None
        # No collective, which a GPU would wait for: one look into the launcher's key-value store.
        store, key = key_value_store(), "basicsr/stop"
        if self.signal is not None:
            proposal = f"{self._common_iteration(self.iteration)} {self.signal}"
            self.agreed = Stop(*map(int, store.compare_set(key, "", proposal).split()))
        elif store.check([key]):
            self.agreed = Stop(*map(int, store.get(key).split()))
        return self.agreed is not None

    def _common_iteration(self, current: int) -> int:
        """An iteration that no rank can have finished yet: the next whose gradients are synchronized."""
        return ((current + self._ahead) // self._accumulate + 1) * self._accumulate

    def due(self) -> Stop | None:
        """The agreed stop, if the run ends after the last iteration."""
        if not self.wanted() or self.agreed is None or self.iteration is None:
            return None
        return self.agreed if self.iteration >= self.agreed.iteration else None

    def check(self) -> None:
        """Raise ValidationStopped where a stop is wanted."""
        if self.wanted():
            raise ValidationStopped

    def exit_code(self) -> int:
        """128 + the number of the signal that ended the run, or cut it short; 0 where none did."""
        return 0 if self.agreed is None else 128 + self.agreed.signal


@contextlib.contextmanager
def orderly_stops() -> Iterator[Stops]:
    """Make SIGTERM and Ctrl-C end a training run after the current iteration; a second signal ends it at once.

    Before the first iteration they raise SystemExit and KeyboardInterrupt, so that the start can clean up.
    """
    stops = Stops()

    def handle(number, frame):
        if stops.iteration is None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            sys.exit(128 + number)
        stops.signal = number
        for each in before:
            signal.signal(each, signal.SIG_DFL)

    # What is ignored stays so: nohup's, and Ctrl-C's in a shell's background.
    asked = [each for each in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(each) is not signal.SIG_IGN]
    before = {each: signal.signal(each, handle) for each in asked}
    try:
        yield stops
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def obeys_its_parent_alone(init: Callable[[int], None] | None) -> Callable[[int], None]:
    """A worker_init_fn of a DataLoader for workers that only their parent may end; it then calls `init`.

    Ctrl-C and a launcher's SIGTERM reach the workers too, but the last iteration still needs them.
    """

    def init_worker(worker_id: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if hasattr(signal, "sigwaitinfo"):  # not on macOS
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
            threading.Thread(target=_wait_for_parents_signal, args=(os.getppid(),), daemon=True).start()
        if init is not None:
            init(worker_id)

    return init_worker


def _wait_for_parents_signal(parent: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)  # as the handler of PyTorch that this takes the place of
