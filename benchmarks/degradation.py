"""Pairs of LQ and GT per second and core: this project's degradation compared with BasicSR's.

    python benchmarks/degradation.py [folder of photos] [--runs 9] [--size 256] [--batch 4] [--device cpu]

Measures three ways from photos on disk to a batch of pairs, in turns, with the same options, each on one CPU core (and
on the GPU, if --device is one): BasicSR's RealESRGANDataset and feed_data; our data set with the degradation on the
device, as in ITERModel.feed_data; our data set with `degrade_in_worker`. On a CPU it measures CPU time, which other
programs do not disturb. BasicSR crops to 400 pixels first; here it degrades `--size` pixels, like ours, and without its
pool of pairs.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import basicsr_compat  # noqa: F401  isort: skip
import cv2
import torch
from basicsr.data.realesrgan_dataset import RealESRGANDataset
from plain import Degradation
from torch.utils.data import default_collate
from training import hardware

from basicsr_compat.pipeline.randomness import seeded_globals
from iter_data import SecondOrderDegradation, SecondOrderDegradationDataset, batch_to_pair
from iter_data.images import list_images

SCALE = 4
SAMPLE = Path(__file__).parents[1] / "datasets/sample/gt"
Way = Callable[[int], None]


def basicsr_way(folder: str, size: int, batch: int, device: torch.device) -> Way:
    options = SecondOrderDegradation()
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as meta_info:
        meta_info.write("\n".join(str(Path(path).relative_to(folder)) for path in list_images(folder)))
        meta_info.flush()
        section = {"dataroot_gt": folder, "meta_info": meta_info.name, "use_hflip": True, "use_rot": False}
        dataset = RealESRGANDataset(vars(options) | section | {"io_backend": {"type": "disk"}})
    degradation = Degradation(options, scale=SCALE, gt_size=size, device=device, queue_size=batch)

    def make(run: int) -> None:
        with seeded_globals(run):
            torch.manual_seed(run)
            data = default_collate([dataset[i % len(dataset)] for i in range(run * batch, (run + 1) * batch)])
            data["gt"] = data["gt"][..., :size, :size].contiguous()
            degradation.feed_data(data)

    return make


def our_way(folder: str, size: int, batch: int, device: torch.device, *, in_worker: bool) -> Way:
    section = {
        "phase": "train",
        "scale": SCALE,
        "dataroot_gt": folder,
        "gt_size": size,
        "pad_small_gt": True,
        "gt_usm": True,
    }
    dataset = SecondOrderDegradationDataset(section | {"use_rot": False, "degrade_in_worker": in_worker})

    def make(run: int) -> None:
        data = default_collate([dataset.sample(i % len(dataset), i) for i in range(run * batch, (run + 1) * batch)])
        generator = torch.Generator().manual_seed(run)
        batch_to_pair(data, device=device, scale=SCALE, degradation=dataset.degradation, generator=generator)

    return make


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default=str(SAMPLE))
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--size", type=int, default=256, help="of the GT, at most 400")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    device = torch.device(args.device)
    common = (args.folder, args.size, args.batch, device)
    ways = {
        "BasicSR's RealESRGAN": basicsr_way(*common),
        "ours, on the device": our_way(*common, in_worker=False),
        "ours, in a worker": our_way(*common, in_worker=True),
    }

    def now() -> float:
        if device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize(device)
        return time.perf_counter()

    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(args.runs + 1):
        for name, make in ways.items():
            start = now()
            make(run)
            seconds[name].append(now() - start)
    medians = {name: statistics.median(runs[1:]) / args.batch for name, runs in seconds.items()}
    reference = next(iter(medians.values()))
    print(f"batch {args.batch} of {args.size}x{args.size}, {hardware(device)}, {args.runs} runs\n")
    print("| | ms per pair | pairs per second and core | ratio |\n|---|---|---|---|")
    for name, median in medians.items():
        print(f"| {name} | {1000 * median:.1f} | {1 / median:.1f} | {reference / median:.1f} |")


if __name__ == "__main__":
    main()
