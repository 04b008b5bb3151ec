"""Converts maps and masks of an image to the token map: where ITER (arXiv:2312.05616) keeps tokens and where it draws.

A map is a picture of any size that covers the image, (b or 1, 1, height, width), or has one value per token of the
padded image, (b or 1, h, w), as in `Restored.tokens`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from basicsr_compat.schema import Probability, problems_in


class Canvas(NamedTuple):
    """What maps refer to: images, height, width of the LQ images; tokens_high, tokens_wide of the padded ones;
    unit: LQ pixels of a token's side."""

    images: int
    height: int
    width: int
    tokens_high: int
    tokens_wide: int
    unit: int


def alpha_per_token(alpha: float | Tensor, canvas: Canvas, device: torch.device) -> float | Tensor:
    """The threshold of Eq. 6: a number unchanged, or (b or 1, h, w) float32, the mean of the map over each token.

    Means are clamped to the range of their values, so a constant map stays exactly constant.

    Raises:
        ValueError: a wrong shape or dtype, or values outside [0, 1].
    """
    if not isinstance(alpha, Tensor) or alpha.ndim == 0:
        alpha = alpha.item() if isinstance(alpha, Tensor) else alpha
        for problem in problems_in(alpha, Probability, "alpha"):
            raise ValueError(f"{problem}, or a map of such values")
        return alpha
    if not alpha.is_floating_point():
        raise ValueError(f"alpha is a map of {alpha.dtype}; it must be floating point, in [0, 1]")
    alpha = alpha.to(device, torch.float32)
    _check_shape("alpha", alpha, canvas)
    low, high = (x.item() for x in alpha.aminmax())
    if not 0 <= low <= high <= 1:
        raise ValueError(f"alpha is a map with values from {low:g} to {high:g}; they must be in [0, 1]")
    return alpha if alpha.ndim == 3 else _on_tokens(alpha, canvas, _mean)


def redraw_per_token(redraw: Tensor, canvas: Canvas, device: torch.device) -> Tensor:
    """(b, h, w) bool: every token that the mask touches. In a floating-point mask, values of at least 0.5 are marked.

    Raises:
        ValueError: a wrong shape or dtype, or values outside [0, 1].
    """
    if not isinstance(redraw, Tensor):
        raise ValueError(f"redraw is a {type(redraw).__name__}; it must be a tensor, True where tokens are drawn anew")
    if redraw.dtype != torch.bool and not redraw.is_floating_point():
        raise ValueError(f"redraw is a mask of {redraw.dtype}; it must be bool, or floating point in [0, 1]")
    _check_shape("redraw", redraw, canvas)
    if redraw.is_floating_point() and not bool(((redraw >= 0) & (redraw <= 1)).all()):
        raise ValueError("redraw is a mask with values outside [0, 1]")
    marked = (redraw >= 0.5).to(device, torch.float32)
    marked = marked if marked.ndim == 3 else _on_tokens(marked, canvas, F.adaptive_max_pool2d)
    return (marked > 0).expand(canvas.images, -1, -1)


def check_tokens(tokens: Tensor, canvas: Canvas, num_codes: int) -> None:
    """Raise a ValueError unless these may be the tokens of an earlier result: (b, h, w) int64 in [0, N)."""
    shape = canvas.images, canvas.tokens_high, canvas.tokens_wide
    if not isinstance(tokens, Tensor) or tokens.dtype != torch.int64:
        kind = tokens.dtype if isinstance(tokens, Tensor) else type(tokens).__name__
        raise ValueError(f"tokens are {kind}; they must be a tensor of torch.int64")
    if tuple(tokens.shape) != shape:
        raise ValueError(f"tokens have shape {tuple(tokens.shape)}; they must have {shape}, a token map of this lq")
    low, high = (x.item() for x in tokens.aminmax())
    if not 0 <= low <= high < num_codes:
        raise ValueError(
            f"tokens are from {low} to {high}; they must be in [0, {num_codes}), the codes of this network"
        )


def _check_shape(name: str, given: Tensor, canvas: Canvas) -> None:
    images = (1, canvas.images)
    if given.ndim == 4 and given.shape[0] in images and given.shape[1] == 1 and 0 not in given.shape:
        return
    tokens = canvas.tokens_high, canvas.tokens_wide
    if given.ndim == 3 and given.shape[0] in images and tuple(given.shape[1:]) == tokens:
        return
    raise ValueError(
        f"{name} has shape {tuple(given.shape)}; it must be ({canvas.images} or 1, 1, height, width), a picture of any "
        f"size that covers the image, or ({canvas.images} or 1, {tokens[0]}, {tokens[1]}), a value for every token"
    )


def _on_tokens(picture: Tensor, canvas: Canvas, pool: Callable[..., Tensor]) -> Tensor:
    """(b, 1, height, width) -> (b, h, w). Padding repeats the edges, so it equals the tokens at the edge."""
    picture = pool(picture, (canvas.height, canvas.width))
    right, bottom = canvas.unit * canvas.tokens_wide - canvas.width, canvas.unit * canvas.tokens_high - canvas.height
    picture = F.pad(picture, (0, right, 0, bottom), mode="replicate")
    return pool(picture, (canvas.tokens_high, canvas.tokens_wide))[:, 0]


def _mean(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """Mean over the area of every pixel of the new size."""
    low, high = -F.adaptive_max_pool2d(-picture, size), F.adaptive_max_pool2d(picture, size)
    return F.adaptive_avg_pool2d(picture, size).clamp(low, high)
