"""The authors' released checkpoints as state dicts of our networks, and back (ITER, arXiv:2312.05616, release v0.1.0).

ITER_x4.pth and ITER_x2.pth hold all four networks, or all but the VQGAN, which is then that of ITER_swinvqgan.pth. They
fit our classes, with residual groups and gates. Names differ, the token embedding is a 1x1 conv there, and the two
halves of the mixing layer are one weight. Both directions only rename, transpose, split, and join.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from basicsr_compat.files import require_fit
from basicsr_compat.meta import on_meta
from iter_arch.lq_encoder_arch import LQEncoder
from iter_arch.pretrained.infer import infer_network, infer_num_codes, infer_stages, infer_vqgan
from iter_arch.swin import relative_position_index, shift_mask
from iter_arch.swin_vqgan_arch import SwinVQGAN
from iter_arch.token_arch import TokenEvaluator, TokenRefiner

# Buffers that hold no information: ignored when reading, rebuilt when writing.
DERIVED = ("relative_position_index", "attn_mask")
# Tokens along a side of the 256x256 images whose attention masks the released files hold.
MASK_GRID = 32
# Residual blocks per stage of the LQ encoder.
RES_BLOCKS = 2

TOKEN_NETWORKS = {
    "evaluator": "token_refine_net.token_crit_net",
    "refiner": "token_refine_net.token_refine_net",
}
# The halves of `combine`, in the order in which the released networks concatenate the two token maps.
HALVES = {"evaluator": ("mix_t", "mix_l"), "refiner": ("mix_l", "mix_t")}

# Pairs (their name, our name) of modules; # stands for a number. The first that matches the beginning of a key is used.
Names = list[tuple[str, str]]
TOKEN_NETWORK_NAMES = [("code_emb", "embedding"), ("conv_out.0", "norm"), ("conv_out.2", "head")]
LQ_BLOCK_NAMES = [("conv.0.norm", "norm1"), ("conv.2", "conv1"), ("conv.3.norm", "norm2"), ("conv.5", "conv2")]
SWIN_NAMES = [
    ("swin_blks.#.residual_group.blocks.#.mlp.attn", "groups.#.blocks.#.mlp.gate"),
    ("swin_blks.#.residual_group.blocks.#", "groups.#.blocks.#"),
    ("swin_blks.#.conv", "groups.#.conv"),
    ("conv_in", "conv_in"),
    ("conv_out", "conv_out"),
]


def is_released(keys: Iterable[str]) -> bool:
    """Whether these are keys of a released checkpoint, complete or not."""
    pattern = r"((vqgan\.)?(encoder|decoder|generator)\.blocks|lq_encoder\.model|token_refine_net)\."
    return any(re.match(pattern, key) for key in keys)


def from_released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a released checkpoint for our networks, bit for bit; the inverse of `to_released`.

    Args:
        state: the ``params`` of ITER_x4.pth or ITER_x2.pth, with or without ``vqgan.*``, or of ITER_swinvqgan.pth; with
            or without ``generator``, an alias of the VQGAN's decoder. Derived buffers are ignored.

    Returns:
        ``ITER.state_dict()``, without ``vqgan.*`` where the checkpoint has none; for ITER_swinvqgan.pth
        ``SwinVQGAN.state_dict()``.

    Raises:
        ValueError: something is left over or missing, or has an impossible shape; the first keys are named.
    """
    theirs = {key: value for key, value in state.items() if not key.endswith(DERIVED)}
    for alias in [key for key in theirs if re.match(r"(vqgan\.)?generator\.", key)]:
        value, key = theirs.pop(alias), alias.replace("generator.", "decoder.", 1)
        if not torch.equal(theirs.setdefault(key, value), value):
            raise ValueError(f"{alias} must equal {key}, whose alias it is")
    alone = any(re.match(r"(encoder|decoder)\.blocks\.", key) for key in theirs)
    if alone:
        theirs = {f"vqgan.{key}": value for key, value in theirs.items()}
    names = _names(
        _matches(r"vqgan\.(encoder|decoder)\.blocks\.(\d+)\.swin_blks\.", theirs),
        stages=len(_matches(r"lq_encoder\.model\.(\d+)\.\d+\.", theirs)),
    )
    rename = _renamer(names)
    ours = {rename(key): value for key, value in theirs.items()}
    for network, prefix in TOKEN_NETWORKS.items():
        embedding = f"{network}.embedding.weight"
        if embedding in ours:
            ours[embedding] = _linear(ours[embedding]).t().contiguous()
        combine = ours.pop(f"{prefix}.combine.weight", None)
        if combine is not None:
            for half, part in zip(HALVES[network], _linear(combine).tensor_split(2, dim=1), strict=True):
                ours[f"{network}.{half}.weight"] = part.contiguous()
    try:
        expected = _join(_parts(ours), names)
    except ValueError as error:
        key, _, rest = str(error).partition(" ")
        raise ValueError(f"{_renamer(names, backwards=True)(key)} {rest}") from None
    require_fit(expected, theirs)
    return {key.removeprefix("vqgan."): value for key, value in ours.items()} if alone else ours


