"""Measures weights: before and after refinement, fidelity, alpha, selection, steps, color, calibration.

    python benchmarks/quality.py --gt datasets/val/kodak24 -o quality/ --vgg
    python benchmarks/quality.py --gt datasets/val/kodak24 --real photos/ -o quality/ --only overview alpha

Degrades ground-truth photos with the second-order model and a fixed seed, or only downscales them (--clean). Photos in
--real are used unchanged, and only NIQE and color are measured on them. Prints markdown tables and draws plots and
pictures into the output folder. PSNR and SSIM are BasicSR's in RGB, and NIQE is BasicSR's, all without a border of
`scale` pixels. VGG is the distance of `VGGLoss` (--vgg), LPIPS is pyiqa's (--lpips). Color is the mean absolute
difference between the low frequencies of result and upsampled LQ, on a scale of 255. Detail is the energy of the
Laplacian relative to the ground truth's. All runs use the sampling stored with the weights and wavelet color, except
for what a table varies.
"""

import basicsr_compat  # noqa: F401, I001  (repairs BasicSR, before it is imported)

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from figure import Panels, decode_masked, write
from measures import ImageMetrics, Photo, cell, degraded, make_metric, mean, real, shrink, table, upsample
from real_esrgan import load as load_real_esrgan
from torch import Tensor
from tqdm import tqdm

import iter_arch
from iter_arch.color import match_color
from iter_arch.tiling import pad_to_multiple

STEPS = (1, 2, 4, 8, 16)
FIDELITIES = (0.0, 0.25, 0.5, 0.75, 1.0)
COLORS = (("none", 1), ("adain", 1), ("wavelet", 3), ("wavelet", 4), ("wavelet", 5), ("wavelet", 6))
ALPHAS = tuple(round(0.1 * i, 1) for i in range(11))
HEADS = {"psnr": "PSNR", "ssim": "SSIM", "vgg": "VGG", "lpips": "LPIPS", "niqe": "NIQE"}
Scores = dict[str, float]


def markdown(title: str, heads: list[str], rows: list[list[str]]) -> None:
    """Print a table under its title."""
    print(f"\n**{title}**\n\n{table(heads, rows)}", flush=True)


