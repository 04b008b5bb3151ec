"""Laws of what tokens let a user control: alpha maps, redrawn regions, prepared inputs."""

from dataclasses import replace

import pytest
import torch
from small_networks import VQGAN, config, photo, small_iter

from iter_arch import ITER, SamplingConfig

EAGER = SamplingConfig(alpha=0.6)


@pytest.fixture(scope="module")
def net():
    return small_iter()


def equal(found, expected):
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def coarse_iter() -> ITER:
    """A token of 16x16 pixels."""
    torch.manual_seed(0)
    arguments = config()
    return ITER(**arguments | {"vqgan": VQGAN | {"multipliers": (1, 1, 1, 2, 2)}}).eval()


# ------------------------------------------------------------------------------------------------ alpha map


@pytest.fixture(scope="module", params=[0.0, 0.3, 0.47, 0.6, 1.0])
def by_number(net, request):
    """An alpha, an LQ, and what it is restored to with this alpha."""
    lq = photo(2, 3, 21, 29)
    return request.param, lq, net.restore(lq, config=replace(EAGER, alpha=request.param))


def test_an_alpha_of_ones_own_is_that_of_the_sampling(net, by_number):
    alpha, lq, expected = by_number
    assert equal(net.restore(lq, alpha=alpha), expected)


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (8, 12), (21, 29), (84, 116)], ids=str)
def test_a_constant_map_is_the_number_bit_for_bit(net, by_number, size):
    alpha, lq, expected = by_number
    assert equal(net.restore(lq, alpha=torch.full((1, 1, *size), alpha)), expected)
    assert equal(net.restore(lq, alpha=torch.full((2, 1, *size), alpha, dtype=torch.float64)), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"tile": 16, "overlap": 4},
        {"config": SamplingConfig.released()},
        {"config": replace(EAGER, fidelity=0.5)},
        {"config": replace(EAGER, adaptive=False)},
        {"config": replace(EAGER, selection="halton", reevaluate=False)},
    ],
    ids=str,
)
def test_a_constant_map_is_the_number_whatever_else_is_asked_for(net, options):
    lq = photo(2, 3, 21, 29)
    for alpha in (0.0, 0.45):
        expected = net.restore(lq, alpha=alpha, **options)
        assert equal(net.restore(lq, alpha=torch.full((1, 1, 50, 30), alpha), **options), expected)
        assert equal(net.restore(lq, alpha=torch.full_like(expected.good, alpha), **options), expected)


@pytest.mark.parametrize("make", [lambda: small_iter(1), lambda: small_iter(2), lambda: small_iter(8), coarse_iter])
def test_a_constant_map_is_the_number_at_any_scale_and_token_size(make):
    net = make()
    lq = photo(1, 3, 20, 31)
    expected = net.restore(lq, alpha=0.5)
    assert equal(net.restore(lq, alpha=torch.full((1, 1, 20, 31), 0.5)), expected)


def test_a_threshold_that_is_met_exactly_is_met_in_a_map_too(net):
    lq = photo(1, 3, 16, 24)
    alpha = net.restore(lq).good.flatten().median().item()
    assert equal(net.restore(lq, alpha=torch.full((1, 1, 3, 5), alpha)), net.restore(lq, alpha=alpha))


def test_every_image_of_a_batch_has_its_own_map(net):
    lq = photo(2, 3, 20, 24)
    together = net.restore(lq, alpha=torch.tensor([0.2, 0.8]).view(2, 1, 1, 1), seed=[4, 5])
    for i, alpha in enumerate((0.2, 0.8)):
        alone = net.restore(lq[i : i + 1], alpha=alpha, seed=4 + i)
        assert torch.equal(together.tokens[i], alone.tokens[0])


