"""Mask schedules gamma (ITER, arXiv:2312.05616, Sec. 3.3; MaskGIT, arXiv:2202.04200, Sec. 3.3): pure functions.

gamma(r) is the masked ratio at r = t/T: gamma(0) = 0, gamma(1) = 1, increasing.
"""

import math
import re
from typing import overload

import torch
from torch import Tensor

SCHEDULE_RULE = "'cosine', 'linear' or 'pow<p>' with p > 0, such as 'pow2'"


def is_schedule(schedule: str) -> bool:
    """Whether this is the name of a schedule: see SCHEDULE_RULE."""
    power = re.fullmatch(r"pow(\d+(?:\.\d+)?)", schedule) if isinstance(schedule, str) else None
    return schedule in ("cosine", "linear") or (power is not None and float(power[1]) > 0)


@overload
def mask_ratio(schedule: str, r: float) -> float: ...


@overload
def mask_ratio(schedule: str, r: Tensor) -> Tensor: ...


def mask_ratio(schedule: str, r: float | Tensor) -> float | Tensor:
    """gamma(r): ratio of masked tokens.

    Args:
        schedule: 'cosine': cos(pi/2 (1 - r)); 'linear': r; 'pow<p>': r^p.
        r: number or tensor of any shape, in [0, 1].

    Returns:
        What ``r`` was, in [0, 1].
    """
    if not is_schedule(schedule):
        raise ValueError(f"schedule={schedule!r} must be {SCHEDULE_RULE}")
    if schedule == "cosine":
        # As a sine, so that gamma(0) is 0 and not cos(pi/2) = 6e-17.
        return torch.sin(r * (math.pi / 2)) if isinstance(r, Tensor) else math.sin(r * (math.pi / 2))
    return r if schedule == "linear" else r ** float(schedule[3:])


def ceil_exact(x: float) -> int:
    """Ceiling that forgives rounding: 0.3 * 100 is 30, not 31."""
    return math.ceil(round(x, 6))
