"""SecondOrderDegradationDataset: what it finds, what an item is, where its randomness comes from, what it refuses."""

import pickle
import random
import time

import basicsr_compat  # noqa: F401  isort: skip
import cv2
import numpy as np
import pytest
import torch
from basicsr.data import build_dataloader, build_dataset
from second_order import dataset_of, names, options, write_image
from torch.utils.data import DataLoader

from basicsr_compat.pipeline.image_names import names_below
from iter_data import second_order_dataset
from iter_data.prepare import main as prepare
from iter_data.second_order_dataset import seed_of

ITEM_KEYS = ("gt", "kernel1", "kernel2", "sinc_kernel")


def equal(one, two, keys=ITEM_KEYS):
    return all(torch.equal(one[key], two[key]) for key in keys)


# Files


def test_a_folder_is_searched_through_and_sorted(photo_tree):
    assert names(dataset_of(photo_tree), photo_tree) == ["d.PNG", "set1/a.png", "set1/b.png", "set2/deep/c.png"]


def test_links_are_followed_but_not_in_circles(photo_tree, tmp_path):
    write_image(tmp_path / "elsewhere" / "e.png")
    (photo_tree / "set3").symlink_to(tmp_path / "elsewhere")
    (photo_tree / "set2" / "loop").symlink_to(photo_tree)
    expected = ["d.PNG", "set1/a.png", "set1/b.png", "set2/deep/c.png", "set3/e.png"]
    assert names(dataset_of(photo_tree), photo_tree) == expected


def test_folders_and_meta_info_may_be_lists(photo_tree, tmp_path):
    dataset = dataset_of(photo_tree, dataroot_gt=[str(photo_tree / "set2"), str(photo_tree / "set1")])
    assert names(dataset, photo_tree) == ["set2/deep/c.png", "set1/a.png", "set1/b.png"]
    meta = tmp_path / "meta.txt"
    meta.write_text("set1/b.png (64,80,3) 1\n\nd.PNG\n")
    assert names(dataset_of(photo_tree, meta_info=str(meta)), photo_tree) == ["set1/b.png", "d.PNG"]
    (tmp_path / "meta2.txt").write_text("a.png\n")
    dataset = dataset_of(photo_tree, dataroot_gt=[str(photo_tree), str(photo_tree / "set1")],
                         meta_info=[str(meta), str(tmp_path / "meta2.txt")])  # fmt: skip
    assert names(dataset, photo_tree) == ["set1/b.png", "d.PNG", "set1/a.png"]


def test_lmdb_gives_the_items_of_the_folder(photo_tree, tmp_path):
    prepare(["lmdb", str(photo_tree / "set1"), str(tmp_path / "a.lmdb")])
    on_disk = dataset_of(photo_tree / "set1")
    stored = dataset_of(tmp_path / "a.lmdb", io_backend={"type": "lmdb"})
    assert len(stored) == 2
    assert all(equal(on_disk.sample(index, 3), stored.sample(index, 3)) for index in range(2))
    # opened in this process, it must still work in forked and in sent copies
    assert equal(pickle.loads(pickle.dumps(stored)).sample(0, 3), stored.sample(0, 3))
    assert len(list(DataLoader(stored, num_workers=1))) == 2


# Items


def test_an_item_is_a_crop_and_its_kernels(photo_tree):
    item = dataset_of(photo_tree)[1]
    assert {key: tuple(item[key].shape) for key in ITEM_KEYS} == {
        "gt": (3, 48, 48), "kernel1": (21, 21), "kernel2": (21, 21), "sinc_kernel": (21, 21)
    }  # fmt: skip
    assert all(item[key].dtype == torch.float32 for key in ITEM_KEYS)
    assert 0 <= item["gt"].min() and 0.9 < item["gt"].max() <= 1
    assert item["gt_path"] == str(photo_tree / "set1/a.png")


def test_the_crop_is_a_piece_of_the_photo_in_rgb(tmp_path):
    image = write_image(tmp_path / "a.png")
    dataset = dataset_of(tmp_path, use_hflip=False, use_rot=False)
    rgb = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1).float() / 255
    crops = [dataset.sample(0, seed)["gt"] for seed in range(5)]
    windows = rgb.unfold(1, 48, 1).unfold(2, 48, 1)[0].flatten(0, 1)
    assert all((windows == crop[0]).all((1, 2)).any() for crop in crops)
    assert len({crop.sum().item() for crop in crops}) == 5


