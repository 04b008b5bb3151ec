"""`-opt iter:NAME.yml`: the project's own option files and sample photos, from any folder."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

PREFIX = "iter:"
_PACKAGE = Path(__file__).resolve().parents[1]
# A wheel carries the files in iter_model/shipped; in a checkout they lie at its top.
ROOT = _PACKAGE / "shipped" if (_PACKAGE / "shipped").is_dir() else _PACKAGE.parent


def resolve(args: argparse.Namespace) -> None:
    """Replace `iter:NAME.yml` in `args.opt` by the path of the file, and set the paths of its sample photos.

    Raises:
        FileNotFoundError: there is no option file of this name; the message lists the existing ones.
    """
    if not getattr(args, "opt", "").startswith(PREFIX):
        return
    files = {file.name: file for file in sorted((ROOT / "options").glob("*.yml"))}
    name = args.opt.removeprefix(PREFIX)
    if name not in files:
        raise FileNotFoundError(f"-opt {args.opt}: the name must be one of {', '.join(files)}")
    args.opt = str(files[name])
    args.force_yml = [*_sample_folders(files[name]), *(args.force_yml or [])]


def _sample_folders(file: Path) -> Iterator[str]:
    import yaml

    for phase, section in yaml.safe_load(file.read_text(encoding="utf-8"))["datasets"].items():
        for key, value in section.items():
            if str(value).startswith("datasets/sample/"):
                yield f"datasets:{phase}:{key}={json.dumps(str(ROOT / value))}"
