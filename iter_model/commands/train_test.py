"""`basicsr train` and `basicsr test`: an option file, and how a run ends."""

from __future__ import annotations

import argparse
import os
import sys

TRACEBACK_VARIABLE = "ITER_TRACEBACK"

_EPILOGS = {
    "train": """\
Checkpoints, states, logs, and validation images go to experiments/NAME/ in the current folder, and TensorBoard files
to tb_logger/NAME/. An older run of the same name is renamed, not overwritten, unless --auto_resume continues it.

examples:
  basicsr train -opt options/train_swin_vqgan.yml
  basicsr train -opt options/train_iter.yml --auto_resume
  basicsr train -opt options/train_iter.yml --force_yml train:total_iter=1000 datasets:train:batch_size_per_gpu=8
  torchrun --nproc_per_node=4 --no-python basicsr train -opt options/train_iter.yml --launcher pytorch
""",
    "test": """\
Images and the log with the metrics go to results/NAME/ in the current folder. An older folder is renamed.

examples:
  basicsr test -opt options/test_iter.yml
  basicsr test -opt iter:test_iter.yml     (the file that ships with the project, from any folder)
  basicsr test -opt options/test_iter.yml \\
    --force_yml path:pretrain_network_g=experiments/train_iter_tiny/models/iter_latest.safetensors
""",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `basicsr train` or `basicsr test`, whichever the parser is for."""
    from basicsr_compat.pipeline.options import add_arguments

    add_arguments(parser)
    parser.add_argument("--traceback", action="store_true", help="show where in the program an error arose")
    parser.epilog = _EPILOGS[parser.prog.rpartition(" ")[2]]


def run(args: argparse.Namespace) -> int:
    """Train or test in the current folder, as `args.command` says.

    Returns:
        The exit code: 0; 128 + the number of a signal that ended the run; 1 for a test that left images out, and for a
        run that failed later because of a file; 2 for a problem with the command, the options, or the data before the
        run begins.
    """
    import basicsr_compat

    basicsr_compat.install_pipeline()
    # Registers every network, data set, model, loss and metric; an import error here is a fault, not a problem.
    import iter_arch  # noqa: F401
    import iter_data  # noqa: F401
    import iter_model  # noqa: F401
    from basicsr_compat.pipeline import distributed, loop
    from basicsr_compat.pipeline.options import read_options
    from basicsr_compat.pipeline.stops import orderly_stops

    if args.launcher == "slurm" and "SLURM_PROCID" in os.environ:
        os.environ["RANK"] = os.environ["SLURM_PROCID"]  # only rank 0 warns of what it reads
    is_train = args.command == "train"
    with orderly_stops() as stops:
        one = loop.Run(stops=stops)
        try:
            opt = read_options(args, os.getcwd(), is_train)
            code = (loop.train if is_train else loop.test)(opt, args, one)
        except BaseException as error:
            try:
                if not isinstance(error, Exception):
                    raise
                return _failed(error, args, one.folders.begun)
            finally:
                distributed.leave(one.watch, error)
    distributed.leave(one.watch)
    return code


def _failed(error: Exception, args: argparse.Namespace, begun: bool) -> int:
    """Print an error that the user can fix, and return the exit code; any other error keeps its traceback."""
    from basicsr_compat.images import UnreadableImage
    from basicsr_compat.pipeline.distributed import failed_elsewhere
    from basicsr_compat.schema import OptionProblems, format_error

    elsewhere = failed_elsewhere(error)
    if elsewhere and not args.traceback:
        print(f"basicsr {args.command}: {elsewhere}", file=sys.stderr)
        return 1
    understood = isinstance(error, OptionProblems | UnreadableImage | OSError)
    if args.traceback or os.environ.get(TRACEBACK_VARIABLE) or not understood:
        raise error
    rank = f" (rank {os.environ['RANK']})" if args.launcher != "none" and "RANK" in os.environ else ""
    several = error.problems if isinstance(error, OptionProblems) and len(error.problems) > 1 else None
    for problem in several or [format_error(error)]:
        print(f"basicsr {args.command}{rank}: error: {problem}", file=sys.stderr)
    print("(--traceback shows where)", file=sys.stderr)
    return 1 if begun else 2