def test_flips_and_turns_happen_only_where_asked(tmp_path):
    ramp = np.zeros((48, 48, 3), np.uint8) + np.arange(48, dtype=np.uint8)[None, :, None]
    cv2.imwrite(str(tmp_path / "a.png"), ramp)

    def directions(**flips):
        dataset = dataset_of(tmp_path, **flips)
        gts = [dataset.sample(0, seed)["gt"][0] for seed in range(30)]
        return {(np.sign(round((gt[0, -1] - gt[0, 0]).item(), 3)), np.sign(round((gt[-1, 0] - gt[0, 0]).item(), 3)))
                for gt in gts}  # fmt: skip

    assert directions(use_hflip=False, use_rot=False) == {(1, 0)}
    assert directions(use_hflip=True, use_rot=False) == {(1, 0), (-1, 0)}
    assert directions(use_hflip=True, use_rot=True) == {(1, 0), (-1, 0), (0, 1), (0, -1)}


def test_gt_resize_range_shrinks_before_the_crop(tmp_path):
    write_image(tmp_path / "a.png", 128, 128)
    plain = dataset_of(tmp_path).sample(0, 1)["gt"]
    half = dataset_of(tmp_path, gt_resize_range=[0.5, 0.5]).sample(0, 1)["gt"]
    assert plain.shape == half.shape == (3, 48, 48)
    # the mean of four independent pixels has half their standard deviation
    assert half.std().item() == pytest.approx(plain.std().item() / 2, rel=0.05)
    # no photo is shrunk below the crop
    whole = dataset_of(tmp_path, gt_size=128, gt_resize_range=[0.1, 0.2]).sample(0, 1)["gt"]
    assert whole.std().item() == pytest.approx(plain.std().item(), rel=0.05)


def test_a_small_photo_is_an_error_that_names_it_or_padded_where_asked(tmp_path):
    image = write_image(tmp_path / "a.png", 40, 80)
    with pytest.raises(ValueError, match=r"a\.png has 40x80 pixels.*48 pixels.*pad_small_gt"):
        dataset_of(tmp_path, use_hflip=False)[0]
    gt = dataset_of(tmp_path, pad_small_gt=True, use_hflip=False)[0]["gt"]
    assert gt.shape == (3, 48, 48)
    assert torch.equal(gt[:, 40:], gt[:, 31:39].flip(1))
    # where meta_info knows the size, it is said before training starts
    (tmp_path / "meta.txt").write_text("a.png (40,80,3)\n")
    with pytest.raises(ValueError, match=r"a\.png has 40x80 pixels"):
        dataset_of(tmp_path, meta_info=str(tmp_path / "meta.txt"))
    assert image.shape == (40, 80, 3)


def test_in_worker_items_are_ready_pairs(photo_tree):
    item = dataset_of(photo_tree, degrade_in_worker=True, scale=2)[0]
    assert item["lq"].shape == (3, 24, 24) and item["gt"].shape == (3, 48, 48)
    assert item["lq_path"] == item["gt_path"] == str(photo_tree / "d.PNG")
    assert 0 <= item["lq"].min() and item["lq"].max() <= 1


def test_crop_pad_size_degrades_more_than_it_keeps(photo_tree):
    assert dataset_of(photo_tree, crop_pad_size=56)[0]["gt"].shape == (3, 56, 56)
    item = dataset_of(photo_tree, crop_pad_size=56, degrade_in_worker=True)[0]
    assert item["lq"].shape == (3, 12, 12) and item["gt"].shape == (3, 48, 48)


def test_gt_usm_sharpens_the_target_in_training_only(photo_tree):
    gt = {flag: dataset_of(photo_tree, degrade_in_worker=True, gt_usm=flag).sample(0, 1)["gt"]
          for flag in (True, False)}  # fmt: skip
    assert not torch.equal(gt[True], gt[False])
    item = dataset_of(photo_tree, phase="val", gt_size=None, gt_usm=True)[0]
    assert torch.equal(item["gt"] * 255, (item["gt"] * 255).round())


def test_validation_gives_whole_photos_and_the_same_pair_every_time(tmp_path):
    write_image(tmp_path / "a.png", 66, 83)
    one, again = (dataset_of(tmp_path, phase="val", gt_size=None)[0] for _ in range(2))
    assert one["gt"].shape == (3, 64, 80) and one["lq"].shape == (3, 16, 20)
    assert equal(one, again, ("lq", "gt"))
    assert not torch.equal(one["lq"], dataset_of(tmp_path, phase="val", gt_size=None, seed=1)[0]["lq"])


