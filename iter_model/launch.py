"""Runs BasicSR's train and test pipelines for the command line, and tells a mistake in the options from a fault."""

from __future__ import annotations

import argparse
import os
import sys

import torch

from basicsr_compat import install_pipeline, replaced
from basicsr_compat.images import UnreadableImage
from basicsr_compat.pipeline.checkpoints import orderly_stops

TRACEBACK_VARIABLE = "ITER_TRACEBACK"


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """Train or test in the current folder, as `args.command` says.

    Args:
        args: the parsed command line.
        argv: the same as words; BasicSR parses it again and copies it into the run's folder.

    Returns:
        The exit code: 0; 128 + the number of a signal that ended the run; 1 for a test that had to leave images
        out, and for a file that failed the run on its way; 2 for a mistake in the command, the options or the
        data, found before the run begins.
    """
    import basicsr.test
    import basicsr.train

    install_pipeline()
    # Registers every network, dataset, model, loss and metric; an import error here is a fault, not a mistake.
    import iter_arch  # noqa: F401
    import iter_data  # noqa: F401
    import iter_model  # noqa: F401

    pipeline = {"train": basicsr.train.train_pipeline, "test": basicsr.test.test_pipeline}[args.command]
    sys.argv = [f"basicsr {args.command}", *(word for word in argv if word != "--traceback")]
    try:
        with orderly_stops() as training:
            pipeline(os.getcwd())
    except Exception as error:
        elsewhere = replaced.failed_elsewhere(error)
        if elsewhere and not args.traceback:
            print(f"basicsr {args.command}: {elsewhere}", file=sys.stderr)
            return 1
        failed = replaced.run_has_begun() and isinstance(error, OSError | UnreadableImage)
        if args.traceback or os.environ.get(TRACEBACK_VARIABLE) or not (failed or _is_users_problem(error)):
            raise
        rank = f" (rank {os.environ['RANK']})" if args.launcher != "none" and "RANK" in os.environ else ""
        said = f"basicsr {args.command}{rank}: error: "
        # Of the options every mistake is named, on a line of its own.
        lines = f"{said}{_message(error)}".replace("\n", f"\n{said}")
        print(f"{lines}\n(--traceback shows where)", file=sys.stderr)
        return 1 if failed else 2
    # Not of a run that failed: NCCL would wait for ranks that are gone.
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if args.command == "test" and replaced.skipped_images():
        print(f"basicsr test: {len(replaced.skipped_images())} images were left out", file=sys.stderr)
        return 1
    return training.exit_code()


def _is_users_problem(error: Exception) -> bool:
    """Whether this is the user's to mend: it shows before the run has begun, in the way option checks show it."""
    if replaced.run_has_begun():
        return False
    if isinstance(error, TypeError):  # an option that no constructor takes, or one that a constructor needs
        return "__init__() got an unexpected" in str(error) or "__init__() missing" in str(error)
    return isinstance(error, AssertionError | KeyError | NotImplementedError | OSError | ValueError)


def _message(error: Exception) -> str:
    if isinstance(error, KeyError):
        key = error.args[0] if error.args else error
        return key if " " in str(key) else f"the options lack {key!r}"
    # PyTorch puts the traceback of a DataLoader's worker before the message
    text = str(error).rpartition(f"{type(error).__name__}: ")[2] if "\nOriginal Traceback" in str(error) else str(error)
    return text.strip() or type(error).__name__
