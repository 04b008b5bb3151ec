"""Messages while photos are restored: progress bars on a terminal, lines, or a JSON object per photo for scripts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from basicsr_compat.images import UnreadableImage, printable
from iter_arch.progress import OnProgress
from iter_model.photo.processes import Processes

# Seconds that a photo takes before it gets a bar of its own.
LARGE_PHOTO = 2


class Reporter:
    """Reports to a person, or a program, what happens to every photo.

    Args:
        quiet: report failures only.
        as_json: print a line with a JSON object per photo to stdout, and no summary.
        processes: those that share the photos. Only the first shows bars and reports on all photos; each reports on the
            photos that it restores.
    """

    def __init__(self, *, quiet: bool = False, as_json: bool = False, processes: Processes | None = None) -> None:
        self.quiet = quiet
        self.as_json = as_json
        self.processes = processes or Processes()
        self._bar: tqdm | None = None
        self._last_failure = ""

    def begin(self, count: int) -> None:
        """Show a bar for this many photos, on a terminal."""
        self._bar = tqdm(total=count, desc="upscale", unit="image", disable=self._hides_bars)

    def end(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()

    def photo_bar(self, worker: int, name: str) -> OnProgress:
        """A callback that shows the progress within a photo, if that takes long, below the bar of all photos."""
        bar = tqdm(
            total=1,
            desc=f"  {printable(name)[-40:]}",
            position=1 + worker,
            leave=False,
            delay=LARGE_PHOTO,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]",
            disable=self._hides_bars,
        )

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)
            if done >= total:
                bar.close()

        return show

    def restored(self, source: Path, target: Path, **facts: Any) -> None:
        """Report that a photo is written. facts: width, height, seconds, start_step, and more, for scripts."""
        self._advance()
        self._object(input=source, output=target, **facts)

    def failed(self, source: Path, error: Exception) -> None:
        """Report that a photo could not be restored."""
        self._advance()
        text = str(error) or type(error).__name__
        self._object(input=source, error=text)
        # An UnreadableImage names the file itself.
        line = f"not restored: {text if isinstance(error, UnreadableImage) else f'{source}: {text}'}"
        if line != self._last_failure:  # several variants of a photo fail alike
            self.warn(line)
        self._last_failure = line

    def skipped(self, source: Path, why: str) -> None:
        """Report to scripts that a file need not be restored; people get one message about all of them, by `say`."""
        self._object(input=source, skipped=why)

    def say(self, message: str) -> None:
        """Print a line to stderr without tearing the bars."""
        if not self.quiet:
            self.warn(message)

    def warn(self, message: str) -> None:
        """Print a line to stderr, even with quiet."""
        tqdm.write(printable(message), file=sys.stderr)

    def summary(self, message: str) -> None:
        """Print the last line, to stdout."""
        if not self.quiet and not self.as_json and self.processes.is_first:
            print(message)

    @property
    def _hides_bars(self) -> bool | None:
        """tqdm's `disable`; None hides bars where stderr is no terminal."""
        return True if self.quiet or not self.processes.is_first else None

    def _advance(self) -> None:
        done = self.processes.count_done()
        if self._bar is not None:
            self._bar.update(done - self._bar.n)

    def _object(self, **facts: Any) -> None:
        if self.as_json:
            plain = {key: str(value) if isinstance(value, Path) else value for key, value in facts.items()}
            tqdm.write(json.dumps(plain), file=sys.stdout)
            sys.stdout.flush()
