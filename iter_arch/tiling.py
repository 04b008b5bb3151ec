"""Padding, and networks run tile by tile, so that memory depends on the tile and not on the image.

Algorithm 2 iterates on the token map of the whole image, which is small. Only the networks run tile by tile, and their
outputs are blended in the overlap, row by row. Every position has one token, drawn once, and quotas are those of the
whole image, so tiles cannot disagree.
"""

from collections.abc import Callable, Iterator
from itertools import chain, groupby
from typing import NamedTuple

import torch
from torch import Tensor

# Rows of tokens whose outputs are yielded together, and the numbers that they may hold: of logits, sampling makes
# several copies.
STRIP_ROWS, STRIP_NUMBERS = 8, 3 * 2**20

# The place of a tile of an output in maps (b, h, w): slices of the batch, or of the batch and the rows.
TileIndex = tuple[slice, ...]


class Span(NamedTuple):
    """What a tile covers of an axis, [start, stop)."""

    start: int
    stop: int


class Tile(NamedTuple):
    """Position of a tile on the token grid, in tokens."""

    rows: Span
    columns: Span

    def crop(self, x: Tensor, factor: int = 1) -> Tensor:
        """The part of x (..., factor * h, factor * w) that the tile covers."""
        rows = slice(factor * self.rows.start, factor * self.rows.stop)
        columns = slice(factor * self.columns.start, factor * self.columns.stop)
        return x[..., rows, columns]


# A tile, the images of the batch that it is cut from, and the output of a network.
TilePiece = tuple[Tile, slice, Tensor]


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pad right and bottom by reflection up to the next multiple. A size that fits already stays.

    x: (b, c, h, w), any size >= 1x1. An image smaller than the padding is reflected repeatedly.
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
    starts = [*range(0, length - tile, max(1, tile - overlap)), length - tile]
    return [Span(start, start + tile) for start in starts]


def make_tiles(height: int, width: int, tile: int, overlap: int) -> list[Tile]:
    """Tiles of at most tile x tile tokens that overlap by at least ``overlap`` on a grid of height x width."""
    columns = spans(width, tile, overlap)
    return [Tile(rows, one) for rows in spans(height, tile, overlap) for one in columns]


def run_tiles(
    network: Callable[..., Tensor], tiles: list[Tile], *maps: Tensor, batch: int, factor: int = 1
) -> Iterator[TilePiece]:
    """Run a network on every tile of every image, ``batch`` tiles at a time.

    Args:
        network: takes the crops of ``maps`` (k, ..., factor * tile height, factor * tile width), k <= batch.
        maps: (b, ..., factor * h, factor * w), whole images.

    Yields:
        (tile, images, output): images is a slice of the b images, and output (images, ...) the network's output for
        them.
    """
    items = [(tile, image) for tile in tiles for image in range(len(maps[0]))]
    for begin in range(0, len(items), batch):
        runs = []
        for tile, run in groupby(items[begin : begin + batch], key=lambda item: item[0]):
            images = [image for _, image in run]
            runs.append((tile, slice(images[0], images[-1] + 1)))
        outputs = network(*(torch.cat([tile.crop(x[where], factor) for tile, where in runs]) for x in maps))
        sizes = [where.stop - where.start for _, where in runs]
        for (tile, where), output in zip(runs, outputs.split(sizes), strict=True):
            yield tile, where, output


def feather(axis: list[Span], factor: int, device: torch.device) -> dict[Span, Tensor]:
    """Weight of every pixel of every span of an axis, (factor * size,) in [0, 1]; those of a pixel sum to 1."""
    middles = [(a.stop + b.start) / 2 for a, b in zip(axis, axis[1:], strict=False)]
    width = min((a.stop - b.start for a, b in zip(axis, axis[1:], strict=False)), default=0)

    def rise(x: Tensor, middle: float) -> Tensor:
        # As wide as the smallest overlap everywhere: no ramp begins before the one to its left.
        return ((x - factor * middle) / max(1, factor * width) + 0.5).clamp(0, 1)

    weights = {}
    for span, left, right in zip(axis, [None, *middles], [*middles, None], strict=True):
        x = torch.arange(factor * span.start, factor * span.stop, device=device) + 0.5
        weight = torch.ones_like(x) if left is None else rise(x, left)
        weights[span] = weight if right is None else weight - rise(x, right)
    return weights


def zero_band(output: Tensor, images: int, width: int) -> Tensor:
    """Zeros (images, c, rows, width), at least float32, to which outputs like this one (k, c, rows, columns) are added.

    They have the layout of the output: between two layouts, adding takes several times as long on a CPU.
    """
    pixels_first = output.is_contiguous(memory_format=torch.channels_last)
    return torch.empty(
        (images, output.shape[1], output.shape[2], width),
        dtype=torch.promote_types(output.dtype, torch.float32),
        device=output.device,
        memory_format=torch.channels_last if pixels_first else torch.contiguous_format,
    ).zero_()


def blend_strips(
    pieces: Iterator[TilePiece], tiles: list[Tile], images: int, *, factor: int = 1
) -> Iterator[tuple[TileIndex, Tensor]]:
    """Blend pieces of `run_tiles`, yielding rows as soon as no other tile adds to them.

    Args:
        images: b, the number of images.
        factor: output pixels per token.

    Yields:
        (where, output): where is an index into maps (b, factor * h, factor * w), output (images, c, rows, columns)
        there, at least float32 if there are several tiles, until the next one is asked for. No more than one row of
        tiles is held at a time.
    """
    if len(tiles) == 1:
        for _, where, output in pieces:
            yield (where,), output
        return
    width = factor * tiles[-1].columns.stop
    band: Tensor | None = None
    top = 0

    def finished(band: Tensor, stop: int) -> Iterator[tuple[TileIndex, Tensor]]:
        count = factor * max(1, min(STRIP_ROWS, STRIP_NUMBERS // (factor * band[:, :, 0].numel())))
        for first in range(top, stop, count):
            last = min(first + count, stop)
            yield (slice(None), slice(first, last)), band[:, :, first - top : last - top]

    for tile, where, output in pieces:
        start = factor * tile.rows.start
        if band is None:
            band = zero_band(output, images, width)
            rows = feather(list(dict.fromkeys(tile.rows for tile in tiles)), factor, output.device)
            columns = feather(list(dict.fromkeys(tile.columns for tile in tiles)), factor, output.device)
        elif start > top:
            yield from finished(band, start)
            kept = max(0, band.shape[2] - (start - top))
            # In place, because a second band of logits would be the largest tensor of all for a wide image.
            band[:, :, :kept] = band[:, :, start - top :].clone()
            band[:, :, kept:] = 0
            top = start
        weight = rows[tile.rows][:, None] * columns[tile.columns]
        span = slice(factor * tile.columns.start, factor * tile.columns.stop)
        band[where, :, :, span].addcmul_(output.to(band.dtype), weight)
    if band is not None:
        yield from finished(band, factor * tiles[-1].rows.stop)


def blend(pieces: Iterator[TilePiece], tiles: list[Tile], images: int, *, factor: int = 1) -> Tensor:
    """`blend_strips` put together: (images, c, factor * h, factor * w)."""
    strips = blend_strips(pieces, tiles, images, factor=factor)
    first = next(strips)
    if len(tiles) == 1 and len(first[1]) == images:
        return first[1]
    height, width = factor * tiles[-1].rows.stop, factor * tiles[-1].columns.stop
    total = first[1].new_empty(images, first[1].shape[1], height, width)
    for where, output in chain([first], strips):
        # The channels stand between the images and the rows.
        total.movedim(1, -1)[where] = output.movedim(1, -1)
    return total
