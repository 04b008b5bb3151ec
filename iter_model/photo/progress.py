"""What is shown while photos are restored."""

from __future__ import annotations

import sys

from tqdm import tqdm

from basicsr_compat.images import printable


def bar(count: int) -> tqdm:
    """A progress bar over ``count`` photos; none where stderr is not a terminal."""
    return tqdm(total=count, desc="upscale", unit="image", disable=None)


def say(message: str) -> None:
    """Print a line to stderr without tearing the progress bar."""
    tqdm.write(printable(message), file=sys.stderr)
