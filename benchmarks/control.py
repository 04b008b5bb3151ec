"""Draws the pictures of docs/control.md: alpha, an alpha map, redrawing, and variants, on one photo.

    python benchmarks/control.py datasets/sample/lq/lake.jpg -o docs/

Writes control-alpha.jpg, control-map.jpg, control-redraw.jpg and control-variants.jpg into the output folder.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

import iter_arch
from basicsr_compat.images import read_photo
from iter_arch.color import match_color

GAP, LINE = 8, 22


def strip(path: Path, columns: list[tuple[str, Tensor]]) -> None:
    """Images (1, 1 or 3, H, W) side by side, under their names."""
    height, width = columns[0][1].shape[2:]
    picture = Image.new("RGB", (len(columns) * (width + GAP) - GAP, height + LINE), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    for index, (name, image) in enumerate(columns):
        left = index * (width + GAP)
        pen.text((left + 2, 2), name, "black", font)
        pixels = np.rint(255 * image[0].expand(3, -1, -1).permute(1, 2, 0).clamp(0, 1).numpy()).astype(np.uint8)
        picture.paste(Image.fromarray(pixels), (left, LINE))
    picture.save(path, quality=90)


def half(lq: Tensor, scale: int) -> Tensor:
    """A mask of the result's size: the right half."""
    mask = torch.zeros(1, 1, scale * lq.shape[2], scale * lq.shape[3])
    mask[..., mask.shape[3] // 2 :] = 1
    return mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("photo", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", default="iter_tiny_x4")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    net = iter_arch.load_pretrained(args.model)
    lq = torch.from_numpy(read_photo(args.photo).rgb.copy()).permute(2, 0, 1)[None]
    prepared, mask = net.prepare(lq), half(lq, net.scale)

    def image(**options: object) -> Tensor:
        return match_color(net.restore(prepared, **options).image, lq)

    strip(args.output / "control-alpha.jpg", [(f"alpha {a}", image(alpha=a)) for a in (0.0, 0.5, 1.0)])
    columns = [("map: 0 and 0.8", 0.8 * mask), ("result", image(alpha=0.8 * mask)), ("alpha 0", image(alpha=0.0))]
    strip(args.output / "control-map.jpg", columns)
    before = net.restore(prepared, seed=1)
    after = image(tokens=before.tokens, redraw=mask, seed=2)
    columns = [("before", match_color(before.image, lq)), ("mask", mask), ("redrawn", after)]
    difference = (after - columns[0][1]).abs().mean(1, keepdim=True)
    strip(args.output / "control-redraw.jpg", [*columns, ("difference x 4", 4 * difference)])
    strip(args.output / "control-variants.jpg", [(f"seed {s}", image(alpha=0.6, seed=s)) for s in range(3)])


if __name__ == "__main__":
    main()
