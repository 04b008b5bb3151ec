"""Pairs of processes that train, gather what a validation gathers, leave each other and end: how each of them ended.

argv: how many pairs, and a mode: `succeeds`, or `fails` in rank 1. Each process is a fork of this one, and ends as an
interpreter does, not as a child of multiprocessing.
"""

import os
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import basicsr_compat  # noqa: F401  isort: skip  (before BasicSR)
import torch
from basicsr.models.sr_model import SRModel
from small_models import sr_options

from basicsr_compat.pipeline import distributed


def train(rank, mode, folder):
    """An iteration of SRModel and what a validation gathers; ValueError in rank 1 where the mode is `fails`."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model = SRModel(sr_options(folder, dist=True, rank=rank, world_size=2))
    model.feed_data({"lq": torch.rand(1, 3, 8, 8), "gt": torch.rand(1, 3, 16, 16)})
    model.optimize_parameters(1)
    torch.distributed.all_gather_object([None, None], {"metrics": torch.rand(3), "rank": rank})
    if mode == "fails" and rank == 1:
        raise ValueError("a fault")


def run(rank, mode, folder):
    """`train`, and leaving the process group as a run does."""
    try:
        train(rank, mode, folder)
    except ValueError as error:
        distributed.leave(None, error)
    else:
        distributed.leave(None)


def pairs(count, mode):
    """How many processes ended with each exit code; None in a process of a pair."""
    codes = Counter()
    for _ in range(count):
        folder = tempfile.mkdtemp()  # which the processes of the pair must not remove
        children = []
        for rank in (0, 1):
            if (child := os.fork()) == 0:
                run(rank, mode, Path(folder))
                return None
            children.append(child)
        codes.update(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
        shutil.rmtree(folder)
    return codes


if __name__ == "__main__":
    codes = pairs(int(sys.argv[1]), sys.argv[2])
    if codes is not None:
        print(dict(codes))
