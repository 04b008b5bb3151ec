"""`basicsr web`: a page that restores photos in the browser with ITER (arXiv:2312.05616), for users of this machine."""

from __future__ import annotations

import argparse
import sys

from iter_model.commands import usage_error

EPILOG = """\
examples:
  basicsr web
  basicsr web --port 8080 --model iter_tiny_x4 released_x4
  basicsr web --host 0.0.0.0 --auth me:secret

Photos stay on the machine that runs the command, and are deleted after use. Ctrl-C ends it.

exit status: 0 ended; 1 Gradio is missing; 2 wrong usage
"""
# A phone's photo has 12; on two CPU cores a megapixel takes about a minute.
MAX_PIXELS = 16_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `basicsr web`."""
    parser.description = "Open a page in the browser: drop a photo, restore it, adjust it, download it."
    parser.epilog = EPILOG
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on (default: %(default)s, this machine)",
    )
    parser.add_argument("--port", type=int, default=7860, metavar="N", help="port to listen on (default: %(default)s)")
    parser.add_argument(
        "--model",
        nargs="+",
        metavar="NAME_OR_PATH",
        help="models to offer, as in `basicsr upscale --model` (default: those that ship)",
    )
    parser.add_argument(
        "--max-pixels",
        type=int,
        default=MAX_PIXELS,
        metavar="N",
        help="refuse larger photos (default: %(default)s)",
    )
    parser.add_argument("--auth", metavar="USER:PASSWORD", help="ask visitors for this name and password")
    parser.add_argument(
        "--share", action="store_true", help="also open a public address through Gradio's servers (default: off)"
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="auto: cuda if there is one (default: auto)",
    )


def run(args: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C; returns the exit code."""
    try:
        from iter_model.web import server
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        print("basicsr web needs Gradio: pip install 'iter-sr[web]'", file=sys.stderr)
        return 1
    try:
        server.serve(args)
    except (ValueError, OSError) as error:
        return usage_error("web", error)
    return 0
