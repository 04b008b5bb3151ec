"""SecondOrderDegradationDataset: what it finds, what an item is, where its randomness comes from, what it refuses."""

import logging
import pickle
import random
import threading
import time

import basicsr_compat  # noqa: F401  isort: skip
import cv2
import numpy as np
import pytest
import torch
from basicsr.data import build_dataloader, build_dataset
from basicsr.utils import get_root_logger
from torch.utils.data import DataLoader

from iter_data import SecondOrderDegradationDataset, images, second_order_dataset
from iter_data.images import UnreadableImage, read_bytes
from iter_data.names import names_below, seed_of
from iter_data.prepare import main as prepare

ITEM_KEYS = ("gt", "kernel1", "kernel2", "sinc_kernel")


def write_image(path, height=64, width=80, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())
    return image


@pytest.fixture
def photos(tmp_path):
    for seed, name in enumerate(["set1/b.png", "set1/a.png", "set2/deep/c.png", "d.PNG"]):
        write_image(tmp_path / "photos" / name, seed=seed)
    (tmp_path / "photos" / "notes.txt").write_text("not an image")
    (tmp_path / "photos" / ".hidden.png").write_text("not an image")
    return tmp_path / "photos"


def options(root, **changes):
    opt = {"name": "train", "type": "SecondOrderDegradationDataset", "phase": "train", "scale": 4, "gt_size": 48,
           "dataroot_gt": str(root)}  # fmt: skip
    return {key: value for key, value in {**opt, **changes}.items() if value is not None}


def dataset_of(root, **changes):
    return SecondOrderDegradationDataset(options(root, **changes))


def names_of(paths, root):
    return [path.removeprefix(f"{root}/") for path in paths]


def names(dataset, root):
    return names_of(dataset.paths, root)


def equal(one, two, keys=ITEM_KEYS):
    return all(torch.equal(one[key], two[key]) for key in keys)


# --------------------------------- files --------------------------------- #


def test_a_folder_is_searched_through_and_sorted(photos):
    assert names(dataset_of(photos), photos) == ["d.PNG", "set1/a.png", "set1/b.png", "set2/deep/c.png"]


def test_links_are_followed_but_not_in_circles(photos, tmp_path):
    write_image(tmp_path / "elsewhere" / "e.png")
    (photos / "set3").symlink_to(tmp_path / "elsewhere")
    (photos / "set2" / "loop").symlink_to(photos)
    expected = ["d.PNG", "set1/a.png", "set1/b.png", "set2/deep/c.png", "set3/e.png"]
    assert names(dataset_of(photos), photos) == expected


def test_folders_and_meta_info_may_be_lists(photos, tmp_path):
    dataset = dataset_of(photos, dataroot_gt=[str(photos / "set2"), str(photos / "set1")])
    assert names(dataset, photos) == ["set2/deep/c.png", "set1/a.png", "set1/b.png"]
    meta = tmp_path / "meta.txt"
    meta.write_text("set1/b.png (64,80,3) 1\n\nd.PNG\n")
    assert names(dataset_of(photos, meta_info=str(meta)), photos) == ["set1/b.png", "d.PNG"]
    (tmp_path / "meta2.txt").write_text("a.png\n")
    dataset = dataset_of(photos, dataroot_gt=[str(photos), str(photos / "set1")],
                         meta_info=[str(meta), str(tmp_path / "meta2.txt")])  # fmt: skip
    assert names(dataset, photos) == ["set1/b.png", "d.PNG", "set1/a.png"]


def test_lmdb_gives_the_items_of_the_folder(photos, tmp_path):
    prepare(["lmdb", str(photos / "set1"), str(tmp_path / "a.lmdb")])
    on_disk = dataset_of(photos / "set1")
    stored = dataset_of(tmp_path / "a.lmdb", io_backend={"type": "lmdb"})
    assert len(stored) == 2
    assert all(equal(on_disk.sample(index, 3), stored.sample(index, 3)) for index in range(2))
    # opened in this process, it must still work in forked and in sent copies
    assert equal(pickle.loads(pickle.dumps(stored)).sample(0, 3), stored.sample(0, 3))
    assert len(list(DataLoader(stored, num_workers=1))) == 2


# --------------------------------- items --------------------------------- #


