"""Padding rule and tiled evaluation of networks, so that memory is set by the tile and not by the image.

The iterations of Algorithm 2 run on the token map of the whole image, which is small; only the networks run tile by
tile. Every position has one token, drawn once, from the tile in which it lies deepest, and quotas are those of the
whole image: tiles cannot disagree. The decoded tiles are blended over their overlap.
"""

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

Where = tuple[slice, slice, slice]


class Span(NamedTuple):
    """What a tile covers of an axis, [start, stop), and what of it no other tile serves better, [first, last)."""

    start: int
    stop: int
    first: int
    last: int


class Tile(NamedTuple):
    """Position of a tile on the token grid, in tokens."""

    rows: Span
    columns: Span

    def crop(self, x: Tensor, factor: int = 1) -> Tensor:
        """The part of x (..., factor * h, factor * w) that the tile covers."""
        rows = slice(factor * self.rows.start, factor * self.rows.stop)
        columns = slice(factor * self.columns.start, factor * self.columns.stop)
        return x[..., rows, columns]

    def core(self, x: Tensor) -> Tensor:
        """The part of x (..., rows, columns), which the tile covers, for which it is the best one."""
        rows = slice(self.rows.first - self.rows.start, self.rows.last - self.rows.start)
        columns = slice(self.columns.first - self.columns.start, self.columns.last - self.columns.start)
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


def spans(length: int, tile: int, overlap: int) -> list[Span]:
    """Spans of at most ``tile`` that cover [0, length): evenly strided, the last one flush with the end."""
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap={overlap} must be in [0, tile={tile})")
    tile = min(tile, length)
    starts = [*range(0, length - tile, tile - overlap), length - tile]
    # Two neighbours meet in the middle of what they share.
    cuts = [0, *((a + tile + b) // 2 for a, b in zip(starts, starts[1:], strict=False)), length]
    return [Span(start, start + tile, *cuts[i : i + 2]) for i, start in enumerate(starts)]


def make_tiles(height: int, width: int, tile: int, overlap: int) -> list[Tile]:
    """Tiles of at most tile x tile tokens that overlap by at least ``overlap`` on a grid of height x width."""
    columns = spans(width, tile, overlap)
    return [Tile(rows, one) for rows in spans(height, tile, overlap) for one in columns]


def run_tiles(
    network: Callable[..., Tensor], tiles: list[Tile], *maps: Tensor, batch: int, factor: int = 1
) -> Iterator[tuple[Tile, slice, Tensor]]:
    """Run a network on every tile of every image, ``batch`` tiles at a time.

    Args:
        network: takes the crops of ``maps`` (k, ..., factor * tile height, factor * tile width), k <= batch.
        maps: (b, ..., factor * h, factor * w), whole images.

    Yields:
        (tile, images, output): images is a slice of the b images, output (images, ...) what the network made of them.
    """
    items = [(tile, image) for tile in tiles for image in range(len(maps[0]))]
    for begin in range(0, len(items), batch):
        runs = []
        for tile, run in groupby(items[begin : begin + batch], key=lambda item: item[0]):
            images = [image for _, image in run]
            runs.append((tile, slice(images[0], images[-1] + 1)))
        outputs = network(*(torch.cat([tile.crop(x[images], factor) for tile, images in runs]) for x in maps))
        sizes = [images.stop - images.start for _, images in runs]
        for (tile, images), output in zip(runs, outputs.split(sizes), strict=True):
            yield tile, images, output


def cores(pieces: Iterator[tuple[Tile, slice, Tensor]]) -> Iterator[tuple[Where, Tensor]]:
    """Of every piece of `run_tiles` on the token grid the part that counts: (index into (b, h, w), output there)."""
    for tile, images, output in pieces:
        where = images, slice(tile.rows.first, tile.rows.last), slice(tile.columns.first, tile.columns.last)
        yield where, tile.core(output)


def feather(axis: list[Span], factor: int) -> dict[Span, Tensor]:
    """Weight of every pixel of every span of an axis, (factor * size,) in [0, 1]; those of a pixel sum to 1."""
    middles = [(a.stop + b.start) / 2 for a, b in zip(axis, axis[1:], strict=False)]
    width = min((a.stop - b.start for a, b in zip(axis, axis[1:], strict=False)), default=0)

    def rise(x: Tensor, middle: float) -> Tensor:
        # As wide as the smallest overlap everywhere: no ramp begins before the one to its left.
        return ((x - factor * middle) / max(1, factor * width) + 0.5).clamp(0, 1)

    weights = {}
    for span, left, right in zip(axis, [None, *middles], [*middles, None], strict=True):
        x = torch.arange(factor * span.start, factor * span.stop) + 0.5
        weight = torch.ones_like(x) if left is None else rise(x, left)
        weights[span] = weight if right is None else weight - rise(x, right)
    return weights


def blend(pieces: Iterator[tuple[Tile, slice, Tensor]], tiles: list[Tile], images: int, *, factor: int = 1) -> Tensor:
    """Pieces of `run_tiles` -> (images, c, factor * h, factor * w) float32, going over gradually between tiles.

    factor: output pixels a token.
    """
    height, width = tiles[-1].rows.stop, tiles[-1].columns.stop
    weights = {
        span: weight
        for axis in ({tile.rows: None for tile in tiles}, {tile.columns: None for tile in tiles})
        for span, weight in feather(list(axis), factor).items()
    }
    total: Tensor | None = None
    for tile, where, output in pieces:
        if len(tiles) == 1 and len(output) == images:
            return output
        if total is None:
            size = images, output.shape[1], factor * height, factor * width
            total = output.new_zeros(size, dtype=torch.float32)
        weight = weights[tile.rows][:, None] * weights[tile.columns]
        tile.crop(total[where], factor).addcmul_(output.float(), weight.to(output.device))
    return total
