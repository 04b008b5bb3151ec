"""The folders of a run: made at its start, and restored to their former state where the start fails."""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import Any

from basicsr.utils.misc import get_time_str


class RunFolders:
    """The folders that a run has made and renamed so far; a context manager around the run.

    BasicSR renames the previous run's folder at once, even where the new run fails in its first second.
    """

    def __init__(self) -> None:
        self.begun = False  # whether the run has done its first iteration, or begun to test
        self.continues = False  # whether a folder of this name is this run's own: torchrun has started it anew
        self._made: list[tuple[str, str | None]] = []

    def make(self, opt: dict[str, Any]) -> None:
        """Make the folders that the options name; those of an older run of this name are renamed.

        BasicSR's makes a folder of every key under path: that it does not know.
        """
        if opt["rank"] != 0:
            return
        self.make_anew(opt["path"]["experiments_root" if opt["is_train"] else "results_root"])
        for key in ("models", "training_states", "log", "visualization"):
            if key in opt["path"]:
                os.makedirs(opt["path"][key], exist_ok=True)
        logger = opt.get("logger") or {}
        if opt["is_train"] and logger.get("use_tb_logger") and "debug" not in opt["name"]:
            self.make_anew(os.path.join(opt["root_path"], "tb_logger", opt["name"]))

    def make_anew(self, path: str) -> None:
        """Make a folder; an older one of this name is renamed."""
        if self.continues and os.path.exists(path):
            return
        archived = None
        if os.path.exists(path):
            archived = f"{path}_archived_{get_time_str()}"
            print(f"Path already exists. Rename it to {archived}", flush=True)
            os.rename(path, archived)
        self._made.append((path, archived))
        os.makedirs(path, exist_ok=True)

    def begin(self) -> None:
        """Keep the folders from now on, however the run ends, because its start has succeeded."""
        self.begun = True

    def __enter__(self) -> RunFolders:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or self.begun:
            return
        for path, archived in reversed(self._made):
            shutil.rmtree(path, ignore_errors=True)
            with contextlib.suppress(OSError):  # it holds other runs
                os.rmdir(os.path.dirname(path))
            if archived is not None:
                with contextlib.suppress(OSError):  # never hide the error that brought us here
                    os.rename(archived, path)
