"""Sections of the options that name a class by their `type`: looks them up in BasicSR's registries, and builds them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from basicsr_compat.schema import OneOf, format_error, format_key, format_value, nearest, problems_in

if TYPE_CHECKING:
    import torch


def type_in(kind: str, **further: Any) -> OneOf:
    """A section whose `type` is a name in BasicSR's registry of this kind; further: see `OneOf`."""
    return OneOf(f"registered {kind}", lambda name: find_type(kind, name), lambda: _registry(kind).keys(), **further)


def find_type(kind: str, name: object) -> Any:
    """The class or function of this name in BasicSR's registry of a kind; None where there is none."""
    if not isinstance(name, str):
        return None
    registry = _registry(kind)
    known = [key for key in (name, f"{name}_basicsr") if key in registry]
    return registry.get(known[0]) if known else None


def _registry(kind: str) -> Any:
    from basicsr.utils import registry  # imports all of BasicSR

    return getattr(registry, f"{kind.upper()}_REGISTRY")


Section = Mapping[str, Any]
Network = Annotated[Section, type_in("arch")]


def unregistered(opt: dict) -> Iterator[str]:
    """Say which types are unknown; BasicSR notices that of a metric at the first validation, hours into a run."""
    model = opt["model_type"]
    if find_type("model", model) is None:
        yield f"model_type={format_value(model)} is not a registered model{nearest(model, _registry('model').keys())}"
    named = [("arch", key, value) for key, value in opt.items() if str(key).startswith("network_") and value]
    named += [("dataset", f"datasets.{phase}", dataset) for phase, dataset in opt["datasets"].items()]
    metrics = (opt.get("val") or {}).get("metrics") or {}
    if not isinstance(metrics, dict):
        yield f"val.metrics={format_value(metrics)} must be a section with a section for each metric"
        metrics = {}
    named += [("metric", f"val.metrics.{format_key(key)}", value) for key, value in metrics.items()]
    for key, value in (opt.get("train") or {}).items():
        if str(key).endswith("_opt") and isinstance(value, dict) and "type" in value:
            named.append(("loss", f"train.{key}", value))
    for kind, where, section in named:
        if not isinstance(section, dict) or "type" not in section:
            yield f"{where} must be a section with a `type`"
        elif find_type(kind, section["type"]) is None:
            hint = nearest(section["type"], _registry(kind).keys())
            yield f"{where}.type={format_value(section['type'])} is not a registered {kind}{hint}"
        elif kind == "arch":
            yield from problems_in(section, Network, where)


def build_on_meta(opt: dict) -> tuple[dict[str, torch.nn.Module], list[str]]:
    """Build the networks of the sections network_* on the meta device; returns them, and the problems.

    Only their constructors know which options cannot be combined.
    """
    from basicsr_compat.meta import on_meta

    networks, problems = {}, []
    for key, section in opt.items():
        if not str(key).startswith("network_") or not section or list(problems_in(section, Network, key)):
            continue
        arguments = {name: value for name, value in section.items() if name != "type"}
        try:
            with on_meta():
                networks[key] = find_type("arch", section["type"])(**copy.deepcopy(arguments))
        except Exception as error:  # whatever PyTorch says to sizes that cannot be
            problems.append(f"{key} of type {section['type']} cannot be built: {format_error(error)}")
    return networks, problems