class Study:
    """One set of weights on one set of photos."""

    def __init__(
        self, net: iter_arch.ITER, photos: list[Photo], name: str, output: Path, metrics: ImageMetrics
    ) -> None:
        self.net, self.photos, self.name, self.output, self.metrics = net, photos, name, output, metrics
        self.config = net.sampling
        self.real_esrgan: torch.nn.Module | None = None
        self.heads = [HEADS.get(name, name) for name in metrics.metrics]

    @staticmethod
    def row(name: str, scores: Scores, *more: str) -> list[str]:
        """A row of a table: a name, the scores, and what else is said."""
        return [name, *(cell(metric, value) for metric, value in scores.items()), *more]

    def restore(self, photo: Photo, config: iter_arch.SamplingConfig) -> iter_arch.Restored:
        result = self.net.restore(photo.lq, config=config)
        return result._replace(image=match_color(result.image, photo.lq))

    def scores(self, image_of: Callable[[Photo], Tensor], what: str) -> list[Scores]:
        bar = tqdm(self.photos, desc=f"{self.name} {what}", leave=False, disable=None)
        return [self.metrics.measure(image_of(photo), photo) for photo in bar]

    def average(self, image_of: Callable[[Photo], Tensor], what: str) -> Scores:
        return mean(self.scores(image_of, what))

    def bicubic(self, photo: Photo) -> Tensor:
        return upsample(photo, self.net.scale)

    def upper_bound(self, photo: Photo) -> Tensor:
        height, width = photo.gt.shape[-2:]
        padded = pad_to_multiple(photo.gt, self.net.vqgan.factor * self.net.window)
        image = self.net.vqgan(padded).image[..., :height, :width]
        return match_color(image, shrink(photo.gt, self.net.scale))

    def before(self) -> iter_arch.SamplingConfig:
        """Distortion removal only: every token of S_l is kept."""
        return replace(self.config, alpha=0.0, adaptive=True)

    def overview(self) -> None:
        rows = [("bicubic", self.bicubic)]
        if self.photos[0].gt is not None:
            rows.append(("VQGAN of the ground truth (upper bound)", self.upper_bound))
        rows.append(("before refinement (S_l decoded)", lambda photo: self.restore(photo, self.before()).image))
        rows.append(("after refinement", lambda photo: self.restore(photo, self.config).image))
        if self.real_esrgan is not None:
            rows.append(("Real-ESRGAN x4plus", lambda photo: self.real_esrgan(photo.lq).clamp(0, 1)))
        table = [self.row(name, self.average(image_of, name)) for name, image_of in rows]
        markdown(f"{self.name}: overview", ["", *self.heads], table)

    def fidelity(self) -> None:
        """Before and after refinement, for several fidelities."""
        rows = []
        for fidelity in FIDELITIES:
            for when, config in (("before", self.before()), ("after", self.config)):
                config = replace(config, fidelity=fidelity)
                image_of = lambda photo, config=config: self.restore(photo, config).image  # noqa: E731
                rows.append(self.row(f"{fidelity}", self.average(image_of, f"fidelity {fidelity}"), when))
        markdown(f"{self.name}: fidelity", ["fidelity", *self.heads, "refinement"], rows)

    def alpha(self) -> None:
        """The paper's Fig. 8."""
        rows, curves, histograms = [], [], []
        for alpha in ALPHAS:
            starts: list[int] = []

            def image_of(photo: Photo, alpha: float = alpha, starts: list[int] = starts) -> Tensor:
                result = self.restore(photo, replace(self.config, alpha=alpha, adaptive=True))
                starts.extend(result.start_step.tolist())
                return result.image

            curves.append(self.average(image_of, f"alpha {alpha}"))
            histograms.append(np.bincount(starts, minlength=self.config.steps + 1)[1:])
            rows.append(self.row(f"{alpha:.1f}", curves[-1], " ".join(map(str, histograms[-1]))))
        markdown(
            f"{self.name}: threshold alpha", ["alpha", *self.heads, f"images at T_s = 1..{self.config.steps}"], rows
        )
        self._plot_alpha(curves, np.array(histograms))

    def _plot_alpha(self, curves: list[Scores], histograms: np.ndarray) -> None:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(1, 3, figsize=(14, 3.6))
        for axis, metric, label in zip(axes, ("psnr", "niqe"), ("PSNR [dB]", "NIQE (lower is better)"), strict=False):
            axis.plot(ALPHAS, [scores.get(metric, np.nan) for scores in curves], marker="o")
            axis.set(xlabel="alpha", ylabel=label)
        bottom = np.zeros(len(ALPHAS))
        for step, counts in enumerate(histograms.T, 1):
            axes[2].bar(
                ALPHAS, counts, 0.08, bottom, label=f"T_s = {step}", color=pyplot.cm.viridis(step / self.config.steps)
            )
            bottom += counts
        axes[2].set(xlabel="alpha", ylabel="images")
        axes[2].yaxis.get_major_locator().set_params(integer=True)
        axes[2].legend(loc="center left", bbox_to_anchor=(1, 0.5))
        figure.tight_layout()
        figure.savefig(self.output / f"{self.name}_alpha.png", dpi=100)
        pyplot.close(figure)

    def selection(self) -> None:
        """The paper's Fig. 9, from an empty map, so that the selection decides everything."""
        rows, pictures = [], []
        for selection in ("evaluator", "confidence", "halton"):
            config = replace(self.config, selection=selection, adaptive=False)
            scores = self.average(lambda photo, config=config: self.restore(photo, config).image, selection)
            rows.append(self.row(selection, scores))
            pictures.append(self.maps(self.photos[0], config))
        markdown(f"{self.name}: selection of the kept tokens, not adaptive", ["selection", *self.heads], rows)
        self._draw("selection", sum(pictures, []), len(pictures[0]))

    def maps(self, photo: Photo, config: iter_arch.SamplingConfig) -> Panels:
        """The decoded tokens of every second step, masked ones dark, and the result."""
        states: Panels = []

        def on_step(t: int, tokens: Tensor, mask: Tensor) -> None:
            if t % 2:
                states.append((f"{config.selection}, t = {t}", decode_masked(self.net, tokens, mask)))

        result = self.net.restore(photo.lq, config=config, on_step=on_step)
        height, width = result.image.shape[-2:]
        cut = [(title, state[:, :height, :width]) for title, state in states]
        return [*cut, ("result", match_color(result.image, photo.lq)[0])]

    def steps(self) -> None:
        rows = []
        for steps in STEPS:
            for adaptive in (True, False):
                config = replace(self.config, steps=steps, adaptive=adaptive)
                scores = self.average(lambda photo, config=config: self.restore(photo, config).image, f"T {steps}")
                rows.append(self.row(str(steps), scores, "yes" if adaptive else "no"))
        markdown(f"{self.name}: number of steps T", ["T", *self.heads, "adaptive"], rows)

    def color(self) -> None:
        """The paper's Fig. 11, with more methods."""
        raw = {photo.name: self.net.restore(photo.lq, config=self.config).image for photo in self.photos}
        rows, pictures = [], [("LQ, bicubic", self.bicubic(self.photos[0])[0])]
        for method, levels in COLORS:

            def image_of(photo: Photo, method: str = method, levels: int = levels) -> Tensor:
                return match_color(raw[photo.name], photo.lq, method, levels)

            scores, name = self.scores(image_of, method), f"{method} {levels}" if method == "wavelet" else method
            rows.append(self.row(name, mean(scores), f"{max(score['color'] for score in scores):.2f}"))
            pictures.append((name, image_of(self.photos[0])[0]))
        markdown(f"{self.name}: color correction", ["color correction", *self.heads, "largest color"], rows)
        self._draw("color", pictures, 4)

    def calibration(self) -> None:
        """How often a token of S_l equals the ground truth's, by the evaluator's probability of that."""
        scores, hits = [], []
        for photo in tqdm(self.photos, desc=f"{self.name} calibration", leave=False, disable=None):
            lq = pad_to_multiple(photo.lq, self.net.multiple)
            S_l = self.net.lq_encoder(lq).argmax(1)
            S_h = self.net.vqgan.encode(pad_to_multiple(photo.gt, self.net.multiple * self.net.scale)).tokens
            scores.append(self.net.evaluator(S_l, S_l).softmax(1)[:, 1].flatten())
            hits.append((S_l == S_h).flatten())
        p, good = torch.cat(scores), torch.cat(hits).float()
        bins = (p * 10).long().clamp_max(9)
        rows, error = [], 0.0
        for i in bins.unique().tolist():
            chosen = bins == i
            share, believed, true = (float(x) for x in (chosen.float().mean(), p[chosen].mean(), good[chosen].mean()))
            error += share * abs(believed - true)
            rows.append(
                [f"{i / 10:.1f} to {(i + 1) / 10:.1f}", f"{100 * share:.1f}%", f"{believed:.3f}", f"{true:.3f}"]
            )
        right = f"{100 * good.mean():.1f}% are right, calibration error {error:.3f}"
        title = f"{self.name}: tokens of S_l by p_e(good); {right}"
        markdown(title, ["p_e(good)", "share of tokens", "mean p_e(good)", "right"], rows)

    def _draw(self, what: str, pictures: Panels, columns: int) -> None:
        write(pictures, str(self.output / f"{self.name}_{what}.jpg"), columns)