def test_an_item_is_a_crop_and_its_kernels(photos):
    item = dataset_of(photos)[1]
    assert {key: tuple(item[key].shape) for key in ITEM_KEYS} == {
        "gt": (3, 48, 48), "kernel1": (21, 21), "kernel2": (21, 21), "sinc_kernel": (21, 21)
    }  # fmt: skip
    assert all(item[key].dtype == torch.float32 for key in ITEM_KEYS)
    assert 0 <= item["gt"].min() and 0.9 < item["gt"].max() <= 1
    assert item["gt_path"] == str(photos / "set1/a.png")


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


def test_in_worker_items_are_ready_pairs(photos):
    item = dataset_of(photos, degrade_in_worker=True, scale=2)[0]
    assert item["lq"].shape == (3, 24, 24) and item["gt"].shape == (3, 48, 48)
    assert item["lq_path"] == item["gt_path"] == str(photos / "d.PNG")
    assert 0 <= item["lq"].min() and item["lq"].max() <= 1


def test_crop_pad_size_degrades_more_than_it_keeps(photos):
    assert dataset_of(photos, crop_pad_size=56)[0]["gt"].shape == (3, 56, 56)
    item = dataset_of(photos, crop_pad_size=56, degrade_in_worker=True)[0]
    assert item["lq"].shape == (3, 12, 12) and item["gt"].shape == (3, 48, 48)


def test_gt_usm_sharpens_the_target_in_training_only(photos):
    gt = {flag: dataset_of(photos, degrade_in_worker=True, gt_usm=flag).sample(0, 1)["gt"]
          for flag in (True, False)}  # fmt: skip
    assert not torch.equal(gt[True], gt[False])
    item = dataset_of(photos, phase="val", gt_size=None, gt_usm=True)[0]
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


# ------------------------------- randomness ------------------------------- #


def test_an_item_is_a_function_of_index_and_seed(photos):
    dataset = dataset_of(photos, use_rot=True)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert equal(dataset.sample(0, 7), dataset.sample(0, 7))
    assert not equal(dataset.sample(0, 7), dataset.sample(0, 8))
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before


@pytest.mark.parametrize("workers", [0, 2])
def test_manual_seed_fixes_the_run_and_epochs_differ(photos, workers):
    """Through BasicSR's own build functions; its worker_init_fn gives every epoch the same random and numpy seeds."""

    def two_epochs(manual_seed):
        opt = options(photos, num_worker_per_gpu=workers, batch_size_per_gpu=2, io_backend={"type": "disk"})
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


