"""The data of a run: BasicSR's sets and loaders, without unreadable images, and batches that are fetched ahead."""

from __future__ import annotations

import atexit
import contextlib
import math
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from basicsr.data import build_dataloader, build_dataset
from basicsr.data.prefetch_dataloader import CUDAPrefetcher
from basicsr.utils import get_root_logger
from torch.utils.data import DataLoader, Dataset

from basicsr_compat.files import require_present
from basicsr_compat.images import UnreadableImage, printable
from basicsr_compat.pipeline.image_names import image_names
from basicsr_compat.pipeline.naming import naming
from basicsr_compat.pipeline.randomness import Items, ResumableSampler, SeededItems
from basicsr_compat.pipeline.stops import obeys_its_parent_alone
from basicsr_compat.schema import OptionProblems

# ------------------------------------------------------------------------------------------- sets


def build_set(phase: str, section: dict[str, Any]) -> Items:
    """Build the data set of a section of the options.

    Raises OptionProblems where it cannot be built, and where it is empty: BasicSR trains on an empty folder for 0
    iterations and saves, or divides by zero.
    """
    where = f"datasets.{phase}"
    with naming(where, section):
        dataset = build_dataset(section)
    if len(dataset) == 0:
        roots = {key: value for key, value in section.items() if str(key).startswith(("dataroot", "meta_info"))}
        raise OptionProblems(f"{where} holds no images: {roots}; see datasets/README.md")
    listed = section.get("meta_info_file") or section.get("meta_info")
    on_disk = (section.get("io_backend") or {}).get("type", "disk") == "disk"
    # BasicSR finds out that a listed file is missing when it reads it, hours into a run. A data set that declares its
    # options looks for its files itself.
    if listed and on_disk and not hasattr(dataset, "option_problems"):
        paths = [path for entry in getattr(dataset, "paths", ()) for path in _files_of(entry)]
        remedy = "correct its list of files or its folders"
        if "dataroot_lq" in section:
            remedy += ", or set filename_tmpl"
        with naming(where, section):
            require_present(paths, where, remedy)
    return dataset


def _files_of(entry: Any) -> list[str]:
    paths = entry.values() if isinstance(entry, dict) else [entry]
    return [path for path in paths if isinstance(path, str)]


# ------------------------------------------------------------------------------------------- training


def training_loader(opt: dict[str, Any]) -> tuple[DataLoader, ResumableSampler]:
    """The loader of datasets.train, whose items are the same after a resume, and its sampler."""
    section = opt["datasets"]["train"]
    dataset = build_set("train", section)
    ratio = section.get("dataset_enlarge_ratio", 1)
    sampler = ResumableSampler(dataset, opt["world_size"], opt["rank"], ratio)
    sampler.manual_seed = opt["manual_seed"]
    # Batches are fetched ahead by `batches`: BasicSR's thread for it hangs where a data set raises.
    plain = {**section, "prefetch_mode": None}
    common = {"num_gpu": opt["num_gpu"], "dist": opt["dist"], "sampler": sampler, "seed": opt["manual_seed"]}
    loader = build_dataloader(SeededItems(dataset), plain, **common)
    loader.generator = torch.Generator()  # of the workers' seeds; the global one is the training's
    loader.worker_init_fn = obeys_its_parent_alone(loader.worker_init_fn)
    if len(loader) == 0:
        raise OptionProblems(
            f"datasets.train: its {len(dataset)} images do not fill one batch of {loader.batch_size} on each of "
            f"{opt['world_size']} processes; lower batch_size_per_gpu, or raise dataset_enlarge_ratio"
        )
    total = opt["train"]["total_iter"]
    get_root_logger().info(
        f"Training statistics:\n\tNumber of train images: {len(dataset)}\n\tDataset enlarge ratio: {ratio}"
        f"\n\tBatch size per gpu: {section['batch_size_per_gpu']}\n\tWorld size (gpu number): {opt['world_size']}"
        f"\n\tIterations per epoch: {len(loader)}\n\tTotal epochs: {math.ceil(total / len(loader))}; iters: {total}."
    )
    return loader, sampler


def batches(loader: DataLoader, opt: dict[str, Any]) -> Generator[dict[str, Any], None, None]:
    """The batches of an epoch, fetched ahead as datasets.train.prefetch_mode says; close it if you leave it early."""
    section = opt["datasets"]["train"]
    mode = section.get("prefetch_mode")
    if mode == "cpu" and loader.num_workers > 0:  # without workers its draws would mix with the training's
        thread = PrefetchThread(loader, section.get("num_prefetch_queue", 1))
        try:
            yield from thread
        finally:
            thread.stop()
    elif mode == "cuda":
        prefetcher = CUDAPrefetcher(loader, opt)
        while (batch := prefetcher.next()) is not None:
            yield batch
    else:
        yield from loader


