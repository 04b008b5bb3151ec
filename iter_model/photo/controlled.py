"""What only tokens allow, for `basicsr upscale`: alpha maps, redrawn regions, files of tokens, and maps of uncertainty.

For the networks and the sampling of ITER (arXiv:2312.05616).
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from basicsr_compat.files import atomic_write
from basicsr_compat.images import MAX_PIXELS, Photo, read_photo
from iter_arch import Restored
from iter_model.photo.folders import PASSED_OVER, Job, Plan, refuse_overwriting
from iter_model.photo.levels import picture_of
from iter_model.photo.maps import Panel, Redrawn, draw, panel_size, panels_of
from iter_model.photo.restorer import Control, Outcome, Restorer
from iter_model.photo.token_file import TokenFile, check_tokens_fit, read_tokens, write_tokens


class Extras(NamedTuple):
    """What is written beside a result; None for what was not requested."""

    tokens: TokenFile | None
    maps: Image.Image | None


@dataclass(kw_only=True)
class CountingControl(Control):
    """A `Control` that counts how often each token is drawn."""

    on_step: Redrawn = field(default_factory=Redrawn)


@dataclass(frozen=True)
class Controls:
    """The control options of the command; `of` reads them.

    names: by the target of each result, the path below the output folder, without a suffix, of the files that go with
        it. Results that differ only in their suffix have different ones.
    """

    alpha_map: Path | None
    save_tokens: bool
    redraw: Path | None
    tokens_from: Path | None
    maps: Path | None
    samples: int
    output: Path
    names: Mapping[Path, Path]
    max_pixels: int = MAX_PIXELS

    @classmethod
    def of(cls, args: argparse.Namespace, planned: Plan, max_pixels: int) -> Controls:
        """Read the options of the command. Raises ValueError or OSError for what is impossible."""
        fields = ("alpha_map", "save_tokens", "redraw", "tokens_from", "maps", "samples", "output")
        given = {name: getattr(args, name) for name in fields}
        targets = [job.target.relative_to(args.output) for job in planned.jobs]
        names = {args.output / target: name for target, name in zip(targets, _apart(targets), strict=True)}
        controls = cls(**given, names=names, max_pixels=max_pixels)
        if args.frames == "all":
            raise ValueError("--frames all does not go with the options of control by tokens (--maps and others)")
        if args.samples < 1:
            raise ValueError(f"--samples={args.samples} must be at least 1")
        if args.maps is not None and args.maps.resolve() == args.output.resolve():
            raise ValueError(f"--maps {args.maps} must be another folder than -o, whose files have the same names")
        if (args.redraw is None) != (args.tokens_from is None):
            raise ValueError("--redraw MASK and --from RESULT.json go together")
        if args.redraw is not None and len({job.source for job in planned.jobs}) != 1:
            raise ValueError(f"--redraw takes one photo, not {len(planned.jobs)}")
        if args.tokens_from is not None:
            read_tokens(args.tokens_from)
        controls._refuse_overwriting(planned)
        return controls

    def files_of(self, job: Job) -> dict[str, Path]:
        """The files to write beside a result, by the fields of `Extras`."""
        name, files = self.names[job.target], {}
        if self.save_tokens:
            files["tokens"] = self.output / f"{name}.json"
        if self.maps is not None:
            files["maps"] = self.maps / f"{name}.png"
        return files

    def map_of(self, alpha_map: Path, job: Job) -> Path:
        """The alpha map of a photo: the given file, or the one in the given folder that has the photo's name.

        `a.png` or `a.jpg.png` belongs to `a.jpg`. Where there are several such files, the one whose name begins with
        the photo's whole name counts.

        Raises:
            FileNotFoundError: there is none.
            ValueError: several files fit.
        """
        if not alpha_map.is_dir():
            if not alpha_map.is_file():
                raise FileNotFoundError(f"--alpha-map {alpha_map} does not exist")
            return alpha_map
        folder = alpha_map / job.target.parent.relative_to(self.output)
        files = sorted(path for path in folder.glob("[!.]*") if path.suffix.lower() not in PASSED_OVER)
        name, stem = job.source.name, job.source.stem
        whole = [path for path in files if path.name == name] or [path for path in files if path.stem == name]
        found = whole or [path for path in files if path.stem == stem]
        if not found:
            raise FileNotFoundError(f"--alpha-map {alpha_map} holds no image named {stem}")
        if len(found) > 1:
            several = ", ".join(path.name for path in found)
            raise ValueError(f"--alpha-map {alpha_map} holds {several}; name that of {name} {name}.png")
        return found[0]

    def control(self, job: Job, photo: Photo, restorer: Restorer, known: dict[Any, Any]) -> CountingControl:
        """The control of a photo; known: see `Control`. Raises ValueError or OSError where a file does not fit."""
        control = CountingControl(seed=job.seed, known=known)
        if self.alpha_map is not None:
            control.alpha = self._gray(self.map_of(self.alpha_map, job))
        if self.redraw is not None and self.tokens_from is not None:
            found = read_tokens(self.tokens_from)
            check_tokens_fit(self.tokens_from, found, photo.rgb.shape[:2], restorer.checksum)
            control.tokens, control.redraw = found.tokens, self._gray(self.redraw)
        return control

    def extras(
        self, photo: Photo, restorer: Restorer, control: CountingControl, outcome: Outcome[Restored], **told: Any
    ) -> Extras:
        """Make what is written beside the result of a photo.

        Args:
            control, outcome: how it was restored, and to what.
            told: progress, cancelled, and on_retry, see `Restorer.uncertainty`.
        """
        restored, tokens, maps = outcome.restored, None, None
        if self.save_tokens:
            seed = restorer.seed if control.seed is None else control.seed
            tokens = TokenFile(restored.tokens.cpu(), photo.rgb.shape[:2], restorer.checksum, seed)
        if self.maps is not None:
            found = restorer.uncertainty(photo, self.samples, control=control, **told)
            shown = panel_size(found.std.shape[2:])
            panels = panels_of(
                found, restored, control.on_step.times, vqgan=restorer.iter.vqgan, samples=self.samples, shown=shown
            )
            maps = draw([Panel("restored", picture_of(outcome.photo, shown)[..., :3]), *panels])
        return Extras(tokens, maps)

    def write(self, job: Job, extras: Extras) -> None:
        """Write the extras of a result atomically. Raises OSError."""
        files = self.files_of(job)
        for path in files.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        if extras.tokens is not None:
            write_tokens(files["tokens"], extras.tokens)
        if extras.maps is not None:
            with atomic_write(files["maps"]) as temporary:
                extras.maps.save(temporary, "PNG")

    def _gray(self, path: Path) -> Tensor:
        """(1, 1, height, width) in [0, 1]."""
        rgb = read_photo(path, max_pixels=self.max_pixels).rgb
        return torch.from_numpy(np.ascontiguousarray(rgb.mean(2)))[None, None].clamp(0, 1)

    def _refuse_overwriting(self, planned: Plan) -> None:
        jobs = planned.jobs
        masks = [self.map_of(self.alpha_map, job) for job in jobs] if self.alpha_map is not None else []
        masks += [self.redraw] if self.redraw is not None else []
        beside = [path for job in jobs for path in self.files_of(job).values()]
        refuse_overwriting([*(job.source for job in jobs), *masks], [*(job.target for job in jobs), *beside])
        # A .json file beside a photo may be a note of a camera or a service: then this refuses it.
        for path in {*beside} & {*planned.passed_over}:
            read_tokens(path)


def _apart(targets: list[Path]) -> list[Path]:
    """A name for each of several different paths: without its suffix, where no other has that name."""
    plain, taken = Counter(target.with_suffix("") for target in targets), {*targets}
    return [
        target.with_suffix("") if plain[target.with_suffix("")] == 1 and target.with_suffix("") not in taken else target
        for target in targets
    ]
