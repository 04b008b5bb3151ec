"""degrade and sharpen: shapes, purity, and each step against BasicSR's."""

import random

import basicsr_compat  # noqa: F401  isort: skip
import numpy as np
import pytest
import torch
from basicsr.data.degradations import generate_gaussian_noise_pt, generate_poisson_noise_pt
from basicsr.utils import DiffJPEG, USMSharp
from basicsr.utils.img_process_util import filter2D

from basicsr_compat.pipeline.randomness import seeded_globals
from iter_data import (
    Kernels,
    SecondOrderDegradation,
    batch_to_pair,
    degrade,
    draw_kernels,
    sharpen,
    sharpening,
)
from iter_data import second_order_degradation as degradation


def photo(batch=2, height=64, width=96, seed=0):
    """Smooth color gradients with an edge and some texture, (b, 3, h, w) float32 in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.meshgrid(torch.linspace(0, 1, width), torch.linspace(0, 1, height), indexing="xy")
    image = torch.stack([x, y, 1 - x * y]).repeat(batch, 1, 1, 1)
    image[..., height // 4 : height // 2, width // 4 : width // 2] = torch.rand(batch, 3, 1, 1, generator=generator)
    return (image + 0.05 * torch.rand(image.shape, generator=generator)).clamp(0, 1)


def kernels_for(batch, options, seed=0):
    with seeded_globals(seed):
        drawn = [draw_kernels(options) for _ in range(batch)]
    return Kernels(*map(torch.stack, zip(*drawn, strict=True)))


def run(gt, seed=0, scale=4, **options):
    options = SecondOrderDegradation(**options)
    generator = torch.Generator().manual_seed(seed)
    return degrade(gt, kernels_for(len(gt), options), scale=scale, options=options, generator=generator)


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_lq_has_the_size_range_and_steps_of_an_8_bit_image(scale):
    gt = photo()
    for seed in range(6):
        lq = run(gt, seed, scale)
        assert lq.shape == (2, 3, 64 // scale, 96 // scale) and lq.dtype == torch.float32 and lq.is_contiguous()
        assert lq.min() >= 0 and lq.max() <= 1
        torch.testing.assert_close(lq * 255, (lq * 255).round(), atol=1e-4, rtol=0)


def test_equal_seeds_give_equal_images_and_others_do_not():
    gt = photo()
    assert torch.equal(run(gt, 3), run(gt, 3))
    assert not torch.equal(run(gt, 3), run(gt, 4))


@pytest.mark.parametrize("size", [(64, 96), (33, 8)])
def test_blur_is_basicsrs_convolution(size):
    """With kernels that fill their 21x21 and such that do not, down to the pulse of a sinc filter not drawn."""
    image, kernels = photo(4, *size), torch.zeros(4, 21, 21)
    for kernel, reach in zip(kernels, (10, 6, 3, 0), strict=True):
        middle = kernel[10 - reach : 11 + reach, 10 - reach : 11 + reach]
        middle.copy_(torch.rand(middle.shape, generator=torch.Generator().manual_seed(reach)))
        middle /= middle.sum()
    missing = max(0, 11 - min(size))
    padded = torch.nn.functional.pad(image, (0, missing, 0, missing), mode="replicate")
    expected = filter2D(padded, kernels)[..., : size[0], : size[1]]
    torch.testing.assert_close(degradation._blur(image, kernels), expected, atol=2e-6, rtol=0)


def test_no_global_random_state_is_read_or_changed():
    gt, results = photo(), []
    for global_seed in (0, 1):
        random.seed(global_seed), np.random.seed(global_seed), torch.manual_seed(global_seed)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        results.append([run(gt, seed) for seed in range(8)])
        assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_gt_is_not_changed():
    gt = photo()
    before = gt.clone()
    sharpen(gt), run(gt)
    assert torch.equal(gt, before)


def test_small_crops_survive_every_branch():
    # after a downscale to 0.15 the image is smaller than the kernels' padding
    gt = photo(height=32, width=32)
    assert all(run(gt, seed).isfinite().all() for seed in range(60))


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="sides >= 32"):
        run(photo(height=28))
    with pytest.raises(ValueError, match="multiples of scale=4"):
        run(photo(height=66))
    with pytest.raises(ValueError, match=r"must be \(b, 3, H, W\)"):
        run(photo()[:, :1])
    with pytest.raises(ValueError, match="too small to sharpen"):
        sharpen(torch.zeros(1, 3, 25, 64))


@pytest.mark.parametrize("path", [sharpen, sharpening._sharpen_by_convolution])
def test_sharpen_equals_basicsrs_usm_sharp(path):
    gt = photo(height=80)
    expected = USMSharp()(gt)
    assert (expected - gt).abs().max() > 0.02
    # a pixel at the threshold may fall on either side of it; it then counts for 0.0025 of its surroundings
    torch.testing.assert_close(path(gt), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("size", [(48, 64), (37, 51)])
def test_jpeg_equals_basicsrs_with_a_quality_for_each_image(size):
    image, quality = photo(3, *size), torch.tensor([20.0, 50.0, 90.0])
    expected = DiffJPEG(differentiable=False)(image, quality=quality.clone())
    # a coefficient halfway between two steps may round either way
    difference = (degradation._jpeg(image, quality) - expected).abs()
    assert difference.mean() < 1e-5 and (difference > 1e-4).float().mean() < 0.01


def test_our_jpeg_does_not_share_its_tables():
    """BasicSR's modules all hold the same two: moving one of them to a GPU would move those of ours too."""
    ours = {id(parameter) for parameter in degradation._jpeg_module(torch.device("cpu")).parameters()}
    assert not ours & {id(parameter) for parameter in DiffJPEG(differentiable=False).parameters()}


