"""Prepare data sets: `python -m iter_data.prepare COMMAND`; `--help` lists the commands."""

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.parse import quote

import lmdb
from tqdm import tqdm

from basicsr_compat.pipeline.yml import read_yml
from iter_data.degradation import read_degradation
from iter_data.filtering import Thresholds
from iter_data.images import (
    UnreadableImage,
    decode_image,
    in_threads,
    list_images,
    read_image,
    read_once,
    to_image,
    write_png,
)
from iter_data.lists import make_filtered, make_meta_info
from iter_data.preview import contact_sheet
from iter_data.real_sets import SETS, make_real_set
from iter_data.second_order_dataset import SecondOrderDegradationDataset

_MAX_LMDB_KEY = 511  # LMDB's own limit, in bytes
_LMDB_BATCH = 256  # images per transaction


class PrepareError(Exception):
    """A problem with the arguments or the data that stops the command."""


def make_lmdb(folder: str, output: str) -> list[str]:
    """Copy the image files under `folder` into an LMDB in BasicSR's layout; returns what was skipped and why.

    Keys are paths relative to `folder` without extension; `meta_info.txt` holds a line `key.ext (h,w,3) 1` for each.
    Dots, spaces, and non-ASCII characters of a key are percent-encoded, because BasicSR cuts keys at the first dot and
    encodes them as ASCII. Values are the bytes of the files, which are not encoded again.

    Raises:
        PrepareError: `output` does not end in .lmdb or exists, a name is too long, or no image can be read.
        FileNotFoundError: `folder` is missing or holds no image.
    """
    output = output.rstrip("/")
    if not output.endswith(".lmdb"):
        raise PrepareError(f"output {output!r} must end in .lmdb: BasicSR recognizes it by that")
    names = {}
    for stem, path in _by_stem(folder).items():
        key = quote(stem, safe="/").replace(".", "%2E")
        if len(key) > _MAX_LMDB_KEY:
            raise PrepareError(f"{path} gives a key of {len(key)} bytes; LMDB allows {_MAX_LMDB_KEY}: shorten its name")
        names[key] = path
    # pages of 4096 bytes: the value's own and its share of the tree
    sizes = [os.path.getsize(path) for path in names.values() if os.path.exists(path)]
    map_size = 2**20 + sum(4096 * (size // 4096 + 4) for size in sizes)
    _refuse_existing(output)
    unfinished = Path(f"{output}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    skipped, lines, batch = [], [], []
    with lmdb.open(str(unfinished), map_size=map_size) as environment:
        for key, path in tqdm(sorted(names.items()), unit="image", disable=None):
            try:
                data = read_once(path)
                height, width = decode_image(data).shape[:2]
            except UnreadableImage as error:
                skipped.append(f"{path}: {error}")
                continue
            lines.append(f"{key}{Path(path).suffix.lower()} ({height},{width},3) 1\n")
            batch.append((key.encode("ascii"), data))
            if len(batch) == _LMDB_BATCH:
                _put(environment, batch)
        _put(environment, batch)
    if not lines:
        raise PrepareError(f"none of the {len(names)} images under {folder!r} can be read, e.g. {skipped[0]}")
    (unfinished / "meta_info.txt").write_text("".join(lines), encoding="utf-8")
    # an LMDB under its own name is a complete one
    unfinished.rename(output)
    print(f"{output}: {len(lines)} images")
    return skipped


def make_subimages(folder: str, output: str, *, size: int = 480, step: int = 240) -> list[str]:
    """Cut large images into overlapping squares, which load faster; returns what was skipped and why.

    Squares of `size` pixels start every `step` pixels, and the last ones end at the border. They are written as PNG
    files, numbered `_s001` and so on in reading order. A side shorter than `size` is kept whole.

    Raises:
        PrepareError: `step` is not from 1 to `size`, or `output` exists.
        FileNotFoundError: `folder` is missing or holds no image.
    """
    if not 1 <= step <= size:
        raise PrepareError(f"step={step} must be at least 1 and at most size={size}: pixels between would be lost")
    _refuse_existing(output)
    stems = {path: stem for stem, path in _by_stem(folder).items()}

    def cut(path: str) -> int:
        image = read_image(path)
        tops, lefts = (_starts(side, size, step) for side in image.shape[:2])
        corners = [(top, left) for top in tops for left in lefts]
        for number, (top, left) in enumerate(corners, 1):
            square = image[top : top + size, left : left + size]
            write_png(os.path.join(output, f"{stems[path]}_s{number:03d}.png"), square)
        return len(corners)

    results = dict(zip(stems, in_threads(cut, list(stems)), strict=True))
    skipped = [f"{path}: {result}" for path, result in results.items() if isinstance(result, UnreadableImage)]
    count = sum(result for result in results.values() if isinstance(result, int))
    print(f"{output}: {count} sub-images of {len(stems) - len(skipped)} images")
    return skipped


def make_pairs(
    folder: str, output: str, *, scale: int = 4, seed: int = 0, degradation: Mapping[str, Any] | None = None
) -> list[str]:
    """Write photos, cut to multiples of `scale`, to `output`/gt, and degraded to `output`/lq.

    The pairs are those of `SecondOrderDegradationDataset` in validation: the LQ of a photo depends only on the seed,
    the file name, and the photo, and the GT is never sharpened.

    Args:
        degradation: the section of the options; None: Real-ESRGAN's values.

    Returns:
        What was skipped and why, one line per photo.

    Raises:
        ValueError: a bad option.
        PrepareError: one of the two folders exists.
        FileNotFoundError: `folder` is missing or holds no image.
    """
    # refuses a bad option before anything is written
    opt = {"phase": "val", "dataroot_gt": folder, "scale": scale, "seed": seed, "degradation": degradation}
    dataset = SecondOrderDegradationDataset(opt)
    stems = _by_stem(folder)
    for part in ("gt", "lq"):
        _refuse_existing(os.path.join(output, part))
    skipped = []
    for index, stem in enumerate(tqdm(stems, unit="image", disable=None)):
        try:
            item = dataset[index]
        except ValueError as error:
            skipped.append(str(error))
            continue
        for part in ("gt", "lq"):
            write_png(os.path.join(output, part, f"{stem}.png"), to_image(item[part]))
    print(f"{output}: {len(stems) - len(skipped)} pairs")
    return skipped


def make_preview(
    opt: Mapping[str, Any], output: str, *, photos: int = 4, versions: int = 4, seed: int = 0
) -> list[str]:
    """Write a contact sheet of what a training run with these options sees, as PNG; returns an empty list.

    Args:
        opt: the options of the run, whose datasets.train must be a `SecondOrderDegradationDataset`.
        photos, versions, seed: see `contact_sheet`.

    Raises:
        PrepareError: `output` does not end in .png, a number is below 1, or the data set is of another type.
        ValueError, FileNotFoundError: see `SecondOrderDegradationDataset`.
    """
    if not output.lower().endswith(".png"):
        raise PrepareError(f"output {output!r} must end in .png")
    for name, count in (("photos", photos), ("versions", versions)):
        if count < 1:
            raise PrepareError(f"{name}={count} must be >= 1")
    train = dict(opt["datasets"]["train"])
    kind = train.get("type")
    if kind != "SecondOrderDegradationDataset":
        raise PrepareError(f"datasets.train.type={kind} degrades nothing: it must be SecondOrderDegradationDataset")
    train.pop("degrade_in_worker", None)  # the crops are degraded here, several times each
    dataset = SecondOrderDegradationDataset({"scale": opt.get("scale"), **train, "phase": "train"})
    sheet, paths = contact_sheet(dataset, photos=photos, versions=versions, seed=seed)
    write_png(output, sheet)
    print("\n".join([f"{output}: {len(paths)} photos, each degraded {versions} times", *paths]))
    return []


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns 0, 1 if some files were skipped, 2 for a problem with the arguments or the data."""
    arguments = _parser().parse_args(argv)
    try:
        skipped = arguments.run(arguments)
    except (PrepareError, ValueError, OSError, lmdb.Error) as error:
        print(f"prepare {arguments.command}: error: {error}", file=sys.stderr)
        return 2
    for line in skipped:
        print(f"skipped {line}", file=sys.stderr)
    if skipped:
        print(f"{len(skipped)} files were skipped", file=sys.stderr)
    return 1 if skipped else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m iter_data.prepare", description="Prepare data sets for training and testing."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, help: str, run: Callable[[argparse.Namespace], list[str]]) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help, description=help)
        command.set_defaults(run=run)
        return command

    command = add(
        "lmdb", "Put a folder of images into an LMDB in BasicSR's layout.", lambda a: make_lmdb(a.input, a.output)
    )
    command.add_argument("input", help="image folder, searched through its subfolders")
    command.add_argument("output", help="LMDB to make; its name ends in .lmdb")

    _add_list_commands(add)

    command = add("subimages", "Cut large images into overlapping squares, which load faster.",
                  lambda a: make_subimages(a.input, a.output, size=a.size, step=a.step))  # fmt: skip
    command.add_argument("input", help="image folder, searched through its subfolders")
    command.add_argument("output", help="folder to make")
    command.add_argument(
        "--size", type=int, default=480, metavar="PIXELS", help="side of the squares (default: %(default)s)"
    )
    command.add_argument(
        "--step", type=int, default=240, metavar="PIXELS", help="distance of their corners (default: %(default)s)"
    )

    _add_degradation_commands(add)
    for name in SETS:
        _add_real_set(add, name)
    return parser


def _add_real_set(add: Callable[..., argparse.ArgumentParser], name: str) -> None:
    """`prepare realsr` and its like."""
    command = add(name.lower(), f"Write the test photos of {name}, as its authors ship it, into lq/ and gt/ as PNG.",
                  lambda a: make_real_set(name, a.input, a.output, scale=a.scale))  # fmt: skip
    command.add_argument("input", help=f"folder of {name}")
    command.add_argument("output", help="folder to make lq/ in, and gt/ where the set has ground truth")
    command.add_argument("--scale", type=int, default=4, help="GT size over LQ size (default: %(default)s)")


def _add_list_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    default = Thresholds()
    meta_info = add("meta-info", "List images with their sizes in a text file for the option meta_info.",
                    lambda a: make_meta_info(a.input, a.output, root=a.root, min_size=a.min_size))  # fmt: skip
    filtered = add("filter", "List images as meta-info does, but those that are tiny, blurred, mostly flat, or have "
                   "JPEG blocks.", _run_filter)  # fmt: skip
    for command, min_size in ((meta_info, 1), (filtered, default.min_size)):
        command.add_argument("input", nargs="+", help="image folders, searched through their subfolders")
        command.add_argument("-o", "--output", required=True, help="text file to write")
        command.add_argument(
            "--root", help="folder that the names are relative to (default: the deepest that holds all inputs)"
        )
        command.add_argument("--min-size", type=int, default=min_size, metavar="PIXELS",
                             help="leave out images with a shorter side (default: %(default)s)")  # fmt: skip
    filtered.add_argument("--report", metavar="CSV", help="table to write: the measures of all images, and why some "
                          "were left out")  # fmt: skip
    for name, meaning in (
        ("min_sharpness", "leave out images whose sharpest tenth has a smaller variance of the Laplacian"),
        ("max_flatness", "leave out images with a larger share of tiles without structure"),
        ("max_blocking", "leave out images with larger steps at the borders of 8x8 blocks, relative to others"),
    ):
        filtered.add_argument(f"--{name.replace('_', '-')}", type=float, default=getattr(default, name), metavar="X",
                              help=f"{meaning} (default: %(default)s)")  # fmt: skip


def _run_filter(arguments: argparse.Namespace) -> list[str]:
    thresholds = Thresholds(**{field.name: getattr(arguments, field.name) for field in fields(Thresholds)})
    return make_filtered(
        arguments.input, arguments.output, root=arguments.root, report_file=arguments.report, thresholds=thresholds
    )


def _add_degradation_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add("degrade", "Make LQ images from photos with the second-order degradation; a seed gives one result.",
                  _run_degrade)  # fmt: skip
    command.add_argument("input", help="folder of photos, searched through its subfolders")
    command.add_argument("output", help="folder to make gt/ and lq/ in")
    command.add_argument("--scale", type=int, default=4, help="GT size over LQ size (default: %(default)s)")
    command.add_argument(
        "--seed", type=int, default=0, help="another seed draws other degradations (default: %(default)s)"
    )
    command.add_argument("--opt", metavar="YML", help="option file whose datasets.train.degradation is used "
                         "(default: Real-ESRGAN's values)")  # fmt: skip

    command = add("preview", "Draw what a training run sees: a few GT crops, each with several degraded versions.",
                  lambda a: make_preview(_read_options(a.opt), a.output, photos=a.photos, versions=a.versions,
                                         seed=a.seed))  # fmt: skip
    command.add_argument("opt", metavar="YML", help="option file of the training run, with its photos and degradation")
    command.add_argument("output", help="PNG file to write")
    command.add_argument("--photos", type=int, default=4, metavar="N", help="rows of the sheet (default: %(default)s)")
    command.add_argument("--versions", type=int, default=4, metavar="N", help="degraded versions of a photo "
                         "(default: %(default)s)")  # fmt: skip
    command.add_argument("--seed", type=int, default=0, help="another seed draws other photos, crops and degradations "
                         "(default: %(default)s)")  # fmt: skip


def _read_options(path: str) -> dict[str, Any]:
    """The options of a file with a section datasets.train."""
    opt, problems = read_yml(path)
    if problems:
        raise PrepareError("\n".join(problems))
    datasets = opt.get("datasets")
    if not isinstance(datasets.get("train") if isinstance(datasets, dict) else None, dict):
        raise PrepareError(f"{path} has no section datasets.train, whose degradation is to be used")
    return opt


def _run_degrade(arguments: argparse.Namespace) -> list[str]:
    degradation = None
    if arguments.opt is not None:
        degradation = _read_options(arguments.opt)["datasets"]["train"].get("degradation")
        read_degradation(degradation, f"{arguments.opt}: datasets.train.degradation")
    return make_pairs(
        arguments.input, arguments.output, scale=arguments.scale, seed=arguments.seed, degradation=degradation
    )


def _by_stem(folder: str) -> dict[str, str]:
    """The images under `folder`, sorted, by their relative path without extension, which names the results."""
    paths: dict[str, str] = {}
    for path in list_images(folder):
        stem = os.path.splitext(os.path.relpath(path, folder))[0].replace(os.sep, "/")
        if stem in paths:
            raise PrepareError(f"{path} and {paths[stem]} differ in their extension only: rename one of them")
        paths[stem] = path
    return paths


def _put(environment: lmdb.Environment, batch: list[tuple[bytes, bytes]]) -> None:
    with environment.begin(write=True) as transaction:
        for key, data in batch:
            transaction.put(key, data)
    batch.clear()


def _refuse_existing(output: str) -> None:
    if os.path.exists(output):
        raise PrepareError(f"output {output!r} exists already: remove it or name another")


def _starts(length: int, size: int, step: int) -> list[int]:
    if length <= size:
        return [0]
    return sorted({*range(0, length - size + 1, step), length - size})


if __name__ == "__main__":
    sys.exit(main())
