"""Measures how much tiles change a result: equal tokens, and PSNR between an image restored whole and in tiles.

    python benchmarks/tiles.py datasets/val/kodak24 [--sizes 192x128 384x256] [--tiles 64 128 256] [--limit 6]

Downscales every photo to each size and restores it once whole and once with each tile, with the sampling of the weights
and seed 0. Prints a markdown table of means over the photos; "worst" is the smallest share of equal tokens.
"""

import argparse
from pathlib import Path

from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_tensor

import iter_arch
from basicsr_compat.images import is_image
from iter_arch.color import match_color


def size_of(text: str) -> tuple[int, int]:
    """(width, height) of '192x128'."""
    width, height = map(int, text.split("x"))
    return width, height


def psnr(one: Tensor, other: Tensor) -> float:
    """Of images in [0, 1], in dB."""
    return -10 * (one - other).square().mean().log10().item()


def compare(net: iter_arch.ITER, lq: Tensor, tiles: list[int]) -> list[tuple[float, float, float]]:
    """For each tile: the share of equal tokens, PSNR, and PSNR with wavelet color. lq: (1, 3, h, w)."""
    whole, rows = net.restore(lq), []
    colored = match_color(whole.image, lq)
    for tile in tiles:
        tiled = net.restore(lq, tile=tile)
        equal = (tiled.tokens == whole.tokens).float().mean().item()
        rows.append((equal, psnr(tiled.image, whole.image), psnr(match_color(tiled.image, lq), colored)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="folder")
    parser.add_argument("--model", default="iter_tiny_x4")
    parser.add_argument("--sizes", nargs="+", type=size_of, default=[(192, 128), (384, 256)], metavar="WxH")
    parser.add_argument("--tiles", nargs="+", type=int, default=[64, 128, 256], metavar="PIXELS")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N photos only")
    args = parser.parse_args()
    net = iter_arch.load_pretrained(args.model)
    paths = [path for path in sorted(args.photos.iterdir()) if is_image(path)][: args.limit]
    print("| photo | tile | equal tokens (worst) | PSNR between the two | with wavelet color |")
    print("|---|---|---|---|---|")
    for width, height in args.sizes:
        tiles = [tile for tile in args.tiles if tile < max(width, height)]
        found = []
        for path in paths:
            with Image.open(path) as photo:
                lq = to_tensor(photo.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))[None]
            found.append(compare(net, lq, tiles))
        for index, tile in enumerate(tiles):
            shares, plain, colored = zip(*(rows[index] for rows in found), strict=True)
            means = [sum(values) / len(values) for values in (shares, plain, colored)]
            print(
                f"| {width}x{height} | {tile} | {means[0]:.0%} ({min(shares):.0%}) | {means[1]:.1f} dB | "
                f"{means[2]:.1f} dB |",
                flush=True,
            )


if __name__ == "__main__":
    main()
