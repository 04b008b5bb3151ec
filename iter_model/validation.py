"""Validation on all ranks: they share the images of a set, and gather the same results that one process finds."""

import math
import os
from collections import ChainMap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
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

from basicsr_compat.pipeline.data import ReadableLoader, readable
from basicsr_compat.pipeline.distributed import key_value_store
from basicsr_compat.pipeline.image_names import result_path
from basicsr_compat.pipeline.metric_rules import takes_lq
from basicsr_compat.pipeline.stops import ValidationStopped
from iter_model.collectives import all_reduce_sum
from iter_model.options import ModelOptions, ValOptions
from iter_model.pyiqa_metric import build_metric

BICUBIC = " of bicubic"


@dataclass
class Share:
    """What one rank found, by the number of the image.

    results: the scores, why the image was left out, or the signal that stopped the validation at it.
    pictures: for TensorBoard, (name, (3, H, W) uint8).
    """

    results: dict[int, dict[str, float] | str | ValidationStopped] = field(default_factory=dict)
    pictures: dict[int, tuple[str, Tensor]] = field(default_factory=dict)


class ValidationMixin(BaseModel):
    """BasicSR's validation hook as all stages implement it; it works in BasicSR's own train.py and test.py too.

    The model provides the attributes below, `feed_data`, `test`, which sets `output`, and `draw() -> (3, H, W)`, the
    picture for TensorBoard in [0, 1].

    output: (1, 3, H, W) RGB in [0, 1].
    gt: like output, or None where the set has no GT.
    """

    options: ModelOptions[Any, Any]
    val: ValOptions
    metrics_get_lq = True  # what `check` hands to them too
    output: Tensor
    gt: Any

    def build_metrics(self) -> None:
        """Build all metrics now, so that a missing one ends the run in its first second."""
        for options in (self.val.metrics or {}).values():
            if options["type"] == "pyiqa":
                build_metric(**{key: value for key, value in options.items() if key != "type"})

    def validation(
        self, dataloader: DataLoader, current_iter: int | str, tb_logger: Any, save_img: bool = False
    ) -> None:
        """Restore and measure all images of a set that can be read.

        Args:
            dataloader: the items of its data set have 'lq' (3, h, w), 'lq_path', and maybe 'gt' (3, H, W). They are
                read one by one, not in the loader's batches.
            current_iter: for the log and the images' names; the run's name in a test.
            tb_logger: on rank 0 only; None for no TensorBoard.
            save_img: whether to write the results.
        """
        loader = readable(dataloader)
        name = loader.dataset.opt["name"]
        # Only rank 0 has a tb_logger, but any rank may get the images that it shows.
        has_logger = all_reduce_sum(torch.tensor(int(tb_logger is not None), device=self.device)).item()
        num_pictures = self.val.tb_images if has_logger else 0
        share = self._validate_share(loader, current_iter, num_pictures=num_pictures, save_img=save_img)
        results, pictures = self._gather(share)
        if tb_logger:
            for _, (tag, picture) in sorted(pictures.items()):
                tb_logger.add_image(f"{name}/{tag}", picture, current_iter)
        measured = []
        for index in range(len(loader)):
            if isinstance(results[index], str):
                loader.skip(results[index])
            else:
                measured.append(results[index])
        if not measured:
            get_root_logger().error(f"none of the {len(loader)} images of {name} can be read")
        elif self.val.metrics:
            self._log_metrics(measured, name, current_iter, tb_logger, len(loader) - len(measured))

    def _validate_share(
        self, loader: ReadableLoader, current_iter: int | str, *, num_pictures: int, save_img: bool
    ) -> Share:
        """Take images until there are none left."""
        share = Share()
        turns = self._take_turns(len(loader))
        for index in tqdm(turns, total=len(loader), disable=self.options.rank != 0 or not self.val.pbar):
            try:
                loader.check_stop()
            except ValidationStopped as stop:
                share.results[index] = stop  # told to the other ranks, which wait in `_gather`
                break
            data = default_collate([loader.items[index]])
            if "unreadable" in data:
                share.results[index] = data["unreadable"][0]
                continue
            self.feed_data(data)
            self.test()
            image = tensor2img([self.output])
            share.results[index] = self._measure(image, data) | self._measure_bicubic(data)
            name = loader.name_of(index, data)
            if save_img:
                imwrite(image, self._result_path(loader.dataset.opt["name"], name, current_iter))
            if index < num_pictures:
                share.pictures[index] = name, self.draw().clamp(0, 1).mul(255).byte().cpu()
        return share

    def _gather(self, share: Share) -> tuple[Mapping[int, Any], Mapping[int, tuple[str, Tensor]]]:
        """Results and pictures of all ranks. Raises ValidationStopped where one of them was stopped."""
        shares = [share]
        if self.options.world_size > 1:
            shares = [Share() for _ in range(self.options.world_size)]
            torch.distributed.all_gather_object(shares, share)
        results = dict(ChainMap(*(one.results for one in shares)))
        for stop in results.values():
            if isinstance(stop, ValidationStopped):
                raise stop
        return results, dict(ChainMap(*(one.pictures for one in shares)))

    def _measure(self, image: np.ndarray, data: Mapping[str, Tensor]) -> dict[str, float]:
        """Metrics of image (H, W, 3) uint8 BGR, restored from the last data, against its GT where there is one."""
        images = {"img": image} if self.gt is None else {"img": image, "img2": tensor2img([self.gt])}
        with_lq = images | {"lq": tensor2img([data["lq"]])} if "lq" in data else images
        metrics = (self.val.metrics or {}).items()
        return {name: float(calculate_metric(with_lq if takes_lq(opt) else images, opt)) for name, opt in metrics}

    def _measure_bicubic(self, data: Mapping[str, Tensor]) -> dict[str, float]:
        """The same of upsampling data['lq'] (1, 3, h, w), where the yml asks for it."""
        if not self.val.bicubic:
            return {}
        bicubic = functional.interpolate(data["lq"], self.output.shape[-2:], mode="bicubic")
        scores = self._measure(tensor2img([bicubic]), data)
        return {f"{metric}{BICUBIC}": score for metric, score in scores.items()}

    def _take_turns(self, count: int) -> Iterator[int]:
        """The numbers below count that this rank works on: a rank that is done takes the next, so none waits for long.

        Were the images dealt out beforehand, ranks with small images could wait beyond the timeout of their group.
        """
        if self.options.world_size == 1:
            yield from range(count)
            return
        store = key_value_store()
        # Each rank counts its validations there, and all have come as far.
        turns = f"validation_{store.add(f'validations_of_{self.options.rank}', 1)}"
        while (number := store.add(turns, 1) - 1) < count:
            yield number

    def _result_path(self, dataset: str, name: str, current_iter: int | str) -> str:
        folder = os.path.join(self.options.paths.visualization, dataset)
        if self.is_train:
            return result_path(folder, name, iteration=current_iter)
        return result_path(folder, name, suffix=self.val.suffix or self.options.name)

    def _log_metrics(
        self, results: list[dict[str, float]], dataset: str, current_iter: int | str, tb_logger: Any, left_out: int
    ) -> None:
        self._initialize_best_metric_results(dataset)
        images = f"{len(results)} images" + (f", {left_out} left out" if left_out else "")
        self.metric_results, lines = {}, [f"Validation {dataset} ({images})"]
        for metric in results[0]:
            valid = [result[metric] for result in results if math.isfinite(result[metric])]
            mean = sum(valid) / len(valid) if valid else math.nan
            self.metric_results[metric] = mean
            line = f"\t # {metric}: {mean:.4f}"
            if len(valid) < len(results):
                line += f" (without {len(results) - len(valid)} images that have none)"
            if self.is_train and not metric.endswith(BICUBIC):
                if valid:
                    self._update_best_metric_result(dataset, metric, mean, current_iter)
                best = self.best_metric_results[dataset][metric]
                line += f"\tBest: {best['val']:.4f} @ {best['iter']} iter"
            lines.append(line)
            if tb_logger:
                tb_logger.add_scalar(f"metrics/{dataset}/{metric}", mean, current_iter)
        get_root_logger().info("\n".join(lines) + "\n")
