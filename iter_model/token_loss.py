"""Losses of stages II and III on token logits (ITER, arXiv:2312.05616, Eq. 2, 4 and 9)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr_compat import register
from iter_model.collectives import all_reduce_sum, world_size


@register("loss")
class TokenCrossEntropy(nn.Module):
    """Cross-entropy over all positions (Eq. 2 and 4): logits (b, N, h, w), tokens (b, h, w) -> () float32."""

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """logits (b, N, h, w), tokens (b, h, w) int64 -> () float32."""
        return self.loss_weight * F.cross_entropy(logits.float(), tokens)


@register("loss")
class EvaluatorLoss(nn.Module):
    """Eq. 9: binary cross-entropy of 'good', plain on drawn tokens, and balanced between the classes on S_l.

    Args:
        beta: of the class-balanced weights (1 - beta) / (1 - beta^n_y), where n_y is the number of labels y in the
            batches of all ranks (Class-Balanced Loss, arXiv:1901.05555). The weights are normalized to a mean of 1.

    Raises:
        ValueError: beta is not in [0, 1).
    """

    def __init__(self, beta: float = 0.9999, loss_weight: float = 1.0) -> None:
        super().__init__()
        if not 0 <= beta < 1:
            raise ValueError(f"train.evaluator_opt.beta={beta} must be in [0, 1)")
        self.beta = beta
        self.loss_weight = loss_weight

    def forward(self, logits_drawn: Tensor, good_drawn: Tensor, logits_l: Tensor, good_l: Tensor) -> Tensor:
        """logits (b, 2, h, w), channel 1 'good'; good (b, h, w) bool -> () float32."""
        drawn = F.cross_entropy(logits_drawn.float(), good_drawn.long())
        return self.loss_weight * (drawn + self.balanced(logits_l, good_l))

    def balanced(self, logits: Tensor, good: Tensor) -> Tensor:
        """The class-balanced term: logits (b, 2, h, w), good (b, h, w) bool -> () float32."""
        labels = good.long()
        counts = all_reduce_sum(torch.bincount(labels.flatten(), minlength=2))
        # An absent class has no tokens to weigh; 1 keeps its weight finite.
        weights = (1 - self.beta) / (1 - self.beta ** counts.clamp_min(1).double())
        total = (weights * counts).sum()
        # DistributedDataParallel averages over the ranks, while ``total`` is that of all of them.
        terms = F.cross_entropy(logits.float(), labels, weight=weights.float(), reduction="sum")
        return world_size() * terms / total.float()
