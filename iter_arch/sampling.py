"""Iterative refinement with evaluation: Algorithm 2 over callables, without networks (ITER, arXiv:2312.05616)."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from basicsr_compat.schema import KeyOf, Positive, Probability, Rule, section_problems
from iter_arch.schedule import SCHEDULE_RULE, ceil_exact, is_schedule, mask_ratio
from iter_arch.selection import SELECTIONS, SelectionState, top_k
from iter_arch.tiling import TileIndex

Steps = Annotated[int, Rule("from 1 to 1000", lambda steps: 1 <= steps <= 1000)]
Schedule = Annotated[str, Rule(SCHEDULE_RULE, is_schedule)]

# Logits come tile by tile, so that those of a large map are never held at once: (index into (k, h, w), logits there).
LogitTiles = Iterable[tuple[TileIndex, Tensor]]
Refine = Callable[[Tensor, Tensor, Tensor], LogitTiles]
Evaluate = Callable[[Tensor, Tensor], LogitTiles]
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
        selection: which rule chooses the tokens to keep, a name in `iter_arch.selection.SELECTIONS`: 'evaluator'
            (phi_e, the paper), 'confidence' (MaskGIT's top-k of the refiner's own probability), 'halton' (a
            low-discrepancy order of positions).
        temperature: divides the refiner's logits, above 0.
        reevaluate: evaluate kept tokens anew at each step. Otherwise a kept token stays kept.
        redraw_kept: draw new tokens at kept positions too.
        fidelity: f in [0, 1]: D_H decodes (1 - f) c[S_0] + f sum_k p(k) c_k, p the softmax of E_l's logits. The
            expected code keeps what a single draw loses: the result is closer to the photo, and softer. 0 is the
            paper's.

    Raises:
        ValueError: values out of range, one line each.

    Examples:
        >>> config = dataclasses.replace(net.sampling, alpha=0.3, steps=16)
        >>> restored = net.restore(lq, config=config, seed=1)
    """

    steps: Steps = 8
    alpha: Probability = 0.5
    schedule: Schedule = "cosine"
    adaptive: bool = True
    selection: Annotated[str, KeyOf(SELECTIONS)] = "evaluator"
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
    """T_s of Algorithm 2, lines 6 to 8: the latest step whose quota holds all good tokens."""
    t = steps
    while keep_count(t, steps, num_tokens, schedule) < num_good:
        t -= 1
    return t


def make_generators(seed: int | Sequence[int], batch: int, device: torch.device) -> list[torch.Generator]:
    """One generator per image; an int gives every image the same stream, a sequence has one seed per image."""
    seeds = [seed] * batch if isinstance(seed, int) else list(seed)
    if len(seeds) != batch:
        raise ValueError(f"seed has {len(seeds)} values for a batch of {batch} images; pass one int, or one per image")
    return [torch.Generator(device).manual_seed(s) for s in seeds]


def draw_uniform(like: Tensor, generators: Sequence[torch.Generator | None]) -> Tensor:
    """(b, h, w) float32 in [0, 1) of the size and device of ``like``; image i draws from its own generator. 0.5 where
    there is none."""
    size, device = like.shape[1:], like.device
    return torch.stack(
        [
            torch.rand(size, device=device, generator=g) if g else torch.full(size, 0.5, device=device)
            for g in generators
        ]
    )


