"""`basicsr check`: finds out whether a training run or a test would start, without making a file or a folder."""

from __future__ import annotations

import argparse
import os
import warnings

_EPILOG = """\
Reads the option file as `basicsr train` and `basicsr test` do, lists every problem, counts images and parameters, and
puts one batch through: of a training yml one step on real images, of a test yml the smallest image. Nothing is written.
Exit code 0: all is well; 2: there are problems.

examples:
  basicsr check -opt options/train_iter.yml
  basicsr check -opt options/test_iter.yml
  basicsr check -opt options/train_iter.yml --force_yml datasets:train:batch_size_per_gpu=8 num_gpu=0
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `basicsr check`."""
    from basicsr_compat.pipeline.options import add_option_file

    add_option_file(parser)
    parser.add_argument("--traceback", action="store_true", help="show where in the program an error arose")
    parser.epilog = _EPILOG
    parser.set_defaults(auto_resume=False, debug=False, launcher="none")


def run(args: argparse.Namespace) -> int:
    """Check an option file and print a report, one line per check.

    Returns:
        The exit code: 0, or 2 where there are problems.
    """
    import basicsr_compat

    basicsr_compat.install_pipeline()
    # Registers every network, data set, model, loss and metric; an import error here is a fault, not a problem.
    import iter_arch  # noqa: F401
    import iter_data  # noqa: F401
    import iter_model  # noqa: F401
    from basicsr_compat.pipeline import trial
    from iter_model.pyiqa_metric import build_metric

    def build(section: dict) -> object:
        return build_metric(**{key: value for key, value in section.items() if key != "type"})

    report = trial.Report(args.traceback)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what PyTorch says of odd networks is not about the options
        trial.check(args, os.getcwd(), report, metrics={"pyiqa": build}, waiting_download=_waiting_download)
    count = len(report.problems)
    print(f"{count} problem{'s' if count > 1 else ''}" if count else "all well")
    return 2 if count else 0


def _waiting_download(opt: dict) -> str | None:
    """A released checkpoint that is named in the options and not there yet."""
    from iter_arch.pretrained.download import RELEASED, REMOTES, local_copy

    named = {str(value) for value in opt["path"].values()}
    return next((name for name in RELEASED if name in named and local_copy(REMOTES[name]) is None), None)
