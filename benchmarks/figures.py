"""Figures 1, 6, 7, 8, 9 and 11 and Table 2 of the paper, on any photos and weights.

    python benchmarks/figures.py fig1 --real datasets/sample/lq -o figures/
    python benchmarks/figures.py fig8 --gt datasets/val/kodak24 -o figures/ --model released_x4 --limit 6
    python benchmarks/figures.py fig6 --gt datasets/val/kodak24 -o figures/ --methods bicubic RealESRGAN_x4plus.pth
    python benchmarks/figures.py table2 -o figures/

fig1: how photos are restored, from S_l by the steps to the result. fig6: photos restored by several methods, side by
side. fig7: before and after refinement, and which tokens were kept. fig8: metrics and T_s over the threshold alpha.
fig9: the kept tokens by evaluator, confidence and halton. fig11: without and with color correction. table2: seconds for
128x128 to 512x512 (--size) beside RRDBNet and SwinIR.

--gt are ground-truth photos, which are degraded as in `quality.py`, --real low-quality photos.
"""

import basicsr_compat  # noqa: F401, I001  (repairs BasicSR, before it is imported)

import argparse
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import inference
import torch
from figure import Panels, decode_masked, panels, write
from measures import ImageMetrics, Photo, cell, degraded, make_metric, real, table, upsample
from methods import make_method
from quality import Study
from torch import Tensor

import iter_arch
from iter_arch.color import match_color

METRICS = ("psnr", "ssim", "niqe", "color", "detail")
# Seconds on one V100, as docs/benchmarks.md quotes them.
PAPER_TABLE_2 = {"RRDBNet": 0.06, "SwinIR": 0.21, "ITER, 8 steps": 1.7, "LDM-BSR": 4.2}