def token_probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Softmax over the tokens: logits (b, N, h, w) -> (b, N, h, w) float32.

    The N of a position lie side by side in memory, which makes the softmax and the sums of `draw_tokens` four times as
    fast on a CPU.
    """
    return (logits.movedim(1, -1).float() / temperature).softmax(-1).movedim(-1, 1)


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


def sample(
    refine: Refine,
    evaluate: Evaluate,
    tokens: Tensor,
    good: Tensor,
    *,
    config: SamplingConfig,
    generators: Sequence[torch.Generator],
    on_step: OnStep | None = None,
    fixed: Tensor | None = None,
    redraw: Tensor | None = None,
) -> Sampled:
    """Algorithm 2 from line 3 on. Every image has its own T_s, quota and randomness, independent of the rest of the
    batch.

    Args:
        refine: (S_t (k, h, w), m_t (k, h, w), rows (k,)) -> tiles of the logits (k, N, h, w); rows are the indices in
            the batch. A tile is (index into (k, h, w), logits there); each position is in one. Draws do not depend on
            the tiles.
        evaluate: (S_t (k, h, w), rows (k,)) -> tiles of the logits (k, 2, h, w), channel 1 'good'.
        tokens: S_l (b, h, w) int64; with ``redraw`` the tokens of an earlier result.
        good: m_s of Eq. 6 (b, h, w) bool: tokens of S_l evaluated as good.
        generators: one per image, on the device of ``tokens``.
        on_step: called with (t, S_t, m_t) for t = max(T_s)..0, m_t True = kept; masked tokens mean nothing.
        fixed: (b, h, w) bool, good tokens that stay to the end. Evaluation may drop any other.
        redraw: (b, h, w) bool, positions of which new tokens are drawn; all others stay. The schedule counts these
            positions instead of the whole map, in all T steps; T_s is 0 where there are none.
    """
    start = start_of(good, config, fixed) if redraw is None else start_of_redraw(redraw, config)
    mask, steps = start.mask, start.steps
    step = Step(refine, evaluate, config)
    # Nothing in the loop waits for the device: the images of each step are slices of one index.
    order = sorted(range(len(steps)), key=lambda i: -steps[i])
    index, start_tensor = torch.tensor([order, steps], device=tokens.device)
    for t in range(max(steps), 0, -1):
        if on_step is not None:
            on_step(t, tokens, mask)
        active = [i for i in order if steps[i] >= t]
        rows = index[: len(active)]
        quotas = [start.quota(i, t, config) for i in active]
        drawn, kept = step(
            t, tokens[rows], mask[rows], start.fixed[rows], rows, quotas, [generators[i] for i in active]
        )
        tokens, mask = tokens.index_copy(0, rows, drawn), mask.index_copy(0, rows, kept)
    if on_step is not None:
        on_step(0, tokens, mask)
    return Sampled(tokens, start_tensor)


class Start(NamedTuple):
    """Where sampling begins.

    mask: (b, h, w) bool, tokens that are kept. fixed: (b, h, w) bool, of these the ones that stay to the end. steps:
    T_s of every image. drawn: positions of every image that the schedule counts.
    """

    mask: Tensor
    fixed: Tensor
    steps: list[int]
    drawn: list[int]

    def quota(self, image: int, t: int, config: SamplingConfig) -> int:
        """Tokens of an image that are kept after step t."""
        kept = keep_count(t, config.steps, self.drawn[image], config.schedule)
        return self.mask[image].numel() - self.drawn[image] + kept


def start_of(good: Tensor, config: SamplingConfig, fixed: Tensor | None = None) -> Start:
    """Algorithm 2, lines 3 to 9: good (b, h, w) bool, m_s of Eq. 6; fixed as for `sample`."""
    n = good[0].numel()
    if not config.adaptive:
        nothing = torch.zeros_like(good)
        return Start(nothing, nothing, [config.steps] * len(good), [n] * len(good))
    steps = [start_step(count, config.steps, n, config.schedule) for count in good.flatten(1).sum(1).tolist()]
    return Start(good, torch.zeros_like(good) if fixed is None else fixed, steps, [n] * len(good))


def start_of_redraw(redraw: Tensor, config: SamplingConfig) -> Start:
    """From an earlier result of which (b, h, w) positions are drawn anew."""
    drawn = redraw.flatten(1).sum(1).tolist()
    return Start(~redraw, ~redraw, [config.steps if count else 0 for count in drawn], drawn)


@dataclass(frozen=True)
class Step:
    """One step of Algorithm 2: draw (line 10), then choose what is kept (lines 12 to 14)."""

    refine: Refine
    evaluate: Evaluate
    config: SamplingConfig
    memo: dict[str, Any] = field(default_factory=dict)

    def __call__(
        self,
        t: int,
        tokens: Tensor,
        kept: Tensor,
        fixed: Tensor,
        rows: Tensor,
        quotas: Sequence[int],
        generators: Sequence[torch.Generator],
    ) -> tuple[Tensor, Tensor]:
        """S_t and m_t of k images (k, h, w), rows (k,), fixed as for `sample` -> S_{t-1} and m_{t-1}."""
        n = kept[0].numel()
        uniform = draw_uniform(kept, generators)
        drawn, probability = self.draw(self.refine(tokens, kept, rows), tokens, kept, fixed, uniform)
        if min(quotas) == n:
            return drawn, torch.ones_like(kept)
        # An image that keeps all tokens makes no more draws than it would alone.
        choosing = [generator if quota < n else None for generator, quota in zip(generators, quotas, strict=True)]
        state = SelectionState(
            t=t,
            tokens=drawn,
            kept=kept,
            probability=probability,
            draw_uniform=lambda: draw_uniform(kept, choosing),
            log_good=lambda: log_good(self.evaluate(drawn, rows), probability),
            memo=self.memo,
        )
        scores = SELECTIONS[self.config.selection](state)
        staying = fixed if self.config.reevaluate else fixed | kept
        return drawn, top_k(scores.masked_fill(staying, float("inf")), quotas)

    def draw(
        self, tiles: LogitTiles, tokens: Tensor, kept: Tensor, fixed: Tensor, uniform: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Draw from the refiner's logits where nothing is kept: tokens (k, h, w), and the probability of each."""
        drawn, probability = torch.empty_like(tokens), torch.empty_like(uniform)
        staying = fixed if self.config.redraw_kept else kept
        for where, logits in tiles:
            probabilities = token_probabilities(logits, self.config.temperature)
            new = draw_tokens(probabilities, uniform[where])
            drawn[where] = torch.where(staying[where], tokens[where], new)
            probability[where] = probabilities.gather(1, drawn[where][:, None])[:, 0]
        return drawn, probability


def log_good(tiles: LogitTiles, like: Tensor) -> Tensor:
    """log p_e(good) of the evaluator's logits: (k, h, w) float32, of the size and device of ``like``."""
    scores = torch.empty_like(like)
    for where, logits in tiles:
        scores[where] = logits.float().log_softmax(1)[:, 1]
    return scores
