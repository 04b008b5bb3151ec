"""The weights that come with the package: they are small, and `basicsr test` restores the sample photos with them."""

import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from commands import BASICSR, call

import iter_arch
from iter_arch.pretrained.download import WEIGHTS

REPOSITORY = Path(__file__).parents[2]


def test_shipped_weights_are_small_and_complete():
    assert "iter_tiny_x4" in iter_arch.shipped()
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) <= 20e6
    net = iter_arch.load_pretrained("iter_tiny_x4")
    assert net.scale == 4 and not net.training and (WEIGHTS / "README.md").is_file()


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A folder in which `basicsr test -opt options/test_iter.yml` ran, and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    shutil.copytree(REPOSITORY / "datasets/sample", folder / "datasets/sample")
    shutil.copytree(REPOSITORY / "options", folder / "options")
    code, output = call(folder, BASICSR, "test", "-opt", "options/test_iter.yml")
    assert code == 0, output
    return folder, output


def test_every_sample_photo_is_restored_to_its_size(demo):
    folder, _ = demo
    for gt in sorted((folder / "datasets/sample/gt").iterdir()):
        image = cv2.imread(str(folder / f"results/test_iter/visualization/sample/{gt.stem}_test_iter.png"))
        assert image.shape == cv2.imread(str(gt)).shape


def test_results_are_measured_next_to_bicubic_upsampling(demo):
    _, output = demo
    value = {name: float(number) for name, number in re.findall(r"# (.+): ([\d.]+)", output)}
    metrics = {"psnr", "ssim", "niqe", "color"}
    assert set(value) == metrics | {f"{metric} of bicubic" for metric in metrics}
    # What random weights, or those of another network, are far from.
    assert value["psnr"] > 20.5 and value["ssim"] > 0.5
    assert value["color"] < 1.3 and value["color of bicubic"] < 0.1


def test_noise_is_gone_from_flat_areas(demo):
    folder, _ = demo
    lq = cv2.imread(str(folder / "datasets/sample/lq/rocket.png"))
    restored = cv2.imread(str(folder / "results/test_iter/visualization/sample/rocket_test_iter.png"))
    # The sky above the rocket: 30x80 pixels of the LQ.
    noise, left = (np.abs(cv2.Laplacian(sky, cv2.CV_64F)).mean() for sky in (lq[:30, 8:88], restored[:120, 32:352]))
    assert left < 0.3 * noise


def test_upscale_gives_the_pixels_of_the_test(demo):
    folder, _ = demo
    photo = "datasets/sample/lq/chelsea.png"
    code, output = call(folder, BASICSR, "upscale", "-i", photo, "-o", "upscaled", "--precision", "float32")
    assert code == 0, output
    expected = cv2.imread(str(folder / "results/test_iter/visualization/sample/chelsea_test_iter.png"))
    found = cv2.imread(str(folder / "upscaled/chelsea.png"))
    assert abs(found.astype(int) - expected).max() <= 1