def step_map(left, right, size=(1, 1, 32, 48)):
    alpha = torch.full(size, left)
    alpha[..., size[-1] // 2 :] = right
    return alpha


def test_a_step_map_marks_what_equation_6_says_and_T_s_follows(net):
    lq, seen = photo(1, 3, 32, 48), {}
    restored = net.restore(lq, alpha=step_map(0.3, 0.7), on_step=lambda t, _, mask: seen.update({t: mask}))
    threshold = torch.full((1, 16, 24), 0.3)
    threshold[..., 12:] = 0.7
    assert torch.equal(seen[max(seen)], restored.good >= threshold)
    starts = [int(net.restore(lq, alpha=alpha).start_step) for alpha in (0.3, 0.7)]
    assert starts[0] <= int(restored.start_step) == max(seen) <= starts[1] and starts[0] < starts[1]


@pytest.mark.parametrize("selection", ["evaluator", "confidence", "halton"])
@pytest.mark.parametrize("reevaluate", [True, False])
def test_a_step_map_changes_tokens_only_where_equation_6_can(net, selection, reevaluate):
    lq, sampling = photo(1, 3, 32, 48), SamplingConfig(selection=selection, reevaluate=reevaluate)
    first = net.restore(lq, alpha=0.0).tokens
    tokens = net.restore(lq, alpha=step_map(0.0, 0.9), config=sampling, seed=2).tokens
    assert torch.equal(tokens[..., :12], first[..., :12])
    assert (tokens[..., 12:] != first[..., 12:]).float().mean() > 0.3


def test_a_map_covers_the_photo_and_not_its_padding(net):
    """21 pixels are 10.5 tokens, padded to 16: a map whose lower half begins at a fifth of the photo begins there."""
    lq, seen = photo(1, 3, 21, 16), {}
    alpha = torch.zeros(1, 1, 21, 4)
    alpha[:, :, 8:] = 1.0
    restored = net.restore(lq, alpha=alpha, on_step=lambda t, _, mask: seen.setdefault("mask", mask))
    rows = seen["mask"][0].all(1)
    assert restored.tokens.shape[1] == 16 and rows.tolist() == [True] * 4 + [False] * 12


@pytest.mark.parametrize(
    ("alpha", "said"),
    [
        (1.5, "alpha=1.5 must be a number in \\[0, 1\\]"),
        (float("nan"), "alpha=nan"),
        (torch.full((1, 1, 4, 4), 1.5), "alpha is a map with values from 1.5 to 1.5"),
        (torch.full((1, 1, 4, 4), float("nan")), "alpha is a map with values from nan"),
        (torch.zeros(1, 1, 4, 4, dtype=torch.uint8), "alpha is a map of torch.uint8"),
        (torch.zeros(3, 1, 4, 4), "alpha has shape \\(3, 1, 4, 4\\); it must be \\(2 or 1, 1, height, width\\)"),
        (torch.zeros(1, 3, 4, 4), "alpha has shape \\(1, 3, 4, 4\\)"),
        (torch.zeros(1, 1, 0, 4), "alpha has shape \\(1, 1, 0, 4\\)"),
        (torch.zeros(2, 9, 8), "alpha has shape \\(2, 9, 8\\).*or \\(2 or 1, 8, 8\\)"),
    ],
    ids=str,
)
def test_impossible_alphas_are_refused(net, alpha, said):
    with pytest.raises(ValueError, match=said):
        net.restore(photo(2, 3, 16, 16), alpha=alpha)


# ------------------------------------------------------------------------------------------------ redraw


def region(size=(1, 1, 32, 48)):
    mask = torch.zeros(size, dtype=torch.bool)
    mask[..., 8:20, 10:30] = True
    return mask


@pytest.mark.parametrize(
    "sampling",
    [
        EAGER,
        SamplingConfig.released(),
        SamplingConfig(adaptive=False, selection="halton"),
        SamplingConfig(selection="confidence", reevaluate=False, fidelity=0.4),
        SamplingConfig(steps=40, redraw_kept=True),
    ],
    ids=str,
)
@pytest.mark.parametrize("tile", [None, 16])
def test_redraw_changes_not_one_token_elsewhere(net, sampling, tile):
    lq, options = photo(1, 3, 32, 48), {"config": sampling, "tile": tile}
    before = net.restore(lq, **options, seed=1).tokens
    after = net.restore(lq, **options, tokens=before, redraw=region(), seed=2).tokens
    inside = torch.zeros(1, 16, 24, dtype=torch.bool)
    inside[:, 4:10, 5:15] = True
    assert torch.equal(after[~inside], before[~inside])
    assert (after[inside] != before[inside]).float().mean() > 0.3


@pytest.mark.parametrize("tile", [None, 16])
def test_a_seed_redraws_the_same_tokens_and_another_seed_others(net, tile):
    lq = photo(1, 3, 32, 48)
    before = net.restore(lq, seed=1).tokens
    one, again, other = (
        net.restore(lq, tokens=before, redraw=region(), tile=tile, seed=seed).tokens for seed in (2, 2, 3)
    )
    assert torch.equal(again, one) and not torch.equal(other, one)


def test_a_token_that_the_mask_touches_is_drawn_and_no_other(net):
    lq, touched = photo(1, 3, 21, 21), set()
    before = net.restore(lq).tokens
    for row, column in ((0, 0), (7, 13), (20, 20)):
        mask = torch.zeros(1, 1, 21, 21)
        mask[..., row, column] = 0.5
        seen = []
        net.restore(lq, tokens=before, redraw=mask, on_step=lambda t, _, kept, seen=seen: seen.append(~kept))
        touched = {tuple(place) for place in seen[0][0, :11, :11].nonzero().tolist()}
        assert touched == {(row // 2, column // 2)}


def test_nothing_marked_changes_nothing_and_is_decoded(net):
    lq, before = photo(2, 3, 20, 30), net.restore(photo(2, 3, 20, 30), seed=[1, 2])
    for redraw in (None, torch.zeros(1, 1, 5, 5), torch.zeros(2, 1, 20, 30, dtype=torch.bool)):
        after = net.restore(lq, tokens=before.tokens, redraw=redraw, seed=7)
        assert torch.equal(after.tokens, before.tokens) and torch.equal(after.image, before.image)
        assert after.start_step.tolist() == [0, 0]


@pytest.mark.parametrize("tile", [None, 16])
def test_all_marked_is_a_restoration_from_an_empty_map(net, tile):
    lq, before = photo(1, 3, 21, 30), net.restore(photo(1, 3, 21, 30))
    after = net.restore(lq, tokens=before.tokens, redraw=torch.ones(1, 1, 3, 3), seed=4, tile=tile)
    expected = net.restore(lq, config=SamplingConfig(adaptive=False), seed=4, tile=tile)
    assert equal(after, expected)


@pytest.mark.parametrize("sampling", [EAGER, SamplingConfig(steps=60, redraw_kept=True, schedule="linear")], ids=str)
def test_redrawing_does_not_depend_on_the_batch(net, sampling):
    lq = photo(3, 3, 16, 32)
    before = net.restore(lq, seed=[1, 2, 3]).tokens
    masks = torch.zeros(3, 1, 16, 32)
    masks[0, :, :10, :10], masks[2, :, :, 5:] = 1, 1
    together = net.restore(lq, config=sampling, tokens=before, redraw=masks, seed=[4, 5, 6])
    for i in range(3):
        one = slice(i, i + 1)
        alone = net.restore(lq[one], config=sampling, tokens=before[one], redraw=masks[one], seed=4 + i)
        assert torch.equal(alone.tokens[0], together.tokens[i]) and alone.start_step[0] == together.start_step[i]


@pytest.mark.parametrize("make", [lambda: small_iter(1), lambda: small_iter(2), lambda: small_iter(8), coarse_iter])
def test_redraw_at_any_scale_and_token_size(make):
    net, mask = make(), torch.zeros(1, 1, 10, 10)
    mask[..., :5, :5] = 1
    lq = photo(1, 3, 20, 31)
    before = net.restore(lq).tokens
    after = net.restore(lq, tokens=before, redraw=mask, seed=9).tokens
    unit = net.vqgan.factor // net.scale
    # Half of 20 and of 31 pixels.
    high, wide = -(-10 // unit), -(-16 // unit)
    assert torch.equal(after[:, high:], before[:, high:]) and torch.equal(after[:, :, wide:], before[:, :, wide:])
    assert not torch.equal(after, before)


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (torch.zeros(1, 8, 8), "tokens are torch.float32; they must be a tensor of torch.int64"),
        (torch.zeros(1, 8, 8, dtype=torch.int32), "tokens are torch.int32"),
        ([[0]], "tokens are list"),
        (torch.zeros(1, 8, 9, dtype=torch.int64), "shape \\(1, 8, 9\\); they must have \\(1, 8, 8\\)"),
        (torch.zeros(8, 8, dtype=torch.int64), "shape \\(8, 8\\)"),
        (torch.full((1, 8, 8), 32), "from 32 to 32; they must be in \\[0, 32\\)"),
        (torch.full((1, 8, 8), -1), "from -1 to -1"),
    ],
    ids=str,
)
def test_impossible_tokens_are_refused(net, tokens, said):
    with pytest.raises(ValueError, match=said):
        net.restore(photo(1, 3, 16, 16), tokens=tokens, redraw=torch.ones(1, 1, 1, 1))


@pytest.mark.parametrize(
    ("redraw", "said"),
    [
        (torch.ones(1, 1, 4, 4, dtype=torch.int64), "redraw is a mask of torch.int64"),
        (torch.full((1, 1, 4, 4), 2.0), "redraw is a mask with values outside"),
        (torch.full((1, 1, 4, 4), float("nan")), "redraw is a mask with values outside"),
        (torch.ones(4, 4), "redraw has shape \\(4, 4\\)"),
        ("here", "redraw is a str"),
    ],
    ids=str,
)
def test_impossible_masks_are_refused(net, redraw, said):
    with pytest.raises(ValueError, match=said):
        net.restore(photo(1, 3, 16, 16), tokens=torch.zeros(1, 8, 8, dtype=torch.int64), redraw=redraw)


def test_redraw_without_tokens_is_refused(net):
    with pytest.raises(ValueError, match="redraw needs the tokens of an earlier result"):
        net.restore(photo(1, 3, 16, 16), redraw=torch.ones(1, 1, 1, 1))


# ------------------------------------------------------------------------------------------------ prepare


@pytest.mark.parametrize("tile", [None, 16])
def test_what_is_prepared_is_restored_to_the_same_without_E_l(tile):
    net, lq, calls = small_iter(), photo(2, 3, 21, 30), []
    expected = {alpha: net.restore(lq, alpha=alpha, tile=tile, seed=[1, 2]) for alpha in (0.2, 0.7)}
    faithful = net.restore(lq, config=replace(EAGER, fidelity=0.5), tile=tile)
    prepared = net.prepare(lq, tile=tile)
    net.lq_encoder.register_forward_pre_hook(lambda *_: calls.append(1))
    for alpha in (0.2, 0.7):
        assert equal(net.restore(prepared, alpha=alpha, seed=[1, 2]), expected[alpha])
    assert equal(net.restore(prepared, config=replace(EAGER, fidelity=0.5)), faithful)
    assert not calls


def test_the_dtype_is_that_of_what_was_prepared(net):
    assert net.restore(net.prepare(photo(1, 3, 16, 16).half())).image.dtype == torch.float16


def test_progress_of_what_is_prepared_ends_where_it_says(net):
    told = []
    prepared = net.prepare(photo(2, 3, 21, 30), tile=16, on_progress=lambda *step: told.append(step))
    assert told[-1][0] == told[-1][1]
    for options in ({}, {"tokens": prepared.S_l, "redraw": torch.ones(1, 1, 1, 1)}):
        told.clear()
        net.restore(prepared, on_progress=lambda *step: told.append(step), **options)
        done = [done for done, _ in told]
        assert done == sorted(set(done)) and told[-1][0] == told[-1][1]


def test_what_belongs_to_prepare_is_refused_afterwards(net):
    prepared = net.prepare(photo(1, 3, 16, 16))
    with pytest.raises(ValueError, match="tile and overlap belong to prepare"):
        net.restore(prepared, tile=16)
    with pytest.raises(ValueError, match="prepared by another network"):
        small_iter().restore(prepared)
