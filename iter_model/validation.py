"""Validation on all ranks: they share out the set, results are gathered, and equal those of one process."""

import itertools
import math
import os.path as osp
from collections import ChainMap
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from basicsr.metrics import calculate_metric
from basicsr.models.base_model import BaseModel
from basicsr.utils import get_root_logger, imwrite, tensor2img
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, default_collate
from tqdm import tqdm

from basicsr_compat.pipeline.data import readable
from basicsr_compat.pipeline.distributed import key_value_store
from basicsr_compat.pipeline.stops import ValidationStopped
from iter_model.options import ValOptions
from iter_model.pyiqa_metric import build_metric
from iter_model.training import all_reduce_sum

BICUBIC = " of bicubic"
_validations = itertools.count()  # the same on all ranks


class ValidationMixin(BaseModel):
    """BasicSR's validation in the form that both stages use.

    The model provides `feed_data`, `test`, `output`, `gt`, and `draw() -> (3, H, W)`, the picture for TensorBoard.

    `val` is the yml's section of that name, see `ValOptions`.
    """

    val: ValOptions

    def build_metrics(self) -> None:
        """Build every metric now, so that one that cannot be had ends the run in its first second."""
        for options in (self.val.metrics or {}).values():
            if options["type"] == "pyiqa":
                build_metric(**{key: value for key, value in options.items() if key != "type"})

    def validation(self, dataloader: DataLoader, current_iter: int, tb_logger: Any, save_img: bool = False) -> None:
        dataset, name = dataloader.dataset, dataloader.dataset.opt["name"]
        rank, world = self.opt["rank"], self.opt["world_size"]
        loader = readable(dataloader)
        metrics = self.val.metrics or {}
        # Of every image its scores, or why it was left out, or that a signal stopped all here.
        results: dict[int, dict[str, float] | str | ValidationStopped] = {}
        pictures: dict[int, tuple[str, Tensor]] = {}
        # Only rank 0 has a tb_logger, and any rank may get the images that it is to show.
        has_logger = all_reduce_sum(torch.tensor(int(tb_logger is not None), device=self.device)).item()
        num_pictures = self.val.tb_images if has_logger else 0
        turns = self._take_turns(len(dataset))
        for index in tqdm(turns, total=len(dataset), disable=rank != 0 or not self.val.pbar):
            try:
                loader.check_stop()
            except ValidationStopped as stop:
                results[index] = stop  # told to the other ranks, which wait below
                break
            data = default_collate([loader.items[index]])
            if "unreadable" in data:
                results[index] = data["unreadable"][0]
                continue
            self.feed_data(data)
            self.test()
            image = tensor2img([self.output])
            results[index] = self._measure(image, metrics)
            if self.val.bicubic:
                bicubic = functional.interpolate(data["lq"], self.output.shape[-2:], mode="bicubic")
                scores = self._measure(tensor2img([bicubic]), metrics)
                results[index] |= {f"{metric}{BICUBIC}": score for metric, score in scores.items()}
            stem = osp.splitext(osp.basename(data["lq_path"][0]))[0]
            if save_img:
                imwrite(image, self._image_path(name, stem, current_iter))
            if index < num_pictures:
                pictures[index] = f"{name}/{stem}", self.draw().clamp(0, 1).mul(255).byte().cpu()
        if world > 1:
            gathered: list[Any] = [None] * world
            torch.distributed.all_gather_object(gathered, (results, pictures))
            results, pictures = (dict(ChainMap(*parts)) for parts in zip(*gathered, strict=True))
        for stop in results.values():
            if isinstance(stop, ValidationStopped):
                raise stop
        if tb_logger:
            for _, (tag, picture) in sorted(pictures.items()):
                tb_logger.add_image(tag, picture, current_iter)
        measured = []
        for index in range(len(dataset)):
            if isinstance(results[index], str):
                loader.skip(results[index])
            else:
                measured.append(results[index])
        if not measured:
            get_root_logger().error(f"none of the {len(dataset)} images of {name} can be read")
        elif metrics:
            self._log_metrics(measured, name, current_iter, tb_logger, len(dataset) - len(measured))

    def _measure(self, image: np.ndarray, metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
        """Metrics of image (H, W, 3) uint8 BGR against the GT of the last data, where there is one."""
        images = {"img": image} if self.gt is None else {"img": image, "img2": tensor2img([self.gt])}
        return {name: float(calculate_metric(images, options)) for name, options in metrics.items()}

    def _take_turns(self, count: int) -> Iterator[int]:
        """Each number below count on one rank: who is done takes the next, so that none waits for more than an image.

        Shares dealt beforehand would let the ranks with the smaller images wait, in the end beyond the group's timeout.
        """
        if self.opt["world_size"] == 1:
            yield from range(count)
            return
        turns = f"validation_{next(_validations)}"
        store = key_value_store()
        while (number := store.add(turns, 1) - 1) < count:
            yield number

    def _image_path(self, dataset: str, stem: str, current_iter: int) -> str:
        folder = self.opt["path"]["visualization"]
        if self.opt["is_train"]:
            return osp.join(folder, stem, f"{stem}_{current_iter}.png")
        return osp.join(folder, dataset, f"{stem}_{self.val.suffix or self.opt['name']}.png")

    def _log_metrics(
        self, results: list[dict[str, float]], dataset: str, current_iter: int, tb_logger: Any, left_out: int
    ) -> None:
        self._initialize_best_metric_results(dataset)
        images = f"{len(results)} images" + (f", {left_out} left out" if left_out else "")
        means, lines = {}, [f"Validation {dataset} ({images})"]
        for metric in results[0]:
            valid = [result[metric] for result in results if math.isfinite(result[metric])]
            means[metric] = sum(valid) / len(valid) if valid else math.nan
            line = f"\t # {metric}: {means[metric]:.4f}"
            if len(valid) < len(results):
                line += f" (without {len(results) - len(valid)} images that have none)"
            if self.opt["is_train"] and not metric.endswith(BICUBIC):
                if valid:
                    self._update_best_metric_result(dataset, metric, means[metric], current_iter)
                best = self.best_metric_results[dataset][metric]
                line += f"\tBest: {best['val']:.4f} @ {best['iter']} iter"
            lines.append(line)
            if tb_logger:
                tb_logger.add_scalar(f"metrics/{dataset}/{metric}", means[metric], current_iter)
        self.metric_results = means
        get_root_logger().info("\n".join(lines) + "\n")