# ------------------------------ unreadable files ------------------------------ #


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_file_is_replaced_named_once_and_counted(photos, workers, tmp_path):
    # a file, because what a worker process logs is not captured
    handler = logging.FileHandler(tmp_path / "log.txt")
    get_root_logger().addHandler(handler)
    data = (photos / "set1" / "a.png").read_bytes()
    (photos / "set1" / "a.png").write_bytes(data[: len(data) // 2])
    (photos / "set1" / "b.png").unlink(), (photos / "set1" / "b.png").touch()
    dataset = dataset_of(photos)
    for _ in range(2):
        batch = next(iter(DataLoader(dataset, batch_size=4, num_workers=workers)))
        assert not any("set1" in path for path in batch["gt_path"])
    assert names_of(dataset.unreadable, photos) == ["set1/a.png", "set1/b.png"]
    get_root_logger().removeHandler(handler)
    log = (tmp_path / "log.txt").read_text()
    assert log.count("set1/a.png cannot be read") == log.count("set1/b.png cannot be read") == 1


def test_where_nothing_can_be_read_it_ends_with_an_error(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.png").touch()
    with pytest.raises(UnreadableImage, match="2 of 2 so far"):
        dataset_of(tmp_path)[0]


def test_validation_does_not_replace_an_unreadable_file(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    write_image(tmp_path / "b.png")
    with pytest.raises(UnreadableImage, match=r"a\.png cannot be read"):
        dataset_of(tmp_path, phase="val", gt_size=None)[0]


# ------------------------- folders that do not answer ------------------------- #


@pytest.mark.parametrize("workers", [0, 2])
def test_a_folder_that_vanishes_for_a_while_is_waited_for(photos, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(images, "PAUSES", (0.1,) * 100)
    handler = logging.FileHandler(tmp_path / "log.txt")
    get_root_logger().addHandler(handler)
    log = tmp_path / "log.txt"
    dataset = dataset_of(photos)
    loader = DataLoader(dataset, batch_size=2, num_workers=workers)
    photos.rename(tmp_path / "away")

    def come_back():
        while "does not answer" not in log.read_text():
            time.sleep(0.01)
        time.sleep(0.3)
        (tmp_path / "away").rename(photos)

    thread = threading.Thread(target=come_back, daemon=True)
    thread.start()
    paths = [path for batch in loader for path in batch["gt_path"]]
    thread.join()
    get_root_logger().removeHandler(handler)
    assert names_of(paths, photos) == names(dataset, photos)  # none was replaced
    assert dataset.unreadable == []
    assert log.read_text().count("does not answer") == log.read_text().count("answers again") == 1


def test_a_folder_that_stays_away_ends_the_run(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(images, "PAUSES", (0.01, 0.02))
    dataset = dataset_of(photos)
    photos.rename(tmp_path / "away")
    with pytest.raises(OSError, match=r"photos has not answered for .*No such file.*--auto_resume"):
        dataset[0]
    assert dataset.unreadable == []


def test_an_empty_mount_point_is_a_folder_that_does_not_answer(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(images, "PAUSES", (0.01,))
    dataset = dataset_of(photos / "set1")
    (photos / "set1").rename(tmp_path / "away")
    (photos / "set1").mkdir()
    with pytest.raises(OSError, match="has not answered"):
        dataset[0]


def test_a_removed_photo_is_replaced_at_once(photos, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda pause: pytest.fail("waited"))
    dataset = dataset_of(photos / "set1")
    (photos / "set1" / "a.png").unlink()
    assert dataset[0]["gt_path"] == str(photos / "set1" / "b.png")
    assert names(dataset, photos) == ["set1/a.png", "set1/b.png"]
    assert names_of(dataset.unreadable, photos) == ["set1/a.png"]


def test_pauses_grow_and_end_after_a_minute(tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    with pytest.raises(OSError, match="for 60 s"):
        read_bytes(tmp_path / "none" / "a.png")
    assert pauses == sorted(pauses) and sum(pauses) == 60


# --------------------------------- refusals --------------------------------- #


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
def test_a_bad_option_is_refused_with_its_name_value_and_rule(photos, changes, message):
    with pytest.raises(ValueError, match=message):
        dataset_of(photos, **changes)


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


def test_a_folder_that_is_no_lmdb_is_refused_and_a_missing_key_is_replaced(photos, tmp_path):
    (tmp_path / "b.lmdb").mkdir()
    (tmp_path / "b.lmdb/data.mdb").write_bytes(bytes(10_000))
    with pytest.raises(ValueError, match=r"b\.lmdb' is no LMDB, or is damaged"):
        dataset_of(tmp_path / "b.lmdb", io_backend={"type": "lmdb"})
    prepare(["lmdb", str(photos / "set1"), str(tmp_path / "a.lmdb")])
    with open(tmp_path / "a.lmdb/meta_info.txt", "a") as file:
        file.write("gone.png (64,80,3) 1\nfotö.png (64,80,3) 1\n")
    dataset = dataset_of(tmp_path / "a.lmdb", io_backend={"type": "lmdb"})
    assert {dataset[index]["gt_path"] for index in (2, 3)} <= {"a", "b"}
    assert dataset.unreadable == ["gone", "fotö"]


def test_a_listed_image_that_is_not_there_is_refused_at_once(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda pause: pytest.fail("waited"))
    for name in ("set1/gone.png", "gone/a.png", "\0.png"):
        (tmp_path / "meta.txt").write_text(f"d.PNG\n{name}\n")
        with pytest.raises(FileNotFoundError, match=r"meta\.txt' names 1 of 2 images that are not there.*\.png"):
            dataset_of(photos, meta_info=str(tmp_path / "meta.txt"))


def test_a_list_made_on_windows_is_read(photos, tmp_path):
    """Backslashes and a byte order mark; and a name is no size."""
    write_image(photos / "IMG (1,2).png")
    text = "set1\\a.png (64,80,3) 1\r\nd.PNG\r\nIMG (1,2).png\r\nset2/deep/c.png (64, 80)\r\n"
    (tmp_path / "meta.txt").write_bytes(text.encode("utf-8-sig"))
    dataset = dataset_of(photos, meta_info=str(tmp_path / "meta.txt"))
    assert names(dataset, photos) == ["set1/a.png", "d.PNG", "IMG (1,2).png", "set2/deep/c.png"]