def to_released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of our networks as the authors' code loads them, bit for bit; the inverse of `from_released`.

    Like their files, the result also holds ``generator.*``, an alias of the VQGAN's decoder (the same tensors), and the
    derived buffers, rebuilt: relative_position_index (int64), and attn_mask (float32) for a grid of 32x32 tokens.

    Args:
        state: ``ITER.state_dict()`` with or without ``vqgan.*``, or ``SwinVQGAN.state_dict()``, of the released form.

    Raises:
        ValueError: the networks are not of the released form, or something is left over or missing.
    """
    alone = any(key.startswith(("encoder.", "decoder.", "quantizer.")) for key in state)
    ours = {f"vqgan.{key}": value for key, value in state.items()} if alone else dict(state)
    require_fit(_parts(ours), ours)
    names = _names(
        _matches(r"vqgan\.(encoder|decoder)\.(\d+)\.groups\.", ours),
        stages=len(_matches(r"lq_encoder\.stem\.(\d+)\.", ours)) // (1 + RES_BLOCKS),
    )
    theirs = _join(ours, names)
    for key, table in list(theirs.items()):
        block, _, name = key.rpartition(".attn.")
        if name == "relative_position_bias_table":
            window = (round(table.shape[0] ** 0.5) + 1) // 2
            theirs[f"{block}.attn.relative_position_index"] = relative_position_index(window)
            if int(block.rpartition(".")[2]) % 2:
                mask = shift_mask(MASK_GRID, MASK_GRID, window, window // 2, torch.device("cpu"))
                theirs[f"{block}.attn_mask"] = mask
    for key in [key for key in theirs if key.startswith("vqgan.decoder.")]:
        theirs[key.replace("decoder.", "generator.", 1)] = theirs[key]
    return {key.removeprefix("vqgan."): value for key, value in theirs.items()} if alone else theirs


def _matches(pattern: str, keys: Iterable[str]) -> set[tuple[str, ...]]:
    """The different groups that ``pattern`` finds at the beginnings of the keys."""
    return {match.groups() for match in (re.match(pattern, key) for key in keys) if match}


def _names(vqgan_stages: Iterable[Sequence[str]], stages: int) -> Names:
    """Names of all modules.

    Args:
        vqgan_stages: ('encoder' or 'decoder', index) of the VQGAN's Swin stages.
        stages: stride-2 stages of the LQ encoder.
    """

    def within(theirs: str, ours: str, names: Names) -> Names:
        return [(f"{theirs}.{their_name}", f"{ours}.{our_name}") for their_name, our_name in names]

    names = [("vqgan.quantize", "vqgan.quantizer")]
    for coder, index in vqgan_stages:
        names += within(f"vqgan.{coder}.blocks.{index}", f"vqgan.{coder}.{index}", SWIN_NAMES)
    for coder in ("vqgan.encoder", "vqgan.decoder"):
        names += [(f"{coder}.blocks.#.conv_out", f"{coder}.#.shortcut"), (f"{coder}.blocks.#", f"{coder}.#")]

    names.append(("lq_encoder.model.0", "lq_encoder.stem.0"))
    layer = 1
    for stage in range(1, stages + 1):
        names.append((f"lq_encoder.model.{stage}.0", f"lq_encoder.stem.{layer}"))
        for block in range(1, RES_BLOCKS + 1):
            names += within(f"lq_encoder.model.{stage}.{block}", f"lq_encoder.stem.{layer + block}", LQ_BLOCK_NAMES)
        layer += 1 + RES_BLOCKS
    names += within(f"lq_encoder.model.{stages + 2}", "lq_encoder.swin", SWIN_NAMES)
    names.append((f"lq_encoder.model.{stages + 1}", "lq_encoder.project"))
    names.append((f"lq_encoder.model.{stages + 3}", "lq_encoder.head"))

    for ours, theirs in TOKEN_NETWORKS.items():
        names += within(theirs, ours, TOKEN_NETWORK_NAMES)
        names += within(f"{theirs}.swin_layers", f"{ours}.swin", SWIN_NAMES)
    return names


def _renamer(names: Names, *, backwards: bool = False) -> Callable[[str], str]:
    """Translates keys into ours, or backwards into theirs. A key without a match stays."""
    pairs = [(new, old) for old, new in names] if backwards else names
    patterns = [
        (re.compile(re.escape(old).replace(r"\#", r"(\d+)") + r"(?=\.)"), new.replace("#", "{}")) for old, new in pairs
    ]

    def rename(key: str) -> str:
        for pattern, new in patterns:
            match = pattern.match(key)
            if match:
                return new.format(*match.groups()) + key[match.end() :]
        return key

    return rename


def _linear(weight: Tensor) -> Tensor:
    """The matrix of a 1x1 conv. Anything else gives some matrix, because shapes are checked later, where keys are
    known."""
    return weight.flatten(1) if weight.ndim > 1 else weight.reshape(-1, 1)


def _join(ours: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Our weights under their names."""
    rename = _renamer(names, backwards=True)
    ours = dict(ours)
    theirs = {}
    for network, prefix in TOKEN_NETWORKS.items():
        if any(key.startswith(f"{network}.") for key in ours):
            halves = [ours.pop(f"{network}.{half}.weight") for half in HALVES[network]]
            theirs[f"{prefix}.combine.weight"] = torch.cat(halves, dim=1)[..., None, None]
            embedding = ours.pop(f"{network}.embedding.weight").t().contiguous()
            theirs[f"{prefix}.code_emb.weight"] = embedding[..., None, None]
    return theirs | {rename(key): value for key, value in ours.items()}


