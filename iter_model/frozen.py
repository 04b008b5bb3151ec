"""The frozen weights that a training run builds on, such as the VQGAN: it can be resumed only with the same ones."""

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
    """CRC-32 of the names and values of all weights that are not trained, as 8 hexadecimal digits.

    Args:
        whole: the network.
        trained: the part of it that is trained.
    """
    changing = {id(tensor) for tensor in (*trained.parameters(), *trained.buffers())}
    crc = 0
    for name, tensor in sorted(whole.state_dict(keep_vars=True).items()):
        if id(tensor) not in changing:
            values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            crc = zlib.crc32(np.ascontiguousarray(values).data, zlib.crc32(name.encode(), crc))
    return f"{crc:08x}"


def refuse_others(found: Mapping[str, str], expected: Mapping[str, str] | None) -> None:
    """Refuse a state that was trained on other frozen weights.

    Args:
        found: 'path' and 'checksum' of the frozen weights of this run.
        expected: those of the state; None where it is too old to record them.

    Raises:
        ValueError: the checksums differ.
    """
    if expected is not None and expected["checksum"] != found["checksum"]:
        raise ValueError(
            f"{found['path']} holds other frozen weights (checksum {found['checksum']}) than the state was trained on: "
            f"{expected['path']} (checksum {expected['checksum']}). Name a file with those, or start a new run"
        )


def warn_of_other_ground_truth(checkpoint: str, gt_usm: bool) -> None:
    """Log a warning where a checkpoint of stage I records another `gt_usm` than that of this run."""
    content: Any = read_checkpoint(checkpoint) if os.path.isfile(checkpoint) else None
    recorded = content.get("gt_usm") if isinstance(content, Mapping) else None
    if isinstance(recorded, bool) and recorded != gt_usm:
        get_root_logger().warning(
            f"datasets.train.gt_usm={str(gt_usm).lower()}, but {checkpoint} was trained with gt_usm: "
            f"{str(recorded).lower()}: its codebook is one of another kind of ground truth; set both to the same"
        )
