"""Our degradation against BasicSR's RealESRGANDataset and RealESRGANModel.feed_data, which are its specification."""

import random
from dataclasses import replace

import basicsr_compat  # noqa: F401  isort: skip
import cv2
import numpy as np
import pytest
import torch
from basicsr.data.realesrgan_dataset import RealESRGANDataset
from basicsr.models.realesrgan_model import RealESRGANModel
from basicsr.utils import DiffJPEG, USMSharp
from scipy.stats import ks_2samp

from basicsr_compat.pipeline.randomness import seeded_globals
from iter_data import (
    Kernels,
    SecondOrderDegradation,
    SecondOrderDegradationDataset,
    draw_kernels,
    make_pair,
    sharpen,
)

KERNEL_KEYS = [
    key + end
    for key in (
        "blur_kernel_size",
        "kernel_list",
        "kernel_prob",
        "blur_sigma",
        "betag_range",
        "betap_range",
        "sinc_prob",
    )
    for end in ("", "2")
] + ["final_sinc_prob"]


def write_photo(path, height, width, seed=0):
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(int)
    image[height // 4 : height // 2, width // 3 : width // 2] = generator.integers(0, 256, 3)
    image = np.clip(image + generator.integers(-12, 13, image.shape), 0, 255).astype(np.uint8)
    cv2.imwrite(str(path), image)
    return torch.from_numpy(image[..., ::-1].transpose(2, 0, 1).copy()).float() / 255


@pytest.mark.parametrize("size", [(400, 400), (448, 416)])
def test_equal_draws_give_basicsrs_gt_and_kernels(tmp_path, size):
    write_photo(tmp_path / "a.png", *size)
    (tmp_path / "meta.txt").write_text("a.png\n")
    # no key of the second round has the value of the first
    changed = {
        "sinc_prob": 0.2,
        "sinc_prob2": 0.5,
        "kernel_prob2": (1, 2, 3, 4, 5, 6),
        "betag_range2": (0.3, 3),
        "betap_range2": (0.6, 2.5),
    }
    options = SecondOrderDegradation(**changed)
    shared = {"dataroot_gt": str(tmp_path), "meta_info": str(tmp_path / "meta.txt"), "use_hflip": True, "use_rot": True}
    theirs = RealESRGANDataset({**shared, "io_backend": {"type": "disk"},
                                **{key: getattr(options, key) for key in KERNEL_KEYS}})  # fmt: skip
    ours = SecondOrderDegradationDataset({**shared, "gt_size": 400, "scale": 4, "degradation": changed})
    for seed in range(60):
        with seeded_globals(seed):
            expected = theirs[0]
        item = ours.sample(0, seed)
        for key in ("gt", "kernel1", "kernel2", "sinc_kernel"):
            assert torch.equal(item[key], expected[key]), (seed, key)


def basicsr_model(options, scale, gt_size):
    """RealESRGANModel with what feed_data uses, on the CPU and without its networks and its pool."""
    model = RealESRGANModel.__new__(RealESRGANModel)
    section = {key: list(v) if isinstance(v, tuple) else v for key, v in vars(options).items()}
    model.opt = {**section, "scale": scale, "gt_size": gt_size}
    model.is_train, model.device = True, torch.device("cpu")
    model.jpeger, model.usm_sharpener = DiffJPEG(differentiable=False), USMSharp()
    model._dequeue_and_enqueue = lambda: None
    return model


def seed_everything(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def kernels_of(options, seed, count):
    with seeded_globals(seed):
        drawn = [draw_kernels(options) for _ in range(count)]
    return Kernels(*map(torch.stack, zip(*drawn, strict=True)))


@pytest.mark.parametrize("scale", [1, 4])
def test_with_fixed_parameters_the_images_are_basicsrs(tmp_path, scale):
    """With no noise, no random size and one JPEG quality, 3 resize modes x 2 orders are all that is left to chance:
    each image of theirs must be one of ours, and all must occur."""
    gt = write_photo(tmp_path / "a.png", 96, 96)[None]
    keep, none = (0.0, 0.0, 1.0), (0.0, 0.0)
    options = SecondOrderDegradation(
        resize_prob=keep, resize_prob2=keep, gaussian_noise_prob=1.0, noise_range=none, gaussian_noise_prob2=1.0,
        noise_range2=none, jpeg_range=(40.0, 40.0), jpeg_range2=(60.0, 60.0), second_blur_prob=1.0, final_sinc_prob=1.0,
    )  # fmt: skip
    kernels = kernels_of(options, 7, 1)
    model = basicsr_model(options, scale, 96)
    theirs, ours = [], []
    for seed in range(30):
        seed_everything(seed)
        model.feed_data({"gt": gt, **kernels._asdict()})
        theirs.append(model.lq)
        generator = torch.Generator().manual_seed(seed)
        drawn = kernels._asdict()
        ours.append(make_pair(sharpen(gt), drawn, scale=scale, degradation=options, generator=generator).lq)

    def same(a, b):
        # a JPEG coefficient halfway between two steps may round either way
        return (a - b).abs().mean().item() < 2e-4

    def distinct(images):
        kept = []
        for image in images:
            if not any(same(image, other) for other in kept):
                kept.append(image)
        return kept

    kinds = distinct(theirs)
    assert len(kinds) == (2 if scale == 1 else 6)
    assert len(distinct(ours)) == len(kinds)
    assert all(any(same(image, kind) for kind in kinds) for image in ours)


def statistics(lq, gt):
    """Per image: mean, contrast, horizontal, diagonal and color detail, PSNR to the shrunken GT: (b, 6)."""
    small = torch.nn.functional.interpolate(gt, size=lq.shape[-2:], mode="area")
    chroma = lq - lq.mean(1, keepdim=True)
    values = [
        lq.mean((1, 2, 3)),
        lq.std((1, 2, 3)),
        lq.diff(dim=-1).abs().mean((1, 2, 3)),
        lq.diff(dim=-1).diff(dim=-2).abs().mean((1, 2, 3)),
        chroma.diff(dim=-1).abs().mean((1, 2, 3)),
        -10 * (lq - small).square().mean((1, 2, 3)).log10(),
    ]
    return torch.stack(values, 1)


NO_NOISE = {
    "gaussian_noise_prob": 1.0,
    "noise_range": (0.0, 0.0),
    "gaussian_noise_prob2": 1.0,
    "noise_range2": (0.0, 0.0),
}
NO_RESIZE = {"resize_prob": (0.0, 0.0, 1.0), "resize_prob2": (0.0, 0.0, 1.0)}
DOWN2 = {"resize_prob": (0.0, 0.0, 1.0), "resize_prob2": (0.0, 1.0, 0.0)}
NO_JPEG = {"jpeg_range": (98.0, 98.5), "jpeg_range2": (98.0, 98.5)}
NO_BLUR = {"second_blur_prob": 0.0, "final_sinc_prob": 0.0, "blur_sigma": (0.2, 0.21), "sinc_prob": 0.0}


@pytest.mark.draws
@pytest.mark.parametrize(
    ("scale", "given", "changed"),
    [
        (4, {}, {"jpeg_range2": (85.0, 95.0)}),
        (4, {**NO_RESIZE, **NO_JPEG, **NO_BLUR}, {"noise_range": (1.0, 12.0), "noise_range2": (1.0, 9.0)}),
        (
            4,
            {**NO_RESIZE, **NO_JPEG, **NO_BLUR},
            {"poisson_scale_range": (0.05, 1.5), "poisson_scale_range2": (0.05, 1.2)},
        ),
        (4, {**NO_RESIZE, **NO_JPEG, **NO_BLUR}, {"gray_noise_prob": 0.0, "gray_noise_prob2": 0.0}),
        (1, {**NO_NOISE, **NO_JPEG, **NO_BLUR}, {"resize_range": (0.7, 1.5)}),
        (1, {**NO_NOISE, **NO_JPEG, **NO_BLUR, **DOWN2, "resize_range2": (0.1, 1.2)}, {"resize_range2": (1.0, 1.2)}),
        (4, {**NO_RESIZE, **NO_NOISE, **NO_BLUR, "jpeg_range2": (98.0, 98.5)}, {"jpeg_range": (80.0, 95.0)}),
        (4, {**NO_RESIZE, **NO_NOISE, **NO_JPEG, **NO_BLUR, "second_blur_prob": 0.8}, {"second_blur_prob": 0.2}),
        (4, {**NO_RESIZE, **NO_NOISE, **NO_JPEG, **NO_BLUR, "final_sinc_prob": 0.8}, {"final_sinc_prob": 0.3}),
    ],
)
def test_statistics_of_many_draws_are_basicsrs(tmp_path, scale, given, changed):
    """Two-sample Kolmogorov-Smirnov on each statistic; the same test must tell a changed option apart."""
    draws, size = 100, 96
    images = torch.stack([write_photo(tmp_path / "a.png", size, size, seed) for seed in range(2)])
    # sharpening has its own test and is most of their time
    options = SecondOrderDegradation(**given)
    model = basicsr_model(options, scale, size)
    model.usm_sharpener = torch.nn.Identity()

    def ours(options, seed):
        generator = torch.Generator().manual_seed(seed)
        drawn = kernels_of(options, draws + seed, len(images))._asdict()
        lq = make_pair(images, drawn, scale=scale, degradation=options, generator=generator).lq
        return statistics(lq, images)

    def theirs(seed):
        # not the kernels' seed: they would draw the same numbers
        seed_everything(10_000 + seed)
        model.feed_data({"gt": images, **kernels_of(options, seed, len(images))._asdict()})
        return statistics(model.lq, images)

    expected = torch.stack([theirs(seed) for seed in range(draws)])

    def smallest_p(options):
        drawn = torch.stack([ours(options, seed) for seed in range(draws)])
        # images of one batch share their random sizes and modes: only whole batches are independent
        return min(ks_2samp(expected[:, i, k], drawn[:, i, k]).pvalue for i in range(2) for k in range(6))

    assert smallest_p(options) > 0.005
    assert smallest_p(replace(options, **changed)) < 0.0005
