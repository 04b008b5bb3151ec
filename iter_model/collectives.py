"""Operations on tensors over all processes that train together; with one process they do nothing."""

from collections.abc import Sequence

import torch
from basicsr.utils.dist_util import get_dist_info
from torch import Tensor


def world_size() -> int:
    """Number of processes that train together."""
    return get_dist_info()[1]


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum x over all ranks, in place; returns x."""
    if world_size() > 1:
        torch.distributed.all_reduce(x)
    return x


def broadcast_from_main(tensors: Sequence[Tensor]) -> None:
    """Give every rank the values of rank 0, in place."""
    if world_size() > 1:
        for tensor in tensors:
            torch.distributed.broadcast(tensor, src=0)
