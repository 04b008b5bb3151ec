"""`basicsr weights`: lists the known weights, downloads them, and prints their paths (ITER, arXiv:2312.05616)."""

from __future__ import annotations

import argparse
import sys

EPILOG = """\
Downloads go to ~/.cache/iter-sr, or to the folder that the variable ITER_CACHE names. `upscale --model NAME` downloads
what is missing; `download` does it beforehand, for a machine that is offline later.

examples:
  basicsr weights list
  basicsr weights download released_x4
  basicsr weights download hf:owner/repo/model.safetensors
  basicsr upscale -i photos/ -o results/ --model "$(basicsr weights path iter_tiny_x4)"

exit status: 0 done; 1 a file is not there or cannot be downloaded; 2 wrong usage
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `basicsr weights`."""
    parser.epilog = EPILOG
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("list", help="print every known name and the place of its file")
    download = actions.add_parser("download", help="download files into the cache and print their paths")
    path = actions.add_parser("path", help="print the path of a file, without downloading it")
    for action in (download, path):
        action.add_argument("names", nargs="+", metavar="NAME", help="a name of `list`, or hf:owner/repo/file")


def run(args: argparse.Namespace) -> int:
    """List or download weights, or print their path; returns the exit code, 0 or 1."""
    from iter_arch.pretrained import download

    if args.action == "list":
        for name in [*download.shipped(), *download.REMOTES]:
            path = download.find_local(name)
            print(f"{name:16} {path or 'not downloaded'}")
        return 0
    failed = False
    for name in args.names:
        try:
            path = download.find_checkpoint(name) if args.action == "download" else download.find_local(name)
            if path is None:
                raise FileNotFoundError(f"{name} is not downloaded; get it with `basicsr weights download {name}`")
            print(path.resolve())
        except FileNotFoundError as error:
            print(f"basicsr weights: {error}", file=sys.stderr)
            failed = True
    return int(failed)