class PrefetchThread(threading.Thread):
    """Fetches batches ahead.

    BasicSR's thread ends at an exception in the data set, and the training run then waits forever. It also outlives its
    loop: every abandoned epoch leaves a thread and its workers, which may abort the process at exit.
    """

    def __init__(self, loader: DataLoader, size: int) -> None:
        super().__init__(daemon=True)
        self.loader = loader
        self.queue: queue.Queue = queue.Queue(size)
        self._stopping = threading.Event()
        atexit.register(self.stop)
        self.start()

    def run(self) -> None:
        """Put the batches of the epoch into the queue, then None or what the loader raised."""
        last: Any = None
        try:
            for batch in self.loader:
                if not self._hand_over(batch):
                    break
        except BaseException as error:
            last = _Failed(error)
        del self.loader  # ends the loader's workers
        self._hand_over(last)

    def _hand_over(self, batch: Any) -> bool:
        while not self._stopping.is_set():
            with contextlib.suppress(queue.Full):
                self.queue.put(batch, timeout=0.1)
                return True
        return False

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self.join(timeout=60)  # a file system may hang
        atexit.unregister(self.stop)

    def __iter__(self) -> Iterator[Any]:
        while (batch := self.queue.get()) is not None:
            if isinstance(batch, _Failed):
                raise batch.error
            yield batch


class _Failed:
    """An exception on its way from the thread to the training loop."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def name_replaced_images(dataset: Items, world_size: int) -> None:
    """Log which photos of all ranks could not be read and were replaced; for the end of a run."""
    own = list(getattr(dataset, "unreadable", ()))
    parts = [own]
    if world_size > 1:
        parts = [[] for _ in range(world_size)]
        torch.distributed.all_gather_object(parts, own)
    paths = sorted({path for part in parts for path in part})
    if paths:
        shown = ", ".join(map(printable, paths[:10])) + (", ..." if len(paths) > 10 else "")
        get_root_logger().warning(
            f"{len(paths)} of {len(dataset)} training images could not be read and were replaced: {shown}"
        )


# ------------------------------------------------------------------------------------------- validation and test


def validation_loader(phase: str, opt: dict[str, Any], check_stop: Callable[[], None] | None = None) -> ReadableLoader:
    """The loader of a set of the options for validation or test. check_stop: see `ReadableLoader`."""
    section = opt["datasets"][phase]
    dataset = build_set(phase, section)
    get_root_logger().info(f"Number of images in {section['name']}: {len(dataset)}")
    return ReadableLoader(build_dataloader(dataset, section), check_stop)


class ValidationItems(Items, Protocol):
    """A data set for validation or test; opt: its section of the options."""

    opt: Mapping[str, Any]


class ReadableItems(Dataset):
    """The items of a validation or test set; {"unreadable": reason} for one that cannot be used."""

    def __init__(self, dataset: Items) -> None:
        self.dataset = dataset
        self.scale = getattr(dataset, "opt", {}).get("scale")

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            item = self.dataset[index]
        except (UnreadableImage, OSError) as error:
            return {"unreadable": str(error)}
        path = item.get("lq_path", "")
        if isinstance(path, str) and not path.isprintable():
            return {"unreadable": f"{path} has a name that cannot be printed: rename it"}
        if self.scale and "lq" in item and "gt" in item:
            expected, size = ([side * self.scale for side in item["lq"].shape[-2:]], [*item["gt"].shape[-2:]])
            if expected != size:
                return {
                    "unreadable": f"{item['gt_path']} has {size[0]}x{size[1]} pixels, but must have "
                    f"{expected[0]}x{expected[1]}, {self.scale} times those of {item['lq_path']}"
                }
        return item


class ReadableLoader:
    """A loader of single images for validation and test, which leaves out those that cannot be used.

    BasicSR's validation ends at the first image that cannot be read.

    Attributes:
        skipped: why images were left out so far, one reason each.
        name: the name of the current image, for its result.
        check_stop: called before every image; may raise to end the validation there.
    """

    def __init__(self, loader: DataLoader, check_stop: Callable[[], None] | None = None) -> None:
        self.dataset = cast(ValidationItems, loader.dataset)  # PyTorch's type has no length
        self.num_workers = loader.num_workers
        self.items = ReadableItems(self.dataset)
        self.skipped: list[str] = []
        self.name = ""
        self.check_stop = check_stop or (lambda: None)

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        readable = False
        for index, data in enumerate(DataLoader(self.items, batch_size=1)):
            self.check_stop()
            if "unreadable" in data:
                self.skip(data["unreadable"][0])
            else:
                readable = True
                self.name = self.name_of(index, data)
                yield data
        if not readable:
            name = getattr(self.dataset, "opt", {}).get("name", "the set")
            raise UnreadableImage(f"none of the {len(self)} images of {name} can be read")

    @cached_property
    def _names(self) -> list[str] | None:
        return image_names(self.dataset)

    def name_of(self, index: int, data: Mapping[str, Any]) -> str:
        """A unique name for the result of image `index`. data: a batch of this image alone."""
        if self._names is not None:
            return self._names[index]
        path = data["lq_path"][0] if "lq_path" in data else None
        return f"{index:04d}_{Path(path).stem}" if isinstance(path, str) else f"{index:04d}"  # a clip has several

    def skip(self, reason: str) -> None:
        """Log and count an image that is left out."""
        get_root_logger().error(f"left out: {printable(reason)}")
        self.skipped.append(reason)


def readable(loader: DataLoader | ReadableLoader) -> ReadableLoader:
    """The loader as a ReadableLoader; BasicSR's own loop passes a plain one."""
    return loader if isinstance(loader, ReadableLoader) else ReadableLoader(loader)
