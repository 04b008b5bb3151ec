"""Rules of metrics: which of their values are better, and which metric chooses the best model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from basicsr_compat.pipeline.sections import find_type
from basicsr_compat.schema import declared, format_value, nearest

# BasicSR's metrics; those of others say it by an attribute: `metric.better = lambda section: "lower"`.
_BETTER = {"calculate_psnr": "higher", "calculate_ssim": "higher", "calculate_niqe": "lower"}


def better_of(section: Mapping[str, Any]) -> str | None:
    """Which values of the metric of a section are better, 'higher' or 'lower'; None where that is unknown."""
    if "better" in section or not isinstance(section.get("type"), str):
        return section.get("better")
    says = getattr(find_type("metric", section["type"]), "better", None)
    return says(section) if says else _BETTER.get(section["type"])


def takes_lq(section: Mapping[str, Any]) -> bool:
    """Whether the metric of a section has an argument for the LQ image; BasicSR passes none."""
    return "lq" in declared(find_type("metric", section["type"])).annotations


def key_metric_problems(opt: dict) -> Iterator[str]:
    """Say what is wrong with val.key_metric, which must name a metric whose better values are known."""
    val = opt.get("val") or {}
    name, known = val.get("key_metric"), val.get("metrics")
    if not isinstance(known, dict):
        known = {}
    if name is not None and name not in known:
        yield (
            f"val.key_metric={format_value(name)} must be the name of one of val.metrics: "
            f"{', '.join(map(str, known)) or 'there are none'}{nearest(name, known)}"
        )
    elif name is not None and isinstance(known[name], dict) and better_of(known[name]) is None:
        yield (
            f"val.metrics.{name}.better is missing: val.key_metric keeps the best model, and "
            f"{format_value(known[name].get('type'))} does not say whether higher or lower is better"
        )
