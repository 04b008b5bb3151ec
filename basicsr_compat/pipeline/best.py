"""The best model so far, by val.key_metric on the first validation set."""

from __future__ import annotations

import math
from typing import Any

from basicsr.models.base_model import BaseModel
from basicsr.utils import get_root_logger

from basicsr_compat.pipeline.checkpoints import progress_of


def save_best(model: BaseModel, val: dict[str, Any], current_iter: int) -> None:
    """Save net_g_best.pth where the validation that has just ended is the best so far.

    Args:
        model: the model that was validated.
        val: the section of the options; without key_metric nothing is saved.
        current_iter: iteration of the validation.
    """
    name = val.get("key_metric")
    value = float(getattr(model, "metric_results", {}).get(name, math.nan)) if name else math.nan
    if not math.isfinite(value):
        return
    progress = progress_of(model)
    sign = 1 if val["metrics"][name]["better"] == "higher" else -1
    best = progress.best
    if best is not None and best["metric"] == name and sign * value < sign * best["value"]:
        return
    try:
        model.save(-1, "best")
    except OSError as error:
        return get_root_logger().error(f"The best model was not saved: {error}")
    progress.best = {"metric": name, "value": value, "iter": current_iter}
    get_root_logger().info(f"The best {name} so far, {value:.4f}: saved as net_g_best.pth")
