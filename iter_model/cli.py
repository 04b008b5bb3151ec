"""The `basicsr` command: train, test and upscale."""

from __future__ import annotations

import os
import sys


def main() -> int:
    import iter_arch  # noqa: F401
    import iter_data  # noqa: F401
    import iter_model  # noqa: F401

    command = sys.argv[1]
    sys.argv = [f"basicsr {command}", *sys.argv[2:]]
    if command == "train":
        from basicsr.train import train_pipeline

        train_pipeline(os.getcwd())
    elif command == "test":
        from basicsr.test import test_pipeline

        test_pipeline(os.getcwd())
    return 0
