"""Photos restored one by one, with what only tokens offer: alpha maps, variants, redrawn regions, maps.

Networks and sampling are those of ITER (arXiv:2312.05616).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

import iter_arch
from basicsr_compat.files import atomic_write
from basicsr_compat.images import Metadata, Photo, read_photo
from iter_arch.color import match_color_
from iter_model.photo.folders import Job
from iter_model.photo.maps import Panel, draw
from iter_model.photo.metadata import corrected
from iter_model.photo.reader import FAILURES
from iter_model.photo.restorer import Restorer
from iter_model.photo.token_file import TokenFile, check_tokens_fit, model_checksum, read_tokens, write_tokens
from iter_model.photo.writer import write_photo


@dataclass(frozen=True)
class Controls:
    """What is asked for; `of` makes it of the command's options, whose names its fields have."""

    alpha_map: Path | None
    variants: int | None
    save_tokens: bool
    redraw: Path | None
    tokens_from: Path | None
    maps: Path | None
    samples: int
    output: Path
    quality: int | None
    keeps_metadata: bool

    @classmethod
    def of(cls, args: argparse.Namespace, jobs: list[Job]) -> Controls:
        """Raises ValueError or OSError for what is impossible."""
        fields = ("alpha_map", "variants", "save_tokens", "redraw", "tokens_from", "maps", "samples")
        given = {name: getattr(args, name) for name in (*fields, "output", "quality")}
        controls = cls(**given, keeps_metadata=args.metadata == "keep")
        if args.variants is not None and args.variants < 1:
            raise ValueError(f"--variants={args.variants} must be at least 1")
        if args.samples < 1:
            raise ValueError(f"--samples={args.samples} must be at least 1")
        if args.maps is not None and args.maps.resolve() == args.output.resolve():
            raise ValueError(f"--maps {args.maps} must be another folder than -o, whose files have the same names")
        if (args.redraw is None) != (args.tokens_from is None):
            raise ValueError("--redraw MASK and --from RESULT.json go together")
        if args.redraw is not None and len(jobs) != 1:
            raise ValueError(f"--redraw takes one photo, not {len(jobs)}")
        if args.alpha_map is not None:
            for job in jobs:
                controls.map_of(job)
        if args.tokens_from is not None:
            read_tokens(args.tokens_from)
        return controls

    def map_of(self, job: Job) -> Path:
        """The alpha map of a photo: the file that was given, or that of its name in the folder."""
        if not self.alpha_map.is_dir():
            if not self.alpha_map.is_file():
                raise FileNotFoundError(f"--alpha-map {self.alpha_map} does not exist")
            return self.alpha_map
        folder = self.alpha_map / job.target.parent.relative_to(self.output)
        found = sorted(path for path in folder.glob("*") if path.stem == job.source.stem)
        if not found:
            raise FileNotFoundError(f"--alpha-map {self.alpha_map} holds no image named {job.source.stem}")
        return found[0]


def restore_controlled(restorer: Restorer, jobs: Iterable[Job], controls: Controls, say: Callable[[str], None]) -> int:
    """Restore every source of ``jobs``, name those that fail with ``say``, and count them."""
    failed = 0
    for job in jobs:
        try:
            _restore(restorer, job, controls)
        except FAILURES as error:
            failed += 1
            named = "" if str(job.source) in str(error) else f"{job.source}: "
            say(f"not restored: {named}{str(error) or type(error).__name__}")
    return failed


