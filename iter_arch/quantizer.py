"""Quantizers of the VQGAN, between E_H and D_H (ITER, arXiv:2312.05616, Sec. 3.1, Eq. 1).

A new one is a module that has what `Quantizer` lists, and a row in `QUANTIZERS`. A yml names it under ``vqgan``:
``quantizer: {type: FSQ, levels: [8, 5, 5, 5]}``.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr_compat.schema import Count, OneOf, Rule, Weight
from iter_arch.precision import widened

Levels = Annotated[int, Rule("from 2 to 64", lambda levels: 2 <= levels <= 64)]


class Quantized(NamedTuple):
    """codes: (b, d, h, w), gradients pass straight through to z; tokens: (b, h, w) int64; loss: () float32."""

    codes: Tensor
    tokens: Tensor
    loss: Tensor


class Quantizer(Protocol):
    """num_codes: N; dim: d, the channels of latents and codes.

    A quantizer that learns its codes also has ``replace(indices, vectors)``, so that a training run can start and
    revive them.
    """

    num_codes: int
    dim: int

    def tokens(self, z: Tensor) -> Tensor:
        """z (b, d, h, w) -> tokens (b, h, w) int64 in [0, N)."""

    def codes(self, tokens: Tensor) -> Tensor:
        """tokens (b, h, w) int64 in [0, N) -> codes (b, d, h, w)."""

    def __call__(self, z: Tensor) -> Quantized:
        """z (b, d, h, w) -> Quantized."""


class VectorQuantizer(nn.Module):
    """Nearest entry of a codebook by squared L2 distance (VQ-VAE, arXiv:1711.00937); the paper's.

    Args:
        num_codes: N, entries of the codebook.
        dim: d, their dimension.
        beta: weight of the commitment term: ||sg(z) - e||^2 + beta ||z - sg(e)||^2.

    Distances, argmin and loss are float32 whatever the autocast dtype.
    """

    def __init__(self, *, num_codes: Count = 512, dim: Count = 128, beta: Weight = 0.25) -> None:
        super().__init__()
        self.num_codes = num_codes
        self.dim = dim
        self.beta = beta
        self.embedding = nn.Embedding(num_codes, dim)
        nn.init.uniform_(self.embedding.weight, -1 / num_codes, 1 / num_codes)

    def codes(self, tokens: Tensor) -> Tensor:
        """tokens (b, h, w) int64 in [0, N) -> codes (b, d, h, w)."""
        return self.embedding(tokens).permute(0, 3, 1, 2)

    def tokens(self, z: Tensor) -> Tensor:
        """z (b, d, h, w) -> index of the nearest code (b, h, w) int64."""
        with torch.autocast(z.device.type, enabled=False):
            codebook = widened(self.embedding.weight)
            flat = z.to(codebook.dtype).permute(0, 2, 3, 1).flatten(0, 2)
            # ||z||^2 is the same for every code, so it is left out.
            distance = torch.addmm(codebook.square().sum(1), flat, codebook.t(), alpha=-2)
            return distance.argmin(1).view(z.shape[0], *z.shape[2:])

    def forward(self, z: Tensor) -> Quantized:
        """z (b, d, h, w) -> Quantized."""
        tokens = self.tokens(z)
        codes, latent = widened(self.codes(tokens)), widened(z)
        loss = F.mse_loss(codes, latent.detach()) + self.beta * F.mse_loss(latent, codes.detach())
        return Quantized(latent + (codes - latent).detach(), tokens, loss)

    @torch.no_grad()
    def replace(self, indices: Tensor, vectors: Tensor) -> None:
        """Overwrite codes ``indices`` (k,) with ``vectors`` (k, d): initialization and revival of dead codes."""
        self.embedding.weight[indices] = vectors.to(self.embedding.weight.dtype)


class FSQ(nn.Module):
    """Finite scalar quantization (arXiv:2309.15505): every channel is rounded to one of a few levels.

    There is no codebook to learn, initialize, or revive, and no loss. N is the product of the levels.

    Args:
        levels: number of levels of every channel, each from 2 to 64; d is their count. The paper advises 5 or more
            each: [8, 8, 8] gives 512 codes, [8, 5, 5, 5] gives 1000.
    """

    sizes: Tensor
    strides: Tensor

    def __init__(self, *, levels: Sequence[Levels] = (8, 8, 8)) -> None:
        super().__init__()
        self.num_codes = math.prod(levels)
        self.dim = len(levels)
        sizes = torch.tensor(levels)
        strides = torch.tensor([math.prod(levels[:i]) for i in range(len(levels))])
        self.register_buffer("sizes", sizes.view(-1, 1, 1), persistent=False)
        self.register_buffer("strides", strides.view(-1, 1, 1), persistent=False)

    def codes(self, tokens: Tensor) -> Tensor:
        """tokens (b, h, w) int64 in [0, N) -> codes (b, d, h, w) float32 in [-1, 1]."""
        return self._to_codes(tokens[:, None] // self.strides % self.sizes)

    def tokens(self, z: Tensor) -> Tensor:
        """z (b, d, h, w) -> the token of the levels that its channels are rounded to (b, h, w) int64."""
        return (self._level(z).round().long() * self.strides).sum(1)

    def forward(self, z: Tensor) -> Quantized:
        """z (b, d, h, w) -> Quantized; the loss is 0."""
        level = self._level(z)
        rounded = level.round()
        codes = self._to_codes(level + (rounded - level).detach())
        return Quantized(codes, (rounded.long() * self.strides).sum(1), codes.new_zeros(()))

    def _level(self, z: Tensor) -> Tensor:
        """z (b, d, h, w) -> level of every channel before rounding, in (-0.5, levels - 0.5)."""
        # Reaches almost half a level beyond the outermost, so that each level covers an equal part of the range.
        return widened(z).tanh() * (self.sizes - 1e-3) / 2 + (self.sizes - 1) / 2

    def _to_codes(self, level: Tensor) -> Tensor:
        return 2 * level / (self.sizes - 1) - 1


# A new quantizer is one entry.
QUANTIZERS: dict[str, Callable[..., Quantizer]] = {"VectorQuantizer": VectorQuantizer, "FSQ": FSQ}

QuantizerSection = Annotated[
    Mapping[str, Any] | None, OneOf("quantizer", QUANTIZERS.get, QUANTIZERS.keys, default="VectorQuantizer")
]


def build_quantizer(section: Mapping[str, Any] | None) -> Quantizer:
    """The quantizer of a yml's section; `VectorQuantizer` if it names no type.

    Raises:
        ValueError: an unknown type; lists the known ones.
    """
    options = dict(section or {})
    name = options.pop("type", "VectorQuantizer")
    if name not in QUANTIZERS:
        raise ValueError(f"quantizer.type={name!r} must be one of {', '.join(QUANTIZERS)}")
    return QUANTIZERS[name](**options)


def all_codes(quantizer: Quantizer, device: torch.device) -> Tensor:
    """The codes of all tokens, (N, d)."""
    every = torch.arange(quantizer.num_codes, device=device)
    return quantizer.codes(every[None, None])[0, :, 0].t()


def expected_codes(quantizer: Quantizer, logits: Tensor) -> Tensor:
    """Mean of the codes under the softmax of ``logits``: what a single draw loses.

    Args:
        logits: (b, N, h, w).

    Returns:
        (b, d, h, w) float32.
    """
    codebook = widened(all_codes(quantizer, logits.device))
    with torch.autocast(logits.device.type, enabled=False):
        # The N of a position side by side in memory, which a CPU's softmax is fast with.
        probabilities = widened(logits).movedim(1, -1).softmax(-1)
        return (probabilities.to(codebook.dtype) @ codebook).movedim(-1, 1)
