"""Connects the processes that torchrun or SLURM started. Needs no BasicSR."""

from __future__ import annotations

import datetime
import os

import torch.distributed


def meet(timeout: datetime.timedelta) -> tuple[torch.distributed.Store, int, int]:
    """(the store that all processes of this start share, the rank of this process, how many there are).

    Args:
        timeout: how long a process waits for the store, and for a key in it.
    """
    store, rank, world_size = next(torch.distributed.rendezvous("env://", timeout=timeout))
    # After a restart by torchrun the store still has the keys of the processes that died.
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)
    return torch.distributed.PrefixStore(f"start_{start}", store), rank, world_size
