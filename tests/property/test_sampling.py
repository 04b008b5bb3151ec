"""Laws of Algorithm 2, on callables that stand for the networks."""

import pytest
import torch

from iter_arch.sampling import (
    SamplingConfig,
    draw_tokens,
    keep_count,
    make_generators,
    sample,
    start_step,
    token_probabilities,
)
from iter_arch.schedule import mask_ratio
from iter_arch.selection import top_k

CODES = 16


class Networks:
    """Deterministic stand-ins: logits depend on tokens, mask and the image's own row; calls are counted."""

    def __init__(self, b: int, h: int, w: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.refiner = torch.randn(b, CODES, h, w, generator=generator)
        self.evaluator = torch.randn(b, 2, h, w, generator=generator)
        self.tokens = torch.randint(CODES, (b, h, w), generator=generator)
        self.refined = self.evaluated = 0

    def refine(self, tokens, mask, rows):
        self.refined += 1
        visible = torch.where(mask, tokens, 0)
        return [(..., self.refiner[rows] + visible[:, None] * 0.1)]

    def evaluate(self, tokens, rows):
        self.evaluated += 1
        return [(..., self.evaluator[rows] + tokens[:, None] * torch.tensor([0.1, -0.05]).view(1, 2, 1, 1))]

    def row(self, i: int) -> "Networks":
        part = object.__new__(Networks)
        part.refiner, part.evaluator = self.refiner[i : i + 1], self.evaluator[i : i + 1]
        part.tokens, part.refined, part.evaluated = self.tokens[i : i + 1], 0, 0
        return part


def run(networks, good, config, seed=0):
    """sample() and what on_step saw: [(t, tokens, mask)]."""
    seen = []
    result = sample(
        networks.refine,
        networks.evaluate,
        networks.tokens,
        good,
        config=config,
        generators=make_generators(seed, len(good), torch.device("cpu")),
        on_step=lambda *state: seen.append(state),
    )
    return result, seen


def good_of(b, h, w, ratio, seed=1):
    return torch.rand(b, h, w, generator=torch.Generator().manual_seed(seed)) < ratio


OPTIONS = [
    SamplingConfig(),
    SamplingConfig(adaptive=False),
    SamplingConfig(steps=1),
    SamplingConfig(steps=5, schedule="linear", temperature=0.7),
    SamplingConfig(schedule="pow2", reevaluate=False),
    SamplingConfig(redraw_kept=True),
    SamplingConfig(selection="confidence"),
    SamplingConfig(selection="confidence", reevaluate=False),
    SamplingConfig(selection="halton"),
    SamplingConfig(selection="halton", reevaluate=False, adaptive=False),
    SamplingConfig.released(),
]


@pytest.mark.parametrize("config", OPTIONS, ids=str)
def test_kept_counts_follow_the_schedule_and_masked_counts_never_rise(config):
    networks, good = Networks(3, 6, 7), good_of(3, 6, 7, 0.3)
    result, seen = run(networks, good, config)
    n = 42
    assert [t for t, _, _ in seen] == list(range(int(result.start_step.max()), -1, -1))
    for (t, _, before), (_, _, after) in zip(seen, seen[1:], strict=False):
        active = result.start_step >= t
        k = keep_count(t, config.steps, n, config.schedule)
        assert (after.flatten(1).sum(1)[active] == k).all()
        assert (after.flatten(1).sum(1) >= before.flatten(1).sum(1)).all()
    assert seen[-1][2].all() and torch.equal(seen[-1][1], result.tokens)


@pytest.mark.parametrize("config", [c for c in OPTIONS if not c.redraw_kept], ids=str)
def test_kept_tokens_survive_the_step(config):
    networks, good = Networks(2, 5, 5), good_of(2, 5, 5, 0.4)
    _, seen = run(networks, good, config)
    for (_, tokens, mask), (_, following, _) in zip(seen, seen[1:], strict=False):
        assert torch.equal(tokens[mask], following[mask])


def test_redraw_kept_redraws_kept_tokens():
    networks, good = Networks(1, 8, 8), good_of(1, 8, 8, 0.5)
    _, seen = run(networks, good, SamplingConfig(redraw_kept=True))
    _, tokens, mask = seen[0]
    assert (tokens[mask] != seen[1][1][mask]).any()


def test_without_reevaluation_a_kept_position_stays_kept_and_with_it_not():
    networks, good = Networks(1, 8, 8), good_of(1, 8, 8, 0.4)

    def lost(config):
        _, seen = run(networks, good, config)
        return sum(int((before & ~after).sum()) for (_, _, before), (_, _, after) in zip(seen, seen[1:], strict=False))

    assert lost(SamplingConfig(reevaluate=False)) == 0
    assert lost(SamplingConfig(reevaluate=True)) > 0


@pytest.mark.parametrize("config", OPTIONS, ids=str)
def test_an_image_does_not_depend_on_the_others_in_its_batch(config):
    networks = Networks(8, 6, 6)
    # From nothing good to everything good: every image has its own T_s.
    good = torch.stack([good_of(1, 6, 6, i / 7, seed=i)[0] for i in range(8)])
    seeds = list(range(40, 48))
    together, _ = run(networks, good, config, seeds)
    if config.adaptive and config.steps > 1:
        assert len(set(together.start_step.tolist())) > 2
    for i in range(8):
        alone, _ = run(networks.row(i), good[i : i + 1], config, [seeds[i]])
        assert torch.equal(alone.tokens[0], together.tokens[i])
        assert alone.start_step[0] == together.start_step[i]


def test_one_seed_gives_one_result_and_another_seed_another():
    networks, good = Networks(1, 6, 6), good_of(1, 6, 6, 0.2)
    first, again, other = (run(networks, good, SamplingConfig(), seed)[0].tokens for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_global_random_state_is_neither_read_nor_changed():
    networks, good = Networks(1, 6, 6), good_of(1, 6, 6, 0.2)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, _ = run(networks, good, SamplingConfig())
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(run(networks, good, SamplingConfig())[0].tokens, first.tokens)


def test_no_evaluation_after_the_last_step():
    networks = Networks(1, 6, 6)
    run(networks, good_of(1, 6, 6, 0), SamplingConfig(steps=4))
    assert (networks.refined, networks.evaluated) == (4, 3)


def test_all_good_keeps_everything_in_one_step():
    networks = Networks(1, 6, 6)
    result, _ = run(networks, good_of(1, 6, 6, 1), SamplingConfig())
    assert result.start_step.tolist() == [1] and torch.equal(result.tokens, networks.tokens)


def test_confidence_keeps_the_tokens_the_refiner_is_surest_of():
    networks = Networks(1, 4, 4)
    _, seen = run(networks, good_of(1, 4, 4, 0), SamplingConfig(steps=2, selection="confidence", schedule="linear"))
    _, tokens, mask = seen[1]
    probability = networks.refiner.softmax(1).gather(1, tokens[:, None])[:, 0]
    assert torch.equal(mask, probability >= probability.flatten().topk(8).values.min())


def test_halton_order_is_the_same_for_every_image_and_spreads_out():
    networks = Networks(2, 8, 8)
    config = SamplingConfig(steps=4, selection="halton", schedule="linear", adaptive=False)
    _, seen = run(networks, good_of(2, 8, 8, 0), config)
    mask = seen[1][2]
    assert torch.equal(mask[0], mask[1])
    # 16 of 64 cells: four in each quadrant of a low-discrepancy sequence, give or take one.
    quadrants = mask[0].view(2, 4, 2, 4).sum((1, 3))
    assert quadrants.min() >= 3 and quadrants.max() <= 5


def test_the_evaluators_weights_decide_what_is_kept():
    networks = Networks(1, 8, 8)
    networks.evaluator[:, 1, :4], networks.evaluator[:, 1, 4:] = 30, -30  # the upper half is good without doubt
    _, seen = run(networks, good_of(1, 8, 8, 0), SamplingConfig(steps=2, schedule="linear"))
    assert seen[1][2][0, :4].all() and not seen[1][2][0, 4:].any()


# Hand-computed: (t, T, N, schedule) -> k = ceil((1 - gamma((t - 1) / T)) N).
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((8, 8, 64, "linear"), 8),  # 1 - 7/8
        ((1, 8, 64, "linear"), 64),
        ((8, 10, 100, "linear"), 30),  # 0.3 * 100 is 30 and not 31 in spite of rounding
        ((3, 4, 100, "cosine"), 30),  # 1 - sin(pi/4) = 0.29289
        ((2, 3, 100, "cosine"), 50),  # 1 - sin(pi/6) = 0.5
        ((8, 8, 1, "cosine"), 1),
        ((3, 4, 10, "pow2"), 8),  # 1 - 0.25
    ],
)
def test_keep_count(arguments, expected):
    assert keep_count(*arguments) == expected


