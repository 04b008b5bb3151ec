"""Table 1 of the paper: real photos restored by several methods, and metrics without and with ground truth.

    python benchmarks/table1.py --data datasets/val -o table1/
    python benchmarks/table1.py --data datasets/val -o table1/ --methods bicubic iter_tiny_x4 RealESRGAN_x4plus.pth
    torchrun --nproc_per_node=4 benchmarks/table1.py --data datasets/val -o table1/ --device cuda

DIR holds RealSR, DRealSR, DPED-iphone and RealSRSet, those that you have, as their authors ship them or as
`python -m iter_data.prepare realsr` and its like make them. A method is bicubic, a name or file for `basicsr upscale
--model`, or Real-ESRGAN's .bin (see `real_esrgan.py`). PSNR, SSIM and NIQE are BasicSR's in RGB without a border of
`scale` pixels, all others pyiqa's; what cannot be had here is named and left out.

Writes table1.md, table1.csv, images.csv (a row per photo) and table1.png into OUT. Results and scores are kept in
OUT/cache by the content of photos and weights: run it again after an interruption, or with another method or metric,
and only what is missing is computed.
"""

import argparse
import csv
import hashlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import NamedTuple

import torch
from figure import write
from measures import ImageMetrics, Metric, Photo, cell, make_metric, mean, table, upsample
from methods import BICUBIC, Method, make_method
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from basicsr_compat.files import atomic_write
from basicsr_compat.images import UnreadableImage
from iter_data.images import read_image, to_image, to_tensor, write_png
from iter_data.real_sets import SETS, find_set, open_set
from iter_model.photo.devices import choose_devices
from iter_model.photo.processes import Processes

METHODS = ("bicubic", "iter_tiny_x4", "released_x4")
METRICS = ("psnr", "ssim", "niqe", "pi", "musiq", "lpips", "dists", "maniqa", "clipiqa")
# Of the paper's Table 1 only these are known here; docs/benchmarks.md says from where.
PAPER = {"RealSRSet": {"bicubic": {"niqe": 7.98}, "Real-ESRGAN": {"niqe": 5.65}, "ITER": {"niqe": 5.29}}}
CROP, ROWS = 192, 3


class Task(NamedTuple):
    """A photo of a set."""

    part: str
    name: str
    dataset: Dataset
    index: int

    def photo(self) -> Photo:
        """Reads it. Raises UnreadableImage."""
        item = self.dataset[self.index]
        return Photo(self.name, item["lq"][None], item["gt"][None] if "gt" in item else None)


class Scored(NamedTuple):
    """A photo's name, where the result of a method lies, and its scores by metric."""

    name: str
    image: str
    scores: dict[str, float]


# By method, of one photo; by set and method, of all.
Results = dict[str, Scored]
Rows = dict[str, dict[str, list[Scored]]]


class Cache:
    """Results and scores of photos, kept by their content.

    Args:
        folder: where they are kept.
        methods, metrics: what to restore and to measure with.
        scale: size of the results over that of the photos.
    """

    def __init__(self, folder: Path, methods: Sequence[Method], metrics: Mapping[str, Metric], scale: int) -> None:
        self.folder, self.methods, self.metrics, self.scale = folder, methods, metrics, scale

    def results(self, photo: Photo) -> Results:
        """What every method makes of a photo; restores and measures only what is not there yet."""
        lq = _digest(photo.lq)
        measured_on = lq if photo.gt is None else _digest(photo.gt)
        found: Results = {}
        for method in self.methods:
            path = self.folder / f"{_hash(method.key, str(self.scale), lq)}.png"
            if not path.is_file():
                write_png(path, to_image(method.restore(photo)[0]))
            record = path.with_name(f"{path.stem}_{measured_on}.json")
            found[method.name] = Scored(photo.name, str(path), self._scores(path, record, photo))
        return found

    def _scores(self, image: Path, record: Path, photo: Photo) -> dict[str, float]:
        known = json.loads(record.read_text()) if record.is_file() else {}
        missing = {name: metric for name, metric in self.metrics.items() if name not in known}
        if missing:
            known |= ImageMetrics(self.scale, missing).measure(to_tensor(read_image(image))[None], photo)
            _write_json(record, known)
        return {name: known[name] for name in self.metrics}


def _write_json(path: Path, content: object) -> None:
    with atomic_write(path) as temporary:
        Path(temporary).write_text(json.dumps(content))


