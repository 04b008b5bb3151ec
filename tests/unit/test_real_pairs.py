"""RealPairDataset: RealSR's folders, with LQ images of the GT's size and small ones."""

import random

import cv2
import numpy as np
import pytest
from second_order import write_image

from basicsr_compat.pipeline import data
from basicsr_compat.schema import OptionProblems
from iter_data import RealPairDataset
from iter_data.images import read_image, to_image


@pytest.fixture
def build(tmp_path):
    """build(**section): the data set of tmp_path, as the `basicsr` command makes it."""

    def build(**section):
        section = {"type": "RealPairDataset", "name": "set", "phase": "val", "scale": 4} | section
        section = {"dataroot_gt": str(tmp_path), "io_backend": {"type": "disk"}} | section
        return data.build_set(section["phase"], section)

    return build


def smooth(path, height, width):
    """An image whose crops can be told apart and which shrinking does not change much."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([y * 200 / height, x * 200 / width, (x + y) * 100 / (height + width)], -1).round().astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())
    return image


def test_lq_images_of_the_gt_size_are_shrunk_by_the_scale(tmp_path, build):
    image = smooth(tmp_path / "Canon/Test/4/Canon_001_HR.png", 67, 82)
    smooth(tmp_path / "Canon/Test/4/Canon_001_LR4.png", 67, 82)
    (item,) = [*data.ReadableItems(build())]
    assert item["lq"].shape == (3, 16, 20) and item["gt"].shape == (3, 64, 80)
    np.testing.assert_array_equal(to_image(item["gt"]), image[:64, :80])
    mean = image[:64, :80].reshape(16, 4, 20, 4, 3).mean((1, 3))
    np.testing.assert_allclose(to_image(item["lq"]), mean, atol=1.5)
    assert item["lq_path"].endswith("Canon/Test/4/Canon_001_LR4.png")


def test_small_lq_images_are_used_unchanged(tmp_path, build):
    write_image(tmp_path / "a_HR.png", 66, 80)
    small = write_image(tmp_path / "a_LR4.png", 16, 20)
    (item,) = [*data.ReadableItems(build())]
    np.testing.assert_array_equal(to_image(item["lq"]), small)
    assert item["gt"].shape == (3, 64, 80)


def test_with_scale_1_a_pair_is_used_unchanged(tmp_path, build):
    gt, lq = write_image(tmp_path / "a_HR.png", 40, 50), write_image(tmp_path / "a_LR4.png", 40, 50, seed=1)
    item = build(scale=1, lq_suffix="_LR4")[0]
    np.testing.assert_array_equal(to_image(item["gt"]), gt)
    np.testing.assert_array_equal(to_image(item["lq"]), lq)


def test_two_folders_with_suffixes_of_their_own(tmp_path, build):
    write_image(tmp_path / "test_HR/DSC_1_x1.png")
    write_image(tmp_path / "test_LR/DSC_1_x4.jpg", 16, 20)
    roots = {f"dataroot_{kind}": str(tmp_path / name) for kind, name in (("gt", "test_HR"), ("lq", "test_LR"))}
    assert build(**roots, gt_suffix="_x1", lq_suffix="_x4")[0]["lq"].shape == (3, 16, 20)


def test_images_with_other_suffixes_are_passed_over(tmp_path, build):
    for suffix in ("HR", "LR2", "LR3", "LR4"):
        write_image(tmp_path / f"a_{suffix}.png")
    dataset = build()
    assert dataset.paths == [{"lq_path": str(tmp_path / "a_LR4.png"), "gt_path": str(tmp_path / "a_HR.png")}]


@pytest.mark.parametrize("size", [(64, 80), (16, 20)], ids=["aligned", "small"])
def test_training_crops_both_at_one_place(tmp_path, build, size):
    smooth(tmp_path / "a_HR.png", 64, 80)
    smooth(tmp_path / "a_LR4.png", *size)
    dataset = build(phase="train", gt_size=32, use_rot=True)
    random.seed(0)
    items = [dataset[0] for _ in range(8)]
    for item in items:
        assert item["lq"].shape == (3, 8, 8) and item["gt"].shape == (3, 32, 32)
        mean = item["gt"].reshape(3, 8, 4, 8, 4).mean((2, 4))
        # the edges of a crop are shrunk without what is beyond them, and a small LQ is a drawing of its own
        assert (item["lq"] - mean).abs().max() < 6 / 255
    assert len({item["gt"].sum().item() for item in items}) > 4


@pytest.mark.parametrize(
    ("names", "section", "messages"),
    [
        (["a_HR", "a_LR4", "b_HR"], {}, ["2 images named *_HR", "1 named *_LR4", "1 have no partner", "b_HR.png"]),
        (["a_HR", "a_LR4", "c_LR4"], {}, ["1 have no partner", "c_LR4.png", "add the partners"]),
        (["a", "b"], {}, ["0 images named *_HR", "set gt_suffix and lq_suffix"]),
        (["a_HR", "a_LR4"], {"lq_suffix": "_HR"}, ["datasets.val.lq_suffix='_HR' must differ"]),
        (["a_HR", "a_LR4"], {"suffix": "_HR"}, ["datasets.val.suffix is not an option"]),
        (["a_HR", "a_LR4"], {"io_backend": {"type": "lmdb"}}, ["datasets.val.io_backend.type='lmdb' must be"]),
        (["a_HR", "a_LR4"], {"phase": "train", "gt_size": 33}, ["gt_size=33 must be a multiple of scale=4"]),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, build, names, section, messages):
    for name in names:
        write_image(tmp_path / f"{name}.png")
    with pytest.raises(OptionProblems) as caught:
        build(**section)
    assert all(message in str(caught.value) for message in messages), str(caught.value)


def test_a_pair_that_does_not_fit_or_cannot_be_read_is_left_out_and_named(tmp_path, build):
    write_image(tmp_path / "a_HR.png", 64, 80)
    write_image(tmp_path / "a_LR4.png", 32, 40)
    write_image(tmp_path / "b_HR.png")
    (tmp_path / "b_LR4.png").write_text("not an image")
    first, second = data.ReadableItems(build())
    assert "a_LR4.png has 32x40 pixels, which is neither the size of" in first["unreadable"]
    assert "b_LR4.png cannot be read" in second["unreadable"]
    dataset = RealPairDataset({"scale": 4, "gt_size": 128, "dataroot_gt": str(tmp_path)})
    (tmp_path / "a_LR4.png").write_bytes((tmp_path / "a_HR.png").read_bytes())
    with pytest.raises(ValueError, match=r"a_HR\.png has 64x80 pixels.*gt_size=128"):
        dataset[0]


def test_the_files_of_a_pair_may_be_of_different_kinds(tmp_path, build):
    write_image(tmp_path / "a_HR.jpg")
    write_image(tmp_path / "a_LR4.webp", 16, 20)
    np.testing.assert_array_equal(to_image(build()[0]["lq"]), read_image(tmp_path / "a_LR4.webp"))
