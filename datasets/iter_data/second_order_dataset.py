"""GT crops with the kernels of Real-ESRGAN's second-order degradation (arXiv:2107.10833), or ready LQ/GT pairs."""

import os
import random
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import cv2
import numpy as np
import torch
from basicsr.utils import FileClient, get_root_logger
from basicsr.utils.registry import DATASET_REGISTRY
from torch.utils.data import Dataset

from iter_data.degradation import MIN_GT_SIZE, Pair, make_pair
from iter_data.images import (
    HOW_TO_GET_DATA,
    PAUSES,
    UnreadableImage,
    decode_image,
    list_images,
    read_bytes,
    seed_of,
    to_tensor,
)
from iter_data.kernels import Kernels, draw_kernels, seeded
from iter_data.options import DegradationOptions, check_keys

_OWN_KEYS = (
    "dataroot_gt",
    "meta_info",
    "io_backend",
    "gt_size",
    "crop_pad_size",
    "use_hflip",
    "use_rot",
    "gt_resize_range",
    "pad_small_gt",
    "degrade_in_worker",
    "degradation",
    "seed",
)
# what BasicSR reads from, or writes into, the section of any data set
_BASICSR_KEYS = (
    "name",
    "type",
    "phase",
    "scale",
    "use_shuffle",
    "num_worker_per_gpu",
    "batch_size_per_gpu",
    "dataset_enlarge_ratio",
    "prefetch_mode",
    "num_prefetch_queue",
    "pin_memory",
    "persistent_workers",
)
_META_LINE = re.compile(r"^(?P<name>.+?)(?:\s+\((?P<h>\d+),\s*(?P<w>\d+)(?:,\s*\d+)?\).*)?$")
_MAX_REPLACEMENTS = 100


