"""Selection rules: which tokens a step of Algorithm 2 keeps (ITER, arXiv:2312.05616, Sec. 3.3, line 13).

A rule is a function of a `SelectionState` to scores (k, h, w); the positions with the highest scores are kept, as many
as the schedule says. A new rule is one entry:

    >>> from iter_arch.selection import SELECTIONS
    >>> SELECTIONS["random"] = lambda state: state.draw_uniform()
    >>> net.restore(lq, config=SamplingConfig(selection="random"))
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class SelectionState:
    """What a rule may use, for the k images that take step t.

    t: the step, T..1. tokens: (k, h, w) int64, drawn or kept. kept: (k, h, w) bool, what the step before kept.
    probability: (k, h, w) float32, which the refiner gave to each token. draw_uniform: () -> (k, h, w) float32 in
    [0, 1), from each image's own generator. log_good: () -> (k, h, w) float32, log p_e(good); runs phi_e. memo: a
    rule's own values, shared by all steps.
    """

    t: int
    tokens: Tensor
    kept: Tensor
    probability: Tensor
    draw_uniform: Callable[[], Tensor]
    log_good: Callable[[], Tensor]
    memo: dict[str, Any] = field(default_factory=dict)


Selection = Callable[[SelectionState], Tensor]


def by_evaluator(state: SelectionState) -> Tensor:
    """The paper's: drawn without replacement, with the weights p_e(good)."""
    return gumbel(state.draw_uniform()) + state.log_good()


def by_confidence(state: SelectionState) -> Tensor:
    """MaskGIT's (arXiv:2202.04200): the tokens that the refiner gave the highest probability."""
    return state.probability


def by_halton(state: SelectionState) -> Tensor:
    """An order of positions with low discrepancy (arXiv:2503.17076), the same for every image."""
    if "halton" not in state.memo:
        height, width = state.tokens.shape[1:]
        state.memo["halton"] = halton_scores(height, width, state.tokens.device)
    return state.memo["halton"].expand(state.tokens.shape)


SELECTIONS: dict[str, Selection] = {"evaluator": by_evaluator, "confidence": by_confidence, "halton": by_halton}


def gumbel(uniform: Tensor) -> Tensor:
    """Gumbel noise from uniform numbers in [0, 1): the top k of log-weights plus it are drawn without replacement."""
    return -torch.log(-torch.log(uniform.clamp_min(torch.finfo(uniform.dtype).tiny)))


def top_k(scores: Tensor, k: int | Sequence[int]) -> Tensor:
    """scores (b, h, w) -> mask (b, h, w) bool, True at the k largest of each image; k may have a number for each."""
    if not isinstance(k, int):
        if len(set(k)) > 1:
            return torch.cat([top_k(one[None], count) for one, count in zip(scores, k, strict=True)])
        k = k[0]
    index = scores.flatten(1).topk(k, dim=1).indices
    mask = scores.new_zeros(scores.shape, dtype=torch.bool)
    return mask.flatten(1).scatter_(1, index, True).view_as(mask)


def halton_scores(height: int, width: int, device: torch.device) -> Tensor:
    """(height, width) float32, larger = earlier in the order in which a Halton sequence (bases 2, 3) meets cells."""
    count = 16 * height * width
    rows, columns = _van_der_corput(count, 2, height, device), _van_der_corput(count, 3, width, device)
    # The few cells that so many points miss come last, in raster order.
    first = torch.arange(height * width, device=device) + count
    first.scatter_reduce_(0, rows * width + columns, torch.arange(count, device=device), "amin")
    return -first.argsort().argsort().float().view(height, width)


def _van_der_corput(count: int, base: int, size: int, device: torch.device) -> Tensor:
    """(count,) int64 in [0, size): i with its digits mirrored at the point, of an axis of this size; exact."""
    digits, mirrored, power = torch.arange(base, device=device), torch.zeros(1, dtype=torch.int64, device=device), 1
    while power < count:
        # The last digit of i becomes the first, before those of i // base.
        mirrored, power = (mirrored[:, None] + digits * power).flatten(), power * base
    return mirrored[:count] * size // power
