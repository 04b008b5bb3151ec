"""`basicsr upscale`: restores photos with ITER (arXiv:2312.05616) and writes each as a PNG file."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from basicsr_compat.images import printable
from iter_arch import ITER, SamplingConfig, load_pretrained
from iter_arch.color import DEFAULT_LEVELS, METHODS, ColorMethod, check_levels, match_color_
from iter_arch.precision import PRECISIONS, choose_dtype
from iter_arch.released import tuned_sampling
from iter_model.image_io import Photo, UnreadableImageError, is_image, read_image, write_image

DEFAULT_MODEL = "iter_tiny_x4"
# Pixels of the restored image; the side of a tile in the input is this divided by the scale.
DEFAULT_TILE = 512
# Tiles that go through together on a GPU, where memory allows it.
DEFAULT_BATCH = 16
# Images that are read ahead while one is restored.
READ_AHEAD = 2

# What a single image may fail with; the others go on.
FAILURES = (ValueError, OSError, RuntimeError, MemoryError)
Job = tuple[Path, Path]

EPILOG = """\
examples:
  basicsr upscale -i photos/ -o results/
  basicsr upscale -i old.jpg -o results/ --alpha 0.3 --steps 16 --seed 1
  basicsr upscale -i photos/ -o results/ --model experiments/my_iter/models/iter_latest.safetensors
  basicsr upscale -i photos/ -o results/ --model released_x4