@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize("kind", ["gaussian", "poisson"])
def test_noise_has_the_strength_of_basicsrs(kind, gray):
    # two gray levels and all others: the Poisson peak differs from image to image
    image = torch.cat([photo(1, 128, 128), photo(1, 128, 128).round() * 0.5 + 0.2])
    torch.manual_seed(0)
    basicsr = generate_gaussian_noise_pt if kind == "gaussian" else generate_poisson_noise_pt
    expected = basicsr(image, torch.ones(2), torch.full((2,), float(gray)))
    draw = degradation._Draw(torch.Generator().manual_seed(0), image.device)
    ours = degradation._gaussian_noise if kind == "gaussian" else degradation._poisson_noise
    noise = ours(degradation.rgb_to_grayscale(image) if gray else image, draw).expand(image.shape)
    torch.testing.assert_close(noise.std((1, 2, 3)), expected.std((1, 2, 3)), rtol=0.03, atol=0)
    torch.testing.assert_close(noise.mean((1, 2, 3)), torch.zeros(2), atol=0.002, rtol=0)
    assert (noise[:, 0] == noise[:, 1]).all().item() is gray


def test_gray_noise_prob_and_strength_are_drawn_for_each_image():
    image, draw = (
        torch.full((64, 3, 16, 16), 0.5),
        degradation._Draw(torch.Generator().manual_seed(0), torch.device("cpu")),
    )
    noise = degradation._add_noise(image, draw, 1.0, (5, 25), (0, 1), 0.4) - image
    gray = (noise - noise.mean(1, keepdim=True)).abs().amax((1, 2, 3)) < 1e-6
    assert 0.2 < gray.float().mean() < 0.6
    sigma = 255 * noise.std((1, 2, 3))
    assert sigma.min() < 8 and sigma.max() > 20


def test_the_pair_is_cut_at_the_same_place():
    # a gradient survives every degradation well enough to tell where the cut was made
    height, width = 256, 256
    x, y = torch.meshgrid(torch.linspace(0, 1, width), torch.linspace(0, 1, height), indexing="xy")
    gt = torch.stack([x, y, torch.full_like(x, 0.5)])[None]
    options = SecondOrderDegradation(noise_range=(0, 1), noise_range2=(0, 1), gaussian_noise_prob=1,
                                 gaussian_noise_prob2=1, jpeg_range=(90, 95), jpeg_range2=(90, 95))  # fmt: skip
    batch = {"gt": gt, **kernels_for(1, options)._asdict()}
    corners = set()
    for seed in range(5):
        pair = batch_to_pair(batch, device="cpu", scale=4, degradation=options,
                             generator=torch.Generator().manual_seed(seed), crop_size=64)  # fmt: skip
        assert pair.gt.shape == (1, 3, 64, 64) and pair.lq.shape == (1, 3, 16, 16)
        offset = (pair.lq.mean((2, 3)) - pair.gt.mean((2, 3))).abs()
        assert offset.max() < 0.02
        corners.add(pair.gt[0, 0, 0, 0].item())
    assert len(corners) > 1


def test_a_batch_that_has_its_lq_is_left_as_it_is():
    lq, gt = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 32, 32)
    batch, generator = {"lq": lq, "gt": gt, "gt_path": ["x"]}, torch.Generator()
    pair = batch_to_pair(batch, device="cpu", scale=4, degradation=SecondOrderDegradation(), generator=generator)
    assert torch.equal(pair.lq, lq) and torch.equal(pair.gt, gt)


@pytest.mark.gpu
def test_a_gpu_gives_what_the_cpu_gives():
    """Without noise, which each device draws for itself, decisions and images are the same."""
    gt, none = photo(4, 128, 128), (0, 0)
    options = SecondOrderDegradation(gaussian_noise_prob=1, noise_range=none, gaussian_noise_prob2=1, noise_range2=none)
    batch = {"gt": gt, **kernels_for(4, options)._asdict()}
    torch.testing.assert_close(sharpen(gt.cuda()).cpu(), sharpen(gt), atol=1e-3, rtol=0)
    for seed in range(10):
        cpu, gpu = (
            batch_to_pair(
                batch, device=device, scale=4, degradation=options, generator=torch.Generator().manual_seed(seed)
            ).lq.cpu()
            for device in ("cpu", "cuda")
        )
        assert (cpu - gpu).abs().mean() < 2e-3
    # the tables of DiffJPEG are still where they were
    assert run(gt).device.type == "cpu"


@pytest.mark.gpu
def test_noise_on_a_gpu_follows_the_seed_alone():
    gt, results = photo().cuda(), []
    options = SecondOrderDegradation()
    kernels = Kernels(*(kernel.cuda() for kernel in kernels_for(2, options)))
    for global_seed in (0, 1):
        torch.manual_seed(global_seed)
        before = torch.cuda.get_rng_state().tolist()
        results.append(degrade(gt, kernels, scale=4, options=options, generator=torch.Generator().manual_seed(1)))
        assert torch.cuda.get_rng_state().tolist() == before
    assert torch.equal(*results)
