"""A contact sheet of what a training run sees: GT crops, each degraded several times."""

import random

import cv2
import numpy as np
import torch
from torch import Tensor

from basicsr_compat.pipeline.randomness import seeded_globals
from iter_data.degradation import make_pair
from iter_data.images import to_image
from iter_data.second_order_dataset import SecondOrderDegradationDataset, seed_of

_GAP, _HEADER = 8, 32  # pixels


def contact_sheet(
    dataset: SecondOrderDegradationDataset, *, photos: int = 4, versions: int = 4, seed: int = 0
) -> tuple[np.ndarray, list[str]]:
    """Draw a row for each of a few photos: a GT crop, and LQ versions of it, whose pixels are enlarged to its size.

    Args:
        dataset: in phase train, without degrade_in_worker.
        photos: number of rows, at most that of the data set's photos.
        versions: LQ images per row.
        seed: of the choice of photos, the crops, and the degradations.

    Returns:
        The sheet, (h, w, 3) uint8 BGR, and the paths of its photos.
    """
    chosen = sorted(random.Random(seed).sample(range(len(dataset)), min(photos, len(dataset))))
    items = [dataset.sample(index, seed_of(dataset.names[index], seed)) for index in chosen]
    rows = []
    for index, item in zip(chosen, items, strict=True):
        lqs = [_degraded(dataset, item["gt"], seed_of(f"{dataset.names[index]}/{n}", seed)) for n in range(versions)]
        rows.append(_beside([to_image(item["gt"]), *(_enlarged(to_image(lq), dataset.scale) for lq in lqs)]))
    header = np.full((_HEADER, rows[0].shape[1], 3), 255, np.uint8)
    step = dataset.crop_size + _GAP
    for column, label in enumerate(["GT", *(f"LQ {number}" for number in range(1, versions + 1))]):
        cv2.putText(header, label, (_GAP + column * step, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([header, *rows]), [item["gt_path"] for item in items]


def _degraded(dataset: SecondOrderDegradationDataset, gt: Tensor, seed: int) -> Tensor:
    with seeded_globals(seed):
        drawn = dataset.degradation.draw()
        generator = torch.Generator().manual_seed(random.getrandbits(32))
    drawn = {name: value[None] for name, value in drawn.items()}
    pair = make_pair(gt[None], drawn, scale=dataset.scale, degradation=dataset.degradation, generator=generator)
    return pair.lq[0]


def _enlarged(image: np.ndarray, scale: int) -> np.ndarray:
    return image.repeat(scale, 0).repeat(scale, 1)


def _beside(images: list[np.ndarray]) -> np.ndarray:
    """A row of the sheet, with a white border to the right of and below each image, and one at the left."""
    padded = [np.pad(image, ((0, _GAP), (0, _GAP), (0, 0)), constant_values=255) for image in images]
    return np.pad(np.concatenate(padded, 1), ((0, 0), (_GAP, 0), (0, 0)), constant_values=255)
