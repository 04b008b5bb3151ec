"""Finds weights: in the package, in a folder, in the cache, or on a release page (ITER, arXiv:2312.05616)."""

import contextlib
import hashlib
import os
import sys
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from urllib.request import Request, urlopen

from basicsr_compat.files import atomic_write
from basicsr_compat.schema import format_error

WEIGHTS = Path(__file__).parents[1] / "weights"
# Where BasicSR's users keep downloaded weights, below the current folder.
FOLDER = Path("experiments/pretrained_models")
TIMEOUT = 60
ATTEMPTS = 10  # of a download that breaks off
PARTIAL_CONTENT = HTTPStatus.PARTIAL_CONTENT
HUB = "hf:"


class Remote(NamedTuple):
    """A file that can be downloaded. sha256: of its content, if known."""

    name: str
    url: str
    sha256: str | None = None


RELEASE_URL = "https://github.com/chaofengc/ITER/releases/download/v0.1.0"
# The authors' release. The VQGAN completes those of its files that have none.
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
    """The user's cache: the variable ITER_CACHE, or ~/.cache/iter-sr."""
    return Path(os.environ.get("ITER_CACHE") or "~/.cache/iter-sr").expanduser()


def find_checkpoint(name: str | Path) -> Path:
    """The file behind a name.

    Args:
        name: a name of `shipped()`; 'released_x4' or 'released_x2', which may be downloaded; 'hf:owner/repo/file' on
            Hugging Face's hub; or a path.

    Raises:
        FileNotFoundError: neither a known name nor a file, or a download failed.
    """
    if str(name) in REMOTES:
        return fetch(REMOTES[str(name)])
    if str(name).startswith(HUB):
        return fetch_from_hub(str(name))
    path = WEIGHTS / f"{name}.safetensors"
    path = path if path.is_file() else Path(name)
    if not path.is_file():
        known = ", ".join([*shipped(), *RELEASED])
        raise FileNotFoundError(
            f"model={str(name)!r} is neither a file nor one of the known weights ({known}, hf:owner/repo/file)"
        )
    return path


def find_local(name: str) -> Path | None:
    """As `find_checkpoint`, but without a download: None if the file is known but not there yet."""
    if name in REMOTES:
        return local_copy(REMOTES[name])
    if name.startswith(HUB):
        try:
            return fetch_from_hub(name, local_only=True)
        except FileNotFoundError:
            return None
    return find_checkpoint(name)


def local_copy(remote: Remote) -> Path | None:
    """The file in experiments/pretrained_models/ or in the cache, if it is there."""
    return next((path for path in (FOLDER / remote.name, cache_folder() / remote.name) if path.is_file()), None)


def fetch(remote: Remote) -> Path:
    """`local_copy`, or the file downloaded into the cache.

    Raises:
        FileNotFoundError: it is not there and cannot be downloaded, or the download is wrong; says which file to put
            where.
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
        reason = error.__cause__ or error  # the network's error, not that the file was not written
        raise FileNotFoundError(
            f"{remote.name} is missing and cannot be downloaded ({reason}); get {remote.url} and put it at "
            f"{(FOLDER / remote.name).absolute()}"
        ) from None
    return path


def fetch_from_hub(name: str, *, local_only: bool = False) -> Path:
    """A file of Hugging Face's hub, downloaded into the cache if it is not there or has changed.

    Args:
        name: 'hf:owner/repo/file'; the file may be in a folder.
        local_only: take it from the cache only.

    Raises:
        FileNotFoundError: huggingface_hub is missing, the name has another form, or the file cannot be downloaded.
    """
    owner, _, rest = name.removeprefix(HUB).partition("/")
    repo, _, file = rest.partition("/")
    if not (owner and repo and file):
        raise FileNotFoundError(f"model={name!r} must have the form hf:owner/repo/file")
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise FileNotFoundError(f"model={name!r} needs huggingface_hub: pip install huggingface_hub") from None
    try:
        path = hf_hub_download(f"{owner}/{repo}", file, cache_dir=cache_folder() / "hub", local_files_only=local_only)
    # ValueError: not a valid name, or not in the cache while there is no network.
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"model={name!r} cannot be downloaded: {format_error(error)}") from None
    return Path(path)


def _download(remote: Remote, path: str) -> None:
    """Raises OSError or HTTPException if the file cannot be downloaded, and OSError if it is not the expected one.

    A transfer that breaks off is continued as long as each attempt receives more of the file.
    """
    with open(path, "wb") as file, _progress(remote.name) as bar:
        for attempt in range(ATTEMPTS):
            before = file.tell()
            try:
                _receive(remote.url, file, bar)
                break
            except (OSError, HTTPException):
                if file.tell() <= before or attempt == ATTEMPTS - 1:
                    raise
    found = _sha256(path) if remote.sha256 else None
    if found != remote.sha256:
        raise OSError(f"{remote.url} has SHA-256 {found}, not {remote.sha256}")


def _receive(url: str, file: BinaryIO, bar: Any) -> None:
    """Append the rest of the file, or start over if the server cannot continue."""
    start = file.tell()
    request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    with urlopen(request, timeout=TIMEOUT) as response:
        if start and response.status != PARTIAL_CONTENT:
            file.seek(start := 0)
            file.truncate()
        total = int(response.headers.get("Content-Length") or 0)
        total += start if total else 0
        bar.total, bar.n = total or None, start
        while block := response.read(1 << 16):
            file.write(block)
            bar.update(len(block))
    if total and file.tell() != total:
        raise OSError(f"{url} ended after {file.tell()} of {total} bytes")


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _progress(name: str) -> Any:
    """A progress bar, if there is a terminal."""
    from tqdm import tqdm

    return tqdm(desc=name, unit="B", unit_scale=True, disable=None, file=sys.stderr)
