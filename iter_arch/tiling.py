"""Padding rule and tiled evaluation of networks, so that memory is set by the tile and not by the image.

The iterations of Algorithm 2 run on the token map of the whole image, which is small; only the networks run tile by
tile, and their outputs are blended over the overlap. Every position therefore has one token, drawn once, and quotas are
those of the whole image: tiles cannot disagree.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Tile(NamedTuple):
    """Position of a tile on the token grid, in tokens."""

    top: int
    left: int
    height: int
    width: int

    def crop(self, x: Tensor, factor: int = 1) -> Tensor:
        """The part of x (..., factor * h, factor * w) that the tile covers."""
        rows = slice(factor * self.top, factor * (self.top + self.height))
        columns = slice(factor * self.left, factor * (self.left + self.width))
        return x[..., rows, columns]


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pad right and bottom by reflection up to the next multiple; nothing is added when it already fits.

    x: (b, c, h, w), any size >= 1x1; smaller than the padding works too, by reflecting repeatedly.
    """
    for dim in (2, 3):
        size = x.shape[dim]
        target = -(-size // multiple) * multiple
        if target != size:
            period = max(1, 2 * (size - 1))
            position = torch.arange(target, device=x.device) % period
            x = x.index_select(dim, torch.minimum(position, period - position) if size > 1 else position)
    return x


def starts(length: int, tile: int, stride: int) -> list[int]:
    """Starts of tiles of ``tile`` that cover [0, length): evenly strided, the last one flush with the end."""
    if length <= tile:
        return [0]
    return [*range(0, length - tile, stride), length - tile]


def make_tiles(height: int, width: int, tile: int, overlap: int) -> list[Tile]:
    """Tiles of at most tile x tile tokens that overlap by at least ``overlap`` on a grid of height x width."""
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap={overlap} must be in [0, tile={tile})")
    return [
        Tile(top, left, min(tile, height), min(tile, width))
        for top in starts(height, tile, tile - overlap)
        for left in starts(width, tile, tile - overlap)
    ]


def feather(tile: Tile, height: int, width: int, overlap: int, factor: int) -> Tensor:
    """Blending weights of a tile: (factor * tile.height, factor * tile.width) in (0, 1], ramps at its neighbours."""

    def ramp(start: int, size: int, length: int) -> Tensor:
        weights = torch.ones(size * factor)
        rise = (torch.arange(overlap * factor) + 0.5) / max(1, overlap * factor)
        if start > 0:
            weights[: overlap * factor] = rise
        if start + size < length:
            weights[size * factor - overlap * factor :] = rise.flip(0)
        return weights

    return ramp(tile.top, tile.height, height)[:, None] * ramp(tile.left, tile.width, width)


def blend_tiles(
    run: Callable[[int, Tile], Tensor], tiles: list[Tile], height: int, width: int, *, overlap: int, factor: int = 1
) -> Tensor:
    """Run a network on every tile and blend the outputs.

    Args:
        run: (index of the tile, tile) -> output (b, c, factor * tile.height, factor * tile.width).
        factor: output pixels a token.

    Returns:
        (b, c, factor * height, factor * width).
    """
    if len(tiles) == 1:
        return run(0, tiles[0])
    total: Tensor | None = None
    for index, tile in enumerate(tiles):
        output = run(index, tile)
        if total is None:
            total = output.new_zeros(*output.shape[:2], factor * height, factor * width, dtype=torch.float32)
            weight_sum = total.new_zeros(factor * height, factor * width)
        weights = feather(tile, height, width, overlap, factor).to(total.device)
        tile.crop(total, factor).add_(output * weights)
        tile.crop(weight_sum, factor).add_(weights)
    return total.div_(weight_sum)
