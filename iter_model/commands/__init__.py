"""The `basicsr` command and the table of its subcommands, each of which is imported only when it is called.

A new command is a module with two functions and a row in `COMMANDS`:

    def add_arguments(parser: argparse.ArgumentParser) -> None    # its options; sets the parser's epilog
    def run(args: argparse.Namespace) -> int                      # runs it, and returns the exit code

A module imports PyTorch, BasicSR, and whatever else is slow inside `run`, so that help and usage errors come at once.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from importlib import metadata
from typing import Any

from iter_model.commands import shipped

# Name: (module, summary).
COMMANDS = {
    "train": ("iter_model.commands.train_test", "train the networks that an option file describes"),
    "test": ("iter_model.commands.train_test", "restore the images of an option file and measure the results"),
    "check": ("iter_model.commands.check", "check an option file without training or testing"),
    "upscale": ("iter_model.commands.upscale", "restore photos, a file or a folder"),
    "web": ("iter_model.commands.web", "restore photos on a page in the browser"),
    "weights": ("iter_model.commands.weights", "list, find and download weights"),
    "export": ("iter_model.commands.export", "write the networks as ONNX files"),
    "convert": ("iter_model.commands.convert", "convert the authors' checkpoints to ours, or back"),
}

_DESCRIPTION = "ITER (AAAI 2024): train and test it with BasicSR, restore photos with it."
_EXAMPLES = """\
examples:
  basicsr upscale -i photos/ -o results/
  basicsr test  -opt options/test_iter.yml
  basicsr check -opt options/train_iter.yml
  basicsr train -opt options/train_iter.yml --auto_resume
  torchrun --nproc_per_node=4 --no-python basicsr train -opt options/train_iter.yml --launcher pytorch

`basicsr COMMAND --help` explains a command.
"""


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser of the `basicsr` command.

    Args:
        command: the command in use, whose module is imported for its arguments; the help only names the others.
    """
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("basicsr", description=_DESCRIPTION, epilog=_EXAMPLES, formatter_class=raw)
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, summary) in COMMANDS.items():
        one = commands.add_parser(
            name, help=summary, description=summary, formatter_class=raw, allow_abbrev=False, add_help=name != "upscale"
        )
        if name == command:
            importlib.import_module(module).add_arguments(one)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the `basicsr` command.

    Args:
        argv: the words after `basicsr`; by default those of this process.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
    """
    argv = [_path_apart(word) for word in (sys.argv[1:] if argv is None else argv)]
    parser = build_parser(argv[0] if argv else None)
    args = parser.parse_args(argv)
    try:
        shipped.resolve(args)
    except FileNotFoundError as error:
        parser.error(str(error))
    try:
        return importlib.import_module(COMMANDS[args.command][0]).run(args)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "basicsr":
            raise
        print(f"{parser.prog} {args.command} needs BasicSR: python -m basicsr_compat.install", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def usage_error(command: str, error: object) -> int:
    """Print in one line why a command cannot run with its arguments; returns the exit code, 2."""
    print(f"basicsr {command}: error: {error}", file=sys.stderr)
    return 2


def _path_apart(word: str) -> str:
    """A word that no parser takes for an option: a file may be called `-x.jpg`."""
    return os.path.join(".", word) if len(word) > 2 and word.startswith("-") and os.path.lexists(word) else word


class _Version(argparse.Action):
    """Prints the versions that a bug report needs; they are looked up only when they are asked for."""

    def __init__(self, option_strings: list[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help="print the versions and exit")

    def __call__(self, parser: argparse.ArgumentParser, *args: Any) -> None:
        packages = ", ".join(f"{name} {_version(name)}" for name in ("basicsr", "torch", "torchvision"))
        print(f"iter-sr {_version('iter-sr')} ({packages}, python {sys.version.split()[0]})")
        parser.exit()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