exit status: 0 all restored; 1 some were not (each is named, the others are written); 2 wrong usage, nothing written;
130 interrupted
"""

SAMPLING_HELP = {
    "steps": ("T", "refinement steps, at least 1"),
    "alpha": ("A", "in [0, 1]; low keeps more of the first estimate (fidelity), high redraws more of it (texture)"),
    "schedule": ("NAME", "share of masked tokens over the steps: cosine, linear or pow<p>"),
    "adaptive": (None, "start from the tokens of the first estimate that are judged good"),
    "selection": ("NAME", "what decides which tokens are kept: evaluator, confidence or halton"),
    "temperature": ("X", "of the token draws, above 0; low is more careful"),
    "reevaluate": (None, "judge kept tokens anew at each step"),
    "redraw_kept": (None, "draw new tokens at kept positions too"),
    "fidelity": ("F", "in [0, 1]; share of the first estimate's mean in what is decoded: truer, and softer"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `basicsr upscale`; those of the sampling are the fields of `SamplingConfig`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = "Restore photos: every image of IN, enlarged by the model's scale, becomes OUT/<name>.png."
    parser.epilog = EPILOG
    parser.add_argument(
        "-i", "--input", type=Path, required=True, metavar="IN", help="image, or folder of images (not its subfolders)"
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="folder for the results, OUT/<name>.png"
    )
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        metavar="NAME_OR_PATH",
        help="shipped weights, a file, or the authors' weights: released_x4 or released_x2, looked for in "
        "experiments/pretrained_models/ and else downloaded there (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the token draws (default: %(default)s)")
    parser.add_argument(
        "--tile",
        type=int,
        metavar="PIXELS",
        help="restore larger images in tiles of this side, in input pixels; 0: never "
        f"(default: {DEFAULT_TILE} / scale, {DEFAULT_TILE // 4} for x4)",
    )
    parser.add_argument(
        "--batch",
        type=int,
        metavar="N",
        help="tiles that go through the networks together, and small images of equal size that follow one another; the "
        f"results do not depend on it (default: 1 on a CPU, as many as fit on a GPU, at most {DEFAULT_BATCH})",
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="auto: cuda where there is one (default: auto)",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="of the networks; auto: bf16 where the device computes in it, about twice as fast (default: auto)",
    )
    parser.add_argument(
        "--color-correction",
        choices=tuple(METHODS),
        default="wavelet",
        help="wavelet: the result takes the low frequencies of the input; adain: the mean and deviation of every "
        "channel, as in the paper; none (default: %(default)s)",
    )
    parser.add_argument(
        "--color-levels",
        type=int,
        default=DEFAULT_LEVELS,
        metavar="N",
        help="of wavelet, 1 to 8; more levels take only lower frequencies, and less of the input's noise "
        "(default: %(default)s)",
    )
    group = parser.add_argument_group(
        "sampling",
        "weights may carry the settings that they were tuned for, which are then the defaults; those of the authors' "
        f"networks: {released_flags()}",
    )
    for field in dataclasses.fields(SamplingConfig):
        flag = f"--{field.name.replace('_', '-')}"
        metavar, text = SAMPLING_HELP[field.name]
        # None: the default of the model's kind, which is known once the model is.
        if isinstance(field.default, bool):
            on_off = "on" if field.default else "off"
            group.add_argument(
                flag, action=argparse.BooleanOptionalAction, default=None, help=f"{text} (default: {on_off})"
            )
        else:
            group.add_argument(
                flag, type=type(field.default), metavar=metavar, help=f"{text} (default: {field.default})"
            )


def released_flags() -> str:
    """`SamplingConfig.released()` as options of the command line, as far as it differs from the defaults."""
    flags = []
    for field in dataclasses.fields(SamplingConfig):
        value, flag = getattr(SamplingConfig.released(), field.name), field.name.replace("_", "-")
        if value != field.default:
            flags.append((f"--{flag}" if value else f"--no-{flag}") if isinstance(value, bool) else f"--{flag} {value}")
    return " ".join(flags)


def run(args: argparse.Namespace) -> int:
    """Restore ``args.input`` into ``args.output``; all options are those of `add_arguments`.

    Returns:
        The exit status: 0 all restored, 1 some were not, 2 wrong usage (nothing was written), 130 interrupted.
    """
    try:
        try:
            sampling_config(args, SamplingConfig())  # a mistake shows before the model is loaded or downloaded
            check_levels(args.color_levels, "--color-levels")
            jobs = plan(args.input, args.output)
            device = choose_device(args.device)
            net = load_pretrained(args.model).to(device, choose_dtype(args.precision, device))
            config = sampling_config(args, tuned_sampling(getattr(net, "config", {})))
            tile = choose_tile(args.tile, net)
            batch = choose_batch(args.batch, net, tile, device)
            args.output.mkdir(parents=True, exist_ok=True)
        except (ValueError, OSError) as error:
            print(f"basicsr upscale: error: {error}", file=sys.stderr)
            return 2
        restorer = Restorer(net, config, args.seed, tile, batch, args.color_correction, args.color_levels)
        failed = restore_files(restorer, jobs)
    except KeyboardInterrupt:
        print(f"interrupted; images finished so far are in {args.output}", file=sys.stderr)
        return 130
    images = "1 image" if len(jobs) == 1 else f"{len(jobs)} images"
    print(f"restored {len(jobs) - failed} of {images} in {args.output}" + (f" ({failed} failed)" if failed else ""))
    return 1 if failed else 0


class Item(NamedTuple):
    """An image on its way: what was read, or why it could not be."""

    source: Path
    target: Path
    photo: Photo | Exception

    @property
    def size(self) -> tuple[int, int] | None:
        return None if isinstance(self.photo, Exception) else self.photo.rgb.shape[:2]


@dataclass
class Restorer:
    """Restores photos with one network and one set of options.

    ``batch``, of tiles that go through together, shrinks for good where GPU memory runs out; results do not depend on
    it. ``tile`` does not, lest the result for a photo depends on those before it.
    """

    net: ITER
    config: SamplingConfig
    seed: int
    tile: int | None
    batch: int
    color_correction: ColorMethod
    color_levels: int

    def images_together(self, size: tuple[int, int] | None) -> int:
        """Images of this size that hold no more pixels than a batch of tiles."""
        if size is None:
            return 1
        side = self.tile or DEFAULT_TILE // self.net.scale
        return min(self.batch, self.batch * side**2 // (size[0] * size[1]))

    def restore(self, photos: list[Photo], on_retry: Callable[[str], None] = lambda remedy: None) -> list[Photo]:
        """Restore photos of one size to ``net.scale`` times it, each of the same kind: gray, alpha and bit depth stay.

        Gray is restored as three equal channels. Alpha is upscaled bicubically; what a file holds under fully
        transparent pixels is replaced by the nearest visible colour first, lest it bleeds into the edges.

        Args:
            on_retry: called with what is tried next where the GPU runs out of memory: half as many tiles together, and
                once it is one, tiles of half the side.

        Raises:
            RuntimeError: out of GPU memory even with the smallest tiles.
        """
        rgb = [p.rgb if p.alpha is None else fill_transparent(p.rgb, p.alpha) for p in photos]
        device = next(self.net.parameters()).device
        lq = torch.from_numpy(np.stack(rgb)).permute(0, 3, 1, 2).to(device)
        images = self._restore_within_memory(lq, on_retry)
        match_color_(images, lq, self.color_correction, self.color_levels)
        restored = []
        for photo, image in zip(photos, images, strict=True):
            alpha = photo.alpha
            if alpha is not None:
                size = (alpha.shape[1] * self.net.scale, alpha.shape[0] * self.net.scale)
                alpha = cv2.resize(alpha, size, interpolation=cv2.INTER_CUBIC)
                np.clip(alpha, 0, 1, out=alpha)
            restored.append(photo._replace(rgb=image.permute(1, 2, 0).cpu().numpy(), alpha=alpha))
        return restored

    def _restore_within_memory(self, lq: Tensor, on_retry: Callable[[str], None]) -> Tensor:
        """lq (b, 3, h, w) -> (b, 3, s h, s w)."""
        tile, batch = self.tile, self.batch
        while True:
            try:
                return self.net.restore(lq, config=self.config, seed=self.seed, tile=tile, batch=batch).image
            except torch.cuda.OutOfMemoryError:
                pass  # the next try starts outside: the exception holds on to the tensors of this one
            torch.cuda.empty_cache()
            side = max(lq.shape[2:])
            side = side if tile is None else min(side, tile)
            together = min(batch, lq.shape[0] * -(-lq.shape[2] // side) * -(-lq.shape[3] // side))
            if together > 1:
                batch = together // 2
                if tile == self.tile:
                    self.batch = batch
                on_retry(f"trying again with {batch} tile{'s' if batch > 1 else ''} at a time")
            elif side > self.net.multiple:
                tile, batch = max(side // 2, self.net.multiple), 1
                on_retry(f"trying again with tiles of {tile} pixels")
            else:
                raise RuntimeError(f"out of GPU memory even with tiles of {side} pixels; use --device=cpu")


def restore_files(restorer: Restorer, jobs: list[Job]) -> int:
    """Restore every source of ``jobs`` to its target; name those that fail, in the order of ``jobs``, and count them.

    One thread reads ahead and one writes while the networks run. Where this is interrupted, images that are restored
    are still written, and no others are begun.
    """
    failed = 0
    writes: list[tuple[Path, Future[None]]] = []
    reader, writer = ThreadPoolExecutor(1, "read"), ThreadPoolExecutor(1, "write")

    def report(source: Path, error: Exception) -> None:
        nonlocal failed
        failed += 1
        named = isinstance(error, UnreadableImageError)
        say(f"not restored: {error}" if named else f"not restored: {source}: {str(error) or type(error).__name__}")

    def settle() -> None:
        """Wait for what is being written: at most one group of results waits while the next is restored."""
        while writes:
            source, write = writes.pop(0)
            try:
                write.result()
            except FAILURES as error:
                report(source, error)

    def restore_group(group: list[Item]) -> None:
        outcomes = restore_each(restorer, group)
        settle()
        for item, outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, Exception):
                report(item.source, outcome)
            else:
                writes.append((item.source, writer.submit(write_image, item.target, outcome)))

    try:
        # disable=None: no bar where stderr is not a terminal.
        with tqdm(total=len(jobs), desc="upscale", unit="image", disable=None) as bar:
            for group in groups(read_ahead(reader, jobs, max(READ_AHEAD, restorer.batch)), restorer):
                restore_group(group)
                bar.update(len(group))
            settle()
    finally:
        reader.shutdown(cancel_futures=True)
        writer.shutdown()
    return failed


def read_ahead(reader: ThreadPoolExecutor, jobs: list[Job], count: int) -> Iterator[Item]:
    """Read the sources of ``jobs`` in their order, up to ``count`` of them before they are asked for."""
    queue: deque[tuple[Job, Future[Photo]]] = deque()

    def first() -> Item:
        (source, target), read = queue.popleft()
        try:
            return Item(source, target, read.result())
        except FAILURES as error:
            return Item(source, target, error)

    for job in jobs:
        queue.append((job, reader.submit(read_image, job[0])))
        if len(queue) > count:
            yield first()
    while queue:
        yield first()


def groups(items: Iterable[Item], restorer: Restorer) -> Iterator[list[Item]]:
    """Neighbours of equal size, as many as go through together; what could not be read stands alone."""
    group: list[Item] = []
    for item in items:
        if group and (item.size is None or item.size != group[0].size):
            yield group
            group = []
        group.append(item)
        if len(group) >= restorer.images_together(item.size):
            yield group
            group = []
    if group:
        yield group


def restore_each(restorer: Restorer, group: list[Item]) -> list[Photo | Exception]:
    """What becomes of each photo of a group: restored, or why not. A group that fails is tried one by one."""
    if isinstance(group[0].photo, Exception):
        return [group[0].photo]
    name = str(group[0].source) + (f" and {len(group) - 1} more" if len(group) > 1 else "")
    try:
        return restorer.restore(
            [item.photo for item in group], lambda remedy: say(f"{name}: out of GPU memory, {remedy}")
        )
    except FAILURES as error:
        if len(group) == 1:
            return [error]
    return [outcome for item in group for outcome in restore_each(restorer, [item])]


def say(message: str) -> None:
    """Print a line to stderr without tearing the progress bar."""
    tqdm.write(printable(message), file=sys.stderr)


def sampling_config(args: argparse.Namespace, defaults: SamplingConfig) -> SamplingConfig:
    """The sampling options; ValueError names a wrong one as it is written on the command line."""
    if not 0 <= args.seed < 2**63:
        raise ValueError(f"--seed={args.seed} must be in [0, 2**63)")
    given = {field.name: getattr(args, field.name) for field in dataclasses.fields(SamplingConfig)}
    try:
        return dataclasses.replace(defaults, **{name: value for name, value in given.items() if value is not None})
    except ValueError as error:
        raise ValueError(str(error).replace("val.sampling.", "--")) from None


def plan(source: Path, output: Path) -> list[Job]:
    """Which file is restored to which, in the order of their names.

    Every file of the folder counts, whatever its suffix, so that a photo of an unknown kind is reported and not passed
    over; hidden files and subfolders do not.

    Raises:
        FileNotFoundError: ``source`` does not exist.
        ValueError: it is an empty folder, ``output`` cannot be a folder, two images would be written to one file, or
            one over an input.
    """
    if source.is_dir():
        inputs = sorted(path for path in source.iterdir() if path.is_file() and not path.name.startswith("."))
        if not inputs:
            raise ValueError(f"-i {source} holds no files; expected images in it (subfolders are not searched)")
    elif source.exists():
        inputs = [source]
    else:
        raise FileNotFoundError(f"-i {source} does not exist; give an image or a folder of images")
    if output.exists() and not output.is_dir():
        raise ValueError(f"-o {output} is a file; give a folder, results are written to it as <name>.png")
    if output.suffix.lower() in (".png", ".jpg", ".jpeg") and not output.exists():
        raise ValueError(f"-o {output} looks like a file; give a folder, results are written to it as <name>.png")

    jobs = [(path, output / f"{path.stem}.png") for path in inputs]
    same_target: dict[Path, list[Path]] = {}
    for path, target in jobs:
        same_target.setdefault(target, []).append(path)
    for target, paths in same_target.items():
        # A video or a note beside a photo of the same name is no second image.
        images = [path for path in paths if is_image(path)] if len(paths) > 1 else paths
        if len(images) > 1:
            raise ValueError(f"{' and '.join(map(str, images))} would both be written to {target}; rename one of them")
    identities = {identity(path): path for path in inputs}
    for target in same_target:
        if target.exists() and identity(target) in identities:
            raise ValueError(
                f"{target} would overwrite the input {identities[identity(target)]}; give another folder with -o"
            )
    return jobs


def identity(path: Path) -> tuple[int, int]:
    """Equal for two paths of the same file, through links and letter case."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def choose_device(name: str) -> torch.device:
    """The device of --device; ValueError if there is no such one here."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device=cuda: PyTorch finds no usable CUDA device here; use --device=cpu or --device=auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def choose_batch(batch: int | None, net: ITER, tile: int | None, device: torch.device) -> int:
    """Tiles that go through together for --batch; on a GPU by default as many as fit into half of its free memory.

    On a CPU they would be no faster together.
    """
    if batch is not None and batch < 1:
        raise ValueError(f"--batch={batch} must be at least 1")
    if batch is None and device.type == "cpu":
        return 1
    if batch is None:
        side = net.scale * tile if tile else DEFAULT_TILE
        # Measured on the decoder: six maps of the image's size with the channels of its last level.
        tile_bytes = 6 * 4 * net.vqgan.decoder[-1].in_channels * side**2
        batch = min(DEFAULT_BATCH, max(1, torch.cuda.mem_get_info(device)[0] // 2 // tile_bytes))
    return batch


def choose_tile(tile: int | None, net: ITER) -> int | None:
    """Side of tiles in LQ pixels for --tile, None for no tiles."""
    if tile is None:
        return max(DEFAULT_TILE // net.scale, net.multiple)
    if tile != 0 and tile < net.multiple:
        raise ValueError(f"--tile={tile} must be 0 (never) or at least {net.multiple} for this model (x{net.scale})")
    return tile or None


def fill_transparent(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Give fully transparent pixels the colour of the nearest other one; rgb (H, W, 3), alpha (H, W)."""
    from scipy.ndimage import distance_transform_edt

    hidden = alpha == 0
    if not hidden.any() or hidden.all():
        return rgb
    rows, columns = distance_transform_edt(hidden, return_distances=False, return_indices=True)
    return rgb[rows, columns]
