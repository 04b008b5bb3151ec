"""Photos on disk, and SecondOrderDegradationDataset over them."""

import cv2
import numpy as np

from iter_data import SecondOrderDegradationDataset


def write_image(path, height=64, width=80, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())
    return image


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
