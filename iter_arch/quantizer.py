"""Vector quantiser of the VQGAN (ITER, arXiv:2312.05616, Eq. 1; VQ-VAE, arXiv:1711.00937)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Quantized(NamedTuple):
    """codes: (b, d, h, w), gradients pass straight through to z; tokens: (b, h, w) int64; loss: () float32."""

    codes: Tensor
    tokens: Tensor
    loss: Tensor


class VectorQuantizer(nn.Module):
    """Nearest entry of a codebook by squared L2 distance.

    Args:
        num_codes: N, entries of the codebook.
        dim: d, their dimension.
        beta: weight of the commitment term: ||sg(z) - e||^2 + beta ||z - sg(e)||^2.

    Distances, argmin and loss are float32 whatever the autocast dtype.
    """

    def __init__(self, num_codes: int = 512, dim: int = 128, *, beta: float = 0.25) -> None:
        super().__init__()
        self.num_codes = num_codes
        self.dim = dim
        self.beta = beta
        self.embedding = nn.Embedding(num_codes, dim)
        nn.init.uniform_(self.embedding.weight, -1 / num_codes, 1 / num_codes)

    def codes(self, tokens: Tensor) -> Tensor:
        """tokens (b, h, w) int64 in [0, N) -> codes (b, d, h, w)."""
        return self.embedding(tokens).permute(0, 3, 1, 2)

    def expected_codes(self, logits: Tensor) -> Tensor:
        """logits (b, N, h, w) -> mean of the codes under their softmax (b, d, h, w) float32."""
        with torch.autocast(logits.device.type, enabled=False):
            return torch.einsum("bnhw,nd->bdhw", logits.float().softmax(1), self.embedding.weight.float())

    def tokens(self, z: Tensor) -> Tensor:
        """z (b, d, h, w) -> index of the nearest code (b, h, w) int64."""
        with torch.autocast(z.device.type, enabled=False):
            codebook = self.embedding.weight.float()
            flat = z.float().permute(0, 2, 3, 1).flatten(0, 2)
            # ||z||^2 is the same for every code and left out.
            distance = torch.addmm(codebook.square().sum(1), flat, codebook.t(), alpha=-2)
            return distance.argmin(1).view(z.shape[0], *z.shape[2:])

    def forward(self, z: Tensor) -> Quantized:
        """z (b, d, h, w) -> Quantized."""
        tokens = self.tokens(z)
        codes, latent = self.codes(tokens).float(), z.float()
        loss = F.mse_loss(codes, latent.detach()) + self.beta * F.mse_loss(latent, codes.detach())
        return Quantized(latent + (codes - latent).detach(), tokens, loss)

    @torch.no_grad()
    def replace(self, indices: Tensor, vectors: Tensor) -> None:
        """Overwrite codes ``indices`` (k,) with ``vectors`` (k, d): initialisation and revival of dead codes."""
        self.embedding.weight[indices] = vectors.to(self.embedding.weight.dtype)
