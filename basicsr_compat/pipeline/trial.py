"""The trial of `basicsr check`: builds everything that the options name, and processes one batch.

Nothing is written.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from basicsr.losses import build_loss
from basicsr.metrics import calculate_metric
from basicsr.models import build_model
from basicsr.utils import tensor2img
from basicsr.utils.misc import set_random_seed
from PIL import Image
from torch.utils.data import default_collate

from basicsr_compat.pipeline.data import build_set
from basicsr_compat.pipeline.metric_rules import takes_lq
from basicsr_compat.pipeline.options import examine
from basicsr_compat.pipeline.randomness import Items
from basicsr_compat.pipeline.sections import build_on_meta
from basicsr_compat.schema import OptionProblems, format_error


class Report:
    """Prints the result of every check, and remembers the problems."""

    def __init__(self, traceback: bool) -> None:
        self.traceback = traceback
        self.problems: list[str] = []

    def good(self, subject: str, text: str = "") -> None:
        """Report that nothing is wrong with `subject`. text: what was found."""
        print(f"ok       {subject}{': ' if text else ''}{text}", flush=True)

    def skipped(self, subject: str, reason: str) -> None:
        """Report that `subject` was not tried, and why."""
        print(f"skipped  {subject}: {reason}", flush=True)

    def problem(self, text: str) -> None:
        """Report a problem, whose text names its subject."""
        self.problems.append(text)
        print(f"problem  {text}", flush=True)

    def touches(self, section: str) -> bool:
        """Whether a section has a problem."""
        return any(problem.startswith((f"{section}.", f"{section}=", f"{section} ")) for problem in self.problems)

    @contextlib.contextmanager
    def trying(self, subject: str) -> Iterator[None]:
        """Report any exception in the block as a problem with `subject`."""
        try:
            yield
        except Exception as error:
            if self.traceback:
                raise
            text = format_error(error)
            self.problem(text if text.startswith(subject) else f"{subject}: {text}")


def check(
    args: argparse.Namespace,
    root_path: str,
    report: Report,
    metrics: Mapping[str, Callable[[dict], object]],
    waiting_download: Callable[[dict], str | None],
) -> None:
    """Check an option file.

    Args:
        args: the command line, see `add_option_file`.
        root_path: folder in which a run would make its folders.
        metrics: by type, functions that build a metric from its section.
        waiting_download: what a first run with these options would download, if anything.
    """
    try:
        opt, problems, missing = examine(args, root_path, is_train=None)
    except OptionProblems as error:
        return report.problem(format_error(error))
    for problem in (*problems, *missing):
        report.problem(problem)
    if "is_train" not in opt:
        return report.skipped("everything else", "sections are missing")
    if not report.problems:
        report.good("options", f"of a {'training' if opt['is_train'] else 'test'}")
    datasets = {phase: _dataset(opt, phase, report) for phase in opt["datasets"]}
    _count_parameters(opt, report)
    for key, section in (opt.get("train") or {}).items() if opt["is_train"] else ():
        if str(key).endswith("_opt") and section and not report.touches(f"train.{key}"):
            _build(f"train.{key}", section, build_loss, report)
    for name, section in ((opt.get("val") or {}).get("metrics") or {}).items() if not report.touches("val") else ():
        # BasicSR's metrics are functions: there is nothing to build.
        _build(f"val.metrics.{name}", section, metrics.get(section["type"], lambda section: None), report)
    sets = [datasets["train"]] if opt["is_train"] else list(datasets.values())
    reason = _why_not(sets, problems, missing, report)
    if reason is None and (waiting := waiting_download(opt)):
        reason = f"{waiting} is downloaded by the first run"
    if reason:
        return report.skipped("batch", reason)
    with report.trying("batch"):
        opt |= {"num_gpu": min(opt["num_gpu"], 1), "rank": 0, "world_size": 1}
        if opt["manual_seed"] is None:
            opt["manual_seed"] = 0
        (_step if opt["is_train"] else _restore)(opt, [one for one in sets if one is not None], report)


def _why_not(sets: list[Items | None], problems: list[str], missing: list[str], report: Report) -> str | None:
    """The reason why no batch can be processed, if any."""
    if problems:
        return "the options are wrong"
    if None in sets:
        return "no data"
    if missing:
        return "files are missing"
    return "see the problems above" if report.problems else None


def _dataset(opt: dict, phase: str, report: Report) -> Items | None:
    where = f"datasets.{phase}"
    if report.touches(where):
        report.skipped(where, "see the problems above")
        return None
    with report.trying(where):
        dataset = build_set(phase, opt["datasets"][phase])
        report.good(where, f"{len(dataset)} images")
        return dataset


def _count_parameters(opt: dict, report: Report) -> None:
    networks, problems = build_on_meta(opt)
    for problem in problems:
        if problem not in report.problems:
            report.problem(problem)
    for name, network in networks.items():
        parts = {key: _millions(part) for key, part in network.named_children()}
        parts = parts if 2 <= len(parts) <= 4 else {}  # of more, nobody reads the list
        detail = f" ({', '.join(f'{key} {count}' for key, count in parts.items())})" if parts else ""
        needed = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
        if needed > _memory():
            report.problem(f"{name}: its weights need {_gib(needed)}, this machine has {_gib(_memory())}")
        else:
            report.good(name, f"{opt[name]['type']}, {_millions(network)} parameters{detail}")


def _millions(network: torch.nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in network.parameters()) / 1e6:.1f} M"


def _memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"


def _build(where: str, section: dict, build: Callable[[dict], object], report: Report) -> None:
    with report.trying(where):
        build(section)
        report.good(where, section["type"])


def _step(opt: dict, sets: list[Items], report: Report) -> None:
    """Try one training step on images of the data set."""
    options, dataset = opt["datasets"]["train"], sets[0]
    size, ratio = options["batch_size_per_gpu"], options.get("dataset_enlarge_ratio", 1)
    if math.ceil(len(dataset) * ratio) < size:
        raise OptionProblems(
            f"datasets.train: its {len(dataset)} images do not fill one batch of {size}; lower batch_size_per_gpu, or "
            "raise dataset_enlarge_ratio"
        )
    needed = size * 3 * 4 * (options.get("crop_pad_size") or options.get("gt_size") or 1) ** 2
    if needed > _memory():
        raise OptionProblems(
            f"{size} images of datasets.train.gt_size={options.get('gt_size')} need {_gib(needed)}, this machine has "
            f"{_gib(_memory())}; lower batch_size_per_gpu"
        )
    set_random_seed(opt["manual_seed"])
    model = build_model(opt)
    data = default_collate([dataset[index % len(dataset)] for index in range(size)])
    start = time.perf_counter()
    model.update_learning_rate(1, warmup_iter=opt["train"].get("warmup_iter", -1))
    model.feed_data(data)
    model.optimize_parameters(1)
    log = model.get_current_log()
    seconds = time.perf_counter() - start
    for name, value in log.items():
        if not math.isfinite(value):
            raise OptionProblems(
                f"the loss {name} of the first step is {value}; lower the learning rate or the weights"
            )
    losses = ", ".join(f"{name} {value:.3g}" for name, value in log.items())
    report.good("batch", f"one step of {size} images in {seconds:.1f} s on {model.device}: {losses}")


def _restore(opt: dict, sets: list[Items], report: Report) -> None:
    """Try to restore the smallest image of the first data set."""
    set_random_seed(opt["manual_seed"])
    model = build_model(opt)
    data = default_collate([sets[0][_smallest(sets[0])]])
    start = time.perf_counter()
    model.feed_data(data)
    model.test()
    seconds = time.perf_counter() - start
    images = {"img": tensor2img([model.output])}
    if "gt" in data:
        images["img2"] = tensor2img([data["gt"]])
    with_lq = images | {"lq": tensor2img([data["lq"]])} if getattr(model, "metrics_get_lq", False) else images
    scores = {
        name: calculate_metric(with_lq if takes_lq(metric) else images, dict(metric))
        for name, metric in (opt["val"].get("metrics") or {}).items()
    }
    height, width = data["lq"].shape[-2:]
    measured = "".join(f", {name} {float(score):.4g}" for name, score in scores.items())
    path = data["lq_path"][0] if "lq_path" in data else "one image"
    report.good("batch", f"{path} ({height}x{width}) restored in {seconds:.1f} s on {model.device}{measured}")


def _smallest(dataset: Any) -> int:
    """Index of the image with the fewest pixels; 0 where the data set does not name files."""

    def pixels(entry: Any) -> int:
        path: Any = entry.get("lq_path") if isinstance(entry, dict) else entry
        with Image.open(path) as image:
            return image.width * image.height

    try:
        sizes = [pixels(entry) for entry in dataset.paths]
    except (AttributeError, OSError, ValueError):
        return 0
    return sizes.index(min(sizes))
