"""How far the restoration of a batch is: tiles that have gone through the networks of ITER (arXiv:2312.05616)."""

from collections.abc import Callable
from dataclasses import dataclass

OnProgress = Callable[[int, int], None]

# What a tile costs in each network, measured on the shipped weights. A step is counted when its tokens are drawn.
ENCODE, EVALUATE, REFINE, DECODE = 1, 0, 2, 5


@dataclass
class Work:
    """Counts what is done, in units of about the same time, and reports it.

    on_progress: called with (done, total) after every batch of tiles; total shrinks once the start steps are known.
    done, total: units.
    """

    on_progress: OnProgress | None
    done: int = 0
    total: int = 0

    def expect(self, tiles: int, steps: float) -> None:
        """Expect the tiles of all images together to take this many steps, on average."""
        self.total = round(tiles * (ENCODE + REFINE * steps + DECODE))

    def advance(self, units: int) -> None:
        """``units`` more are done. What ``on_progress`` raises ends the restoration."""
        self.done += units
        if self.on_progress is not None and units:
            self.on_progress(self.done, self.total)
