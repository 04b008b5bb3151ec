"""`basicsr convert`, see iter_model.convert."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `basicsr convert`."""
    from iter_model import convert

    convert.add_arguments(parser)


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """Run `basicsr convert`; returns the exit code."""
    from iter_model import convert

    return convert.run(args)
