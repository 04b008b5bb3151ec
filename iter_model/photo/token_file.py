"""Files with the tokens of a result, so that a region of it can be redrawn later (ITER, arXiv:2312.05616)."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from basicsr_compat.files import atomic_write

FORMAT = "iter-tokens-1"
# A result of 100 megapixels has 1.6 million tokens, of at most 6 characters.
MAX_BYTES = 1 << 26


class TokenFile(NamedTuple):
    """The tokens of a result.

    tokens: (1, h, w) int64, of the padded photo.
    size: (height, width) of the photo.
    model: `model_checksum` of the network.
    seed: that the tokens were drawn with.
    """

    tokens: Tensor
    size: tuple[int, int]
    model: str
    seed: int


def model_checksum(net: nn.Module) -> str:
    """A SHA-256 of all weights; equal for networks with equal weights in the same precision."""
    digest = hashlib.sha256()
    for name, x in sorted(net.state_dict().items()):
        digest.update(f"{name} {tuple(x.shape)} {x.dtype}".encode())
        digest.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_tokens(path: str | os.PathLike, found: TokenFile) -> None:
    """Write a file of tokens atomically. Raises OSError."""
    content = found._asdict() | {"format": FORMAT, "tokens": found.tokens[0].tolist()}
    with atomic_write(path) as temporary:
        Path(temporary).write_text(json.dumps(content), encoding="utf-8")


def read_tokens(path: str | os.PathLike) -> TokenFile:
    """Read what `write_tokens` wrote.

    Raises:
        ValueError: it is no such file; the message names the file, the field, and the rule.
        OSError: it cannot be read.
    """
    if os.path.getsize(path) > MAX_BYTES:
        raise ValueError(f"{path}: larger than {MAX_BYTES >> 20} MiB; it must be a file that --save-tokens wrote")
    try:
        content = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error}); it must be a file that --save-tokens wrote") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path}: format must be {FORMAT!r}, a file that --save-tokens wrote")
    size, tokens = content.get("size"), content.get("tokens")
    rules = {
        "seed": (_is_whole(content.get("seed"), 2**63), "a whole number from 0 on"),
        "model": (isinstance(content.get("model"), str), "the checksum of the weights"),
        "size": (_is_size(size), "height and width"),
        "tokens": (_is_map(tokens), "rows of equal length of whole numbers from 0 on"),
    }
    for name, (fits, rule) in rules.items():
        if not fits:
            raise ValueError(f"{path}: {name} must be {rule}")
    height, width = content["size"]
    return TokenFile(torch.tensor([tokens]), (height, width), content["model"], content["seed"])


def check_tokens_fit(path: Path, found: TokenFile, size: tuple[int, int], model: str) -> None:
    """Raise ValueError unless the tokens belong to a photo of this (height, width) and to weights of this checksum."""
    if found.size != size:
        raise ValueError(
            f"{path}: size={list(found.size)} must be that of the photo, {list(size)}: give the photo that was restored"
        )
    if found.model != model:
        raise ValueError(f"{path}: model is another one than --model, or in another --precision; give the same")


def _is_whole(value: Any, limit: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < limit


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(_is_whole(side, 2**20) for side in value)


def _is_map(rows: Any) -> bool:
    return (
        isinstance(rows, list)
        and bool(rows)
        and all(isinstance(row, list) and row for row in rows)
        and len({len(row) for row in rows}) == 1
        and all(_is_whole(token, 2**31) for row in rows for token in row)
    )
