"""Plans which photo is restored to which file: searches folders, passes over other files, and chooses names."""

from __future__ import annotations

import glob
import os
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from basicsr_compat.files import is_leftover, remove_leftovers
from basicsr_compat.images import image_kind, is_image, is_whole

# Files that cameras, phones, and systems put beside photos: sidecars, litter, videos, and raw files.
PASSED_OVER = frozenset(
    ".aae .dop .json .pp3 .thm .xmp .ini .db .tmp "
    ".3gp .avi .lrv .m2ts .m4v .mkv .mov .mp4 .mpg .mts .webm .wmv "
    ".3fr .arw .cr2 .cr3 .crw .dng .erf .iiq .kdc .mrw .nef .nrw .orf .pef .raf .raw .rw2 .rwl .srw .x3f".split()
)
# --ext auto: the kind of the result for a kind of photo; png for all others.
AUTO = {"jpg": "jpg", "webp": "webp", "tiff": "tiff", "avif": "avif", "heif": "jpg"}


class Job(NamedTuple):
    """A photo, and the file that it is restored to. seed: of a variant, instead of --seed; None without variants."""

    source: Path
    target: Path
    seed: int | None = None


class Plan(NamedTuple):
    """What a run will do.

    jobs: in the order of their names.
    passed_over: files that are no photos and are not reported as failures.
    told_apart: jobs whose targets got longer names, because their plain names would be equal.
    """

    jobs: list[Job]
    passed_over: list[Path]
    told_apart: list[Job]


def plan(
    inputs: Sequence[Path],
    output: Path,
    *,
    recursive: bool = False,
    suffix: str = "",
    ext: str = "png",
    all_frames: bool = False,
    seeds: Sequence[int] = (),
) -> Plan:
    """Find the photos of `inputs`, and choose the file of each result: its path in the given folder, below `output`.

    Every file of a folder counts, whatever its suffix, so that a photo of an unknown kind is reported as a failure.
    Only suffixes of `PASSED_OVER`, hidden files, and leftovers of a killed run are passed over.

    Args:
        inputs: files, folders, and patterns that match either.
        output: folder of the results; not searched where it lies within an input.
        recursive: whether subfolders are searched too.
        suffix: appended to every name. Files of a folder that an earlier run made from others in it are no inputs.
        ext: of the results, without a dot; 'auto': by the kind of each photo.
        all_frames: with 'auto', whether a GIF animation becomes one.
        seeds: of several variants of each photo, `a_seed0.png` and so on.

    Raises:
        FileNotFoundError: one of ``inputs`` does not exist.
        ValueError: an input holds no photo, ``output`` cannot be a folder, or a result would overwrite an input.
    """
    _check_folder(output, ext)
    if "/" in suffix or "\0" in suffix or os.sep in suffix:
        raise ValueError(f"--suffix={suffix!r} must be a part of a file's name, without slashes")
    photos: dict[Path, Path] = {}
    passed_over: list[Path] = []
    for given in inputs:
        for root in _expand(given):
            found = list(_files(root, output, recursive))
            chosen = [path for path in found if path == root or not _is_beside(path)]
            if not chosen:
                where = "" if recursive else " (its subfolders are searched with --recursive)"
                raise ValueError(f"-i {root} holds no photos; expected images in it{where}")
            passed_over += sorted({*found} - {*chosen})
            below = root if root.is_dir() else root.parent
            photos |= {path: output / path.relative_to(below) for path in chosen if path not in photos}
    suffixes = {path: f"{suffix}.{_ext(path, ext, all_frames)}" for path in photos}
    jobs, told_apart = _named(photos, suffixes)
    if suffix:
        given_alone = {path for given in inputs for path in _expand(given)}
        results = {job.target for job in jobs} & {job.source for job in jobs} - given_alone
        if results:
            photos = {path: place for path, place in photos.items() if path not in results}
            jobs, told_apart = _named(photos, suffixes)
    if seeds:
        jobs = [_variant(job, seed) for job in jobs for seed in seeds]
    refuse_overwriting([job.source for job in jobs], [job.target for job in jobs])
    return Plan(jobs, passed_over, told_apart)


def prepare_folders(tops: Collection[Path], files: Iterable[Path]) -> None:
    """Make the folders of a run, and remove leftovers of ``files`` by killed runs from all folders of files.

    Args:
        tops: the folder of the results, and that of other files.
        files: everything that will be written.

    Raises:
        OSError: a folder cannot be made or written to.
    """
    names: dict[Path, list[str]] = {top: [] for top in tops}
    for file in files:
        names.setdefault(file.parent, []).append(file.name)
    for top in tops:
        top.mkdir(parents=True, exist_ok=True)
    for folder in sorted(names):
        if os.path.lexists(folder) and not folder.is_dir():
            raise NotADirectoryError(f"{folder} is no folder, but results are to be written into it")
        if folder.exists():
            tempfile.TemporaryFile(dir=folder).close()
            remove_leftovers(folder, names[folder])


