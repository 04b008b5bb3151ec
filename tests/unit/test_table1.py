"""What `benchmarks/table1.py` reads, restores and says, with methods and data sets that count."""

import argparse
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import table1
from methods import Method

from basicsr_compat.images import UnreadableImage
from iter_model.photo.processes import Processes


class Photos:
    """Three photos; the second cannot be read. Counts the reads."""

    def __init__(self):
        self.read = []

    def __getitem__(self, index):
        self.read.append(index)
        if index == 1:
            raise UnreadableImage("b.png: truncated")
        return {"lq": torch.full((3, 16, 16), index / 4)}


@pytest.fixture
def counted(tmp_path):
    """(tasks, their photos, cache, names of the methods in the order of their calls)."""
    photos, calls = Photos(), []

    def method(name):
        def restore(photo):
            calls.append(name)
            return photo.lq.repeat(1, 1, 4, 4)

        return Method(name, name, restore)

    cache = table1.Cache(tmp_path / "cache", [method("one"), method("two")], {"mean": lambda m: m.image.mean()}, 4)
    cache.folder.mkdir()
    tasks = [table1.Task("RealSRSet", name, photos, index) for index, name in enumerate("abc")]
    return tasks, photos, cache, calls


def test_a_photo_is_read_once_for_all_methods_and_restored_once_for_all_runs(counted):
    tasks, photos, cache, calls = counted
    assert table1.work(tasks, Processes(), cache) == 1
    assert photos.read == [0, 1, 2] and calls == ["one", "two", "one", "two"]
    table1.work(tasks, Processes(), cache)
    assert photos.read == [0, 1, 2] * 2 and len(calls) == 4


def test_the_report_reads_only_what_the_sheet_shows(counted, tmp_path, capsys, monkeypatch):
    tasks, photos, cache, _ = counted
    monkeypatch.setattr(table1, "ROWS", 1)
    table1.work(tasks, Processes(), cache)
    found, unreadable = table1.collect(cache, Processes())
    photos.read.clear()
    args = argparse.Namespace(output=tmp_path, scale=4)
    table1.report(args, tasks, found, list(cache.metrics), unreadable)
    assert photos.read == [0]
    text = capsys.readouterr().out
    assert "**RealSRSet**, 2 photos" in text and "- photo b.png: truncated" in text
    # Means of 0 and of 128 levels of 255.
    assert text.count("| 0.25 |") == 2


def test_a_table_without_readable_photos_says_why(counted, tmp_path, capsys):
    tasks, _, cache, _ = counted
    assert table1.work(tasks[1:2], Processes(), cache) == 1
    found, unreadable = table1.collect(cache, Processes())
    table1.report(argparse.Namespace(output=tmp_path, scale=4), tasks[1:2], found, ["mean"], unreadable)
    assert capsys.readouterr().out.startswith("Left out:\n- photo b.png: truncated")


def test_methods_of_the_same_file_name_keep_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(table1, "make_method", lambda name, **_: Method(Path(name).stem, name, None))
    args = argparse.Namespace(methods=["a/net.pth", "b/net.pth"], metrics=[], scale=4, color_correction="none")
    methods, _ = table1.available(args, torch.device("cpu"), [])
    assert [method.name for method in methods] == ["net", "b/net.pth"]


def test_a_set_without_photos_is_left_out_by_name(tmp_path):
    (tmp_path / "RealSRSet").mkdir()
    left_out = []
    args = argparse.Namespace(sets=["RealSRSet", "DRealSR"], data=tmp_path, scale=4, limit=None)
    assert table1.open_sets(args, left_out) == []
    assert "set RealSRSet: image folder" in left_out[0] and "set DRealSR: it is not in" in left_out[1]
