"""`basicsr upscale`, see iter_model.upscale."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `basicsr upscale`."""
    from iter_model import upscale

    upscale.add_arguments(parser)


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """Run `basicsr upscale`; returns the exit code."""
    from iter_model import upscale

    return upscale.run(args)
