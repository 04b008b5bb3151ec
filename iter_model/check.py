"""`basicsr check`: whether a training or a test would begin, found out without making a file or a folder."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset, default_collate

from basicsr_compat import install_pipeline
from basicsr_compat.pipeline.options import add_option_file, build_on_meta, examine

EXAMPLES = """\
Reads the option file as `basicsr train` and `basicsr test` do, lists every problem, counts images and parameters, and
puts one batch through: of a training yml one step on real images, of a test yml the smallest image. Nothing is written.
Exit code 0: all is well; 2: there are problems.

examples:
  basicsr check -opt options/train_iter.yml
  basicsr check -opt options/test_iter.yml
  basicsr check -opt options/train_iter.yml --force_yml datasets:train:batch_size_per_gpu=8 num_gpu=0
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `basicsr check` to `parser`."""
    add_option_file(parser)
    parser.add_argument("--traceback", action="store_true", help="show where in the program an error arose")
    parser.epilog = EXAMPLES
    parser.set_defaults(auto_resume=False, debug=False, launcher="none")


def run(args: argparse.Namespace) -> int:
    """Check an option file and print a report, a line for each check.

    Returns:
        The exit code: 0, or 2 where there are problems.
    """
    install_pipeline()
    # Registers every network, dataset, model, loss and metric; an import error here is a fault, not a problem.
    import iter_arch  # noqa: F401
    import iter_data  # noqa: F401
    import iter_model  # noqa: F401

    report = _Report(args.traceback)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what PyTorch says of odd networks is not about the options
        _check(args, report)
    count = len(report.problems)
    print(f"{count} problem{'s' if count > 1 else ''}" if count else "all well")
    return 2 if count else 0


class _Report:
    """Prints what was checked, and remembers the problems."""

    def __init__(self, traceback: bool) -> None:
        self.traceback = traceback
        self.problems: list[str] = []

    def good(self, subject: str, text: str = "") -> None:
        print(f"ok       {subject}{': ' if text else ''}{text}", flush=True)

    def skipped(self, subject: str, reason: str) -> None:
        print(f"skipped  {subject}: {reason}", flush=True)

    def problem(self, text: str) -> None:
        self.problems.append(text)
        print(f"problem  {text}", flush=True)

    def touches(self, section: str) -> bool:
        """Whether a problem was found in a section."""
        return any(problem.startswith((f"{section}.", f"{section}=", f"{section} ")) for problem in self.problems)

    @contextlib.contextmanager
    def trying(self, subject: str) -> Iterator[None]:
        """Whatever fails in it is a problem in the subject."""
        try:
            yield
        except Exception as error:
            if self.traceback:
                raise
            self.problem(f"{subject}: {_said(error)}")


def _said(error: Exception) -> str:
    if isinstance(error, KeyError) and error.args and " " not in str(error.args[0]):
        return f"the option {error.args[0]} is missing"
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError | OSError) and text else f"{type(error).__name__}: {text}"


def _check(args: argparse.Namespace, report: _Report) -> None:
    try:
        opt, problems, missing = examine(args, os.getcwd(), is_train=None)
    except (ValueError, FileNotFoundError) as error:
        return report.problem(str(error))
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
            _build(f"train.{key}", section, _build_loss, report)
    for name, section in ((opt.get("val") or {}).get("metrics") or {}).items() if not report.touches("val") else ():
        _build(f"val.metrics.{name}", section, _build_metric, report)
    _try_batch(opt, datasets, problems, missing, report)


def _dataset(opt: dict, phase: str, report: _Report) -> Dataset | None:
    from basicsr.data import build_dataset

    where = f"datasets.{phase}"
    if report.touches(where):
        return report.skipped(where, "see the problems above")
    with report.trying(where):
        dataset = build_dataset(opt["datasets"][phase])
        report.good(where, f"{len(dataset)} images")
        return dataset


def _count_parameters(opt: dict, report: _Report) -> None:
    networks, problems = build_on_meta(opt)
    for problem in problems:
        if problem not in report.problems:
            report.problem(problem)
    for name, network in networks.items():
        parts = {key: _millions(part) for key, part in network.named_children()} if opt[name]["type"] == "ITER" else {}
        detail = f" ({', '.join(f'{key} {count}' for key, count in parts.items())})" if parts else ""
        needed = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
        if needed > _memory():
            report.problem(f"{name}: its weights need {_gib(needed)}, this machine has {_gib(_memory())}")
        else:
            report.good(name, f"{opt[name]['type']}, {_millions(network)} parameters{detail}")


def _millions(network: torch.nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in network.parameters()) / 1e6:.1f} M"


def _memory() -> int:
    """Bytes of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"


