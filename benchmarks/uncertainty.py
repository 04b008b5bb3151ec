"""Tests how well uncertainty predicts the error: the true error per token, next to measures that need no ground truth.

    python benchmarks/uncertainty.py --gt datasets/val/kodak24 -o uncertainty/ --alpha 0.5

Photos are degraded as in `benchmarks/quality.py`. The error of a token is the mean absolute difference between the
result with the first seed and the ground truth over its pixels, in levels of 255. Spearman's correlation is computed in
each photo and averaged. `contrast` is the deviation of the upsampled input within a token and its neighbors. It needs
no network and shows to what extent the other measures only find texture. Prints markdown tables and draws
reliability.png.
"""

import basicsr_compat  # noqa: F401, I001  (repairs BasicSR, before it is imported)

import argparse
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from quality import Photo, degraded, markdown, upsample
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

import iter_arch
from iter_arch.color import match_color

# Bins of the reliability plot, with equally many tokens each.
BINS = 10


def per_token(x: Tensor, factor: int) -> np.ndarray:
    """Means over whole tokens: (1, 1, H, W) -> (n,)."""
    return F.avg_pool2d(x, factor).flatten().numpy()


def measure(net: iter_arch.ITER, photo: Photo, config: iter_arch.SamplingConfig, samples: int) -> dict[str, np.ndarray]:
    """The error of every whole token of a photo, and the measures that might predict it, each (n,)."""
    factor, prepared = net.vqgan.factor, net.prepare(photo.lq)
    found = iter_arch.uncertainty(
        net, photo.lq, samples=samples, config=config, prepared=prepared, color_correction="wavelet"
    )
    image = match_color(net.restore(prepared, config=config).image, photo.lq)
    bicubic = upsample(photo, net.scale).mean(1, keepdim=True)
    variance = (
        F.avg_pool2d(bicubic.square(), 3 * factor, factor, factor)
        - F.avg_pool2d(bicubic, 3 * factor, factor, factor).square()
    )
    rows, columns = photo.gt.shape[2] // factor, photo.gt.shape[3] // factor
    inside = (slice(None), slice(rows), slice(columns))
    return {
        "error": 255 * per_token((image - photo.gt).abs().mean(1, keepdim=True), factor),
        "squared": 255**2 * per_token((image - photo.gt).square().mean(1, keepdim=True), factor),
        "std": 255 * per_token(found.std, factor),
        "entropy": found.entropy[:, 0][inside].flatten().numpy(),
        "1 - p_e(good)": 1 - prepared.good[inside].flatten().numpy(),
        "contrast": variance.clamp_min(0).sqrt()[:, 0][inside].flatten().numpy(),
    }


def correlation(measures: list[dict[str, np.ndarray]], name: str) -> np.ndarray:
    """Spearman's correlation with the error, for each photo; none for constant measures."""
    found = [spearmanr(one[name], one["error"]).statistic if np.ptp(one[name]) else 0.0 for one in measures]
    return np.array(found)


class Bin(NamedTuple):
    """Means over tokens whose measure is about ``x``; rmse, error: root mean square and mean absolute error."""

    x: float
    rmse: float
    error: float


def reliability(measures: list[dict[str, np.ndarray]], name: str) -> list[Bin]:
    """The tokens of all photos in bins of as many each, by one of the measures."""
    x, squared, error = (np.concatenate([one[key] for one in measures]) for key in (name, "squared", "error"))
    parts = np.array_split(np.argsort(x, kind="stable"), BINS)
    return [Bin(x[part].mean(), np.sqrt(squared[part].mean()), error[part].mean()) for part in parts]


def draw(measures: list[dict[str, np.ndarray]], path: Path) -> None:
    """Error over std and over entropy."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 4), layout="constrained")
    for axis, name in ((left, "std"), (right, "entropy")):
        bins = reliability(measures, name)
        x = [one.x for one in bins]
        axis.plot(x, [one.rmse for one in bins], "o-", label="root mean square error")
        axis.plot(x, [one.error for one in bins], "s-", label="mean absolute error")
        axis.set(ylabel="true error, levels of 255", ylim=(0, None), xlim=(0, None))
        axis.grid(alpha=0.3)
    top = left.get_xlim()[1]
    left.plot([0, top], [0, top], "k:", label="error = std")
    left.set_xlabel("std over seeds, levels of 255")
    right.set_xlabel("entropy of phi_r, nats")
    left.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--gt", required=True, help="folder of ground-truth photos")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the plot")
    parser.add_argument("--model", default="iter_tiny_x4")
    parser.add_argument("--alpha", type=float, help="default: that of the weights")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0, help="of the degradation")
    parser.add_argument("--limit", type=int, help="use only the first photos")
    args = parser.parse_args()
    net = iter_arch.load_pretrained(args.model)
    config = net.sampling if args.alpha is None else replace(net.sampling, alpha=args.alpha)
    photos = degraded(args.gt, net.scale, args.seed)[: args.limit]
    args.output.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        measures = [measure(net, photo, config, args.samples) for photo in tqdm(photos, disable=None)]
    rows = []
    for name in ("std", "entropy", "1 - p_e(good)", "contrast"):
        found = correlation(measures, name)
        rows.append([name, f"{found.mean():.3f}", f"{found.min():.3f}", f"{found.max():.3f}"])
    title = f"{args.model}, {len(photos)} photos, {args.samples} samples, alpha {config.alpha}: Spearman's correlation"
    markdown(title, ["", "mean", "lowest", "highest"], rows)
    rows = [[f"{one.x:.1f}", f"{one.rmse:.1f}", f"{one.error:.1f}"] for one in reliability(measures, "std")]
    markdown("Tenths of all tokens by std", ["std", "root mean square error", "mean absolute error"], rows)
    draw(measures, args.output / "reliability.png")


if __name__ == "__main__":
    main()
