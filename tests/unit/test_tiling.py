"""Padding, tiles and their blending, and the colour correction."""

import pytest
import torch
from torch.nn import functional as F

from iter_arch.color import match_color
from iter_arch.tiling import blend_tiles, make_tiles, pad_to_multiple


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


@pytest.mark.parametrize(("height", "width", "tile", "overlap"), [(8, 8, 8, 2), (24, 40, 16, 4), (17, 64, 16, 0)])
def test_tiles_cover_everything_and_overlap(height, width, tile, overlap):
    tiles = make_tiles(height, width, tile, overlap)
    covered = torch.zeros(height, width)
    for part in tiles:
        assert part.height <= tile and part.width <= tile
        part.crop(covered).add_(1)
    assert covered.min() == 1
    tops = sorted({part.top for part in tiles})
    assert all(top + tile - following >= overlap for top, following in zip(tops, tops[1:], strict=False))


@pytest.mark.parametrize("factor", [1, 8])
def test_blending_pieces_of_a_picture_gives_the_picture(factor):
    tiles = make_tiles(24, 40, 16, 4)
    picture = torch.rand(2, 3, 24 * factor, 40 * factor)
    blended = blend_tiles(lambda i, part: part.crop(picture, factor), tiles, 24, 40, overlap=4, factor=factor)
    assert torch.allclose(blended, picture, atol=1e-6)


def test_blending_goes_over_gradually_from_one_tile_to_the_next():
    tiles = make_tiles(8, 28, 16, 4)
    blended = blend_tiles(lambda i, part: torch.full((1, 1, 8, 16), float(i)), tiles, 8, 28, overlap=4)
    assert blended[0, 0, 3, 10:18].tolist() == pytest.approx([0, 0, 1 / 8, 3 / 8, 5 / 8, 7 / 8, 1, 1])


def test_colours_get_the_mean_and_deviation_of_the_input():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 40, 40, generator=generator) * 0.3 + 0.4
    lq = torch.rand(2, 3, 10, 10, generator=generator) * torch.tensor([0.2, 0.4, 0.3]).view(1, 3, 1, 1) + 0.2
    matched = match_color(image, lq)
    assert torch.allclose(matched.mean((2, 3)), lq.mean((2, 3)), atol=1e-4)
    assert torch.allclose(matched.std((2, 3), correction=0), lq.std((2, 3), correction=0), atol=1e-4)


def test_flat_and_saturated_images_stay_finite_and_in_range():
    flat = match_color(torch.full((1, 3, 8, 8), 0.7), torch.full((1, 3, 2, 2), 0.2))
    assert torch.allclose(flat, torch.full_like(flat, 0.2))
    saturated = match_color(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 4, 4).round())
    assert saturated.isfinite().all() and saturated.min() >= 0 and saturated.max() <= 1
