"""`basicsr train` and `basicsr test`: BasicSR's pipelines on an option file."""

from __future__ import annotations

import argparse

_EPILOGS = {
    "train": """\
Checkpoints, states, logs and validation images go to experiments/NAME/ in the current folder, TensorBoard's files to
tb_logger/NAME/. An older run of the same name is renamed, not overwritten, unless --auto_resume goes on with it.

examples:
  basicsr train -opt options/train_swin_vqgan.yml
  basicsr train -opt options/train_iter.yml --auto_resume
  basicsr train -opt options/train_iter.yml --force_yml train:total_iter=1000 datasets:train:batch_size_per_gpu=8
  torchrun --nproc_per_node=4 --no-python basicsr train -opt options/train_iter.yml --launcher pytorch
""",
    "test": """\
Images and the log with the metrics go to results/NAME/ in the current folder; an older test's are renamed.

examples:
  basicsr test -opt options/test_iter.yml
  basicsr test -opt options/test_iter.yml --force_yml path:pretrain_network_g=experiments/iter/models/net_g_latest.pth
""",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `basicsr train` or `basicsr test`, whichever the parser is for."""
    from basicsr_compat.pipeline.options import add_arguments

    add_arguments(parser)
    parser.add_argument("--traceback", action="store_true", help="show where in the program an error arose")
    parser.epilog = _EPILOGS[parser.prog.rpartition(" ")[2]]


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """Train or test in the current folder, as `args.command` says; returns the exit code."""
    from iter_model import launch

    return launch.run(args, argv)
