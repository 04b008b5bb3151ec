"""Data of a run: sets that are refused, batches fetched ahead, images of a test that are left out."""

import os
import queue
import subprocess
import threading
import time

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from basicsr_compat.images import UnreadableImage
from basicsr_compat.pipeline import data
from basicsr_compat.pipeline.data import PrefetchThread, ReadableLoader, batches, readable
from basicsr_compat.pipeline.stops import ValidationStopped, obeys_its_parent_alone
from basicsr_compat.schema import OptionProblems


class Numbers(Dataset):
    """LQ images of one pixel; index 7 cannot be read where it is broken."""

    opt = {"name": "numbers"}

    def __init__(self, length, broken=False):
        self.length, self.broken = length, broken

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if self.broken:
            raise OSError("cannot read image 7.png")
        return {"lq": torch.tensor(float(index))}


def options(monkeypatch, length, total_iter=40, **dataset):
    monkeypatch.setattr(data, "build_dataset", lambda opt: Numbers(length))
    dataset = {"phase": "train", "name": "t", "batch_size_per_gpu": 4, "num_worker_per_gpu": 0, **dataset}
    opt = {"datasets": {"train": dataset}, "train": {"total_iter": total_iter}, "manual_seed": 0}
    return opt | {"world_size": 1, "rank": 0, "num_gpu": 0, "dist": False}


# ------------------------------------------------------------------------------------------- training


def test_fewer_images_than_a_batch_are_refused(monkeypatch):
    with pytest.raises(OptionProblems, match="3 images do not fill one batch of 4"):
        data.training_loader(options(monkeypatch, length=3))


def test_an_empty_folder_is_refused(tmp_path):
    section = {"type": "SingleImageDataset", "name": "empty-set", "dataroot_lq": str(tmp_path)}
    with pytest.raises(OptionProblems, match="datasets.val holds no images: .*dataroot_lq"):
        data.build_set("val", section | {"io_backend": {"type": "disk"}})


def test_what_a_data_set_says_to_its_options_names_their_section(monkeypatch):
    def refuse(section):
        raise AssertionError("Only support scale 4")

    monkeypatch.setattr(data, "build_dataset", refuse)
    with pytest.raises(OptionProblems, match=r"^datasets\.train: Only support scale 4$"):
        data.build_set("train", {})


def test_a_fault_in_a_data_set_keeps_its_traceback(monkeypatch):
    def fail(section):
        return {}["a key that is no option", 3]

    monkeypatch.setattr(data, "build_dataset", fail)
    with pytest.raises(KeyError):
        data.build_set("train", {})


@pytest.mark.parametrize(("mode", "workers"), [(None, 0), ("cpu", 0), ("cpu", 1)])
def test_an_epoch_has_the_same_batches_in_every_mode(monkeypatch, mode, workers):
    opt = options(monkeypatch, length=9, prefetch_mode=mode, num_worker_per_gpu=workers)
    loader, sampler = data.training_loader(opt)
    found = [batch["lq"].tolist() for batch in batches(loader, opt)]
    assert found == [[float(v) for v, _ in list(sampler)[i : i + 4]] for i in (0, 4)]


@pytest.mark.parametrize("broken", [False, True])
def test_an_exception_reaches_the_loop_through_the_cpu_prefetcher(broken, monkeypatch):
    get = queue.Queue.get
    monkeypatch.setattr(queue.Queue, "get", lambda self: get(self, timeout=20))  # a hang must fail, not hang
    thread = PrefetchThread(DataLoader(Numbers(3, broken)), 1)
    if broken:
        with pytest.raises(OSError, match=r"cannot read image 7\.png"):
            list(thread)
    else:
        assert len(list(thread)) == 3


def test_the_cpu_prefetcher_ends_the_thread_of_an_abandoned_epoch(monkeypatch):
    before = set(threading.enumerate())
    opt = options(monkeypatch, length=100, prefetch_mode="cpu", num_worker_per_gpu=1)
    loader, _ = data.training_loader(opt)
    epoch = batches(loader, opt)
    assert len(next(epoch)["lq"]) == 4
    assert set(threading.enumerate()) - before
    epoch.close()
    end = time.monotonic() + 20
    while set(threading.enumerate()) - before and time.monotonic() < end:
        time.sleep(0.01)  # the feeder of a worker's queue ends by itself
    assert not set(threading.enumerate()) - before


class Slow(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        time.sleep(0.5)
        return os.getpid()


def test_a_worker_obeys_signals_of_its_parent_alone():
    items = iter(DataLoader(Slow(), num_workers=1, worker_init_fn=obeys_its_parent_alone(None)))
    worker = next(items).item()
    for number in ("TERM", "INT"):
        subprocess.run(["kill", f"-{number}", str(worker)], check=True)
    assert next(items).item() == worker
    process = items._workers[0]
    process.terminate()
    process.join(timeout=30)
    assert process.exitcode == 0


# ------------------------------------------------------------------------------------------- validation and test


class Photos(Dataset):
    """Photos of which the second cannot be read and the third has a name that cannot be printed."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == 1:
            raise UnreadableImage("1.png is truncated")
        return {"lq": torch.zeros(3, 4, 4), "lq_path": "2\n.png" if index == 2 else f"{index}.png"}


def test_images_that_cannot_be_used_are_left_out_and_counted():
    loader = ReadableLoader(DataLoader(Photos()))
    assert [item["lq_path"] for item in loader] == [["0.png"], ["3.png"]]
    assert loader.skipped[0] == "1.png is truncated" and "cannot be printed" in loader.skipped[1]
    assert len(loader) == 4 and readable(loader) is loader


def test_a_set_of_which_nothing_can_be_read_is_an_error():
    with pytest.raises(UnreadableImage, match="none of the 3 images of numbers can be read"):
        list(ReadableLoader(DataLoader(Numbers(3, broken=True))))


def test_a_set_without_options_and_a_clip_of_several_files_are_taken():
    class Clips(Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return {"lq": torch.zeros(2, 3, 4, 4), "lq_path": ["0.png", "1.png"]}

    loader = ReadableLoader(DataLoader(Clips()))
    assert len(list(loader)) == 1 and loader.name == "0000"


def test_a_stop_ends_a_validation_before_its_next_image():
    def stop():
        raise ValidationStopped

    with pytest.raises(ValidationStopped):
        list(ReadableLoader(DataLoader(Photos()), stop))
