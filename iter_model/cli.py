"""The `basicsr` command: train, test, check, upscale and convert."""

from __future__ import annotations

import argparse
import sys
from importlib import metadata

from basicsr_compat.pipeline.options import add_arguments

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
_TRAIN_EXAMPLES = """\
Checkpoints, states, logs and validation images go to experiments/NAME/ in the current folder, TensorBoard's files to
tb_logger/NAME/. An older run of the same name is renamed, not overwritten, unless --auto_resume goes on with it.

examples:
  basicsr train -opt options/train_swin_vqgan.yml
  basicsr train -opt options/train_iter.yml --auto_resume
  basicsr train -opt options/train_iter.yml --force_yml train:total_iter=1000 datasets:train:batch_size_per_gpu=8
  torchrun --nproc_per_node=4 --no-python basicsr train -opt options/train_iter.yml --launcher pytorch
"""
_TEST_EXAMPLES = """\
Images and the log with the metrics go to results/NAME/ in the current folder; an older test's are renamed.

examples:
  basicsr test -opt options/test_iter.yml
  basicsr test -opt options/test_iter.yml --force_yml path:pretrain_network_g=experiments/iter/models/net_g_latest.pth
"""


def _version() -> str:
    parts = [f"{name} {metadata.version(name)}" for name in ("iter-sr", "basicsr", "torch", "torchvision")]
    return f"{parts[0]} ({', '.join(parts[1:])}, python {sys.version.split()[0]})"


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser of the `basicsr` command.

    Args:
        command: the subcommand in use; `check`, `upscale` and `convert` add their own arguments only where they are
            the one.
    """
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("basicsr", description=_DESCRIPTION, epilog=_EXAMPLES, formatter_class=raw)
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary, epilog in (
        ("train", "train the networks that an option file describes", _TRAIN_EXAMPLES),
        ("test", "restore the images of an option file and measure the results", _TEST_EXAMPLES),
    ):
        one = commands.add_parser(
            name, help=summary, description=summary, epilog=epilog, formatter_class=raw, allow_abbrev=False
        )
        add_arguments(one)
        one.add_argument("--traceback", action="store_true", help="show where in the program an error arose")
    summary = "check an option file without training or testing"
    one = commands.add_parser("check", help=summary, description=summary, formatter_class=raw, allow_abbrev=False)
    if command == "check":
        from iter_model import check

        check.add_arguments(one)
        one.epilog = check.EXAMPLES
    one = commands.add_parser("upscale", help="restore photos, a file or a folder", formatter_class=raw)
    if command == "upscale":
        from iter_model import upscale

        upscale.add_arguments(one)
    one = commands.add_parser("convert", help="convert the authors' checkpoints to ours, or back", formatter_class=raw)
    if command == "convert":
        from iter_model import convert

        convert.add_arguments(one)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the `basicsr` command.

    Args:
        argv: its words after `basicsr`; those of this process by default.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
    """
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser(argv[0] if argv else None).parse_args(argv)
    try:
        if args.command == "upscale":
            from iter_model import upscale

            return upscale.run(args)
        if args.command == "check":
            from iter_model import check

            return check.run(args)
        if args.command == "convert":
            from iter_model import convert

            return convert.run(args)
        from iter_model import launch

        return launch.run(args, argv[1:])
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
