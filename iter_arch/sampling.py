"""Iterative refinement with evaluation: Algorithm 2 over callables, without networks (ITER, arXiv:2312.05616)."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from scipy.stats import qmc
from torch import Tensor

from basicsr_compat.schema import Positive, Probability, Rule, section_problems
from iter_arch.schedule import SCHEDULE_RULE, ceil_exact, is_schedule, mask_ratio

Steps = Annotated[int, Rule("from 1 to 1000", lambda steps: 1 <= steps <= 1000)]
Schedule = Annotated[str, Rule(SCHEDULE_RULE, is_schedule)]
Selection = Literal["evaluator", "confidence", "halton"]

# Logits come piece by piece, so that those of a large map are never held at once: (index into (k, h, w), logits there).
Pieces = Iterable[tuple[Any, Tensor]]
Refine = Callable[[Tensor, Tensor, Tensor], Pieces]
Evaluate = Callable[[Tensor, Tensor], Pieces]
OnStep = Callable[[int, Tensor, Tensor], None]


@dataclass(frozen=True)
class SamplingConfig:
    """How tokens are sampled.

    Args:
        steps: T, from 1 to 1000.
        alpha: threshold in [0, 1] on p_e(good) of the initial tokens (Eq. 6): low keeps S_l (fidelity), high redraws
            more of it (texture).
        schedule: gamma, see `iter_arch.schedule.mask_ratio`.
        adaptive: start from the good tokens of S_l at step T_s (Eq. 6 and 7) instead of from an empty map at T.
        selection: what decides which tokens are kept: 'evaluator' (phi_e, the paper), 'confidence' (MaskGIT's top-k of
            the refiner's own probability), 'halton' (a low-discrepancy order of positions).
        temperature: divides the refiner's logits, above 0.
        reevaluate: judge kept tokens anew at each step. Otherwise a kept token stays kept.
        redraw_kept: draw new tokens at kept positions too.
        fidelity: f in [0, 1]: D_H decodes (1 - f) c[S_0] + f sum_k p(k) c_k, p the softmax of E_l's logits. The
            expected code keeps what a single draw loses: truer and softer. 0 is the paper.
    """

    steps: Steps = 8
    alpha: Probability = 0.5
    schedule: Schedule = "cosine"
    adaptive: bool = True
    selection: Selection = "evaluator"
    temperature: Positive = 1.0
    reevaluate: bool = True
    redraw_kept: bool = False
    fidelity: Probability = 0.0

    def __post_init__(self) -> None:
        problems = list(section_problems(vars(self), SamplingConfig, "val.sampling"))
        if problems:
            raise ValueError("\n".join(problems))

    @classmethod
    def released(cls) -> "SamplingConfig":
        """The settings that the authors' released weights were tuned for."""
        return cls(alpha=0.7, schedule="linear", reevaluate=False, redraw_kept=True)


class Sampled(NamedTuple):
    """tokens: (b, h, w) int64, S_0; start_step: (b,) int64, T_s of each image."""

    tokens: Tensor
    start_step: Tensor


def keep_count(t: int, steps: int, num_tokens: int, schedule: str) -> int:
    """k of Algorithm 2, line 12: tokens kept after step t: ceil((1 - gamma((t - 1) / T)) N)."""
    if not 1 <= t <= steps:
        raise ValueError(f"t={t} must be in [1, steps={steps}]")
    return ceil_exact((1 - mask_ratio(schedule, (t - 1) / steps)) * num_tokens)


def start_step(num_good: int, steps: int, num_tokens: int, schedule: str) -> int:
    """T_s of Algorithm 2, lines 6 to 8: the latest step whose quota holds all tokens judged good."""
    t = steps
    while keep_count(t, steps, num_tokens, schedule) < num_good:
        t -= 1
    return t


def make_generators(seed: int | Sequence[int], batch: int, device: torch.device) -> list[torch.Generator]:
    """One generator an image; an int gives every image the same stream, a sequence has one seed an image."""
    seeds = [seed] * batch if isinstance(seed, int) else list(seed)
    if len(seeds) != batch:
        raise ValueError(f"seed has {len(seeds)} values for a batch of {batch} images; pass one int, or one an image")
    return [torch.Generator(device).manual_seed(s) for s in seeds]


def draw_uniform(like: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """(b, h, w) float32 in [0, 1) of the size and device of ``like``; image i draws from its own generator."""
    return torch.stack([torch.rand(like.shape[1:], device=like.device, generator=g) for g in generators])


def draw_tokens(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Categorical draw by the inverse of the cumulated probabilities.

    Args:
        probabilities: (b, N, h, w) float32, summing to 1 over N.
        uniform: (b, h, w) float32 in [0, 1).

    Returns:
        tokens (b, h, w) int64.
    """
    cumulated = probabilities.movedim(1, -1).cumsum(-1)
    # Scaled by the sum, which rounding leaves slightly off 1.
    threshold = uniform[..., None] * cumulated[..., -1:]
    return torch.searchsorted(cumulated, threshold, right=True)[..., 0].clamp_max(probabilities.shape[1] - 1)


def gumbel(uniform: Tensor) -> Tensor:
    """Gumbel noise from uniform numbers in [0, 1): the top k of log-weights plus it are drawn without replacement."""
    return -torch.log(-torch.log(uniform.clamp_min(torch.finfo(uniform.dtype).tiny)))


def top_k(scores: Tensor, k: int) -> Tensor:
    """scores (b, h, w) -> mask (b, h, w) bool, True at the k largest of each image."""
    index = scores.flatten(1).topk(k, dim=1).indices
    mask = scores.new_zeros(scores.shape, dtype=torch.bool)
    return mask.flatten(1).scatter_(1, index, True).view_as(mask)


def halton_scores(height: int, width: int, device: torch.device) -> Tensor:
    """(height, width) float32, larger = earlier in the order in which a Halton sequence (bases 2, 3) meets cells."""
    cells = height * width
    points = qmc.Halton(2, scramble=False).random(16 * cells)
    # The few cells that so many points miss come last, in raster order.
    order = np.append((points * (height, width)).astype(np.int64) @ (width, 1), np.arange(cells))
    _, first = np.unique(order, return_index=True)
    return torch.from_numpy(-first.argsort().argsort().astype(np.float32)).view(height, width).to(device)


def sample(
    refine: Refine,
    evaluate: Evaluate,
    tokens: Tensor,
    good: Tensor,
    *,
    config: SamplingConfig,
    generators: Sequence[torch.Generator],
    on_step: OnStep | None = None,
) -> Sampled:
    """Algorithm 2 from line 3 on. Every image has its own T_s, quota and randomness, whatever else is in the batch.

    Args:
        refine: (S_t (k, h, w), m_t (k, h, w), rows (k,)) -> pieces of the logits (k, N, h, w); rows are the indices in
            the batch. A piece is (index into (k, h, w), logits there); each position is in one. Draws do not depend on
            how the map is cut.
        evaluate: (S_t (k, h, w), rows (k,)) -> pieces of the logits (k, 2, h, w), channel 1 'good'.
        tokens: S_l (b, h, w) int64.
        good: m_s of Eq. 6 (b, h, w) bool: tokens of S_l judged good.
        generators: one an image, on the device of ``tokens``.
        on_step: called with (t, S_t, m_t) for t = max(T_s)..0, m_t True = kept; masked tokens mean nothing.
    """
    b, h, w = tokens.shape
    n = h * w
    if config.adaptive:
        starts = [start_step(count, config.steps, n, config.schedule) for count in good.flatten(1).sum(1).tolist()]
        mask = good
    else:
        starts = [config.steps] * b
        mask = torch.zeros_like(good)
    halton = halton_scores(h, w, tokens.device) if config.selection == "halton" else None
    # Nothing in the loop waits for the device: the images of every step are a part of one index.
    order = sorted(range(b), key=lambda i: -starts[i])
    index, start_steps = torch.tensor([order, starts], device=tokens.device)
    for t in range(max(starts), 0, -1):
        if on_step is not None:
            on_step(t, tokens, mask)
        active = [i for i in order if starts[i] >= t]
        rows = index[: len(active)]
        kept, current = mask[rows], tokens[rows]
        active_generators = [generators[i] for i in active]

        uniform = draw_uniform(kept, active_generators)
        before, current, probability = current, torch.empty_like(current), torch.empty_like(uniform)
        for where, logits in refine(before, kept, rows):
            probabilities = (logits.float() / config.temperature).softmax(1)
            drawn = draw_tokens(probabilities, uniform[where])
            drawn = drawn if config.redraw_kept else torch.where(kept[where], before[where], drawn)
            current[where] = drawn
            probability[where] = probabilities.gather(1, drawn[:, None])[:, 0]
        k = keep_count(t, config.steps, n, config.schedule)
        if k == n:
            kept = torch.ones_like(kept)
        else:
            if config.selection == "evaluator":
                scores = gumbel(draw_uniform(kept, active_generators))
                for where, logits in evaluate(current, rows):
                    scores[where] += logits.float().log_softmax(1)[:, 1]
            elif config.selection == "confidence":
                scores = probability
            else:
                scores = halton.expand_as(kept)
            kept = top_k(scores if config.reevaluate else scores.masked_fill(kept, float("inf")), k)
        tokens, mask = tokens.index_copy(0, rows, current), mask.index_copy(0, rows, kept)
    if on_step is not None:
        on_step(0, tokens, mask)
    return Sampled(tokens, start_steps)
