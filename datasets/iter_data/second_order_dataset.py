"""The data set of synthetic degradations (Real-ESRGAN, arXiv:2107.10833): GT crops and their kernels, or pairs."""

import os
import random
import zlib
from collections.abc import Iterator, Mapping
from functools import cache, cached_property
from typing import Any

import cv2
import lmdb
import numpy as np
import torch
from basicsr.utils import FileClient, get_root_logger
from torch import Tensor
from torch.utils.data import Dataset

from basicsr_compat import register
from basicsr_compat.images import printable
from basicsr_compat.pipeline.image_names import names_below
from basicsr_compat.pipeline.randomness import seeded_globals
from iter_data.degradation import MIN_GT_SIZE, Degradation, Pair, make_pair, read_degradation
from iter_data.images import PAUSES, UnreadableImage, decode_image, read_bytes, to_tensor
from iter_data.options import DatasetOptions, dataset_problems
from iter_data.sharpening import sharpen
from iter_data.sources import disk_entries, lmdb_entries, name_of_key

_MAX_REPLACEMENTS = 100


@register("dataset")
class SecondOrderDegradationDataset(Dataset):
    """GT images with synthetic degradations, under BasicSR's option names.

    Items in training, for `batch_to_pair`: 'gt' (3, crop, crop) float32 RGB in [0, 1], what the degradation draws for a
    sample ('kernel1', 'kernel2', 'sinc_kernel' (k, k) float32), and 'gt_path'.

    Items with degrade_in_worker: 'lq' (3, gt_size/s, gt_size/s) and 'gt' (3, gt_size, gt_size), both float32 RGB in
    [0, 1], 'lq_path', and 'gt_path'.

    Items in phase val and test have the same keys as with degrade_in_worker. The image is whole, cut to multiples of
    the scale, and never sharpened. A photo gives the same pair every time, the one that `python -m iter_data.prepare
    degrade` writes: it depends only on the photo, its path below dataroot_gt (`names_below`), and `seed`. The LQ is
    made once and kept.

    An item is a function of its index and one integer (see `sample`). In training that integer is drawn from torch's
    global generator. The `basicsr` command seeds it for each item by manual_seed, epoch, and place in the epoch, so the
    data do not depend on the number of workers or on a resume. In other training loops PyTorch seeds it per worker and
    epoch.

    In training a file that cannot be read is named once in the log, counted in `unreadable`, and replaced by another
    one. Where a whole folder does not answer, the data set waits for it (see `read_bytes`).

    Args:
        opt: the section of the data set; see `DatasetOptions`.

    Raises:
        ValueError: a bad option.
        FileNotFoundError: a folder is missing or empty.
        UnreadableImage: a list names an image smaller than the crop, or an item of validation or a test cannot be read.
    """

    def __init__(self, opt: Mapping[str, Any]) -> None:
        super().__init__()
        self.opt = opt  # BasicSR reads the name of a validation set from here
        self.phase = opt.get("phase", "train")
        section = f"datasets.{self.phase}"
        problems = list(self.option_problems(opt, section))
        if problems:
            raise ValueError("\n".join(problems))
        declared = DatasetOptions(**opt)
        self.degradation = read_degradation(declared.degradation, f"{section}.degradation")
        # results are measured against the photo itself
        self.gt_usm = declared.gt_usm and self.phase == "train"
        self.scale = declared.scale
        self.use_hflip = declared.use_hflip
        self.use_rot = declared.use_rot
        self.pad_small_gt = declared.pad_small_gt
        self.degrade_in_worker = declared.degrade_in_worker
        self.seed = declared.seed
        self.resize_range = declared.gt_resize_range
        self.gt_size = declared.gt_size
        self.crop_size = declared.crop_pad_size or declared.gt_size or 0  # 0: validation and tests crop nothing
        self._find_images(declared, section)
        self._lqs: dict[int, Tensor] = {}  # of validation, uint8
        # shared with the workers, so that a bad file is named once and not once per worker and epoch
        self._is_unreadable = torch.zeros(len(self.paths), dtype=torch.bool).share_memory_()
        self._is_away = torch.zeros(1, dtype=torch.bool).share_memory_()

    def _find_images(self, declared: DatasetOptions, section: str) -> None:
        roots, metas = _as_list(declared.dataroot_gt), _as_list(declared.meta_info)
        self.roots = roots
        self.lmdb = roots[0] if declared.io_backend and declared.io_backend["type"] == "lmdb" else None
        if self.lmdb:
            entries = lmdb_entries(self.lmdb, metas[0] if metas else None, section)
        else:
            entries = disk_entries(roots, metas, section)
        self.paths = [path for path, _ in entries]
        if self.phase == "train" and not self.pad_small_gt:
            for path, size in entries:
                if size is not None:
                    self._check_size(path, *size)

    @staticmethod
    def option_problems(opt: Mapping[str, Any], section: str) -> Iterator[str]:
        """Say what is wrong with the section of a data set, one line per problem, without looking at files."""
        return dataset_problems({"phase": "train"} | dict(opt), section)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self.phase == "train":
            return self.sample(index, int(torch.randint(2**32, ())))
        if index not in self._lqs:
            item = self.sample(index, seed_of(self.names[index], self.seed))
            self._lqs[index] = (item["lq"] * 255).round().to(torch.uint8)
            return item
        image, path = self._read(index)
        lq, gt = self._lqs[index].float() / 255, to_tensor(self._whole(image, path))
        return {"lq": lq, "gt": gt, "lq_path": path, "gt_path": path}

    @cached_property
    def names(self) -> list[str]:
        """A unique name for each file; see `names_below`."""
        return names_below([name_of_key(path) if self.lmdb else path for path in self.paths], self.roots)

    @property
    def unreadable(self) -> list[str]:
        """The paths that any worker of this data set could not read so far."""
        return [self.paths[index] for index in self._is_unreadable.nonzero().flatten().tolist()]

    def sample(self, index: int, seed: int) -> dict[str, Any]:
        """Item `index`, with all its random choices drawn from `seed`, 0 <= seed < 2^32; no global state changes.

        Raises UnreadableImage outside training, and in training where no image can be read.
        """
        # in the order in which BasicSR's RealESRGANDataset draws: flips, crop, kernels
        with seeded_globals(seed):
            image, path = self._read(index)
            if self.phase == "train":
                image = self._crop(self._flip(image), path)
            else:
                image = self._whole(image, path)
            drawn = self.degradation.draw()
            # numpy and torch make the same numbers of the same seed: the degradation needs one of its own
            degradation_seed = random.getrandbits(32)
        gt = to_tensor(image)
        if self.gt_usm:
            gt = sharpen(gt[None])[0]
        if self.phase == "train" and not self.degrade_in_worker:
            return {"gt": gt, **drawn, "gt_path": path}
        pair = make_pair(
            gt[None],
            {name: value[None] for name, value in drawn.items()},
            scale=self.scale,
            degradation=self.degradation,
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
                        f"{printable(path)} cannot be read and is replaced by another image: {error}. "
                        f"Unreadable so far: {int(self._is_unreadable.sum())}"
                    )
            index = random.randrange(len(self.paths))
        raise UnreadableImage(
            f"{_MAX_REPLACEMENTS} images in a row could not be read ({len(self.unreadable)} of "
            f"{len(self)} so far, e.g. {path}): check the data set"
        )

    def _bytes(self, path: str) -> bytes | None:
        if self.lmdb:
            try:
                return _client(self.lmdb).get(path, "gt")
            except (lmdb.Error, UnicodeEncodeError) as error:
                raise UnreadableImage(str(error)) from error
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
    degradation: Degradation,
    generator: torch.Generator,
    crop_size: int | None = None,
) -> Pair:
    """Turn a batch of `SecondOrderDegradationDataset` into pairs on a device.

    A batch that has 'lq' already, from degrade_in_worker or any paired data set, is only moved to the device.

    Args:
        batch: 'gt' (b, 3, H, W) float32 RGB in [0, 1], and what the degradation drew for it.
        device: where the pairs are made.
        scale, degradation, generator, crop_size: see `make_pair`; crop_size is for data sets with crop_pad_size.
    """
    moved = {key: value.to(device, non_blocking=True) for key, value in batch.items() if isinstance(value, Tensor)}
    gt = moved.pop("gt")
    if "lq" in moved:
        return Pair(moved["lq"], gt)
    return make_pair(gt, moved, scale=scale, degradation=degradation, generator=generator, crop_size=crop_size)


def _as_list(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


@cache
def _client(root: str) -> FileClient:
    # one per process and LMDB: it cannot be opened twice; read-only and without locks it may cross a fork
    return FileClient("lmdb", db_paths=[root], client_keys=["gt"])


def seed_of(name: str, seed: int) -> int:
    """A 32-bit seed made of `seed` and a name; it is the same on every machine."""
    return zlib.crc32(f"{seed}/{name}".encode())
