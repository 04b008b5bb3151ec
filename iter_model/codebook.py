"""The codebook of stage I: starts it from encoder outputs, counts its use, and revives dead codes (ITER, Eq. 1)."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import get_dist_info
from scipy.cluster.vq import kmeans2
from torch import Tensor

from iter_arch.quantizer import Quantizer
from iter_model.collectives import all_reduce_sum, broadcast_from_main

_REMEMBERED = 32  # iterations whose latents a change of the codebook uses
_VECTORS_A_CODE = 64  # that k-means uses; more do not improve the centers


@runtime_checkable
class LearnsCodes(Protocol):
    """A quantizer whose codes can get new values."""

    def replace(self, indices: Tensor, vectors: Tensor) -> None:
        """Give codes (k,) the values (k, d)."""


class CodebookTraining:
    """Gives codes new values, the same on all ranks, and counts which codes are used.

    Codes of a quantizer that is not `LearnsCodes` are only counted.

    Args:
        quantizers: the trained one, then its averages, which get the same new values.
        start_iter: iteration before which the codebook is made; None keeps the current codebook.
        revive_freq: iterations after which unused codes get new values; 0 for never.
        generator: a CPU generator, for all random draws.
        device: of the quantizers.
    """

    def __init__(
        self,
        quantizers: Sequence[Quantizer],
        *,
        start_iter: int | None,
        revive_freq: int,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self.num_codes = quantizers[0].num_codes
        self.learned = [quantizer for quantizer in quantizers if isinstance(quantizer, LearnsCodes)]
        self.start_iter = start_iter if self.learned else None
        self.revive_freq = revive_freq if self.learned else 0
        self.generator = generator
        self.device = device
        self.recent_latents: deque[Tensor] = deque(maxlen=_REMEMBERED)
        self.counts = torch.zeros(self.num_codes, device=device)  # of this rank, since the last revival
        self.window_counts = self.counts  # of all ranks, between the last two

    # ------------------------------------------------------------------------------------------- an iteration

    def remember(self, latent: Tensor) -> None:
        """Keep latents (b, d, h, w) that new codes may be made of."""
        self.recent_latents.append(latent.detach().float())

    def count(self, tokens: Tensor, current_iter: int) -> None:
        """Count the use of codes in tokens (b, h, w) int64, and revive dead codes when it is time."""
        self.counts += torch.bincount(tokens.flatten(), minlength=self.num_codes)
        if not self.revive_freq or current_iter % self.revive_freq:
            return
        self.window_counts = all_reduce_sum(self.counts.clone())
        dead = (self.window_counts == 0).nonzero().flatten()
        if len(dead):
            self.set_codes(dead, self._draw_latents(len(dead)))
            get_root_logger().info(f"{len(dead)} of {self.num_codes} codes were not in use and start anew.")
        self.counts.zero_()

    def use(self) -> dict[str, Tensor]:
        """perplexity and codes_used, () each, over all ranks; all of them must call it."""
        counts = all_reduce_sum(self.counts.clone())
        counts = counts if counts.sum() > 0 else self.window_counts
        frequency = counts / counts.sum().clamp_min(1)
        entropy = -(frequency * frequency.clamp_min(1e-10).log()).sum()
        return {"perplexity": entropy.exp(), "codes_used": (counts > 0).sum()}

    # ------------------------------------------------------------------------------------------- new codes

    def start(self) -> None:
        """Start from k-means of encoder outputs, because codes far from all latents would never be chosen.

        All ranks get the codes that rank 0 finds.
        """
        every_code = torch.arange(self.num_codes, device=self.device)
        vectors = self._draw_latents(self.num_codes)
        if get_dist_info()[0] != 0:
            return self.set_codes(every_code, vectors)
        latents = self._recent_vectors()
        if len(latents) > self.num_codes:
            vectors = kmeans(latents, self.num_codes, self.generator).to(vectors)
        self.set_codes(every_code, vectors)

    def set_codes(self, indices: Tensor, vectors: Tensor) -> None:
        """Give codes (k,) the values (k, d) of rank 0, on every rank."""
        broadcast_from_main([vectors])
        for quantizer in self.learned:
            quantizer.replace(indices, vectors)

    def _recent_vectors(self) -> Tensor:
        """(k, d): the latents of the last iterations."""
        return torch.cat([latent.movedim(1, -1).flatten(0, 2) for latent in self.recent_latents])

    def _draw_latents(self, count: int) -> Tensor:
        """(count, d): latents of the last iterations, with a little noise to keep equal ones apart."""
        latents = self._recent_vectors()
        chosen = torch.randint(len(latents), (count,), generator=self.generator).to(self.device)
        noise = torch.randn(count, latents.shape[1], generator=self.generator).to(self.device)
        return latents[chosen] + 1e-3 * latents.std() * noise

    # ------------------------------------------------------------------------------------------- states

    def state_dict(self, current_iter: int) -> dict[str, Any]:
        """The counts, and the latents that the next change of the codebook will still use."""
        state: dict[str, Any] = {
            "codebook_iter": self.start_iter,
            "code_counts": self.counts,
            "window_counts": self.window_counts,
        }
        changes = []
        if self.revive_freq:
            changes.append(current_iter - current_iter % self.revive_freq + self.revive_freq)
        if self.start_iter is not None and self.start_iter > current_iter:
            changes.append(self.start_iter)
        if changes:
            recent = list(self.recent_latents)
            # The change in iteration n uses at most those of n - 32 and later.
            first = max(0, len(recent) - max(0, current_iter - (min(changes) - _REMEMBERED) + 1))
            state["recent_latents"] = recent[first:]
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.start_iter = state["codebook_iter"]
        self.counts = state["code_counts"].to(self.device)
        self.window_counts = state["window_counts"].to(self.device)
        latents = (latent.to(self.device) for latent in state.get("recent_latents", ()))
        self.recent_latents = deque(latents, _REMEMBERED)


def kmeans(vectors: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Centers (count, d) of vectors (k, d), k > count, by k-means from a k-means++ start, on a sample of the vectors.

    SciPy's own k-means++ takes count^2 k steps, which are minutes for a codebook; this start takes count k.
    """
    some = torch.randperm(len(vectors), generator=generator)[: _VECTORS_A_CODE * count]
    vectors = vectors.cpu()[some]
    start = vectors[torch.randint(len(vectors), (1,), generator=generator)]
    distance = (vectors - start).square().sum(1)
    while len(start) < count:
        # Any vector will do where all of them are centers already.
        weights = distance if distance.sum() > 0 else torch.ones_like(distance)
        chosen = vectors[torch.multinomial(weights, 1, generator=generator)]
        start = torch.cat([start, chosen])
        distance = distance.minimum((vectors - chosen).square().sum(1))
    centers, _ = kmeans2(vectors.numpy(), start.numpy(), minit="matrix")
    return torch.from_numpy(centers)
