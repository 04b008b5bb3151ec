"""Iterations per second of both stages: the model classes with their yml, compared with `benchmarks/plain.py` in
float32.

    python benchmarks/training.py [--stage 1 2] [--size tiny paper] [--runs 7] [--threads 1] [--also 'autocast: none']

An iteration is all that a training run does for a batch, with the data made in the same process: crops, degradation,
losses, gradients, optimizers, and average. All sides run in turns, and their medians are printed. With --threads 1 it
measures CPU time, which other programs do not disturb. Stage I has its GAN term, but no LPIPS, whose weights would be
downloaded.
"""

import argparse
import copy
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import plain
import torch
import yaml
from basicsr.models import build_model
from torch.utils.data import default_collate

from iter_arch import SwinVQGAN
from iter_data import SecondOrderDegradationDataset, read_degradation
from iter_model.training import TrainingMixin

ROOT = Path(__file__).parents[1]
YMLS = {
    (1, "tiny"): "train_swin_vqgan_tiny.yml",
    (1, "paper"): "train_swin_vqgan.yml",
    (2, "tiny"): "train_iter_tiny.yml",
    (2, "paper"): "train_iter.yml",
}
PHASES = ("data", "forward", "backward", "optimizer")
Seconds = dict[str, float]


def hardware(device: torch.device) -> str:
    """The hardware, for a table's heading."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, PyTorch {torch.__version__}"
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), model)
    return f"{model}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}"


class Clock:
    """Seconds of an iteration by phase; everything outside the timed functions is 'forward'."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: Seconds = {}
        self.inside = False

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif torch.get_num_threads() == 1:
            return time.process_time()
        return time.perf_counter()

    def timed(self, phase: str, function: Callable) -> Callable:
        def call(*args, **kwargs):
            if self.inside:
                return function(*args, **kwargs)
            self.inside, start = True, self.now()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[phase] += self.now() - start
                self.inside = False

        return call

    def iteration(self, make_data: Callable[[], Any], train: Callable[[Any], None]) -> Seconds:
        """Seconds of each phase."""
        self.seconds = dict.fromkeys(PHASES, 0.0)
        with ExitStack() as stack:
            for owner, name, phase in (
                (torch.Tensor, "backward", "backward"),
                (torch.optim.Adam, "step", "optimizer"),
                (TrainingMixin, "step", "optimizer"),
                (TrainingMixin, "update_ema", "optimizer"),
                (plain, "average", "optimizer"),
            ):
                stack.enter_context(mock.patch.object(owner, name, self.timed(phase, getattr(owner, name))))
            start = self.now()
            data = self.timed("data", make_data)()
            train(data)
            self.seconds["forward"] = self.now() - start - sum(self.seconds.values())
        return self.seconds


def read_yml(stage: int, size: str, batch: int | None, changes: dict[str, Any], vqgan: str) -> dict[str, Any]:
    """A shipped yml as BasicSR completes it for one process, on random weights.

    Args:
        batch: None: the yml's.
        changes: of the section train.
        vqgan: checkpoint of stage I for stage II.
    """
    opt = yaml.safe_load((ROOT / "options" / YMLS[stage, size]).read_text())
    opt |= {"is_train": True, "dist": False, "rank": 0, "world_size": 1, "num_gpu": torch.cuda.device_count()}
    opt["path"] = {"pretrain_network_vqgan": vqgan if stage == 2 else None}
    opt["datasets"]["train"] |= {"phase": "train", "scale": opt["scale"]}
    opt["datasets"]["train"]["batch_size_per_gpu"] = batch or opt["datasets"]["train"]["batch_size_per_gpu"]
    opt["train"] |= changes
    opt["train"].pop("perceptual_opt", None)
    return opt


class Ours:
    """One side of the comparison: the model class of a yml."""

    def __init__(self, opt: dict[str, Any], folder: str, device: torch.device) -> None:
        torch.manual_seed(0)
        self.clock = Clock(device)
        self.dataset = SecondOrderDegradationDataset(opt["datasets"]["train"] | {"dataroot_gt": folder})
        self.batch = opt["datasets"]["train"]["batch_size_per_gpu"]
        # The codebook is initialized, and all losses are on.
        self.first = 1 + max(opt["train"].get(key, 0) for key in ("net_d_start_iter", "quantize_start_iter"))
        self.model = build_model(opt)

    def items(self, run: int) -> dict[str, Any]:
        seeds = range(run * self.batch, (run + 1) * self.batch)
        return default_collate([self.dataset.sample(seed % len(self.dataset), seed) for seed in seeds])

    def __call__(self, run: int) -> Seconds:
        def make_data() -> None:
            self.model.update_learning_rate(self.first + run)
            self.model.feed_data(self.items(run))

        return self.clock.iteration(make_data, lambda _: self.model.optimize_parameters(self.first + run))