def process(net: iter_arch.ITER, photos: list[Photo], args: argparse.Namespace) -> None:
    """Fig. 1: a row for each photo, every second step from an empty map."""
    config = replace(net.sampling, adaptive=False)
    rows = []
    for photo in photos:
        found = panels(net, photo.lq, config)
        steps = [one for one in found if one[0].startswith("t = ")]
        rows.append([*found[:2], *steps[:: max(1, -(-len(steps) // 4))], found[-1]])
    grid(rows, args.output / "fig1.png")


def comparison(net: iter_arch.ITER, photos: list[Photo], args: argparse.Namespace) -> None:
    """Fig. 6: a row for each photo, a column for each method."""
    methods = [make_method(name, scale=net.scale, device=torch.device("cpu")) for name in (*args.methods, args.model)]
    rows = [
        [(method.name, method.restore(photo)[0]) for method in methods] + ground_truth(photo, photos)
        for photo in photos
    ]
    grid(rows, args.output / "fig6.png")


def refinement(net: iter_arch.ITER, photos: list[Photo], args: argparse.Namespace) -> None:
    """Fig. 7: S_l decoded, the tokens that were kept of it, and the result."""
    rows = []
    for photo in photos:
        states: list[tuple[int, Tensor, Tensor]] = []
        before = net.restore(photo.lq, config=replace(net.sampling, alpha=0.0, adaptive=True)).image
        after = net.restore(photo.lq, config=net.sampling, on_step=lambda *state, states=states: states.append(state))
        height, width = after.image.shape[-2:]
        start, tokens, mask = states[0]
        row = [
            ("LQ, bicubic", upsample(photo, net.scale)[0]),
            ("before refinement", match_color(before, photo.lq)[0]),
            (f"kept at T_s = {start}", decode_masked(net, tokens, mask)[:, :height, :width]),
            ("after refinement", match_color(after.image, photo.lq)[0]),
        ]
        rows.append(row + ground_truth(photo, photos))
    grid(rows, args.output / "fig7.png")


def ground_truth(photo: Photo, photos: list[Photo]) -> Panels:
    """The last column, where the photos have one."""
    return [] if photos[0].gt is None else [("ground truth", photo.gt[0])]


def grid(rows: list[Panels], path: Path) -> None:
    """Rows of pictures, cut to the size of the smallest."""
    height = min(image.shape[1] for row in rows for _, image in row)
    width = min(image.shape[2] for row in rows for _, image in row)
    cut = [(title, image[:, :height, :width]) for row in rows for title, image in row]
    write(cut, str(path), len(rows[0]))
    print(path)


def study(method: str) -> Callable[[iter_arch.ITER, list[Photo], argparse.Namespace], None]:
    """A table and a picture of `quality.py`."""

    def draw(net: iter_arch.ITER, photos: list[Photo], args: argparse.Namespace) -> None:
        names = [name for name in METRICS if photos[0].gt is not None or name in ("niqe", "color")]
        metrics = ImageMetrics(net.scale, {name: make_metric(name) for name in names})
        getattr(Study(net, photos, args.figure, args.output, metrics), method)()

    return draw


def speed(net: iter_arch.ITER, photos: list[Photo], args: argparse.Namespace) -> None:
    """Table 2: seconds, one run after another, beside the paper's."""
    lq = torch.rand(1, 3, args.size, args.size, generator=torch.Generator().manual_seed(0))
    networks = {("weights", "float32"): net}
    rows = {
        "RRDBNet": "rrdb/float32",
        "SwinIR": "swinir/float32",
        f"ITER, {net.sampling.steps} steps": "weights/float32",
    }
    paper = PAPER_TABLE_2 if args.size == 128 else {}
    lines = []
    with torch.inference_mode():
        for name, row in rows.items():
            run = inference.prepare(row, networks, lq, None)[1]
            run()
            measured = min(inference.seconds(run, lq.device).clock for _ in range(args.runs))
            lines.append([name, f"{measured:.2f}", cell("seconds", paper.get(name, math.nan))])
    lines += [[name, "", f"{value:.2f}"] for name, value in paper.items() if name not in rows]
    heads = [f"{args.size}x{args.size} to {net.scale * args.size}x{net.scale * args.size}", "seconds"]
    heads += ["seconds (paper, V100)"] if paper else []
    text = table(heads, [line[: len(heads)] for line in lines])
    text = f"{args.model} on {inference.hardware(lq.device)}\n\n{text}\n"
    (args.output / "table2.md").write_text(text)
    print(text)


FIGURES: dict[str, Callable[[iter_arch.ITER, list[Photo], argparse.Namespace], None]] = {
    "fig1": process,
    "fig6": comparison,
    "fig7": refinement,
    "fig8": study("alpha"),
    "fig9": study("selection"),
    "fig11": study("color"),
    "table2": speed,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", choices=FIGURES, metavar="FIGURE", help=", ".join(FIGURES))
    parser.add_argument("--gt", metavar="FOLDER", help="ground-truth photos, which are degraded here")
    parser.add_argument("--real", metavar="FOLDER", help="low-quality photos")
    parser.add_argument("-o", "--output", type=Path, default=Path("figures"), metavar="OUT")
    parser.add_argument("--model", default="iter_tiny_x4", help="an ITER: name or file (default: %(default)s)")
    parser.add_argument("--methods", nargs="+", default=["bicubic"], metavar="METHOD", help="of fig6, beside --model")
    parser.add_argument("--limit", type=int, default=4, metavar="N", help="the first N photos (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the degradation (default: %(default)s)")
    parser.add_argument("--size", type=int, default=128, help="of table2: side of the LQ image")
    parser.add_argument("--runs", type=int, default=3, help="of table2: the fastest counts (default: %(default)s)")
    args = parser.parse_args()
    if args.figure != "table2" and (args.gt is None) == (args.real is None):
        parser.error("name photos with --gt or --real")
    net = iter_arch.load_pretrained(args.model)
    args.output.mkdir(parents=True, exist_ok=True)
    photos: list[Photo] = []
    if args.figure != "table2":
        photos = (degraded(args.gt, net.scale, args.seed) if args.gt else real(args.real))[: args.limit]
    with torch.no_grad():
        FIGURES[args.figure](net, photos, args)


if __name__ == "__main__":
    main()
