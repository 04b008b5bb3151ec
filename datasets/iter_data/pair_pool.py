"""Training pair pool of Real-ESRGAN (arXiv:2107.10833, Sec. 3.2), which mixes degradations within a batch."""

from typing import Any

import torch

from iter_data.degradation import Pair


class PairPool:
    """Holds `size` earlier pairs as 8-bit images, and swaps each batch for pairs drawn from them at random.

    The first batches only fill the pool and are returned unchanged. BasicSR's queue shuffles all of its pairs at every
    step; drawing places in the pool instead gives the same distribution and moves nothing. The pairs that come out have
    multiples of 1/255 as values, as LQ images and photos do. `size` need not be a multiple of the batch size.

    Raises:
        ValueError: size < 1.
    """

    def __init__(self, size: int) -> None:
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"queue_size={size!r} must be an integer >= 1")
        self.size = size
        self.pairs: Pair | None = None
        self.filled = 0

    def exchange(self, pair: Pair, generator: torch.Generator) -> Pair:
        """Put a batch in, and take a batch of the same size out. generator: a CPU generator.

        Raises:
            ValueError: the batch is larger than the pool, or its images differ in shape from those before.
        """
        count = len(pair.lq)
        if count > self.size:
            raise ValueError(f"queue_size={self.size} must be at least the batch size {count}")
        if self.pairs is None:
            self.pairs = Pair(*(image.new_zeros(self.size, *image.shape[1:], dtype=torch.uint8) for image in pair))
        for name, image, pool in zip(Pair._fields, pair, self.pairs, strict=True):
            if image.shape[1:] != pool.shape[1:]:
                raise ValueError(
                    f"{name} of shape {tuple(image.shape[1:])} must be {tuple(pool.shape[1:])} as in the "
                    "batches before it"
                )
        if self.filled + count <= self.size:
            for image, pool in zip(pair, self.pairs, strict=True):
                pool[self.filled : self.filled + count] = _to_bytes(image)
            self.filled += count
            return pair
        slots = torch.randperm(self.filled, generator=generator)[:count].to(pair.lq.device)
        taken = Pair(*(pool[slots].float() / 255 for pool in self.pairs))
        for image, pool in zip(pair, self.pairs, strict=True):
            pool[slots] = _to_bytes(image)
        return taken

    def state_dict(self) -> dict[str, Any]:
        """The size of the pool and its filled part, uint8, for a checkpoint."""
        if self.pairs is None:
            return {"size": self.size, "images": None}
        return {"size": self.size, "images": {key: pool[: self.filled] for key, pool in self.pairs._asdict().items()}}

    def load_state_dict(self, state: dict[str, Any], device: torch.device | str | None = None) -> None:
        """Restore `state_dict()`. device: of the pool; None: that of the saved images.

        Raises:
            ValueError: the state is that of a pool of another size.
        """
        if state["size"] != self.size:
            raise ValueError(f"queue_size={self.size} must be {state['size']}, as in the checkpoint")
        self.pairs, self.filled = None, 0
        if state["images"] is not None:
            saved = Pair(*(_to_bytes(image) for image in Pair(**state["images"])))
            self.filled = len(saved.lq)
            self.pairs = Pair(
                *(image.new_zeros(self.size, *image.shape[1:], device=device or image.device) for image in saved)
            )
            for image, pool in zip(saved, self.pairs, strict=True):
                pool[: self.filled] = image


def _to_bytes(image: torch.Tensor) -> torch.Tensor:
    """[0, 1] -> uint8; what is uint8 stays."""
    return image if image.dtype == torch.uint8 else (image * 255).round().clamp(0, 255).to(torch.uint8)
