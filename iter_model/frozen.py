"""Frozen weights that a training run builds on, the VQGAN above all: a state resumes only on the same ones."""

import os
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from basicsr.utils import get_root_logger
from torch import nn

from basicsr_compat.files import read_checkpoint


def frozen_checksum(whole: nn.Module, trained: nn.Module) -> str:
    """CRC-32, as 8 hexadecimal digits, of all weights of a network but those that are trained, by name and value."""
    changing = {id(tensor) for tensor in (*trained.parameters(), *trained.buffers())}
    crc = 0
    for name, tensor in sorted(whole.state_dict(keep_vars=True).items()):
        if id(tensor) not in changing:
            values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            crc = zlib.crc32(np.ascontiguousarray(values), zlib.crc32(name.encode(), crc))
    return f"{crc:08x}"


def refuse_others(found: Mapping[str, str], expected: Mapping[str, str] | None) -> None:
    """Raise ValueError where a state was trained on other frozen weights than those that were loaded.

    Args:
        found, expected: {'path', 'checksum'} of those of this run, and of those in the state; None: an older state.
    """
    if expected is not None and expected["checksum"] != found["checksum"]:
        raise ValueError(
            f"{found['path']} holds other frozen weights (checksum {found['checksum']}) than the state was trained on: "
            f"{expected['path']} (checksum {expected['checksum']}). Name a file with those, or start a new run"
        )


def warn_of_other_ground_truth(checkpoint: str, gt_usm: bool) -> None:
    """Say where a checkpoint of stage I records that its ground truth was sharpened, and that of this run is not."""
    content: Any = read_checkpoint(checkpoint) if os.path.isfile(checkpoint) else None
    recorded = content.get("gt_usm") if isinstance(content, Mapping) else None
    if isinstance(recorded, bool) and recorded != gt_usm:
        get_root_logger().warning(
            f"datasets.train.gt_usm={str(gt_usm).lower()}, but {checkpoint} was trained with gt_usm: "
            f"{str(recorded).lower()}: its codebook is one of another kind of ground truth; set both to the same"
        )
