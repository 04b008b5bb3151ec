"""Training photos that cannot be read, and folders that do not answer."""

import logging
import threading
import time

import pytest
from basicsr.utils import get_root_logger
from second_order import dataset_of, names, names_of, write_image
from torch.utils.data import DataLoader

from iter_data import images
from iter_data.images import UnreadableImage, read_bytes

# Files


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_file_is_replaced_named_once_and_counted(photo_tree, workers, tmp_path):
    # a file, because what a worker process logs is not captured
    handler = logging.FileHandler(tmp_path / "log.txt")
    get_root_logger().addHandler(handler)
    data = (photo_tree / "set1" / "a.png").read_bytes()
    (photo_tree / "set1" / "a.png").write_bytes(data[: len(data) // 2])
    (photo_tree / "set1" / "b.png").unlink(), (photo_tree / "set1" / "b.png").touch()
    dataset = dataset_of(photo_tree)
    for _ in range(2):
        batch = next(iter(DataLoader(dataset, batch_size=4, num_workers=workers)))
        assert not any("set1" in path for path in batch["gt_path"])
    assert names_of(dataset.unreadable, photo_tree) == ["set1/a.png", "set1/b.png"]
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


# Folders


@pytest.mark.parametrize("workers", [0, 2])
def test_a_folder_that_vanishes_for_a_while_is_waited_for(photo_tree, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(images, "PAUSES", (0.1,) * 100)
    handler = logging.FileHandler(tmp_path / "log.txt")
    get_root_logger().addHandler(handler)
    log = tmp_path / "log.txt"
    dataset = dataset_of(photo_tree)
    loader = DataLoader(dataset, batch_size=2, num_workers=workers)
    photo_tree.rename(tmp_path / "away")

    def come_back():
        while "does not answer" not in log.read_text():
            time.sleep(0.01)
        time.sleep(0.3)
        (tmp_path / "away").rename(photo_tree)

    thread = threading.Thread(target=come_back, daemon=True)
    thread.start()
    paths = [path for batch in loader for path in batch["gt_path"]]
    thread.join()
    get_root_logger().removeHandler(handler)
    assert names_of(paths, photo_tree) == names(dataset, photo_tree)  # none was replaced
    assert dataset.unreadable == []
    assert log.read_text().count("does not answer") == log.read_text().count("answers again") == 1


def test_a_folder_that_stays_away_ends_the_run(photo_tree, tmp_path, monkeypatch):
    monkeypatch.setattr(images, "PAUSES", (0.01, 0.02))
    dataset = dataset_of(photo_tree)
    photo_tree.rename(tmp_path / "away")
    with pytest.raises(OSError, match=r"photos has not answered for .*No such file.*--auto_resume"):
        dataset[0]
    assert dataset.unreadable == []


def test_a_folder_that_comes_back_between_two_looks_costs_no_photo(photo_tree, tmp_path, monkeypatch):
    photo_tree.rename(tmp_path / "away")

    def answers(path):
        (tmp_path / "away").rename(photo_tree)
        return True

    monkeypatch.setattr(images, "_answers", answers)
    path = photo_tree / "set1" / "a.png"
    assert read_bytes(path) == path.read_bytes()


def test_an_empty_mount_point_is_a_folder_that_does_not_answer(photo_tree, tmp_path, monkeypatch):
    monkeypatch.setattr(images, "PAUSES", (0.01,))
    dataset = dataset_of(photo_tree / "set1")
    (photo_tree / "set1").rename(tmp_path / "away")
    (photo_tree / "set1").mkdir()
    with pytest.raises(OSError, match="has not answered"):
        dataset[0]


def test_a_removed_photo_is_replaced_at_once(photo_tree, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda pause: pytest.fail("waited"))
    dataset = dataset_of(photo_tree / "set1")
    (photo_tree / "set1" / "a.png").unlink()
    assert dataset[0]["gt_path"] == str(photo_tree / "set1" / "b.png")
    assert names(dataset, photo_tree) == ["set1/a.png", "set1/b.png"]
    assert names_of(dataset.unreadable, photo_tree) == ["set1/a.png"]


def test_pauses_grow_and_end_after_a_minute(tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    with pytest.raises(OSError, match="for 60 s"):
        read_bytes(tmp_path / "none" / "a.png")
    assert pauses == sorted(pauses) and sum(pauses) == 60
