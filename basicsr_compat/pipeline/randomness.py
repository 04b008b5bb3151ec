"""The random numbers of a run: seeds, the global generators, and training items that do not change with a resume.

A training item depends on (manual_seed, epoch, position in the epoch's order) alone, not on the process that makes it:
`ResumableSampler` yields (index, seed), and `SeededItems` draws the item with that seed. Our models seed their
generators by (manual_seed, rank, iteration) in every iteration, with `derive_seed`. All other state, such as that of
the global generators, is in the `.state` file.
"""

from __future__ import annotations

import contextlib
import math
import random
import zlib
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from basicsr.data.data_sampler import EnlargedSampler


def derive_seed(purpose: str, *numbers: int) -> int:
    """A seed in [0, 2^32), made of a purpose and whole numbers >= 0 by NumPy's SeedSequence."""
    return int(np.random.SeedSequence([zlib.crc32(purpose.encode()), *numbers]).generate_state(1)[0])


def random_state() -> dict[str, Any]:
    """The state of the global generators of Python, NumPy, and torch, as tensors and plain containers."""
    numpy_state = np.random.get_state()
    assert isinstance(numpy_state, tuple)  # of the legacy form, the default
    kind, keys, *rest = numpy_state
    state = {"python": random.getstate(), "numpy": (kind, keys.tolist(), *rest), "torch": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Restore the global generators from `random_state()`, whose tensors may be on any device."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


@contextlib.contextmanager
def global_randomness_kept() -> Iterator[None]:
    """Restore the states of the global generators after a block."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)


@contextlib.contextmanager
def seeded_globals(seed: int) -> Iterator[None]:
    """Seed the global CPU generators for a block, and restore their states after it.

    BasicSR's data sets and degradations draw from the global generators.
    """
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed CUDA too
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)


class ResumableSampler(EnlargedSampler):
    """BasicSR's sampler, which hands out (index, seed) for `SeededItems` and can start within an epoch.

    BasicSR's resume replays the interrupted epoch from its start.
    """

    manual_seed = 0
    resumed_epoch, resumed_at = 0, 0

    def resume(self, epoch: int, position: int) -> None:
        """Leave out the first `position` samples of all ranks in the order of `epoch`, without reading them."""
        self.resumed_epoch, self.resumed_at = epoch, position

    @property
    def start(self) -> int:
        """The number of samples of all ranks that the current epoch leaves out."""
        return self.resumed_at if self.epoch == self.resumed_epoch else 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        indices = list(super().__iter__())
        for position in range(math.ceil(self.start / self.num_replicas), len(indices)):
            # Of the position in the order of all ranks: the same samples whatever the number of ranks or workers.
            place = position * self.num_replicas + self.rank
            yield indices[position], derive_seed("item", self.manual_seed, self.epoch, place)


class Items(Protocol):
    """A data set with a length."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class SeededItems(torch.utils.data.Dataset):
    """The items of any training set, each made with the global generators seeded by the sampler for it alone."""

    def __init__(self, dataset: Items) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index_and_seed: tuple[int, int]):
        index, seed = index_and_seed
        with seeded_globals(seed):
            return self.dataset[index]
