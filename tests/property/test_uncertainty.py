"""Laws of `iter_arch.uncertainty`."""

import math
import pickle

import pytest
import torch
from small_networks import photo, small_iter

import iter_arch
from iter_arch import SamplingConfig
from iter_arch.color import match_color

EAGER = SamplingConfig(alpha=0.6)


@pytest.fixture(scope="module")
def net():
    return small_iter()


@pytest.fixture(scope="module", params=[{}, {"tile": 16}, {"alpha": 0.4}, {"color_correction": "wavelet"}], ids=str)
def loop(net, request):
    """Options, an LQ, and the images (3, 2, 3, H, W) that it is restored to with them and three seeds."""
    lq, sampling = photo(2, 3, 16, 30), dict(request.param)
    method = sampling.pop("color_correction", "none")
    images = [match_color(net.restore(lq, config=EAGER, seed=5 + i, **sampling).image, lq, method) for i in range(3)]
    return request.param, lq, torch.stack(images)


@pytest.mark.parametrize("batch", [None, 1, 4, 100])
def test_it_is_what_a_loop_over_seeds_gives(net, loop, batch):
    options, lq, images = loop
    found = iter_arch.uncertainty(net, lq, samples=3, seed=5, config=EAGER, batch=batch, **options)
    assert torch.allclose(found.mean, images.mean(0), atol=1e-5)
    assert torch.allclose(found.std, images.var(0, correction=0).mean(1, keepdim=True).sqrt(), atol=1e-5)
    assert found.std.max() > 0.01


def test_every_image_has_its_own_alpha(net):
    lq, alpha = photo(2, 3, 16, 24), torch.tensor([0.0, 0.9]).view(2, 1, 1, 1)
    for batch in (None, 4):
        std = iter_arch.uncertainty(net, lq, samples=3, alpha=alpha, batch=batch).std
        assert std[0].max() == 0 and std[1].max() > 0.01


def test_entropy_is_that_of_the_refiner_at_an_empty_map(net):
    lq = photo(2, 3, 16, 32)
    found = iter_arch.uncertainty(net, lq, samples=1, config=EAGER).entropy
    with torch.no_grad():
        S_l = net.lq_encoder(lq).argmax(1)
        good = net.evaluator(S_l, S_l).softmax(1)[:, 1] >= 0.6
        p = net.refiner(S_l, torch.zeros_like(good), S_l, good).softmax(1)
    assert found.shape == (2, 1, *S_l.shape[1:]) and found.dtype == torch.float32
    assert torch.allclose(found[:, 0], -(p * p.log()).sum(1), atol=1e-4)
    assert 0 < found.min() and found.max() <= math.log(32)


@pytest.mark.parametrize("scale", [1, 2, 8])
def test_shapes_at_other_scales(scale):
    found = iter_arch.uncertainty(small_iter(scale), photo(1, 3, 20, 31), samples=2)
    assert found.mean.shape == (1, 3, 20 * scale, 31 * scale) and found.std.shape == (1, 1, 20 * scale, 31 * scale)


def test_one_sample_and_alpha_0_have_no_deviation(net):
    lq = photo(1, 3, 16, 24)
    assert iter_arch.uncertainty(net, lq, samples=1).std.max() == 0
    assert iter_arch.uncertainty(net, lq, samples=3, alpha=0.0).std.max() == 0


def test_it_is_deterministic_by_seed(net):
    lq = photo(1, 3, 16, 24)
    first, again, other = (iter_arch.uncertainty(net, lq, samples=2, seed=seed, config=EAGER) for seed in (3, 3, 40))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.mean, other.mean) and torch.equal(first.entropy, other.entropy)


@pytest.mark.parametrize("batch", [None, 4])
def test_E_l_runs_once_and_not_at_all_for_what_is_prepared(batch):
    net, lq, calls = small_iter(), photo(1, 3, 16, 24), []
    net.lq_encoder.register_forward_pre_hook(lambda *_: calls.append(1))
    expected = iter_arch.uncertainty(net, lq, samples=4, batch=batch)
    assert len(calls) == 1
    prepared = net.prepare(lq)
    found = iter_arch.uncertainty(net, lq, samples=4, batch=batch, prepared=prepared)
    assert len(calls) == 2 and torch.equal(found.mean, expected.mean)


def test_memory_does_not_grow_with_the_samples():
    net, sizes = small_iter(), []
    net.vqgan.decoder.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    iter_arch.uncertainty(net, photo(2, 3, 16, 24), samples=9, batch=4)
    assert max(sizes) == 4


def test_progress_ends_where_it_says(net):
    told = []
    iter_arch.uncertainty(net, photo(1, 3, 16, 24), samples=3, on_progress=lambda *step: told.append(step))
    assert told[-1][0] == told[-1][1] and [done for done, _ in told] == sorted(done for done, _ in told)


def test_no_samples_are_refused(net):
    with pytest.raises(ValueError, match="samples=0 must be at least 1"):
        iter_arch.uncertainty(net, photo(1, 3, 16, 24), samples=0)


def test_the_result_can_be_pickled(net):
    found = iter_arch.uncertainty(net, photo(1, 3, 16, 24), samples=1)
    assert torch.equal(pickle.loads(pickle.dumps(found)).std, found.std)
