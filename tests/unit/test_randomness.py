"""Items and seeds of a training run: the same after a resume, with any number of ranks and workers."""

import random

import numpy as np
import torch

from basicsr_compat.pipeline.randomness import ResumableSampler, SeededItems, derive_seed


class Draws(torch.utils.data.Dataset):
    """Items that draw from all three global generators, as those of BasicSR's data sets do."""

    def __len__(self):
        return 7

    def __getitem__(self, index):
        return torch.tensor([index, random.random(), np.random.rand(), torch.rand(()).item()], dtype=torch.float64)


def items(ranks, rank, epoch, start=0, workers=0, manual_seed=0):
    """Items of a rank in an epoch that starts after `start` samples."""
    sampler = ResumableSampler(Draws(), ranks, rank, 3)
    sampler.manual_seed = manual_seed
    sampler.resume(1, start)
    sampler.set_epoch(epoch)
    return list(
        torch.utils.data.DataLoader(SeededItems(Draws()), sampler=sampler, num_workers=workers, batch_size=None)
    )


def test_an_epoch_continues_where_it_stopped():
    whole = items(1, 0, epoch=1)
    assert len(whole) == 21 and len({tuple(item.tolist()) for item in whole}) == 21
    for start, workers in ((0, 2), (1, 0), (20, 0), (21, 0)):
        rest = items(1, 0, 1, start, workers)
        assert len(rest) == 21 - start and all(map(torch.equal, rest, whole[start:]))
    assert len(items(1, 0, epoch=2, start=20)) == 21  # the next epoch is a whole one
    assert not torch.equal(items(1, 0, epoch=2)[0], whole[0])
    assert not torch.equal(items(1, 0, epoch=1, manual_seed=1)[0], whole[0])


def test_ranks_share_the_samples_of_one():
    whole = items(1, 0, epoch=1)
    of_ranks = [items(3, rank, epoch=1) for rank in range(3)]
    assert all(map(torch.equal, whole, [item for turn in zip(*of_ranks, strict=True) for item in turn]))
    assert [len(items(3, rank, 1, start=12)) for rank in range(3)] == [3, 3, 3]


def test_items_leave_the_generators_of_the_process_alone():
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    SeededItems(Draws())[0, 5]
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_seeds_depend_on_every_number():
    seeds = [derive_seed("a", *numbers) for numbers in ((0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 2), (0, 0, 400_000))]
    seeds.append(derive_seed("b", 0, 0, 1))
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**32 for seed in seeds)
