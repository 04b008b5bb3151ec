"""Rules on options that depend on one another, beyond what the dataclasses in options.py say of each option.

Every function yields one line per problem. opt: the yml.
"""

from collections.abc import Iterator

import torch

from basicsr_compat.pipeline.sections import find_type
from basicsr_compat.schema import format_value, requires
from iter_model.options import OPTIMIZERS, SCHEDULERS, Section


def impossible_optimizers(train: Section) -> Iterator[str]:
    """Values of the section `train` that only the optimizers and schedulers themselves can refuse."""
    for key in ("optim_g", "optim_d"):
        if not train.get(key):
            continue
        options = {name: value for name, value in train[key].items() if name != "type"}
        try:
            optimizer = OPTIMIZERS[train[key]["type"]]([torch.nn.Parameter(torch.zeros(1))], **options)
        except Exception as error:  # whatever a class says to what it is not made for
            yield f"train.{key}={format_value(train[key])} is impossible: {error}"
            continue
        options = {name: value for name, value in train["scheduler"].items() if name != "type"}
        try:
            SCHEDULERS[train["scheduler"]["type"]](optimizer, **options)
        except Exception as error:
            yield f"train.scheduler={format_value(train['scheduler'])} is impossible: {error}"


def gan_problems(opt: Section) -> Iterator[str]:
    """A GAN loss needs a discriminator and its optimizer."""
    if opt["train"].get("gan_opt"):
        for name, section in (("network_d", opt), ("train.optim_d", opt["train"])):
            if not section.get(name.removeprefix("train.")):
                yield f"{name} is missing: train.gan_opt needs it; or take train.gan_opt out"


def crop_problems(opt: Section, multiple: int) -> Iterator[str]:
    """gt_size must be a multiple of ``multiple``, the GT pixels of a window of tokens."""
    size = opt["datasets"]["train"].get("gt_size")
    if isinstance(size, int) and size % multiple:
        yield (
            f"datasets.train.gt_size={size} must be a multiple of {multiple}, the pixels that a window of tokens of "
            "network_g covers"
        )


def ground_truth_problems(opt: Section) -> Iterator[str]:
    """Metrics that need a GT must have one."""
    metrics = (opt.get("val") or {}).get("metrics") or {}
    for phase, dataset in opt["datasets"].items():
        if phase == "train" or dataset.get("type") != "SingleImageDataset":
            continue
        for name, metric in metrics.items():
            function = find_type("metric", metric["type"])
            if function and requires(function, "img2"):
                yield (
                    f"val.metrics.{name}={metric['type']} compares with the ground truth, which datasets.{phase} of "
                    "type SingleImageDataset does not have: take the metric out, or use PairedImageDataset"
                )


def pool_problems(opt: Section) -> Iterator[str]:
    """A pool of pairs must hold a batch, and is of no use where workers degrade."""
    queue, data = opt["train"].get("queue_size"), opt["datasets"]["train"]
    batch = data.get("batch_size_per_gpu")
    if not isinstance(queue, int) or queue <= 0:
        return
    if isinstance(batch, int) and queue < batch:
        yield f"train.queue_size={queue} must be 0, or at least datasets.train.batch_size_per_gpu={batch}"
    if data.get("degrade_in_worker"):
        yield (
            f"train.queue_size={queue} must be 0 with datasets.train.degrade_in_worker=true: workers draw a "
            "degradation for each image, so that there is nothing to mix"
        )