class Plain:
    """The other side, from the same yml and with the same initial weights."""

    def __init__(self, ours: Ours, opt: dict[str, Any], folder: str, device: torch.device) -> None:
        self.clock = Clock(device)
        self.device = device
        section = opt["datasets"]["train"] | {"dataroot_gt": folder, "degrade_in_worker": False}
        # If the yml asks for sharpening, the degradation does it here.
        self.dataset, self.batch = SecondOrderDegradationDataset(section | {"gt_usm": False}), ours.batch
        self.items = Ours.items.__get__(self)
        learning_rate = opt["train"]["optim_g"]["lr"]
        if hasattr(ours.model, "iter"):
            net = copy.deepcopy(ours.model.iter)
            ema = copy.deepcopy(net).requires_grad_(False)
            self.degradation = plain.Degradation(
                read_degradation(section.get("degradation")),
                gt_usm=section.get("gt_usm", False),
                scale=opt["scale"],
                gt_size=section["gt_size"],
                device=device,
                queue_size=-(-180 // self.batch) * self.batch,
            )
            self.generator = torch.Generator(device).manual_seed(0)
            self.training = plain.TokenTraining(net, ema=ema, lr=learning_rate)
        else:
            net = copy.deepcopy(ours.model.net_g)
            self.degradation = None
            self.training = plain.VQGANTraining(
                net,
                criteria=ours.model.criteria,
                discriminator=copy.deepcopy(ours.model.net_d),
                gan_loss=ours.model.cri_gan,
                ema=copy.deepcopy(net).requires_grad_(False),
                lr=learning_rate,
                lr_discriminator=opt["train"]["optim_d"]["lr"],
            )

    def __call__(self, run: int) -> Seconds:
        def make_data() -> tuple[torch.Tensor, ...]:
            items = self.items(run)
            if self.degradation is None:
                return (items["gt"].to(self.device),)
            self.degradation.feed_data(items)
            return self.degradation.lq, self.degradation.gt, self.generator

        return self.clock.iteration(make_data, lambda data: self.training.step(*data))


def table(measured: dict[str, list[Seconds]]) -> str:
    """Markdown; the other sides are compared with the first."""
    medians = {
        name: {phase: statistics.median(run[phase] for run in runs) for phase in PHASES}
        for name, runs in measured.items()
    }
    totals = {name: statistics.median(sum(run.values()) for run in runs) for name, runs in measured.items()}
    trained = {name: totals[name] - medians[name]["data"] for name in measured}
    reference = next(iter(measured))
    lines = [
        "| | it/s | ratio | ratio without data | " + " | ".join(PHASES) + " |",
        "|---" * (4 + len(PHASES)) + "|",
    ]
    for name, seconds in medians.items():
        shares = [f"{seconds[phase] / totals[name]:.0%}" for phase in PHASES]
        ratios = [f"{part[reference] / part[name]:.2f}" for part in (totals, trained)]
        lines.append("| " + " | ".join([name, f"{1 / totals[name]:.3g}", *ratios, *shares]) + " |")
    return "\n".join(lines)


def compare(stage: int, size: str, args: argparse.Namespace) -> str:
    """Heading and table of one stage at one size."""
    device = torch.device(args.device)
    with tempfile.TemporaryDirectory() as folder:
        vqgan = f"{folder}/vqgan.pth"
        network = read_yml(1, size, None, {}, vqgan)["network_g"]
        torch.save({"params": SwinVQGAN(**{k: v for k, v in network.items() if k != "type"}).state_dict()}, vqgan)
        batch = args.batch or (2 if size == "paper" and device.type == "cpu" else None)
        opts = {"ours": read_yml(stage, size, batch, {}, vqgan)}
        for change in args.also:
            opts[f"ours, {change}"] = read_yml(stage, size, batch, yaml.safe_load(f"{{{change}}}"), vqgan)
        sides: dict[str, Any] = {name: Ours(opt, args.folder, device) for name, opt in opts.items()}
    first = next(iter(sides.values()))
    sides = {"plain": Plain(first, opts["ours"], args.folder, device)} | sides
    measured: dict[str, list[Seconds]] = {name: [] for name in sides}
    for run in range(args.warm_up + args.runs):
        for name, side in sides.items():
            measured[name].append(side(run))
    crop = opts["ours"]["datasets"]["train"]["gt_size"]
    title = f"{YMLS[stage, size]}, batch {first.batch} of {crop}x{crop}, {hardware(device)}, {args.runs} runs"
    warm_up = ", ".join(f"{name} {sum(runs[0].values()):.1f} s" for name, runs in measured.items())
    return f"{title}\n\n{table({k: v[args.warm_up :] for k, v in measured.items()})}\n\nfirst iteration: {warm_up}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", type=int, choices=(1, 2), nargs="+", default=[1, 2])
    parser.add_argument("--size", choices=("tiny", "paper"), nargs="+", default=["tiny", "paper"])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--warm-up", type=int, default=2, help="iterations before the runs")
    parser.add_argument("--batch", type=int, help="default: the yml's; on a CPU 2 at the paper's size")
    parser.add_argument("--threads", type=int, help="of PyTorch; default: the cores of the machine")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--folder", default=str(ROOT / "datasets/sample/gt"), help="photos")
    parser.add_argument(
        "--also", nargs="+", default=[], metavar="KEY:VALUE", help="more rows: ours with changes of the section train"
    )
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    for size in args.size:
        for stage in args.stage:
            print(compare(stage, size, args), flush=True)


if __name__ == "__main__":
    main()