TABLES = ("overview", "fidelity", "alpha", "selection", "steps", "calibration", "color")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gt", metavar="FOLDER", help="ground-truth photos, which are degraded here")
    parser.add_argument("--real", metavar="FOLDER", help="low-quality photos")
    parser.add_argument("-o", "--output", type=Path, default=Path("quality"), metavar="OUT")
    parser.add_argument("--model", default="iter_tiny_x4")
    parser.add_argument("--only", nargs="+", choices=TABLES, default=TABLES, metavar="TABLE", help=", ".join(TABLES))
    parser.add_argument("--limit", type=int, metavar="N", help="use only the first N photos of a folder")
    parser.add_argument("--seed", type=int, default=0, help="of the degradation (default: %(default)s)")
    parser.add_argument("--clean", action="store_true", help="only downscale the photos of --gt")
    parser.add_argument(
        "--vgg",
        nargs="?",
        const="",
        metavar="FILE",
        help="measure the VGG distance, with torchvision's weights or a file",
    )
    parser.add_argument("--lpips", action="store_true", help="measure LPIPS, with pyiqa's weights")
    parser.add_argument("--real-esrgan", metavar="FILE", help="compare with Real-ESRGAN, see benchmarks/real_esrgan.py")
    args = parser.parse_args()
    if not args.gt and not args.real:
        parser.error("name photos with --gt, --real or both")
    net = iter_arch.load_pretrained(args.model)
    args.output.mkdir(parents=True, exist_ok=True)
    print(f"{args.model}, {net.sampling}, seed {args.seed}")
    asked = {"vgg": args.vgg is not None, "lpips": args.lpips}
    names = [name for name in ("psnr", "ssim", "vgg", "lpips", "niqe", "color", "detail") if asked.get(name, True)]
    metrics = ImageMetrics(net.scale, {name: make_metric(name, vgg=args.vgg or None) for name in names})
    studies = []
    if args.gt:
        photos = degraded(args.gt, net.scale, args.seed)[: args.limit]
        if args.clean:
            photos = [photo._replace(lq=shrink(photo.gt, net.scale)) for photo in photos]
        studies.append(Study(net, photos, Path(args.gt).name, args.output, metrics))
    if args.real:
        studies.append(Study(net, real(args.real)[: args.limit], Path(args.real).name, args.output, metrics))
    with torch.no_grad():
        for study in studies:
            study.real_esrgan = load_real_esrgan(args.real_esrgan) if args.real_esrgan else None
            for table in args.only:
                if table != "calibration" or study.photos[0].gt is not None:
                    getattr(study, table)()


if __name__ == "__main__":
    main()