def _parts(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict, on the meta device, of the networks that these weights belong to."""
    configs: dict[str, dict[str, Any]] = {}
    if any(key.startswith("vqgan.") for key in ours):
        configs["vqgan"] = infer_vqgan(ours)
    if any(not key.startswith("vqgan.") for key in ours):
        configs |= {name: infer_network(ours, name) for name in ("lq_encoder", *TOKEN_NETWORKS)}
    for name, config in configs.items():
        swin = config["swin"]
        if not (swin["residual_groups"] and swin["gate"]):
            raise ValueError(f"{name} is not of the released form: it must have residual groups and gates")
        if MASK_GRID % swin["window"]:
            raise ValueError(f"{name} has window={swin['window']}; it must divide {MASK_GRID} in the released form")
    with on_meta():
        networks = nn.ModuleDict()
        if "vqgan" in configs:
            networks["vqgan"] = SwinVQGAN(**configs["vqgan"])
        if "lq_encoder" in configs:
            config = configs["lq_encoder"]
            if config.setdefault("res_blocks", RES_BLOCKS) != RES_BLOCKS:
                raise ValueError(
                    f"lq_encoder has res_blocks={config['res_blocks']}; the released form has {RES_BLOCKS}"
                )
            num_codes = infer_num_codes(ours)
            networks["lq_encoder"] = LQEncoder(scale=1, factor=2 ** infer_stages(ours), num_codes=num_codes, **config)
            networks["refiner"] = TokenRefiner(num_codes=num_codes, **configs["refiner"])
            networks["evaluator"] = TokenEvaluator(num_codes=num_codes, **configs["evaluator"])
    return networks.state_dict()
