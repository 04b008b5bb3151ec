"""Random kernels: shapes, sums, and independence of the global random states."""

import random

import numpy as np
import pytest
import torch

from basicsr_compat.pipeline.randomness import seeded_globals
from iter_data import SecondOrderDegradation, draw_kernels


def draw(seed, **options):
    with seeded_globals(seed):
        return draw_kernels(SecondOrderDegradation(**options))


def test_kernels_have_their_sizes_and_sum_to_one():
    for seed in range(50):
        kernels = draw(seed, blur_kernel_size=13, blur_kernel_size2=15)
        assert [tuple(kernel.shape) for kernel in kernels] == [(13, 13), (15, 15), (21, 21)]
        assert all(kernel.dtype == torch.float32 for kernel in kernels)
        assert all(kernel.sum().item() == pytest.approx(1, abs=1e-5) for kernel in kernels)


def test_a_seed_gives_one_set_of_kernels():
    first, again, other = draw(1), draw(1), draw(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.kernel1, other.kernel1)


def test_seeded_leaves_the_global_states_as_they_were_even_after_an_error():
    before = random.getstate(), np.random.get_state()[1].tolist()
    with pytest.raises(RuntimeError), seeded_globals(3):
        draw_kernels(SecondOrderDegradation())
        raise RuntimeError
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_the_final_sinc_filter_is_a_pulse_where_none_is_drawn():
    pulse = torch.zeros(21, 21)
    pulse[10, 10] = 1
    assert torch.equal(draw(0, final_sinc_prob=0).sinc_kernel, pulse)
    assert not torch.equal(draw(0, final_sinc_prob=1).sinc_kernel, pulse)


def test_sinc_prob_chooses_kernels_with_negative_lobes():
    assert all((draw(seed, sinc_prob=1).kernel1 < 0).any() for seed in range(5))
    assert all((draw(seed, sinc_prob=0).kernel1 >= 0).all() for seed in range(20))