def _restore(restorer: Restorer, job: Job, controls: Controls) -> None:
    photo, net = read_photo(job.source), restorer.net
    lq = restorer.input_of([photo])
    prepared = net.prepare(lq, tile=restorer.tile, batch=restorer.batch)
    alpha = None if controls.alpha_map is None else _gray(controls.map_of(job))
    where = _redrawn(controls, photo, net)
    job.target.parent.mkdir(parents=True, exist_ok=True)
    checksum = model_checksum(net) if controls.save_tokens else ""
    for seed, target in _variants(job.target, restorer.seed, controls.variants):
        draws: dict[int, Tensor] = {}
        result = net.restore(
            prepared,
            config=restorer.config,
            seed=seed,
            alpha=alpha,
            batch=restorer.batch,
            on_step=lambda t, _, kept, draws=draws: draws.update({t: ~kept[0]}),
            **where,
        )
        image = match_color_(result.image, lq, restorer.color_correction, restorer.color_levels)
        _write(target, photo, image, controls)
        if controls.save_tokens:
            found = TokenFile(result.tokens.cpu(), photo.rgb.shape[:2], checksum, seed)
            write_tokens(target.with_suffix(".json"), found)
        if controls.maps is not None:
            place = controls.maps / target.relative_to(controls.output).with_suffix(".png")
            _write_maps(place, restorer, (lq, prepared, alpha), seed, controls.samples, (result, image, draws))


def _variants(target: Path, seed: int, count: int | None) -> Iterator[tuple[int, Path]]:
    if count is None:
        yield seed, target
        return
    for one in range(seed, seed + count):
        yield one, target.with_name(f"{target.stem}_seed{one}{target.suffix}")


def _gray(path: Path) -> Tensor:
    """(1, 1, height, width) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(read_photo(path).rgb.mean(2)))[None, None].clamp(0, 1)


def _redrawn(controls: Controls, photo: Photo, net: iter_arch.ITER) -> dict[str, Tensor]:
    if controls.redraw is None:
        return {}
    found = read_tokens(controls.tokens_from)
    check_tokens_fit(controls.tokens_from, found, photo.rgb.shape[:2], net)
    return {"tokens": found.tokens, "redraw": _gray(controls.redraw)}


def _write(target: Path, photo: Photo, image: Tensor, controls: Controls) -> None:
    height, width = image.shape[2:]
    alpha = photo.alpha
    if alpha is not None:
        alpha = cv2.resize(alpha, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    metadata = corrected(photo.metadata, (height, width)) if controls.keeps_metadata else Metadata()
    rgb = image[0].permute(1, 2, 0).float().cpu().numpy()
    write_photo(target, photo._replace(rgb=rgb, alpha=alpha, metadata=metadata), target.suffix[1:], controls.quality)


def _write_maps(
    path: Path,
    restorer: Restorer,
    of: tuple[Tensor, iter_arch.Prepared, Tensor | None],
    seed: int,
    samples: int,
    restored: tuple[iter_arch.Restored, Tensor, dict[int, Tensor]],
) -> None:
    (lq, prepared, alpha), (result, image, draws) = of, restored
    net = restorer.net
    found = iter_arch.uncertainty(
        net,
        lq,
        samples,
        seed,
        config=restorer.config,
        alpha=alpha,
        prepared=prepared,
        color_correction=restorer.color_correction,
        color_levels=restorer.color_levels,
        batch=restorer.batch,
    )
    drawn = sum((mask.long() for t, mask in draws.items() if t), torch.zeros_like(result.tokens[0]))
    steps = int(result.start_step[0])
    factor = net.vqgan.factor
    rows, columns = -(-image.shape[2] // factor), -(-image.shape[3] // factor)

    def tokens(x: Tensor) -> np.ndarray:
        return x[:rows, :columns].float().cpu().numpy()

    std = 255 * found.std[0, 0].float().cpu().numpy()
    panels = [
        Panel("restored", image[0].permute(1, 2, 0).float().cpu().numpy()),
        Panel(f"invented: std of {samples} seeds", std, 0, max(1.0, float(np.quantile(std, 0.99))), "levels of 255"),
        Panel("entropy of phi_r", tokens(found.entropy[0, 0]), 0, math.log(net.vqgan.num_codes), "nats"),
        Panel("p_e(good) of S_l", tokens(result.good[0]), 0, 1, "1: kept as it is"),
        Panel("times redrawn", tokens(drawn), 0, max(1, steps), f"of {steps} steps"),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        draw(panels).save(temporary, "PNG")
