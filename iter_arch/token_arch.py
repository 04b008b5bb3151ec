"""Token refiner phi_r and token evaluator phi_e (ITER, arXiv:2312.05616, Sec. 3.3, Eq. 4 and 9)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from basicsr_compat import register
from basicsr_compat.schema import Count
from iter_arch.layers import group_norm
from iter_arch.swin import Biases, SwinOptions, SwinStage


class Context(NamedTuple):
    """What does not change while an image is sampled.

    mixed: (b, h, w, c), the half of the mixing layer that comes from S_l; table: (N or N + 1, c), the other half for
    every code; biases: the attention biases of every Swin block.
    """

    mixed: Tensor
    table: Tensor
    biases: Biases


class TokenNetwork(nn.Module):
    """Two token maps -> logits: one embedding for both, mixed by a 1x1 layer, Swin blocks, norm, SiLU, 1x1.

    Tokens are embedded by look-up, and because the mixing layer is linear, it is applied to the N rows of the embedding
    instead of to the h x w positions: the same function as the 1x1 convs on one-hot maps.
    """

    has_mask_embedding: bool
    num_outputs: int | None  # None: one per code

    def __init__(
        self,
        *,
        num_codes: Count = 512,
        swin: SwinOptions | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        swin = SwinOptions().updated(swin)
        self.num_codes = num_codes
        self.embedding = nn.Embedding(num_codes + self.has_mask_embedding, swin.dim)
        self.mix_t = nn.Linear(swin.dim, swin.dim, bias=False)
        self.mix_l = nn.Linear(swin.dim, swin.dim, bias=False)
        self.swin = SwinStage(swin.dim, swin)
        self.norm = group_norm(swin.dim)
        self.head = nn.Conv2d(swin.dim, self.num_outputs or num_codes, 1)

    def _context(self, mix_l: Tensor, biases: Biases | None) -> Context:
        table = F.linear(self.embedding.weight, self.mix_t.weight)
        return Context(mix_l, table, self.swin.biases(*mix_l.shape[1:3]) if biases is None else biases)

    def _logits(self, mix_t: Tensor, context: Context) -> Tensor:
        x = (mix_t + context.mixed).permute(0, 3, 1, 2)
        return self.head(F.silu(self.norm(self.swin(x, context.biases))))


@register("arch")
class TokenRefiner(TokenNetwork):
    """phi_r: logits (b, N, h, w) of S_h given the tokens kept so far and S_l (Eq. 4).

    A masked position of S_t contributes only the learned mask embedding, not its token. S_l is never
    masked, but the mask embedding is added where it was evaluated as bad.

    Args:
        num_codes: N.
        swin: the Swin blocks, whose ``dim`` is also that of the embedding; what a mapping leaves out is
            `SwinOptions()`'s.
    """

    has_mask_embedding = True
    num_outputs = None

    def context(self, S_l: Tensor, m_l: Tensor, biases: Biases | None = None) -> Context:
        """S_l (b, h, w) int64, m_l (b, h, w) bool, True = evaluated as good -> Context for `logits`.

        biases: ``swin.biases(h, w)``, where it is there already.
        """
        table = F.linear(self.embedding.weight, self.mix_l.weight)
        mixed = F.embedding(S_l, table)
        return self._context(mixed + (~m_l)[..., None] * table[self.num_codes], biases)

    def logits(self, S_t: Tensor, m_t: Tensor, context: Context) -> Tensor:
        """S_t (b, h, w) int64, m_t (b, h, w) bool, True = kept -> logits (b, N, h, w)."""
        return self._logits(F.embedding(S_t.masked_fill(~m_t, self.num_codes), context.table), context)

    def forward(self, S_t: Tensor, m_t: Tensor, S_l: Tensor, m_l: Tensor) -> Tensor:
        """Tokens (b, h, w) int64 and masks (b, h, w) bool, True = kept / evaluated as good -> logits (b, N, h, w)."""
        return self.logits(S_t, m_t, self.context(S_l, m_l))


@register("arch")
class TokenEvaluator(TokenNetwork):
    """phi_e: logits (b, 2, h, w) of 'bad' and 'good' for every token of S_t given S_l (Eq. 9).

    Args: as `TokenRefiner`.
    """

    has_mask_embedding = False
    num_outputs = 2

    def context(self, S_l: Tensor, biases: Biases | None = None) -> Context:
        """S_l (b, h, w) int64 -> Context for `logits`; biases: ``swin.biases(h, w)``, where it is there already."""
        return self._context(F.embedding(S_l, F.linear(self.embedding.weight, self.mix_l.weight)), biases)

    def logits(self, S_t: Tensor, context: Context) -> Tensor:
        """S_t (b, h, w) int64 -> logits (b, 2, h, w), channel 1 'good'."""
        return self._logits(F.embedding(S_t, context.table), context)

    def forward(self, S_t: Tensor, S_l: Tensor) -> Tensor:
        """S_t, S_l (b, h, w) int64 -> logits (b, 2, h, w), channel 1 'good'."""
        return self.logits(S_t, self.context(S_l))