@DATASET_REGISTRY.register()
class SecondOrderDegradationDataset(Dataset):
    """Data set of single GT images for training on synthetic degradations; BasicSR's option names.

    Options (section of the data set in the yml):
        dataroot_gt: an image folder, searched through its subfolders in sorted order; or a list of folders; with
            io_backend type lmdb, one `.lmdb` folder.
        meta_info: optional text file naming the images to use, relative to dataroot_gt, one a line as BasicSR writes
            them (`name.png` or `name.png (h,w,c) 1`); a list of files for a list of folders.
        io_backend: {type: disk} (default) or {type: lmdb}.
        gt_size: side of the GT crops, a multiple of the scale, >= 32 (> 25 is what sharpening needs).
        crop_pad_size: crop this much, degrade, then crop to gt_size, as Real-ESRGAN does with 400; default gt_size.
        use_hflip, use_rot: random flips and quarter turns; default true and false.
        gt_resize_range: [low, high] in (0, 1]: the GT is shrunk by a random factor before it is cropped, which gives
            a small training set more scales; off by default.
        pad_small_gt: reflect-pad images smaller than the crop, as BasicSR does; by default they are an error.
        degradation: see `DegradationOptions`; Real-ESRGAN's values by default.
        degrade_in_worker: give ready pairs for any BasicSR model instead of GT and kernels; default false.
        seed: val and test only, default 0.

    Items in training are dicts: 'gt' (3, crop, crop) float32 RGB in [0, 1], 'kernel1', 'kernel2', 'sinc_kernel' (k, k)
    float32 and 'gt_path', to be given to `batch_to_pair`; with degrade_in_worker 'lq' (3, gt_size/s, gt_size/s), 'gt'
    (3, gt_size, gt_size), 'lq_path', 'gt_path'. In phase val and test the items are always such pairs, of the whole
    image cut to multiples of the scale, its GT not sharpened, and the same pair every time: it depends on `seed` and
    the file name alone, and is the one that `python -m iter_data.prepare degrade` writes.

    An item is a function of its index and one integer (`sample`). In training that integer is drawn from torch's
    global generator, which PyTorch seeds anew for each worker and epoch from the main process: runs with the same
    manual_seed see the same data, epochs differ, and restoring the main process's generator replays an epoch.

    In training a file that cannot be read is named once in the log, counted in `unreadable`, and replaced by another
    one; in validation and tests its item raises UnreadableImage. A folder that does not answer is waited for (see
    `read_bytes`). Raises ValueError for a bad option, FileNotFoundError for a missing or empty folder.
    """

    def __init__(self, opt: Mapping[str, Any]):
        super().__init__()
        self.opt = opt  # BasicSR reads the name of a validation set from here
        self.phase = opt.get("phase", "train")
        section = f"datasets.{self.phase}"
        _check_section(opt, section)
        if self.phase not in ("train", "val", "test"):
            raise ValueError(f"{section}.phase={self.phase!r} must be train, val or test")
        self.options = DegradationOptions.from_dict(opt.get("degradation"), f"{section}.degradation")
        if self.phase != "train":
            # what is judged is judged against the photo itself
            self.options = replace(self.options, gt_usm=False)
        self.scale = _value(opt, section, "scale", None, _is_count, "must be 1, 2, 4 or another whole number")
        self.use_hflip = _value(opt, section, "use_hflip", True, _is_bool, "must be true or false")
        self.use_rot = _value(opt, section, "use_rot", False, _is_bool, "must be true or false")
        self.pad_small_gt = _value(opt, section, "pad_small_gt", False, _is_bool, "must be true or false")
        self.degrade_in_worker = _value(opt, section, "degrade_in_worker", False, _is_bool, "must be true or false")
        self.seed = _value(opt, section, "seed", 0, lambda v: v == 0 or _is_count(v), "must be a whole number >= 0")
        self.resize_range = _value(
            opt,
            section,
            "gt_resize_range",
            None,
            lambda v: v is None or _is_shrink_range(v),
            "must be [low, high] with 0 < low <= high <= 1",
        )
        if self.phase == "train":
            self.gt_size = _value(
                opt,
                section,
                "gt_size",
                None,
                lambda v: _is_crop(v, self.scale),
                f"must be a multiple of scale={self.scale} and >= {MIN_GT_SIZE}",
            )
            self.crop_size = _value(
                opt,
                section,
                "crop_pad_size",
                self.gt_size,
                lambda v: _is_crop(v, self.scale) and v >= self.gt_size,
                f"must be a multiple of scale={self.scale} and >= gt_size={self.gt_size}",
            )
        backend = opt.get("io_backend") or {"type": "disk"}
        _check_io_backend(backend, section)
        roots, metas = opt.get("dataroot_gt"), opt.get("meta_info")
        if backend["type"] == "lmdb":
            entries, self.source = _lmdb_entries(roots, metas, section), ("lmdb", roots)
        else:
            entries, self.source = _disk_entries(roots, metas, section), ("disk",)
        self.paths = [path for path, _ in entries]
        if self.phase == "train" and not self.pad_small_gt:
            for path, size in entries:
                if size is not None:
                    self._check_size(path, *size)
        # shared with the workers, so that a bad file is named once and not once a worker and epoch
        self._is_unreadable = torch.zeros(len(self.paths), dtype=torch.bool).share_memory_()
        self._is_away = torch.zeros(1, dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self.phase == "train":
            return self.sample(index, torch.randint(2**32, ()).item())
        return self.sample(index, seed_of(self.paths[index], self.seed))

    @property
    def unreadable(self) -> list[str]:
        """Paths found unreadable so far, by any worker of this data set."""
        return [self.paths[index] for index in self._is_unreadable.nonzero().flatten().tolist()]

    def sample(self, index: int, seed: int) -> dict[str, Any]:
        """Item `index` with all its random choices drawn from `seed`, 0 <= seed < 2^32; no global state changes."""
        # in the order in which BasicSR's RealESRGANDataset draws: flips, crop, kernels
        with seeded(seed):
            image, path = self._read(index)
            if self.phase == "train":
                image = self._crop(self._flip(image), path)
            else:
                image = self._whole(image, path)
            kernels = draw_kernels(self.options)
            # numpy and torch make the same numbers of the same seed: the degradation needs one of its own
            degradation_seed = random.getrandbits(32)
        gt = to_tensor(image)
        if self.phase == "train" and not self.degrade_in_worker:
            return {"gt": gt, **kernels._asdict(), "gt_path": path}
        pair = make_pair(
            gt[None],
            Kernels(*(kernel[None] for kernel in kernels)),
            scale=self.scale,
            options=self.options,
            generator=torch.Generator().manual_seed(degradation_seed),
            crop_size=self.gt_size if self.phase == "train" else None,
        )
        return {"lq": pair.lq[0], "gt": pair.gt[0], "lq_path": path, "gt_path": path}

    def _read(self, index: int) -> tuple[np.ndarray, str]:
        for _ in range(_MAX_REPLACEMENTS):
            path = self.paths[index]
            if not self._is_unreadable[index]:
                try:
                    return decode_image(self._bytes(path)), path
                except UnreadableImage as error:
                    if self.phase != "train":
                        raise UnreadableImage(f"{path} cannot be read: {error}; repair it or take it out") from error
                    self._is_unreadable[index] = True
                    # an error: BasicSR silences the warnings of all ranks but the first
                    get_root_logger().error(
                        f"{path} cannot be read and is replaced by another image: {error}. "
                        f"Unreadable so far: {int(self._is_unreadable.sum())}"
                    )
            index = random.randrange(len(self.paths))
        raise RuntimeError(
            f"{_MAX_REPLACEMENTS} images in a row could not be read ({len(self.unreadable)} of "
            f"{len(self)} so far, e.g. {path}): check the data set"
        )

    def _bytes(self, path: str) -> bytes | None:
        if self.source[0] == "lmdb":
            return _client(self.source[1]).get(path, "gt")
        data = read_bytes(path, self._say_away)
        if self._is_away:
            self._is_away[0] = False
            get_root_logger().error(f"{os.path.dirname(path)} answers again")
        return data

    def _say_away(self, error: OSError) -> None:
        if not self._is_away:
            self._is_away[0] = True
            get_root_logger().error(
                f"{os.path.dirname(error.filename)} does not answer ({error.strerror}): waiting for it, up to "
                f"{sum(PAUSES)} s"
            )

    def _flip(self, image: np.ndarray) -> np.ndarray:
        # basicsr.data.transforms.augment on views: only the crop is copied
        if self.use_hflip and random.random() < 0.5:
            image = image[:, ::-1]
        upside_down = self.use_rot and random.random() < 0.5
        transposed = self.use_rot and random.random() < 0.5
        if upside_down:
            image = image[::-1]
        return image.transpose(1, 0, 2) if transposed else image

    def _crop(self, image: np.ndarray, path: str) -> np.ndarray:
        size = self.crop_size
        height, width = image.shape[:2]
        if min(height, width) < size:
            if not self.pad_small_gt:
                self._check_size(path, height, width)
            image = cv2.copyMakeBorder(
                np.ascontiguousarray(image), 0, max(0, size - height), 0, max(0, size - width), cv2.BORDER_REFLECT_101
            )
            height, width = image.shape[:2]
        region = size
        if self.resize_range is not None:
            # cut what shrinks to the crop, instead of shrinking the whole image
            region = min(round(size / random.uniform(*self.resize_range)), height, width)
        top = random.randint(0, height - region) if height > size or width > size else 0
        left = random.randint(0, width - region) if height > size or width > size else 0
        image = image[top : top + region, left : left + region]
        if region > size:
            image = cv2.resize(np.ascontiguousarray(image), (size, size), interpolation=cv2.INTER_AREA)
        return image

    def _whole(self, image: np.ndarray, path: str) -> np.ndarray:
        height, width = (side - side % self.scale for side in image.shape[:2])
        if min(height, width) < MIN_GT_SIZE:
            raise UnreadableImage(
                f"{path} has {image.shape[0]}x{image.shape[1]} pixels, but both sides must be >= {MIN_GT_SIZE}: take "
                "it out of the set"
            )
        return image[:height, :width]

    def _check_size(self, path: str, height: int, width: int) -> None:
        if min(height, width) < self.crop_size:
            raise UnreadableImage(
                f"{path} has {height}x{width} pixels, but both sides must be >= the crop of "
                f"{self.crop_size} pixels: remove it, lower gt_size (or crop_pad_size), or set "
                "pad_small_gt: true"
            )


def batch_to_pair(
    batch: Mapping[str, Any],
    *,
    device: torch.device | str,
    scale: int,
    options: DegradationOptions,
    generator: torch.Generator,
    crop_size: int | None = None,
) -> Pair:
    """Turn a batch of `SecondOrderDegradationDataset` into a pair on `device`: the sharpened GT and its LQ.

    batch: 'gt' (b, 3, H, W), 'kernel1', 'kernel2', 'sinc_kernel' (b, k, k). generator: a CPU generator. crop_size: the
    pair is cut to this GT size at a random place, for data sets with crop_pad_size. A batch that has 'lq' already
    (degrade_in_worker, or any paired data set) is moved to the device and left as it is.
    """
    moved = {key: batch[key].to(device, non_blocking=True) for key in ("lq", "gt", *Kernels._fields) if key in batch}
    if "lq" in moved:
        return Pair(moved["lq"], moved["gt"])
    kernels = Kernels(*(moved[name] for name in Kernels._fields))
    return make_pair(moved["gt"], kernels, scale=scale, options=options, generator=generator, crop_size=crop_size)


@cache
def _client(root: str) -> FileClient:
    # one a process and LMDB: it cannot be opened twice; read-only and without locks it may cross a fork
    return FileClient("lmdb", db_paths=[root], client_keys=["gt"])


def _check_section(opt: Mapping[str, Any], section: str) -> None:
    for key in opt:
        if key in DegradationOptions.__dataclass_fields__:
            raise ValueError(f"{section}.{key} belongs into the sub-section {section}.degradation: move it there")
    check_keys(opt, (*_OWN_KEYS, *_BASICSR_KEYS), section)


def _value(opt: Mapping[str, Any], section: str, key: str, default: Any, is_valid: Any, rule: str) -> Any:
    value = opt.get(key)
    value = default if value is None else value
    if not is_valid(value):
        raise ValueError(f"{section}.{key}={value!r} {rule}")
    return value


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_shrink_range(value: Any) -> bool:
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(isinstance(v, int | float) for v in value):
        return False
    return 0 < value[0] <= value[1] <= 1


def _is_crop(value: Any, scale: int) -> bool:
    return _is_count(value) and value % scale == 0 and value >= MIN_GT_SIZE


def _check_io_backend(backend: Mapping[str, Any], section: str) -> None:
    check_keys(backend, ("type",), f"{section}.io_backend")
    if backend.get("type") not in ("disk", "lmdb"):
        raise ValueError(f"{section}.io_backend.type={backend.get('type')!r} must be disk or lmdb")


def _lmdb_entries(root: Any, meta: Any, section: str) -> list[tuple[str, tuple[int, int] | None]]:
    if not isinstance(root, str) or not root.rstrip("/").endswith(".lmdb"):
        raise ValueError(
            f"{section}.dataroot_gt={root!r} must be one folder whose name ends in .lmdb with io_backend type lmdb"
        )
    if not os.path.isdir(root):
        raise FileNotFoundError(
            f"{section}.dataroot_gt={root!r} does not exist: make it with `python -m "
            f"iter_data.prepare lmdb`; {HOW_TO_GET_DATA}"
        )
    entries = _read_meta_info(meta or os.path.join(root, "meta_info.txt"), section)
    # BasicSR's keys are the names without their extension
    return [(os.path.splitext(name)[0], size) for name, size in entries]


def _disk_entries(roots: Any, metas: Any, section: str) -> list[tuple[str, tuple[int, int] | None]]:
    roots = [roots] if isinstance(roots, str) else roots
    metas = [metas] if isinstance(metas, str) else metas
    if not isinstance(roots, list) or not roots or not all(isinstance(root, str) for root in roots):
        raise ValueError(f"{section}.dataroot_gt={roots!r} must be an image folder or a list of image folders")
    if not metas:
        return [(path, None) for root in roots for path in list_images(root)]
    if len(metas) != len(roots):
        raise ValueError(f"{section}.meta_info={metas!r} must name one file for each folder of dataroot_gt={roots!r}")
    return [
        (os.path.join(root, name), size)
        for root, meta in zip(roots, metas, strict=True)
        for name, size in _read_meta_info(meta, section)
    ]


def _read_meta_info(path: str, section: str) -> list[tuple[str, tuple[int, int] | None]]:
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"{section}.meta_info={path!r} does not exist: make it with `python -m iter_data.prepare meta-info`"
        )
    with open(path, encoding="utf-8") as file:
        matches = [_META_LINE.match(line.strip()) for line in file if line.strip()]
    if not matches:
        raise ValueError(f"{section}.meta_info={path!r} names no image")
    return [(match["name"], (int(match["h"]), int(match["w"])) if match["h"] else None) for match in matches]