def _build(where: str, section: dict, build: Callable[[dict], object], report: _Report) -> None:
    with report.trying(where):
        build(section)
        report.good(where, section["type"])


def _build_loss(section: dict) -> None:
    from basicsr.losses import build_loss

    build_loss(section)


def _build_metric(section: dict) -> None:
    # BasicSR's metrics are functions: there is nothing to build.
    if section["type"] == "pyiqa":
        from iter_model.pyiqa_metric import build_metric

        build_metric(**{key: value for key, value in section.items() if key != "type"})


def _try_batch(
    opt: dict, datasets: dict[str, Dataset | None], problems: list[str], missing: list[str], report: _Report
) -> None:
    sets = [datasets["train"]] if opt["is_train"] else list(datasets.values())
    if problems:
        return report.skipped("batch", "the options are wrong")
    if None in sets:
        return report.skipped("batch", "no data")
    if missing:
        return report.skipped("batch", "files are missing")
    if report.problems:
        return report.skipped("batch", "see the problems above")
    waiting = _waiting_download(opt)
    if waiting:
        return report.skipped("batch", f"{waiting} is downloaded by the first run")
    with report.trying("batch"):
        opt |= {"num_gpu": min(opt["num_gpu"], 1), "rank": 0, "world_size": 1}
        if opt["manual_seed"] is None:
            opt["manual_seed"] = 0
        (_step if opt["is_train"] else _restore)(opt, sets, report)


def _waiting_download(opt: dict) -> str | None:
    """A released checkpoint that is named in the options and not there yet."""
    from iter_arch.checkpoint import DOWNLOADS, RELEASED

    named = {str(value) for value in opt["path"].values()}
    return next((name for name, file in RELEASED.items() if name in named and not (DOWNLOADS / file).exists()), None)


def _step(opt: dict, sets: list[Dataset], report: _Report) -> None:
    """One step of the training on images of its data set."""
    from basicsr.models import build_model
    from basicsr.utils.misc import set_random_seed

    options, dataset = opt["datasets"]["train"], sets[0]
    size, ratio = options["batch_size_per_gpu"], options.get("dataset_enlarge_ratio", 1)
    if math.ceil(len(dataset) * ratio) < size:
        raise ValueError(
            f"datasets.train: its {len(dataset)} images do not fill one batch of {size}; lower batch_size_per_gpu, or "
            "raise dataset_enlarge_ratio"
        )
    needed = size * 3 * 4 * (options.get("crop_pad_size") or options.get("gt_size") or 1) ** 2
    if needed > _memory():
        raise ValueError(
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
            raise ValueError(f"the loss {name} of the first step is {value}; lower the learning rate or the weights")
    losses = ", ".join(f"{name} {value:.3g}" for name, value in log.items())
    report.good("batch", f"one step of {size} images in {seconds:.1f} s on {model.device}: {losses}")


def _restore(opt: dict, sets: list[Dataset], report: _Report) -> None:
    """The smallest image of the first data set."""
    from basicsr.metrics import calculate_metric
    from basicsr.models import build_model
    from basicsr.utils import tensor2img
    from basicsr.utils.misc import set_random_seed

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
    scores = {
        name: calculate_metric(images, dict(metric)) for name, metric in (opt["val"].get("metrics") or {}).items()
    }
    height, width = data["lq"].shape[-2:]
    measured = "".join(f", {name} {float(score):.4g}" for name, score in scores.items())
    path = data["lq_path"][0] if "lq_path" in data else "one image"
    report.good("batch", f"{path} ({height}x{width}) restored in {seconds:.1f} s on {model.device}{measured}")


def _smallest(dataset: Any) -> int:
    """Index of the image with the fewest pixels; 0 where the data set does not name files."""

    def pixels(entry: Any) -> int:
        path = entry.get("lq_path") if isinstance(entry, dict) else entry
        with Image.open(path) as image:
            return image.width * image.height

    try:
        sizes = [pixels(entry) for entry in dataset.paths]
    except (AttributeError, OSError, ValueError):
        return 0
    return sizes.index(min(sizes))
