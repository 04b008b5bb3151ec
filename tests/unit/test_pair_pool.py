"""PairPool: fills, then exchanges; pairs stay together; restored exactly."""

import pytest
import torch

from iter_data import Pair, PairPool


def batch(first, count=2):
    """Pairs numbered first, first + 1, ...: every pixel of lq and gt holds the pair's number, as an 8-bit level."""
    numbers = torch.arange(first, first + count, dtype=torch.float32).view(-1, 1, 1, 1) / 255
    return Pair(numbers.expand(-1, 3, 2, 2), numbers.expand(-1, 3, 8, 8))


def numbers_of(pair):
    assert torch.equal(pair.lq[:, 0, 0, 0], pair.gt[:, 0, 0, 0])
    return (pair.lq[:, 0, 0, 0] * 255).tolist()


def test_the_first_batches_fill_the_pool_and_pass_through():
    pool, generator = PairPool(5), torch.Generator().manual_seed(0)
    assert numbers_of(pool.exchange(batch(0), generator)) == [0, 1]
    assert numbers_of(pool.exchange(batch(2), generator)) == [2, 3]


def test_every_pair_goes_in_once_and_comes_out_at_most_once():
    pool, generator = PairPool(6), torch.Generator().manual_seed(0)
    for first in (0, 2, 4):
        pool.exchange(batch(first), generator)
    seen = [number for first in range(6, 60, 2) for number in numbers_of(pool.exchange(batch(first), generator))]
    inside = pool.pairs.lq[:, 0, 0, 0].tolist()
    assert sorted(seen + inside) == list(range(60))
    assert seen != sorted(seen)


def test_a_restored_pool_continues_as_the_first_one():
    pool, generator = PairPool(4), torch.Generator().manual_seed(0)
    for first in (0, 2, 4):
        pool.exchange(batch(first), generator)
    restored = PairPool(4)
    restored.load_state_dict(pool.state_dict())
    one, two = (other.exchange(batch(6), torch.Generator().manual_seed(5)) for other in (pool, restored))
    assert numbers_of(one) == numbers_of(two)


def test_a_pool_takes_a_byte_a_channel_in_a_checkpoint():
    pool, generator = PairPool(4), torch.Generator().manual_seed(0)
    for first in (0, 2, 4):
        pool.exchange(batch(first), generator)
    images = pool.state_dict()["images"]
    assert sum(image.nbytes for image in images.values()) == 4 * 3 * (2 * 2 + 8 * 8)


def test_an_empty_pool_can_be_saved_and_restored():
    restored = PairPool(4)
    restored.load_state_dict(PairPool(4).state_dict())
    assert numbers_of(restored.exchange(batch(0), torch.Generator())) == [0, 1]


def test_sizes_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="queue_size=0"):
        PairPool(0)
    with pytest.raises(ValueError, match="at least the batch size 2"):
        PairPool(1).exchange(batch(0), torch.Generator())
    with pytest.raises(ValueError, match="queue_size=3 must be 4"):
        PairPool(3).load_state_dict(PairPool(4).state_dict())
    pool = PairPool(4)
    pool.exchange(batch(0), torch.Generator())
    with pytest.raises(ValueError, match="lq of shape"):
        pool.exchange(Pair(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 8, 8)), torch.Generator())
