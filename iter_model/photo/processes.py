"""The processes of `torchrun ... basicsr upscale`, which share the photos of one command."""

from __future__ import annotations

import datetime
import os
import pickle
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
# The variables that torchrun sets for a process; without one of them, the process is alone.
TOLD = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# How long a process waits for others: longer than any photo takes. torchrun ends it where one of them fails.
LONGEST = datetime.timedelta(days=7)


class Refused(Exception):
    """The first process has reported what is wrong with the command."""


class Processes:
    """This process and those that share its work; by default it is alone.

    Args:
        store: the `torch.distributed.Store` that they share.
        rank: the number of this process.
        count: the number of processes.
        local_rank: the number of this process on its machine, which chooses its GPU; None where it is alone.
    """

    def __init__(self, store: Any = None, rank: int = 0, count: int = 1, local_rank: int | None = None) -> None:
        self.rank, self.count, self.local_rank = rank, count, local_rank
        self._store = store
        self._done = 0

    @classmethod
    def of_torchrun(cls) -> Processes:
        """The processes that torchrun started; without it, this one alone."""
        if any(name not in os.environ for name in TOLD) or os.environ["WORLD_SIZE"] == "1":
            return cls()
        from basicsr_compat.rendezvous import meet

        return cls(*meet(LONGEST), local_rank=int(os.environ["LOCAL_RANK"]))

    @property
    def is_first(self) -> bool:
        """Whether this process plans the work and reports for all."""
        return self.rank == 0

    def tell(self, plan: Any) -> None:
        """Send the plan of the first process to the others."""
        if self._store is not None:
            self._store.set("plan", pickle.dumps(plan))

    def refuse(self) -> None:
        """Let the other processes end, because the command is wrong; only the first process may."""
        if self._store is not None and self.is_first:
            self._store.set("plan", b"")

    def hear(self) -> Any:
        """Wait for the plan of the first process. Raises Refused where the command is wrong."""
        plan = self._store.get("plan")
        if not plan:
            raise Refused
        return pickle.loads(plan)

    def share(self, items: Sequence[T]) -> Iterator[T]:
        """The items for this process: each process starts with another one, and then takes the next that is left."""
        turn = self.rank
        while turn < len(items):
            yield items[turn]
            turn = turn + 1 if self._store is None else self.count - 1 + self._store.add("turns", 1)

    def count_done(self) -> int:
        """Count one item as done; returns how many all processes have done together."""
        self._done += 1
        return self._done if self._store is None else self._store.add("done", 1)

    def total(self, number: int) -> int:
        """The sum of this number over all processes; waits until all of them have called it."""
        if self._store is None:
            return number
        self._store.set(f"number_{self.rank}", str(number))
        keys = [f"number_{rank}" for rank in range(self.count)]
        self._store.wait(keys, LONGEST)
        return sum(int(self._store.get(key)) for key in keys)
