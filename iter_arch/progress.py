"""Progress of the restoration of a batch: how many tiles have gone through the networks of ITER (arXiv:2312.05616)."""

from collections.abc import Callable
from dataclasses import dataclass

OnProgress = Callable[[int, int], None]

# What a tile costs in each network, measured on the shipped weights. A step is counted when its tokens are drawn.
ENCODE, EVALUATE, REFINE, DECODE = 1, 0, 2, 5


@dataclass
class Work:
    """Counts the work done, in units that take about the same time, and reports it.

    on_progress: called with (done, total) after every batch of tiles; total shrinks once the start steps are known.
    done, total: units.
    """

    on_progress: OnProgress | None
    done: int = 0
    total: int = 0

    def expect(self, tiles: int, steps: float) -> None:
        """Set the total: tiles of all images together, and the steps that they take on average."""
        self.total = round(tiles * (ENCODE + REFINE * steps + DECODE))

    def advance(self, units: int) -> None:
        """Count ``units`` more as done. An exception from ``on_progress`` ends the restoration."""
        self.done += units
        if self.on_progress is not None and units:
            self.on_progress(self.done, self.total)