# Hand-computed for T = 4, N = 100, linear: quotas 25, 50, 75, 100 for t = 4, 3, 2, 1.
@pytest.mark.parametrize(("good", "expected"), [(0, 4), (25, 4), (26, 3), (50, 3), (75, 2), (76, 1), (100, 1)])
def test_start_step(good, expected):
    assert start_step(good, 4, 100, "linear") == expected


@pytest.mark.parametrize("schedule", ["cosine", "linear", "pow2", "pow0.5"])
def test_schedules_rise_from_0_to_1_for_numbers_and_tensors(schedule):
    r = torch.linspace(0, 1, 33, dtype=torch.float64)
    gamma = mask_ratio(schedule, r)
    assert gamma[0] == 0 and gamma[-1] == 1 and (gamma.diff() > 0).all()
    assert mask_ratio(schedule, 0.25) == pytest.approx(gamma[8].item())


def test_cosine_is_the_papers():
    assert mask_ratio("cosine", 1 / 3) == pytest.approx(0.5)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_probabilities_are_the_softmax_with_the_tokens_of_a_position_side_by_side(memory_format):
    logits = torch.randn(2, 16, 3, 5, generator=torch.Generator().manual_seed(0)).to(memory_format=memory_format)
    probabilities = token_probabilities(logits, 0.5)
    torch.testing.assert_close(probabilities, (2 * logits).softmax(1))
    assert probabilities.stride(1) == 1
    assert token_probabilities(logits.bfloat16()).dtype == torch.float32


