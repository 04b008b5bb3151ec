"""`basicsr upscale` in this process, and a network whose outcome is known."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import iter_arch
from iter_model import commands


class BicubicNet(nn.Module):
    """Stands in for ITER where the outcome must be known: it enlarges bicubically."""

    scale = 4
    multiple = 16
    sampling = iter_arch.SamplingConfig()

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.calls = []
        self.cast = 0

    def restore(self, lq, *, config, seed, tile, batch, on_progress, on_rows):
        on_progress(1, 2)
        self.calls.append({"lq": lq, "config": config, "seed": seed, "tile": tile, "batch": batch})
        image = F.interpolate(lq, scale_factor=self.scale, mode="bicubic").clamp(0, 1) + self.cast
        middle = image.shape[2] // 2
        for top, rows in ((0, image[:, :, :middle]), (middle, image[:, :, middle:])):
            on_rows(top, rows)
        on_progress(2, 2)
        tokens, start_step = torch.zeros(len(lq), 1, 1, dtype=torch.int64), torch.ones(len(lq), dtype=torch.int64)
        return iter_arch.Restored(image[:, :, :0], tokens, start_step, torch.ones(len(lq), 1, 1))


def enlarge(pixels):
    """(h, w, 3) uint8 or float in [0, 1] -> (4h, 4w, 3) of the same kind, as `BicubicNet` does it."""
    top = 255 if pixels.dtype == np.uint8 else 1
    lq = torch.from_numpy(pixels.astype(np.float32) / top).permute(2, 0, 1)[None]
    image = F.interpolate(lq, scale_factor=4, mode="bicubic").clamp(0, 1)[0].permute(1, 2, 0).numpy()
    return np.rint(top * image).astype(np.uint8) if top > 1 else image


def main(*arguments):
    """The command; without the line that says what the default weights are worth."""
    model = () if {"--model", "--help"} & {*arguments} else ("--model", "bicubic")
    return commands.main(["upscale", *map(str, arguments), *model])


def run(source, output, *arguments):
    """The exit code of `main` for photos or a folder of them, on the CPU."""
    return main("-i", source, "-o", output, "--device", "cpu", *arguments)


def names(folder):
    """Of all that lies in a folder, sorted."""
    return sorted(path.name for path in folder.iterdir())