def is_restored(*targets: Path) -> bool:
    """Whether one of the files that may hold a result exists and is complete."""
    return any(os.path.isfile(target) and is_whole(target) for target in targets)  # no error for a name too long


def refuse_overwriting(inputs: Iterable[Path], targets: Iterable[Path]) -> None:
    """Raise ValueError where a target is one of the inputs."""
    identities = {_identity(path): path for path in inputs if os.path.exists(path)}
    for target in targets:
        if os.path.exists(target) and (found := identities.get(_identity(target))):
            raise ValueError(f"{target} would overwrite the input {found}; give another folder, or a --suffix")


def oversized(target: Path) -> Path:
    """The file of a result that is too large for its target's kind of file."""
    return target.with_name(f"{target.name}.png")


def _is_beside(path: Path) -> bool:
    return path.suffix.lower() in PASSED_OVER or is_leftover(path.name)


def _ext(path: Path, ext: str, all_frames: bool) -> str:
    if ext != "auto":
        return ext
    kind = image_kind(path)
    return "gif" if kind == "gif" and all_frames else AUTO.get(kind or "", "png")


def _expand(given: Path) -> list[Path]:
    given = Path(os.path.expanduser(given))  # no error where nobody is called so
    if given.exists() or given.is_symlink():
        return [given]
    found = sorted(glob.glob(str(given)))
    if not found:
        raise FileNotFoundError(f"-i {given} does not exist; give an image or a folder of images")
    return [Path(path) for path in found]


def _files(root: Path, output: Path, recursive: bool) -> Iterator[Path]:
    """Files in the order of their names; broken links too, which are reported when they are read."""
    if not root.is_dir():
        yield root
        return
    seen = set()
    for parent, folders, names in os.walk(root, followlinks=True):
        folder = Path(parent)
        again = folder.resolve() in seen  # a link back to a parent
        seen.add(folder.resolve())
        skipped = again or (folder != root and folder.resolve() == output.resolve())
        deeper = sorted(name for name in folders if not name.startswith(".")) if recursive and not skipped else []
        folders[:] = deeper
        if not skipped:
            paths = (folder / name for name in sorted(names) if not name.startswith("."))
            yield from (path for path in paths if path.is_file() or path.is_symlink())


def _named(photos: dict[Path, Path], suffixes: dict[Path, str]) -> tuple[list[Job], list[Job]]:
    """Jobs with different targets: `a.png`, or `a.jpg.png` and `a.png.png` where two photos would become `a.png`."""
    plain = {path: place.with_name(place.stem + suffixes[path]) for path, place in photos.items()}
    count = Counter(plain.values())
    # A note beside a photo of the same name is no second image.
    rivals = {path for path, target in plain.items() if count[target] > 1 and is_image(path)}
    count = Counter(plain[path] for path in rivals)
    jobs, told_apart, taken = [], [], {target for path, target in plain.items() if path not in rivals}
    for path, place in photos.items():
        target, number = plain[path], 1
        if path in rivals and count[target] > 1:
            target = place.with_name(place.name + suffixes[path])
            while target in taken:
                number += 1
                target = place.with_name(f"{place.name}_{number}{suffixes[path]}")
            told_apart.append(Job(path, target))
            taken.add(target)
        jobs.append(Job(path, target))
    return jobs, told_apart


def _variant(job: Job, seed: int) -> Job:
    return Job(job.source, job.target.with_name(f"{job.target.stem}_seed{seed}{job.target.suffix}"), seed)


def _check_folder(output: Path, ext: str) -> None:
    if output.is_symlink() and not output.exists():
        raise ValueError(f"-o {output} is a link to nowhere; give a folder")
    if output.exists() and not output.is_dir():
        raise ValueError(f"-o {output} is a file; give a folder, results are written to it as <name>.{ext}")
    if output.suffix.lower() in (".png", ".jpg", ".jpeg") and not output.exists():
        raise ValueError(f"-o {output} looks like a file; give a folder, results are written to it as <name>.{ext}")


def _identity(path: Path) -> tuple[int, int]:
    """Equal for two paths of the same file, through links and letter case."""
    status = os.stat(path)
    return status.st_dev, status.st_ino
