"""Padding, tiles and their blending."""

import pytest
import torch
from torch.nn import functional as F

from iter_arch.tiling import STRIP_NUMBERS, STRIP_ROWS, blend, blend_strips, make_tiles, pad_to_multiple, run_tiles


def test_nothing_is_added_to_what_fits():
    x = torch.rand(1, 3, 16, 32)
    assert pad_to_multiple(x, 16) is x


def test_padding_is_reflection():
    x = torch.rand(2, 3, 13, 18)
    assert torch.equal(pad_to_multiple(x, 8), F.pad(x, (0, 6, 0, 3), mode="reflect"))


def test_padding_larger_than_the_image_reflects_again():
    x = torch.tensor([0.0, 1.0, 2.0]).view(1, 1, 1, 3)
    padded = pad_to_multiple(x, 8)
    assert padded.shape == (1, 1, 8, 8)
    assert padded[0, 0, 5].tolist() == [0, 1, 2, 1, 0, 1, 2, 1]


GRIDS = [(8, 8, 8, 2), (24, 40, 16, 4), (17, 64, 16, 0), (41, 50, 16, 5), (40, 56, 32, 24)]


@pytest.mark.parametrize(("height", "width", "tile", "overlap"), GRIDS)
def test_tiles_cover_everything_and_overlap(height, width, tile, overlap):
    tiles = make_tiles(height, width, tile, overlap)
    covered = torch.zeros(height, width)
    for part in tiles:
        assert max(part.crop(covered).shape) <= tile
        part.crop(covered).add_(1)
    assert covered.min() == 1
    tops = sorted({part.rows.start for part in tiles})
    assert all(top + tile - following >= overlap for top, following in zip(tops, tops[1:], strict=False))


@pytest.mark.parametrize("batch", [1, 2, 5, 100])
@pytest.mark.parametrize(("height", "width", "tile", "overlap"), GRIDS)
def test_pieces_of_maps_put_together_are_the_maps(height, width, tile, overlap, batch):
    """Whatever goes through together, tiles of one image or images of one tile."""
    tiles = make_tiles(height, width, tile, overlap)
    grid, picture = torch.rand(3, 1, height, width), torch.rand(3, 2, 2 * height, 2 * width)
    sizes, met = [], torch.zeros(3, height, width)

    def network(x):
        sizes.append(len(x))
        return x

    whole = torch.full((3, height, width), -1.0)
    for where, strip in blend_strips(run_tiles(network, tiles, grid, batch=batch), tiles, 3):
        whole[where] = strip[:, 0]
        met[where] += 1
        assert len(tiles) == 1 or strip.shape[2] <= STRIP_ROWS
    assert torch.allclose(whole, grid[:, 0]) and (met == 1).all()
    assert torch.allclose(blend(run_tiles(network, tiles, picture, batch=batch, factor=2), tiles, 3, factor=2), picture)
    assert sum(sizes) == 2 * 3 * len(tiles) and max(sizes) == min(batch, 3 * len(tiles))


def test_rows_that_hold_many_numbers_are_handed_on_in_smaller_strips():
    tiles = make_tiles(24, 256, 16, 4)
    numbers = torch.rand(1, 1, 24, 256).expand(-1, 8192, -1, -1)  # as wide a map as the logits of 4096 columns
    strips = [strip for _, strip in blend_strips(run_tiles(lambda x: x, tiles, numbers, batch=1), tiles, 1)]
    assert all(strip.numel() <= STRIP_NUMBERS for strip in strips) and len(strips) == 24


def test_rows_are_handed_on_as_soon_as_no_other_tile_adds_to_them():
    tiles = make_tiles(96, 16, 32, 8)
    begun = 0

    def network(x):
        nonlocal begun
        begun += 1
        return x

    for where, _ in blend_strips(run_tiles(network, tiles, torch.rand(1, 1, 96, 16), batch=1), tiles, 1):
        assert where[1].start >= tiles[begun - 2].rows.start
    assert begun == len(tiles)


def test_blending_goes_over_gradually_from_one_tile_to_the_next():
    tiles = make_tiles(8, 28, 16, 4)
    pieces = ((tile, slice(0, 1), torch.full((1, 1, 8, 16), float(i))) for i, tile in enumerate(tiles))
    blended = blend(pieces, tiles, 1)
    assert blended[0, 0, 3, 10:18].tolist() == pytest.approx([0, 0, 1 / 8, 3 / 8, 5 / 8, 7 / 8, 1, 1])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_blended_rows_keep_the_layout_of_the_outputs(layout):
    tiles = make_tiles(24, 24, 16, 4)
    picture = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    pieces = run_tiles(lambda x: x.contiguous(memory_format=layout), tiles, picture, batch=1)
    for (_, rows), strip in blend_strips(pieces, tiles, 1):
        torch.testing.assert_close(strip, picture[:, :, rows])
        assert (strip.stride(1) == 1) == (layout == torch.channels_last)
