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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from figure import write
from measures import ImageMetrics, Metric, Photo, cell, make_metric, mean, table, upsample
from methods import BICUBIC, Method, make_method
from torch import Tensor
from torch.utils.data import Dataset

from basicsr_compat.files import atomic_write
from basicsr_compat.images import UnreadableImage
from iter_data.images import read_image, to_image, to_tensor, write_png
from iter_data.real_sets import SETS, find_set, open_set
from iter_model.photo.devices import choose_devices
from iter_model.photo.processes import Processes

METHODS = ("bicubic", "iter_tiny_x4", "released_x4")
METRICS = ("psnr", "ssim", "niqe", "pi", "musiq", "lpips", "dists", "maniqa", "clipiqa")
# The paper's figures that docs/benchmarks.md quotes; the others of its Table 1 are not at hand.
PAPER = {"RealSRSet": {"bicubic": {"niqe": 7.98}, "Real-ESRGAN": {"niqe": 5.65}, "ITER": {"niqe": 5.3}}}
CROP, ROWS = 192, 3


class Task(NamedTuple):
    """A photo of a set, to be restored by a method."""

    part: str
    name: str
    dataset: Dataset
    index: int
    method: Method

    def photo(self) -> Photo:
        """Reads it. Raises UnreadableImage."""
        item = self.dataset[self.index]
        return Photo(self.name, item["lq"][None], item["gt"][None] if "gt" in item else None)


class Scored(NamedTuple):
    """A photo's name, where its result lies, and its scores by metric."""

    name: str
    image: Path
    scores: dict[str, float]


# By set and method.
Rows = dict[str, dict[str, list[Scored]]]


class Cache:
    """Results and scores of photos by their content."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def image(self, task: Task, photo: Photo) -> tuple[Tensor, Path]:
        """The result (1, 3, H, W) in [0, 1] in whole levels of 255, and where it lies."""
        path = self.folder / f"{_digest(task.method.key, photo.lq)}.png"
        if not path.is_file():
            write_png(path, to_image(task.method.restore(photo)[0]))
        return to_tensor(read_image(path))[None], path

    def scores(self, task: Task, photo: Photo, metrics: dict[str, Metric], scale: int) -> Scored:
        """What is known of the result, once it is made and measured."""
        image, path = self.image(task, photo)
        record = path.with_name(f"{path.stem}_{_digest(str(scale), photo.lq if photo.gt is None else photo.gt)}.json")
        found = json.loads(record.read_text()) if record.is_file() else {}
        missing = [name for name in metrics if name not in found]
        if missing:
            found |= ImageMetrics(scale, {name: metrics[name] for name in missing}).measure(image, photo)
            with atomic_write(record) as temporary:
                Path(temporary).write_text(json.dumps(found))
        return Scored(task.name, path, {name: found[name] for name in metrics})


def _digest(text: str, image: Tensor) -> str:
    return hashlib.sha256(text.encode() + str(tuple(image.shape)).encode() + to_image(image[0]).tobytes()).hexdigest()


def tasks(data: Path, sets: Sequence[str], methods: Sequence[Method], scale: int, limit: int | None) -> Iterator[Task]:
    """Every photo of every set by every method; sets that are not there are passed over."""
    for part in sets:
        folder = find_set(part, data, scale)
        if folder is None:
            continue
        for name, dataset, index in list(open_set(part, folder, scale))[:limit]:
            for method in methods:
                yield Task(part, name, dataset, index, method)


def available(
    args: argparse.Namespace, device: torch.device, left_out: list[str]
) -> tuple[list[Method], dict[str, Metric]]:
    """Methods and metrics of the command line; says in ``left_out`` which cannot be had, and why."""
    methods, metrics = [], {}
    for name in args.methods:
        try:
            methods.append(make_method(name, scale=args.scale, device=device, color=args.color_correction))
        except (OSError, ValueError) as error:
            left_out.append(f"method {name}: {_first_line(error)}")
    for name in args.metrics:
        try:
            metrics[name] = make_metric(name)
        except (OSError, ValueError, ImportError) as error:
            left_out.append(f"metric {name}: {_first_line(error)}")
    return methods, metrics


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].partition(". Where")[0][:200]


def markdown(rows: Rows, metrics: Sequence[str], left_out: Sequence[str]) -> str:
    """A table for every set, with the paper's rows beside ours, and what is left out."""
    parts = []
    for part, methods in rows.items():
        count = max(map(len, methods.values()))
        lines = [[name, *(cell(m, value) for m, value in means(found).items())] for name, found in methods.items()]
        paper = PAPER.get(part, {})
        for name, values in paper.items():
            lines.append([f"{name} (paper)", *(cell(m, values.get(m, math.nan)) for m in metrics)])
        without = "" if paper else "\n\nThe paper's figures for this set are not at hand."
        parts.append(f"**{part}**, {count} photos\n\n{table(['', *metrics], lines)}{without}")
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


def sheet(rows: Rows, photos: dict[tuple[str, str], Photo], scale: int, path: Path) -> None:
    """The middles of a few photos of every set: LQ, every method, ground truth."""
    pictures, columns = [], 0
    for part, methods in rows.items():
        names = list(dict.fromkeys(one.name for found in methods.values() for one in found))[:ROWS]
        for name in names:
            photo = photos[part, name]
            row = [("LQ, bicubic", upsample(photo, scale))]
            for method, found in methods.items():
                one = next((one for one in found if one.name == name), None)
                if one is not None and method != BICUBIC:
                    row.append((method, to_tensor(read_image(one.image))[None]))
            row.append(("", torch.ones(1, 3, 1, 1)) if photo.gt is None else ("ground truth", photo.gt))
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
        todo = list(tasks(args.data, args.sets, methods, args.scale, args.limit))
        if not todo:
            raise SystemExit(f"--data {args.data} holds none of {', '.join(args.sets)}; see datasets/README.md")
        missing = [part for part in args.sets if part not in {task.part for task in todo}]
        left_out += [f"set {part}: it is not in {args.data}" for part in missing]
        cache, failed = Cache(args.output / "cache"), 0
        for task in processes.share(todo):
            try:
                cache.scores(task, task.photo(), metrics, args.scale)
            except UnreadableImage as error:
                failed += task.method.name == methods[0].name
                print(f"left out: {error}", file=sys.stderr)
        failed = processes.total(failed)
        if processes.is_first:
            report(args, todo, cache, metrics, left_out)
    return 1 if failed else 0


def report(
    args: argparse.Namespace, todo: list[Task], cache: Cache, metrics: dict[str, Metric], left_out: list[str]
) -> None:
    """Write and print what is in the cache now."""
    rows: Rows = {}
    photos: dict[tuple[str, str], Photo] = {}
    for task in todo:
        try:
            photo = task.photo()
        except UnreadableImage:
            continue
        found = cache.scores(task, photo, metrics, args.scale)
        rows.setdefault(task.part, {}).setdefault(task.method.name, []).append(found)
        if len([part for part, _ in photos if part == task.part]) < ROWS:
            photos[task.part, task.name] = photo
    text = markdown(rows, list(metrics), left_out)
    with atomic_write(args.output / "table1.md") as temporary:
        Path(temporary).write_text(text)
    write_csv(args.output, rows, list(metrics))
    sheet(rows, photos, args.scale, args.output / "table1.png")
    print(text)


if __name__ == "__main__":
    sys.exit(main())
