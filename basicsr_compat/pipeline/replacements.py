"""The table of functions and methods of BasicSR that `install_pipeline` replaces; the loops are in loop.py."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from basicsr.utils import get_root_logger, imwrite
from basicsr.utils.registry import METRIC_REGISTRY

from basicsr_compat.images import UnreadableImage, decode_image, printable
from basicsr_compat.patching import Repair, with_globals
from basicsr_compat.pipeline import checkpoints
from basicsr_compat.pipeline.data import readable
from basicsr_compat.pipeline.image_names import result_path
from basicsr_compat.pipeline.pairs import naming_partners
from basicsr_compat.schema import OptionProblems, nearest, requires


class NamedBytes(bytes):
    """The content of a file, with its path."""

    path = "the image"


def naming_get(get: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap FileClient.get so that its bytes carry the name of their file; empty for a key that an LMDB lacks."""

    @functools.wraps(get)
    def get_named(self, filepath, *args, **kwargs):
        named = NamedBytes(get(self, filepath, *args, **kwargs) or b"")
        named.path = str(filepath)
        return named

    return get_named


def imfrombytes(content: bytes, flag: str = "color", float32: bool = False) -> np.ndarray:
    """Decode an image file to (h, w, 3) BGR or (h, w) gray, uint8, or float32 in [0, 1]. Raises UnreadableImage."""
    flags = {"color": cv2.IMREAD_COLOR, "grayscale": cv2.IMREAD_GRAYSCALE, "unchanged": cv2.IMREAD_UNCHANGED}[flag]
    try:
        image = decode_image(content, flags)
    except UnreadableImage as error:
        path = printable(getattr(content, "path", NamedBytes.path))
        raise UnreadableImage(f"{path} cannot be read: {error}") from error
    return image.astype(np.float32) / 255.0 if float32 else image


def sorted_scandir(scandir: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap scandir so that it yields files in the order of their names."""

    @functools.wraps(scandir)
    def scandir_in_order(dir_path, suffix=None, recursive=False, full_path=False):
        return iter(sorted(scandir(dir_path, suffix=suffix, recursive=recursive, full_path=full_path)))

    return scandir_in_order


def quiet_get(get: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap Registry.get so that it prints nothing, and its error suggests the nearest known name."""

    @functools.wraps(get)
    def get_quietly(self, name, suffix="basicsr"):
        for key in (name, f"{name}_{suffix}"):
            if key in self:
                return self._obj_map[key]
        raise KeyError(f"no object named {name!r} in the {self._name!r} registry{nearest(name, self.keys())}")

    return get_quietly


def needing_ground_truth(calculate: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap calculate_metric so that its error names a metric that needs a ground truth, or the LQ image."""

    @functools.wraps(calculate)
    def calculate_metric(data, opt):
        if "img2" not in data and requires(METRIC_REGISTRY.get(opt["type"]), "img2"):
            raise OptionProblems(
                f"metric {opt['type']} compares with the ground truth, which this dataset does not have; set its "
                "dataroot_gt, or take the metric out of val.metrics"
            )
        if "lq" not in data and requires(METRIC_REGISTRY.get(opt["type"]), "lq"):
            raise OptionProblems(
                f"metric {opt['type']} looks at the LQ image, which this model does not hand to its metrics; take the "
                "metric out of val.metrics"
            )
        return calculate(data, opt)

    return calculate_metric


def nan_where_undefined(niqe: Callable[..., float]) -> Callable[..., float]:
    """Wrap NIQE so that it is NaN where an image has fewer than two textured blocks."""

    @functools.wraps(niqe)
    def niqe_or_nan(img, *args, block_size_h=96, block_size_w=96, **kwargs):
        if img.ndim == 2 and (img.shape[0] // block_size_h) * (img.shape[1] // block_size_w) >= 2:
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # means and covariances of nothing
                try:
                    return niqe(img, *args, block_size_h=block_size_h, block_size_w=block_size_w, **kwargs)
                except np.linalg.LinAlgError:
                    pass
        get_root_logger().warning(f"NIQE is undefined (NaN) for a flat image and for one of shape {img.shape}")
        return float("nan")

    return niqe_or_nan


def naming_results(validate: Callable[..., None]) -> Callable[..., None]:
    """Wrap SRModel.nondist_validation so that results have unique names, see `names_below`."""

    @functools.wraps(validate)
    def nondist_validation(self, dataloader, current_iter, tb_logger, save_img):
        loader, opt = readable(dataloader), self.opt
        folder = os.path.join(opt["path"]["visualization"], loader.dataset.opt["name"])
        if opt["is_train"]:
            form = {"iteration": current_iter}
        else:
            form = {"suffix": opt["val"].get("suffix") or opt["name"]}

        def write(image, path):
            return imwrite(image, result_path(folder, loader.name, **form))

        with_globals(validate, imwrite=write)(self, loader, current_iter, tb_logger, save_img)

    return nondist_validation


def _replace(target: str, replacement: Callable[[Any], Any], reason: str) -> Repair:
    return Repair(target=target, is_broken=lambda current: True, replacement=replacement, reason=reason)


def _by(function: Callable[..., Any]) -> Callable[[Any], Any]:
    return lambda current: function


REPLACEMENTS = (
    _replace(
        "basicsr.models.base_model:BaseModel.save_network",
        _by(checkpoints.save_network),
        "writes in place, and continues where the disk is full",
    ),
    _replace(
        "basicsr.models.base_model:BaseModel.save_training_state",
        _by(checkpoints.save_training_state),
        "forgets the best metrics, the place in the epoch and all random generators",
    ),
    _replace(
        "basicsr.models.base_model:BaseModel.resume_training",
        _by(checkpoints.resume_training),
        "forgets the same, and continues with the state's learning rates where the options have others",
    ),
    _replace(
        "basicsr.models.base_model:BaseModel.load_network",
        _by(checkpoints.load_network),
        "may run code, and takes `params` where the asked param_key is not there",
    ),
    _replace(
        "basicsr.models.sr_model:SRModel.nondist_validation",
        naming_results,
        "names results by the stem: s1/0001.png and s2/0001.png overwrite each other",
    ),
    _replace(
        "basicsr.utils.file_client:FileClient.get", naming_get, "its bytes do not say which file cannot be decoded"
    ),
    _replace(
        "basicsr.utils.img_util:imfrombytes",
        _by(imfrombytes),
        "makes of half a file a gray photo, and of none an AttributeError that names no file",
    ),
    _replace(
        "basicsr.data.data_util:paired_paths_from_folder",
        naming_partners,
        "says `different number of images: 1, 2.` or `0001.png is not in lq_paths`, and no folder",
    ),
    _replace(
        "basicsr.utils.misc:scandir",
        sorted_scandir,
        "lists in the order of the file system: the same seed trains differently on another disk",
    ),
    _replace(
        "basicsr.utils.registry:Registry.get",
        quiet_get,
        "prints the names that it finds, and suggests none for a misspelt one",
    ),
    _replace(
        "basicsr.metrics:calculate_metric", needing_ground_truth, "is a TypeError about `img2` without ground truth"
    ),
    _replace(
        "basicsr.metrics.niqe:niqe", nan_where_undefined, "ends in an error of linear algebra on small or flat images"
    ),
)
