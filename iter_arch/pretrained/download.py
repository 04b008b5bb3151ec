"""Where weights are: in the package, in a folder, in the cache, or on a release page (ITER, arXiv:2312.05616)."""

import contextlib
import hashlib
import os
import sys
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

from basicsr_compat.files import atomic_write

WEIGHTS = Path(__file__).parents[1] / "weights"
# Where BasicSR's users keep weights of others, below the current folder.
FOLDER = Path("experiments/pretrained_models")
TIMEOUT = 60


class Remote(NamedTuple):
    """A file that can be downloaded. sha256: of its content, where it is known."""

    name: str
    url: str
    sha256: str | None = None


RELEASE_URL = "https://github.com/chaofengc/ITER/releases/download/v0.1.0"
# The authors' release; the VQGAN is for those of its files that have none.
REMOTES = {
    name: Remote(file, f"{RELEASE_URL}/{file}")
    for name, file in (
        ("released_x4", "ITER_x4.pth"),
        ("released_x2", "ITER_x2.pth"),
        ("released_vqgan", "ITER_swinvqgan.pth"),
    )
}
RELEASED = ("released_x4", "released_x2")
RELEASED_VQGAN = REMOTES["released_vqgan"].name


def shipped() -> list[str]:
    """Names of the weights that come with the package."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


def cache_folder() -> Path:
    """The one cache of a user: the variable ITER_CACHE, or ~/.cache/iter-sr."""
    return Path(os.environ.get("ITER_CACHE") or "~/.cache/iter-sr").expanduser()


def find_checkpoint(name: str | Path) -> Path:
    """The file behind a name.

    Args:
        name: a name of `shipped()`; 'released_x4' or 'released_x2', which may be downloaded; or a path.

    Raises:
        FileNotFoundError: neither a known name nor a file, or a download failed.
    """
    if str(name) in REMOTES:
        return fetch(REMOTES[str(name)])
    path = WEIGHTS / f"{name}.safetensors"
    path = path if path.is_file() else Path(name)
    if not path.is_file():
        known = ", ".join([*shipped(), *RELEASED])
        raise FileNotFoundError(f"model={str(name)!r} is neither a file nor one of the known weights ({known})")
    return path


def local_copy(remote: Remote) -> Path | None:
    """The file where it is there already: in experiments/pretrained_models/, else in the cache."""
    return next((path for path in (FOLDER / remote.name, cache_folder() / remote.name) if path.is_file()), None)


def fetch(remote: Remote) -> Path:
    """`local_copy`, or else the file downloaded into the cache.

    Raises:
        FileNotFoundError: it is not there and cannot be downloaded, or what comes is not it; says what to put where.
    """
    path = local_copy(remote)
    if path is not None:
        return path
    path = cache_folder() / remote.name
    new_folders = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            _download(remote, temporary)
    except (OSError, HTTPException) as error:
        for folder in new_folders:
            with contextlib.suppress(OSError):  # another process has put a file there meanwhile
                folder.rmdir()
        raise FileNotFoundError(
            f"{remote.name} is missing and cannot be downloaded ({error}); get {remote.url} and put it at "
            f"{(FOLDER / remote.name).absolute()}"
        ) from None
    return path


def _download(remote: Remote, path: str) -> None:
    """Raises OSError where less comes than was announced, or something else."""
    digest, size = hashlib.sha256(), 0
    with urlopen(remote.url, timeout=TIMEOUT) as response, open(path, "wb") as file:
        total = int(response.headers.get("Content-Length") or 0)
        with _progress(remote.name, total) as bar:
            while block := response.read(1 << 20):
                file.write(block)
                digest.update(block)
                size += len(block)
                bar.update(len(block))
    if total and size != total:
        raise OSError(f"{remote.url} ended after {size} of {total} bytes")
    if remote.sha256 and digest.hexdigest() != remote.sha256:
        raise OSError(f"{remote.url} has SHA-256 {digest.hexdigest()}, not {remote.sha256}")


def _progress(name: str, total: int) -> Any:
    """A bar on a terminal, where there is one."""
    from tqdm import tqdm

    return tqdm(total=total or None, desc=name, unit="B", unit_scale=True, disable=None, file=sys.stderr)