def _digest(image: Tensor) -> str:
    return hashlib.sha256(str(tuple(image.shape)).encode() + to_image(image[0]).tobytes()).hexdigest()


def _hash(*texts: str) -> str:
    return hashlib.sha256(" ".join(texts).encode()).hexdigest()


def open_sets(args: argparse.Namespace, left_out: list[str]) -> list[Task]:
    """Every photo of every set; says in ``left_out`` which sets cannot be had, and why."""
    tasks = []
    for part in args.sets:
        folder = find_set(part, args.data, args.scale)
        try:
            photos = [] if folder is None else list(open_set(part, folder, args.scale))
        except (OSError, ValueError) as error:
            left_out.append(f"set {part}: {_first_line(error)}")
            continue
        if folder is None:
            left_out.append(f"set {part}: it is not in {args.data}")
        tasks += [Task(part, *photo) for photo in photos[: args.limit]]
    return tasks


def available(
    args: argparse.Namespace, device: torch.device, left_out: list[str]
) -> tuple[list[Method], dict[str, Metric]]:
    """Methods and metrics of the command line; says in ``left_out`` which cannot be had, and why."""
    methods, metrics = [], {}
    for name in dict.fromkeys(args.methods):
        try:
            method = make_method(name, scale=args.scale, device=device, color=args.color_correction)
            taken = method.name in [other.name for other in methods]
            methods.append(method._replace(name=name) if taken else method)
        except (OSError, ValueError) as error:
            left_out.append(f"method {name}: {_first_line(error)}")
    for name in args.metrics:
        try:
            metrics[name] = make_metric(name)
        except (OSError, ValueError, ImportError) as error:
            left_out.append(f"metric {name}: {_first_line(error)}")
    return methods, metrics


def _first_line(error: Exception) -> str:
    return shorten(str(error).partition("\n")[0].partition(". Where")[0], 350)


def markdown(rows: Rows, metrics: Sequence[str], left_out: Sequence[str]) -> str:
    """A table for every set, with the paper's rows beside ours, and what is left out."""
    parts = []
    for part, methods in rows.items():
        count = max(map(len, methods.values()))
        scores = {name: means(found) for name, found in methods.items()}
        scores |= {f"{name} (paper)": values for name, values in PAPER.get(part, {}).items()}
        # Without GT, some metrics have no value.
        shown = [m for m in metrics if any(not math.isnan(values.get(m, math.nan)) for values in scores.values())]
        lines = [[name, *(cell(m, values.get(m, math.nan)) for m in shown)] for name, values in scores.items()]
        without = "" if part in PAPER else "\n\nThe paper's figures for this set are not at hand."
        parts.append(f"**{part}**, {count} photo{'s' if count > 1 else ''}\n\n{table(['', *shown], lines)}{without}")
    if left_out:
        parts.append("Left out:\n" + "\n".join(f"- {line}" for line in left_out))
    return "\n\n".join(parts) + "\n"


def write_csv(output: Path, rows: Rows, metrics: Sequence[str]) -> None:
    """table1.csv with the means, images.csv with every photo."""
    with atomic_write(output / "table1.csv") as path, open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["set", "method", "photos", *metrics])
        for part, methods in rows.items():
            for method, found in methods.items():
                writer.writerow([part, method, len(found), *map(_number, means(found).values())])
    with atomic_write(output / "images.csv") as path, open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["set", "photo", "method", *metrics])
        for part, methods in rows.items():
            for method, found in methods.items():
                writer.writerows([part, one.name, method, *map(_number, one.scores.values())] for one in found)


def means(found: Sequence[Scored]) -> dict[str, float]:
    """Means of the metrics over photos."""
    return mean(one.scores for one in found)


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4f}"


def sheet(rows: Rows, photos: Mapping[tuple[str, str], Photo], scale: int, path: Path) -> None:
    """The middles of a few photos of every set: LQ, every method, ground truth."""
    pictures, columns = [], 0
    for (part, name), photo in photos.items():
        row = [("LQ, bicubic", upsample(photo, scale))]
        for method, found in rows[part].items():
            if method != BICUBIC:
                image = next(one.image for one in found if one.name == name)
                row.append((method, to_tensor(read_image(image))[None]))
        if photo.gt is not None:
            row.append(("ground truth", photo.gt))
        elif any(other.gt is not None for other in photos.values()):
            row.append(("", torch.ones(1, 3, 1, 1)))
        pictures += [(title, _middle(image)) for title, image in row]
        columns = len(row)
    write(pictures, str(path), columns)


