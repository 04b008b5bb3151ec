"""Validation on all ranks: the set is sharded, results are gathered, and equal those of one process."""

import math
import os.path as osp
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from basicsr.metrics import calculate_metric
from basicsr.models.base_model import BaseModel
from basicsr.utils import get_root_logger, imwrite, tensor2img
from torch.nn import functional
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from iter_model.options import ValOptions
from iter_model.pyiqa_metric import build_metric

BICUBIC = " of bicubic"


class ValidationMixin(BaseModel):
    """BasicSR's validation in the form that both stages use; the model provides `feed_data`, `test`, `output`, `gt`.

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
        shard = range(rank, len(dataset), world)
        loader = DataLoader(Subset(dataset, shard), batch_size=1, num_workers=dataloader.num_workers)
        metrics = self.val.metrics or {}
        results: dict[int, dict[str, float]] = {}
        for index, data in zip(shard, tqdm(loader, disable=rank != 0 or not self.val.pbar), strict=True):
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
            if tb_logger and index < self.val.tb_images:
                self.draw(tb_logger, f"{name}/{stem}", current_iter)
        if world > 1:
            gathered: list[Any] = [None] * world
            torch.distributed.all_gather_object(gathered, results)
            results = {index: values for part in gathered for index, values in part.items()}
        if metrics:
            self._log_metrics([results[index] for index in range(len(dataset))], name, current_iter, tb_logger)

    def _measure(self, image: np.ndarray, metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
        """Metrics of image (H, W, 3) uint8 BGR against the GT of the last data, where there is one."""
        images = {"img": image} if self.gt is None else {"img": image, "img2": tensor2img([self.gt])}
        return {name: float(calculate_metric(images, options)) for name, options in metrics.items()}

    def draw(self, tb_logger: Any, tag: str, current_iter: int) -> None:
        """Add the pictures of the image validated last to TensorBoard; overridden where there is more to see."""

    def _image_path(self, dataset: str, stem: str, current_iter: int) -> str:
        folder = self.opt["path"]["visualization"]
        if self.opt["is_train"]:
            return osp.join(folder, stem, f"{stem}_{current_iter}.png")
        return osp.join(folder, dataset, f"{stem}_{self.val.suffix or self.opt['name']}.png")

    def _log_metrics(self, results: list[dict[str, float]], dataset: str, current_iter: int, tb_logger: Any) -> None:
        self._initialize_best_metric_results(dataset)
        means, lines = {}, [f"Validation {dataset} ({len(results)} images)"]
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
