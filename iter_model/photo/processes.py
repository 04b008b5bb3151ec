"""The processes of `torchrun ... basicsr upscale`, which share out the photos of one command."""

from __future__ import annotations

import datetime
import os
import pickle
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
# What torchrun tells a process; with less than that it is alone.
TOLD = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# A process waits for others that still restore: longer than any photo takes. torchrun ends it where one of them fails.
LONGEST = datetime.timedelta(days=7)


class Refused(Exception):
    """The first process has said what is wrong with the command."""


class Processes:
    """This process and those beside it; by default it is alone.

    Args:
        store: what all of them share, a `torch.distributed.Store`.
        rank: the number of this one.
        count: how many there are.
        local_rank: its number on this machine, which chooses its GPU; None where it is alone.
    """

    def __init__(self, store: Any = None, rank: int = 0, count: int = 1, local_rank: int | None = None) -> None:
        self.rank, self.count, self.local_rank = rank, count, local_rank
        self._store = store
        self._done = 0

    @classmethod
    def of_torchrun(cls) -> Processes:
        """Those that torchrun started; this one alone without it."""
        if any(name not in os.environ for name in TOLD) or os.environ["WORLD_SIZE"] == "1":
            return cls()
        from basicsr_compat.rendezvous import meet

        return cls(*meet(LONGEST), local_rank=int(os.environ["LOCAL_RANK"]))

    @property
    def is_first(self) -> bool:
        """Whether this is the one that plans, and speaks for all."""
        return self.rank == 0

    def tell(self, plan: Any) -> None:
        """Hand the plan of the first process to the others."""
        if self._store is not None:
            self._store.set("plan", pickle.dumps(plan))

    def refuse(self) -> None:
        """Let the others end: the first process has found the command to be wrong."""
        if self._store is not None and self.is_first:
            self._store.set("plan", b"")

    def hear(self) -> Any:
        """What the first process tells; waits for it. Raises Refused."""
        plan = self._store.get("plan")
        if not plan:
            raise Refused
        return pickle.loads(plan)

    def share(self, items: Sequence[T]) -> Iterator[T]:
        """The items of this process: each begins with one of its own, and takes the next that nobody has."""
        turn = self.rank
        while turn < len(items):
            yield items[turn]
            turn = turn + 1 if self._store is None else self.count - 1 + self._store.add("turns", 1)

    def count_done(self) -> int:
        """Count one item as done; returns how many all processes have done."""
        self._done += 1
        return self._done if self._store is None else self._store.add("done", 1)

    def total(self, number: int) -> int:
        """The sum of this over all processes; waits until they have come here."""
        if self._store is None:
            return number
        self._store.set(f"number_{self.rank}", str(number))
        keys = [f"number_{rank}" for rank in range(self.count)]
        self._store.wait(keys, LONGEST)
        return sum(int(self._store.get(key)) for key in keys)