def test_draws_follow_the_probabilities():
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.tensor([0.5, 0.0, 0.3, 0.2]).view(1, 4, 1, 1).expand(1, 4, 100, 200)
    tokens = draw_tokens(probabilities, torch.rand(1, 100, 200, generator=generator))
    frequency = torch.bincount(tokens.flatten(), minlength=4) / 20000
    assert frequency[1] == 0
    assert torch.allclose(frequency, probabilities[0, :, 0, 0], atol=0.015)


def test_a_draw_at_either_end_of_the_uniform_range_is_a_token_that_can_be():
    probabilities = torch.tensor([0.0, 0.6, 0.4, 0.0]).view(1, 4, 1, 1).expand(1, 4, 1, 2)
    uniform = torch.tensor([[[0.0, 1 - 2**-24]]])
    assert draw_tokens(probabilities, uniform).tolist() == [[[1, 2]]]


def test_top_k_marks_the_largest_of_each_image():
    scores = torch.tensor([[[0.1, 0.9], [0.5, 0.2]], [[4.0, 3.0], [2.0, 1.0]]])
    assert top_k(scores, 2).tolist() == [[[False, True], [True, False]], [[True, True], [False, False]]]


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0},
        {"steps": 2.5},
        {"steps": True},
        {"alpha": -0.1},
        {"alpha": 1.5},
        {"fidelity": -0.1},
        {"fidelity": 1.01},
        {"alpha": "0.5"},
        {"schedule": "cosin"},
        {"schedule": "pow"},
        {"schedule": "pow0"},
        {"temperature": 0},
        {"temperature": float("nan")},
        {"selection": "random"},
        {"adaptive": 1},
        {"reevaluate": None},
    ],
    ids=str,
)
def test_refused_values_name_the_field_and_the_value(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=rf"{name}={value!r}".replace("(", r"\(")):
        SamplingConfig(**options)


def test_a_seed_for_every_image_or_one_for_all():
    with pytest.raises(ValueError, match="3 values for a batch of 2"):
        make_generators([1, 2, 3], 2, torch.device("cpu"))
