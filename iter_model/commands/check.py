"""`basicsr check`, see iter_model.check."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `basicsr check`."""
    from iter_model import check

    check.add_arguments(parser)


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """Run `basicsr check`; returns the exit code."""
    from iter_model import check

    return check.run(args)
