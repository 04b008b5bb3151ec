"""Memory and time of `basicsr upscale`, and the gain from reading and writing in parallel and from batches.

    python benchmarks/upscale.py sizes [--model iter_tiny_x4|paper|PATH] [--steps T]   peak memory against size
    python benchmarks/upscale.py overlap [--images 6] [--width 240]                    a folder, or one after another
    python benchmarks/upscale.py batch [--batches 1 2 4]                               an image of many tiles

`paper` is a network of the paper's size with random weights. Ratios are of medians of interleaved runs.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import iter_arch
from basicsr_compat.images import read_photo
from iter_arch.color import DEFAULT_LEVELS
from iter_model.photo.devices import choose_device, choose_tile
from iter_model.photo.folders import Job
from iter_model.photo.jobs import restore_files
from iter_model.photo.restorer import Restorer
from iter_model.photo.writer import write_photo

SIZES = ((480, 270), (680, 382), (960, 540))
# Runs the command and prints processor seconds and peak memory in MiB, from what Linux records for every process. The
# peak that os.wait4 returns is no use: a process inherits it from its parent.
COMMAND = """
import json, sys, time
from iter_model.commands import main
code = main(sys.argv[1:])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([time.process_time(), int(peak.split()[1]) / 1024]))
sys.exit(code)
"""
SAMPLE = Path(__file__).parents[1] / "datasets" / "sample" / "lq" / "coffee.png"


def photo(path: Path, width: int, height: int) -> Path:
    """The sample photo at another size."""
    Image.open(SAMPLE).convert("RGB").resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path


def weights(name: str, folder: Path) -> str:
    """The command's --model for ``name``."""
    if name != "paper":
        return name
    torch.manual_seed(0)
    path = folder / "paper.safetensors"
    iter_arch.save_pretrained(iter_arch.ITER(), path)
    return str(path)


def sizes(args: argparse.Namespace, folder: Path) -> None:
    """Runs the command in a new process for every size."""
    model = weights(args.model, folder)
    head = "LQ | LQ pixels | seconds | us per pixel, ratio | peak MB | more MB than the first | bytes per output pixel"
    print(f"| {head} |")
    print("|---|---|---|---|---|---|---|")
    first = None
    for width, height in SIZES:
        source = photo(folder / f"{width}.png", width, height)
        words = [sys.executable, "-c", COMMAND, "upscale", "-i", source, "-o", folder / "out"]
        words += ["--device", "cpu", "--model", model] + (["--steps", str(args.steps)] if args.steps else [])
        start = time.perf_counter()
        process = subprocess.run([str(word) for word in words], stdout=subprocess.PIPE, text=True)
        if process.returncode:
            sys.exit(f"the command failed with {process.returncode}")
        # Processor time, so that other programs do not count.
        elapsed, (seconds, peak) = time.perf_counter() - start, json.loads(process.stdout.splitlines()[-1])
        pixels = width * height
        first = first or (pixels, seconds, peak)
        ratio = seconds / pixels / (first[1] / first[0])
        growth = (peak - first[2]) * 2**20 / (16 * (pixels - first[0])) if pixels > first[0] else float("nan")
        print(
            f"| {width}x{height} | {pixels} | {seconds:.0f} ({elapsed:.0f} on the clock) | {ratio:.2f} | {peak:.0f} "
            f"| {peak - first[2]:.0f} | {growth:.0f} |",
            flush=True,
        )


def restorer(args: argparse.Namespace, folder: Path, batch: int) -> Restorer:
    """A restorer with the command's default options."""
    device = choose_device("auto")
    net = iter_arch.load_pretrained(weights(args.model, folder)).to(device)
    config = iter_arch.SamplingConfig(steps=args.steps or 8)
    return Restorer(
        net=net,
        config=config,
        seed=0,
        tile=choose_tile(None, net),
        batch=batch,
        color_correction="wavelet",
        color_levels=DEFAULT_LEVELS,
    )


def compare(runs: dict, repeats: int) -> None:
    """Seconds of every run, interleaved, and their ratios to the first."""
    seconds = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    first = next(iter(medians.values()))
    print("| run | seconds | ratio |\n|---|---|---|")
    for name, value in medians.items():
        print(f"| {name} | {value:.2f} | {value / first:.2f} |")


def overlap(args: argparse.Namespace, folder: Path) -> None:
    """A folder of photos, one after another and with reading and writing in parallel."""
    jobs = []
    for index in range(args.images):
        source = photo(folder / f"{index}.png", args.width + index, args.width * 3 // 4)
        jobs.append(Job(source, folder / f"{index}_out.png"))
    one = restorer(args, folder, 1)

    def sequential() -> None:
        for source, target in jobs:
            write_photo(target, one.restore(read_photo(source)))

    compare({"one after another": sequential, "beside": lambda: restore_files([one], jobs)}, args.repeats)


def batch(args: argparse.Namespace, folder: Path) -> None:
    """An image of many tiles in batches of several sizes."""
    source = read_photo(photo(folder / "a.png", args.width * 2, args.width))
    runs = {}
    for size in args.batches:
        one = restorer(args, folder, size)
        runs[f"{size} tiles together"] = lambda one=one: one.restore([source])
    pixels = [run()[0].rgb for run in runs.values()]
    compare(runs, args.repeats)
    print(f"largest difference of the results: {max(np.abs(p - pixels[0]).max() for p in pixels):.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("sizes", "overlap", "batch"))
    parser.add_argument("--model", default="iter_tiny_x4")
    parser.add_argument("--steps", type=int, help="refinement steps")
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--width", type=int, default=240)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    hardware = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU"
    print(f"{args.table}, {args.model}, {hardware}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}\n")
    with tempfile.TemporaryDirectory() as folder:
        {"sizes": sizes, "overlap": overlap, "batch": batch}[args.table](args, Path(folder))


if __name__ == "__main__":
    main()