def test_a_validation_pair_is_made_once(tmp_path, monkeypatch):
    write_image(tmp_path / "a.png", 66, 83)
    dataset = dataset_of(tmp_path, phase="val", gt_size=None)
    first = dataset[0]
    monkeypatch.setattr(second_order_dataset, "make_pair", lambda *_, **__: pytest.fail("made anew"))
    again = dataset[0]
    assert first.keys() == again.keys() and equal(first, again, ("lq", "gt"))


def test_every_file_has_a_name_of_its_own():
    paths = ["d/a.jpg", "d/a.png", "d/a.png.tif", "d/s1/b.png", "d/s2/b.png", "e/c.png", "f/e/c.png", "d/..x.png"]
    assert names_below(paths, ["d", "e", "f/e"]) == [
        "a.jpg", "d/a.png", "a.png", "s1/b", "s2/b", "e/c.png_1", "e/c.png_2", "..x"
    ]  # fmt: skip


def test_photos_of_one_name_are_degraded_differently(tmp_path):
    """In subfolders, as files of two kinds, and in two data folders."""
    image = write_image(tmp_path / "d/s1/a.png", 64, 64)
    for name in ("d/s2/a.png", "d/b.png", "d/b.bmp", "e/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), image)
    dataset = dataset_of(None, dataroot_gt=[str(tmp_path / "d"), str(tmp_path / "e")], phase="val", gt_size=None)
    lqs = {dataset[index]["lq"].sum().item() for index in range(5)}
    assert len(dataset) == len(lqs) == 5


# Randomness


def test_an_item_is_a_function_of_index_and_seed(photo_tree):
    dataset = dataset_of(photo_tree, use_rot=True)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert equal(dataset.sample(0, 7), dataset.sample(0, 7))
    assert not equal(dataset.sample(0, 7), dataset.sample(0, 8))
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before


@pytest.mark.parametrize("workers", [0, 2])
def test_manual_seed_fixes_the_run_and_epochs_differ(photo_tree, workers):
    """Through BasicSR's own build functions; its worker_init_fn gives every epoch the same random and numpy seeds."""

    def two_epochs(manual_seed):
        opt = options(photo_tree, num_worker_per_gpu=workers, batch_size_per_gpu=2, io_backend={"type": "disk"})
        loader = build_dataloader(build_dataset(opt), opt, num_gpu=0, seed=manual_seed)
        torch.manual_seed(manual_seed)
        epochs = ({}, {})
        for epoch in epochs:
            for batch in loader:
                epoch.update(zip(batch["gt_path"], batch["gt"].sum((1, 2, 3)).tolist(), strict=True))
        return epochs

    first, again, other = two_epochs(0), two_epochs(0), two_epochs(1)
    assert len(first[0]) == 4
    assert first == again
    assert all(first[0][path] != first[1][path] and first[0][path] != other[0][path] for path in first[0])


def test_numpy_and_torch_are_not_seeded_alike(tmp_path, monkeypatch):
    """Both make the same numbers of the same seed, and look at its lower 32 bits only."""
    write_image(tmp_path / "a.png")
    dataset = dataset_of(tmp_path, degrade_in_worker=True)
    seeds = []

    def spy(gt, drawn, *, generator, **options):
        seeds.append(generator.initial_seed())
        return second_order_dataset.Pair(gt, gt)

    monkeypatch.setattr(second_order_dataset, "make_pair", spy)
    for seed in range(20):
        dataset.sample(0, seed)
    assert not set(seeds) & set(range(20)) and len(set(seeds)) == 20 and max(seeds) < 2**32
    file_seeds = {seed_of(name, seed) for name in ("a", "b") for seed in (0, 1)}
    assert len(file_seeds) == 4 and max(file_seeds) < 2**32


# Refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gt_sise": 48}, r"train\.gt_sise.*'gt_size'"),
        ({"degradation": {"blur_sigmas": [0.2, 3]}}, r"train\.degradation\.blur_sigmas.*'blur_sigma"),
        ({"jpeg_range": [30, 95]}, r"train\.jpeg_range belongs into .*train\.degradation"),
        ({"gt_size": None}, r"gt_size is missing: it must be a multiple"),
        ({"gt_size": 46}, r"gt_size=46 must be a multiple of scale=4"),
        ({"gt_size": 24}, r"gt_size=24 .* >= 32"),
        ({"crop_pad_size": 40}, r"crop_pad_size=40 .*>= gt_size=48"),
        ({"scale": None}, r"scale is missing: it must be"),
        ({"use_hflip": "yes"}, r"use_hflip='yes' must be true or false"),
        ({"gt_resize_range": [0.5, 1.5]}, r"gt_resize_range=\[0\.5, 1\.5\] must be"),
        ({"gt_resize_range": ["1e-1", 1]}, r"gt_resize_range=.* must be"),
        ({"io_backend": {"type": "petrel"}}, r"io_backend\.type='petrel' must be disk or lmdb"),
        ({"io_backend": {"type": "disk", "path": "x"}}, r"io_backend\.path"),
        ({"io_backend": {"type": "lmdb"}}, r"must be one folder whose name ends in \.lmdb"),
        ({"dataroot_gt": 3}, r"dataroot_gt=3 must be text or a list"),
        ({"phase": "training"}, r"phase='training' must be"),
        ({"seed": -1}, r"seed=-1 must be"),
    ],
)
def test_a_bad_option_is_refused_with_its_name_value_and_rule(photo_tree, changes, message):
    with pytest.raises(ValueError, match=message):
        dataset_of(photo_tree, **changes)


