"""The options of `basicsr upscale` for control by tokens: alpha maps, variants, redrawn regions, and uncertainty.

Imports nothing slow, so that help comes at once.
"""

from __future__ import annotations

import argparse
from pathlib import Path

DEFAULT_SAMPLES = 8


def add_control(group: argparse._ArgumentGroup) -> None:
    """Add the options to a group of the help."""
    group.add_argument(
        "--alpha-map",
        type=Path,
        metavar="FILE",
        help="gray image of any size instead of --alpha: white is 1, black keeps the first estimate; for several "
        "photos, a folder of images with the same names, a.png or a.jpg.png for a.jpg",
    )
    group.add_argument("--variants", type=int, metavar="N", help="N results per photo, OUT/<name>_seed<S>.png")
    group.add_argument(
        "--save-tokens", action="store_true", help="save the tokens of each result in OUT/<name>.json, for --from"
    )
    group.add_argument(
        "--redraw", type=Path, metavar="MASK", help="draw new tokens where this image is white, and nowhere else"
    )
    group.add_argument(
        "--from",
        type=Path,
        dest="tokens_from",
        metavar="RESULT.json",
        help="tokens of the earlier result for --redraw, made from the same photo with the same model",
    )
    group.add_argument(
        "--maps",
        type=Path,
        metavar="DIR",
        help="also write DIR/<name>.png, which shows what was restored and what was invented",
    )
    group.add_argument(
        "--samples",
        type=int,
        default=DEFAULT_SAMPLES,
        metavar="N",
        help="number of results that --maps compares (default: %(default)s)",
    )


def is_asked_for(args: argparse.Namespace) -> bool:
    """Whether any option of control is given."""
    return bool(
        args.alpha_map or args.variants is not None or args.save_tokens or args.redraw or args.tokens_from or args.maps
    )
