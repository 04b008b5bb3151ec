"""Draws how a photo is restored: LQ, S_l decoded, every step with its masked tokens, and the result.

    python benchmarks/figure.py datasets/sample/lq/coffee.png process.png [--model iter_tiny_x4] [--no-adaptive]
    python benchmarks/figure.py datasets/sample/lq/dog.jpg restored.jpg --gt datasets/sample/gt/dog.jpg

With --gt it draws LQ, result, and ground truth instead; --real-esrgan adds the result of that network.
"""

import argparse
import dataclasses

import cv2
import numpy as np
import torch
from real_esrgan import load as load_real_esrgan
from torch.nn import functional as F

import iter_arch
from iter_model.process import masked_picture

Panels = list[tuple[str, torch.Tensor]]


def decode_masked(net: iter_arch.ITER, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """tokens (1, h, w) int64, mask (1, h, w) bool, True = kept -> picture (3, 8h, 8w), dark where masked."""
    return masked_picture(net.vqgan, tokens, mask)[0]


def panels(net: iter_arch.ITER, lq: torch.Tensor, config: iter_arch.SamplingConfig) -> Panels:
    """(title, picture (3, H, W) in [0, 1]) from LQ to result."""
    steps = []
    result = net.restore(lq, config=config, on_step=lambda *state: steps.append(state))
    height, width = result.image.shape[-2:]

    before = net.restore(lq, config=dataclasses.replace(config, alpha=0.0, adaptive=True))
    pictures = [
        ("LQ, bicubic", F.interpolate(lq, (height, width), mode="bicubic")[0].clamp(0, 1)),
        ("before refinement", iter_arch.color.match_color(before.image, lq)[0]),
    ]
    pictures += [(f"t = {t}", decode_masked(net, tokens, mask)[:, :height, :width]) for t, tokens, mask in steps[:-1]]
    return [*pictures, ("result", iter_arch.color.match_color(result.image, lq)[0])]


def comparison(
    net: iter_arch.ITER, lq: torch.Tensor, gt: torch.Tensor, config: iter_arch.SamplingConfig, real_esrgan: str | None
) -> Panels:
    """(title, picture (3, H, W) in [0, 1]): LQ, Real-ESRGAN where its weights are given, ITER and ground truth."""
    result = iter_arch.color.match_color(net.restore(lq, config=config).image, lq)
    pictures = [("LQ, bicubic", F.interpolate(lq, result.shape[2:], mode="bicubic")[0].clamp(0, 1))]
    if real_esrgan:
        pictures.append(("Real-ESRGAN x4plus", load_real_esrgan(real_esrgan)(lq)[0].clamp(0, 1)))
    return [*pictures, ("ITER", result[0]), ("ground truth", gt[0])]


def read(path: str) -> torch.Tensor:
    """(1, 3, h, w) RGB in [0, 1]."""
    image = cv2.imread(path)[..., ::-1]
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float()[None] / 255


def write(pictures: Panels, path: str, columns: int) -> None:
    """A grid with a title over every picture."""
    cells = []
    for title, picture in pictures:
        image = (picture.permute(1, 2, 0).numpy()[..., ::-1] * 255).round().astype(np.uint8)
        head = np.full((28, image.shape[1], 3), 255, np.uint8)
        cv2.putText(head, title, (4, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 1, cv2.LINE_AA)
        cells.append(np.concatenate([head, image]))
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % columns)
    rows = [np.concatenate(cells[i : i + columns], 1) for i in range(0, len(cells), columns)]
    cv2.imwrite(path, np.concatenate(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo")
    parser.add_argument("output")
    parser.add_argument("--model", default="iter_tiny_x4")
    parser.add_argument("--no-adaptive", action="store_true", help="start from an empty token map, to see every step")
    parser.add_argument("--columns", type=int, default=4)
    parser.add_argument("--gt", metavar="PHOTO", help="compare with this ground truth instead of drawing the steps")
    parser.add_argument("--real-esrgan", metavar="FILE", help="with --gt: its weights, see benchmarks/real_esrgan.py")
    parser.add_argument("--crop", nargs=4, type=int, metavar=("X", "Y", "W", "H"), help="of the pictures, in LQ pixels")
    args = parser.parse_args()
    net = iter_arch.load_pretrained(args.model)
    lq = read(args.photo)
    with torch.no_grad():
        config = dataclasses.replace(net.sampling, adaptive=not args.no_adaptive)
        if args.gt:
            pictures = comparison(net, lq, read(args.gt), config, args.real_esrgan)
        else:
            pictures = panels(net, lq, config)
    if args.crop:
        x, y, width, height = (net.scale * side for side in args.crop)
        pictures = [(title, picture[:, y : y + height, x : x + width]) for title, picture in pictures]
    write(pictures, args.output, args.columns)


if __name__ == "__main__":
    main()
