"""Infers the ITER that a state dict belongs to from keys and shapes (networks of arXiv:2312.05616)."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from iter_arch.sampling import SamplingConfig

NETWORKS = ("lq_encoder", "refiner", "evaluator")
SWIN_FIELDS = ("dim", "depth", "groups", "heads", "window", "mlp_ratio", "residual_groups", "gate")
# Names of arguments in checkpoints of earlier versions, and their section and name now.
EARLIER_NAMES = {name: ("swin", name) for name in SWIN_FIELDS}
EARLIER_VQGAN_NAMES = EARLIER_NAMES | {
    "swin_dim": ("swin", "dim"),
    "swin_depth": ("swin", "depth"),
    "codebook_size": ("quantizer", "num_codes"),
    "code_dim": ("quantizer", "dim"),
    "beta": ("quantizer", "beta"),
}


def infer_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Constructor arguments of the `ITER` whose ``state_dict()`` this is.

    They are the arguments that were used, except those that change neither shapes nor outputs (`beta` of the
    quantizer). Weights that the answer does not depend on are not checked; `basicsr_compat.files.state_difference` does
    that.

    Raises:
        ValueError: a weight that the answer depends on is missing or has an impossible shape.
    """
    vqgan = infer_vqgan(state)
    factor = 2 ** (len(vqgan["multipliers"]) - 1)
    networks = {name: infer_network(state, name) for name in NETWORKS}
    return _with_sampling({"scale": factor // 2 ** infer_stages(state), "vqgan": vqgan} | networks)


def upgrade_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments of a checkpoint, under their names in this version."""
    config = dict(config)
    for part in ("vqgan", *NETWORKS):
        if isinstance(config.get(part), Mapping):
            names = EARLIER_VQGAN_NAMES if part == "vqgan" else EARLIER_NAMES
            section = {key: value for key, value in config[part].items() if key not in names}
            for key, value in config[part].items():
                if key in names and isinstance(section.setdefault(names[key][0], {}), dict):
                    section[names[key][0]].setdefault(names[key][1], value)
            config[part] = section
    return _with_sampling(config)


def _with_sampling(config: dict[str, Any]) -> dict[str, Any]:
    """A config without sampling gets that of the authors' weights, if its networks have the released form."""
    if "sampling" in config:
        return config
    sections = [config[name] for name in NETWORKS if isinstance(config.get(name), Mapping)]
    forms = [section["swin"] for section in sections if isinstance(section.get("swin"), Mapping)]
    if len(forms) == len(NETWORKS) and all(form.get("residual_groups") and form.get("gate") for form in forms):
        return config | {"sampling": dataclasses.asdict(SamplingConfig.released())}
    return config


def infer_stages(state: Mapping[str, Tensor]) -> int:
    """Stride-2 convs of the LQ encoder, log2 of the tokenizer's factor over the scale."""
    return _stages(_Shapes(state, "lq_encoder."))


def infer_vqgan(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of the `SwinVQGAN` below ``vqgan.``."""
    shapes = _Shapes(state, "vqgan.")
    base_channels = shapes.get("encoder.0.weight", 4)[0]
    stages = shapes.indices(r"encoder\.(\d+)\.groups\.")
    if len(stages) != 1:
        raise ValueError(f"vqgan.encoder must have one Swin stage, not {len(stages)}")
    blocks = shapes.indices(r"encoder\.(\d+)\.conv1\.")
    # A level ends where the size changes. The last one ends at the block before the Swin stage.
    ends = [*shapes.indices(r"encoder\.(\d+)\.conv\."), stages[0]]
    multipliers = []
    for end in ends:
        last = max((block for block in blocks if block < end), default=None)
        if last is None:
            raise ValueError(f"vqgan.encoder must have a residual block before its layer {end}")
        width = shapes.get(f"encoder.{last}.conv1.weight", 4)[0]
        if width % base_channels:
            raise ValueError(f"vqgan.encoder.{last} has {width} channels; they must be a multiple of {base_channels}")
        multipliers.append(width // base_channels)
    num_codes, dim = shapes.get("quantizer.embedding.weight", 2)
    return {
        "base_channels": base_channels,
        "multipliers": multipliers,
        "res_blocks": sum(block < ends[0] for block in blocks),
        "quantizer": {"num_codes": num_codes, "dim": dim},
        "swin": _swin(state, f"vqgan.encoder.{stages[0]}."),
    }


def infer_network(state: Mapping[str, Tensor], name: str) -> dict[str, Any]:
    """Arguments of the 'lq_encoder', 'refiner' or 'evaluator' besides the scale, the factor and the number of codes."""
    swin = {"swin": _swin(state, f"{name}.swin.")}
    if name != "lq_encoder":
        return swin
    shapes = _Shapes(state, "lq_encoder.")
    stages = _stages(shapes)
    blocks = len(shapes.indices(r"stem\.(\d+)\.conv1\."))
    stem: dict[str, Any] = {"stem_channels": shapes.get("stem.0.weight", 4)[0]}
    return stem | ({"res_blocks": blocks // stages} if stages else {}) | swin


def infer_num_codes(state: Mapping[str, Tensor]) -> int:
    """N."""
    return _Shapes(state, "lq_encoder.").get("head.weight", 4)[0]


class _Shapes:
    """Shapes of the weights below a prefix."""

    def __init__(self, state: Mapping[str, Tensor], prefix: str) -> None:
        self.prefix = prefix
        self.shapes = {key.removeprefix(prefix): tuple(x.shape) for key, x in state.items() if key.startswith(prefix)}

    def get(self, key: str, ndim: int) -> tuple[int, ...]:
        """The shape of a weight that must be there."""
        if key not in self.shapes:
            raise ValueError(f"{self.prefix}{key} is missing")
        shape = self.shapes[key]
        if len(shape) != ndim or 0 in shape:
            raise ValueError(f"{self.prefix}{key} has shape {shape}; it must have {ndim} dimensions, none empty")
        return shape

    def indices(self, pattern: str) -> list[int]:
        """The numbers at the group of ``pattern`` in the beginnings of the keys, ascending."""
        matches = (re.match(pattern, key) for key in self.shapes)
        return sorted({int(match[1]) for match in matches if match})


def _stages(lq_encoder: _Shapes) -> int:
    return len(lq_encoder.indices(r"stem\.([1-9]\d*)\.(?:weight|bias)$"))


def _swin(state: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    """Arguments of the `SwinStage` below ``prefix``."""
    shapes = _Shapes(state, prefix)
    block = "groups.0.blocks.0."
    dim = shapes.get(f"{block}attn.proj.weight", 2)[0]
    table, heads = shapes.get(f"{block}attn.relative_position_bias_table", 2)
    hidden = shapes.get(f"{block}mlp.fc1.weight", 2)[0]
    ratio = hidden / dim
    return {
        "dim": dim,
        "depth": len(shapes.indices(r"groups\.0\.blocks\.(\d+)\.")),
        "groups": len(shapes.indices(r"groups\.(\d+)\.")),
        "heads": heads,
        "window": (math.isqrt(table) + 1) // 2,
        # Rounding may put the product below its integer.
        "mlp_ratio": ratio if int(dim * ratio) == hidden else (hidden + 0.5) / dim,
        "residual_groups": bool(shapes.indices(r"groups\.(\d+)\.conv\.")),
        "gate": bool(shapes.indices(r"groups\.(\d+)\.blocks\.\d+\.mlp\.gate\.")),
    }
