"""Photos on disk, and SecondOrderDegradationDataset over them."""

import cv2
import numpy as np

from iter_data import SecondOrderDegradationDataset


def write_image(path, height=64, width=80, seed=0):
    """Noise (height, width, 3) of uint8 BGR, written to a file of the kind that its suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())
    return image


def options(root, **changes):
    """A section of the data set over the photos in root; a key changed to None is left out."""
    opt = {"name": "train", "type": "SecondOrderDegradationDataset", "phase": "train", "scale": 4, "gt_size": 48,
           "dataroot_gt": str(root)}  # fmt: skip
    return {key: value for key, value in {**opt, **changes}.items() if value is not None}


def dataset_of(root, **changes):
    """The data set of `options`."""
    return SecondOrderDegradationDataset(options(root, **changes))


def names_of(paths, root):
    """Paths below root, as text without it."""
    return [path.removeprefix(f"{root}/") for path in paths]


def names(dataset, root):
    """`names_of` the photos of a data set."""
    return names_of(dataset.paths, root)