def test_missing_and_empty_folders_say_the_path_and_what_to_do(tmp_path):
    (tmp_path / "empty").mkdir()
    for changes, message in [
        ({"dataroot_gt": str(tmp_path / "none")}, r"none' does not exist.*datasets/README\.md"),
        ({"dataroot_gt": str(tmp_path / "empty")}, r"empty' holds no image.*datasets/README\.md"),
        ({"meta_info": str(tmp_path / "meta.txt")}, r"meta_info=.*meta\.txt' does not exist"),
        ({"dataroot_gt": str(tmp_path / "a.lmdb"), "io_backend": {"type": "lmdb"}}, r"a\.lmdb' does not exist"),
    ]:
        with pytest.raises(FileNotFoundError, match=message):
            dataset_of(tmp_path, **changes)
    (tmp_path / "meta.txt").touch()
    with pytest.raises(ValueError, match="names no image"):
        dataset_of(tmp_path, meta_info=str(tmp_path / "meta.txt"))
    (tmp_path / "meta.txt").write_bytes(b"a.png\xff\n")
    with pytest.raises(ValueError, match=r"meta\.txt' must be a text file in UTF-8"):
        dataset_of(tmp_path, meta_info=str(tmp_path / "meta.txt"))


def test_a_folder_that_is_no_lmdb_is_refused_and_a_missing_key_is_replaced(photo_tree, tmp_path):
    (tmp_path / "b.lmdb").mkdir()
    (tmp_path / "b.lmdb/data.mdb").write_bytes(bytes(10_000))
    with pytest.raises(ValueError, match=r"b\.lmdb' is no LMDB, or is damaged"):
        dataset_of(tmp_path / "b.lmdb", io_backend={"type": "lmdb"})
    prepare(["lmdb", str(photo_tree / "set1"), str(tmp_path / "a.lmdb")])
    with open(tmp_path / "a.lmdb/meta_info.txt", "a") as file:
        file.write("gone.png (64,80,3) 1\nfotö.png (64,80,3) 1\n")
    dataset = dataset_of(tmp_path / "a.lmdb", io_backend={"type": "lmdb"})
    assert {dataset[index]["gt_path"] for index in (2, 3)} <= {"a", "b"}
    assert dataset.unreadable == ["gone", "fotö"]


def test_a_listed_image_that_is_not_there_is_refused_at_once(photo_tree, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda pause: pytest.fail("waited"))
    for name in ("set1/gone.png", "gone/a.png", "\0.png"):
        (tmp_path / "meta.txt").write_text(f"d.PNG\n{name}\n")
        with pytest.raises(FileNotFoundError, match=r"meta\.txt' .*names 1 of 2 files that are not there.*\.png"):
            dataset_of(photo_tree, meta_info=str(tmp_path / "meta.txt"))


def test_a_list_made_on_windows_is_read(photo_tree, tmp_path):
    """Backslashes and a byte order mark; and a name is no size."""
    write_image(photo_tree / "IMG (1,2).png")
    text = "set1\\a.png (64,80,3) 1\r\nd.PNG\r\nIMG (1,2).png\r\nset2/deep/c.png (64, 80)\r\n"
    (tmp_path / "meta.txt").write_bytes(text.encode("utf-8-sig"))
    dataset = dataset_of(photo_tree, meta_info=str(tmp_path / "meta.txt"))
    assert names(dataset, photo_tree) == ["set1/a.png", "d.PNG", "IMG (1,2).png", "set2/deep/c.png"]