def _middle(image: Tensor) -> Tensor:
    """The middle of (1, 3, H, W), white around smaller ones: (3, CROP, CROP)."""
    height, width = image.shape[2:]
    top, left = max(0, (height - CROP) // 2), max(0, (width - CROP) // 2)
    crop = image[0, :, top : top + CROP, left : left + CROP]
    square = torch.ones(3, CROP, CROP)
    square[:, : crop.shape[1], : crop.shape[2]] = crop
    return square


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the sets")
    parser.add_argument("-o", "--output", type=Path, default=Path("table1"), metavar="OUT")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), metavar="SET", help=", ".join(SETS))
    parser.add_argument("--methods", nargs="+", default=METHODS, metavar="METHOD")
    parser.add_argument("--metrics", nargs="+", default=METRICS, metavar="METRIC", help="psnr, ssim, niqe, or pyiqa's")
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--color-correction", default="wavelet", choices=("none", "adain", "wavelet"), help="of ITER")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N photos of a set only")
    return parser


def main() -> int:
    """Returns the exit code: 0, or 1 where photos could not be read."""
    args, processes, left_out = parser().parse_args(), Processes.of_torchrun(), []
    with torch.no_grad():
        methods, metrics = available(args, choose_devices(args.device, processes.local_rank)[0], left_out)
        tasks = open_sets(args, left_out)
        if not methods or not tasks:
            raise SystemExit("\n".join(["no photo, or no method; see datasets/README.md", *left_out]))
        cache = Cache(args.output / "cache", methods, metrics, args.scale)
        cache.folder.mkdir(parents=True, exist_ok=True)
        failed = processes.total(work(tasks, processes, cache))
        if processes.is_first:
            found, unreadable = collect(cache, processes)
            report(args, tasks, found, list(metrics), left_out + unreadable)
    return 1 if failed else 0


def work(tasks: Sequence[Task], processes: Processes, cache: Cache) -> int:
    """Restore and measure this process's photos, for `collect`; returns how many could not be read."""
    found: dict[int, Results] = {}
    unreadable = []
    bar = tqdm(total=len(tasks), unit="photo", disable=None if processes.is_first else True)
    for number, task in processes.share(list(enumerate(tasks))):
        try:
            found[number] = cache.results(task.photo())
        except UnreadableImage as error:
            unreadable.append(f"photo {error}")
            print(f"left out: {error}", file=sys.stderr)
        bar.update(processes.count_done() - bar.n)
    bar.close()
    _write_json(cache.folder / f"process_{processes.rank}.json", [found, unreadable])
    return len(unreadable)


def collect(cache: Cache, processes: Processes) -> tuple[dict[int, Results], list[str]]:
    """What the `work` of all processes has found, by the number of the task, and which photos could not be read."""
    found: dict[int, Results] = {}
    unreadable: list[str] = []
    for rank in range(processes.count):
        theirs, failed = json.loads((cache.folder / f"process_{rank}.json").read_text())
        for number, results in theirs.items():
            found[int(number)] = {method: Scored(*one) for method, one in results.items()}
        unreadable += failed
    return found, unreadable


def report(
    args: argparse.Namespace,
    tasks: Sequence[Task],
    found: Mapping[int, Results],
    metrics: Sequence[str],
    left_out: Sequence[str],
) -> None:
    """Write and print what was found; reads only the photos that the sheet shows."""
    rows: Rows = {}
    shown: dict[tuple[str, str], Photo] = {}
    for number, task in enumerate(tasks):
        for method, one in found.get(number, {}).items():
            rows.setdefault(task.part, {}).setdefault(method, []).append(one)
        if number in found and [part for part, _ in shown].count(task.part) < ROWS:
            shown[task.part, task.name] = task.photo()
    text = markdown(rows, metrics, left_out)
    with atomic_write(args.output / "table1.md") as temporary:
        Path(temporary).write_text(text)
    write_csv(args.output, rows, metrics)
    if shown:
        sheet(rows, shown, args.scale, args.output / "table1.png")
    print(text)


if __name__ == "__main__":
    sys.exit(main())
