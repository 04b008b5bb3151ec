"""A perceptual loss and distance on VGG16 features: LPIPS without its learned weights (arXiv:1801.03924)."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from basicsr_compat import register

# Channels and convs of the blocks; a 2x2 max pool stands before each but the first.
BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3))
# Mean and standard deviation of RGB in [0, 1] that networks of torchvision, and of Caffe, expect.
TORCHVISION = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CAFFE = ((122.679 / 255, 116.669 / 255, 104.007 / 255), (1.0, 1.0, 1.0))


@register("loss")
class VGGLoss(nn.Module):
    """loss_weight * a distance of images (b, 3, H, W), RGB in [0, 1], sides >= 8 -> () float32.

    The features after the last ReLU of each of the first four blocks of VGG16 are normalized to unit length at every
    position; squared differences are summed over the channels and averaged over positions and blocks. This is not
    LPIPS: compare its values only with each other, and only for the same weights.

    Args:
        path: an .npz file with `conv{block}_{i}.weight` and `.bias`, blocks 1 to 4, of a Caffe VGG16 whose first layer
            takes RGB. Without it torchvision's VGG16 is used, and downloaded (528 MB) where it is missing.

    Raises:
        ValueError: the file is damaged or holds other weights, or the download failed.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, loss_weight: float = 1.0, path: str | None = None) -> None:
        super().__init__()
        self.loss_weight = loss_weight
        blocks, channels = [], 3
        for block, (width, count) in enumerate(BLOCKS):
            layers: list[nn.Module] = [nn.MaxPool2d(2)] if block else []
            for _ in range(count):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            blocks.append(nn.Sequential(*layers))
        self.blocks = nn.ModuleList(blocks)
        state, statistics = (read_npz(path), CAFFE) if path else (download(), TORCHVISION)
        self._fill(state, path or "torchvision's VGG16")
        for name, values in zip(("mean", "std"), statistics, strict=True):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.to(memory_format=torch.channels_last)

    def _fill(self, state: Mapping[str, Tensor], source: str) -> None:
        for block, layers in enumerate(self.blocks, 1):
            for i, conv in enumerate((layer for layer in layers.children() if isinstance(layer, nn.Conv2d)), 1):
                for name, parameter in conv.named_parameters():
                    value = state.get(f"conv{block}_{i}.{name}")
                    if value is None or value.shape != parameter.shape:
                        found = "missing" if value is None else f"of shape {tuple(value.shape)}"
                        expected = tuple(parameter.shape)
                        raise ValueError(
                            f"{source}: conv{block}_{i}.{name} is {found}; VGG16 has it of shape {expected}"
                        )
                    parameter.data.copy_(value)

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        """image, target (b, 3, H, W) RGB in [0, 1] -> () float32."""
        # No gradients of the target: this saves half of the backward pass.
        with torch.no_grad():
            wanted = self.features(target)
        distances = [(x - y).square().sum(1).mean() for x, y in zip(self.features(image), wanted, strict=True)]
        return self.loss_weight * sum(distances[1:], distances[0]) / len(distances)

    def features(self, image: Tensor) -> list[Tensor]:
        """(b, 3, H, W) RGB in [0, 1] -> for every block (b, c, h, w) float32 of unit length over c."""
        x = ((image - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        features = []
        for block in self.blocks:
            x = block(x)
            features.append(x.float() / (x.float().square().sum(1, keepdim=True) + 1e-8).sqrt())
        return features


def read_npz(path: str) -> dict[str, Tensor]:
    """The arrays of an .npz file as float32; nothing in it is executed.

    Raises:
        ValueError: there is no such file, or it is damaged.
    """
    if not Path(path).is_file():
        raise ValueError(f"VGGLoss: path={path!r} is not a file; without path torchvision's VGG16 is downloaded")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: torch.from_numpy(file[key].astype(np.float32)) for key in file.files}
    except Exception as error:  # what NumPy and zipfile raise on arbitrary bytes has no common base
        raise ValueError(f"VGGLoss: path={path!r} is damaged or no .npz file: {error}") from error


def download() -> dict[str, Tensor]:
    """The weights of torchvision's VGG16 under the names of the .npz file. Raises ValueError if it cannot be had."""
    from torchvision.models import VGG16_Weights

    try:
        state = VGG16_Weights.IMAGENET1K_V1.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"VGGLoss: torchvision's VGG16 cannot be downloaded ({error}); name a file of its weights in `path`"
        ) from error
    names = [f"conv{block}_{i}" for block, (_, count) in enumerate(BLOCKS, 1) for i in range(1, count + 1)]
    numbers = sorted({int(match[1]) for key in state if (match := re.match(r"features\.(\d+)\.", key))})
    convs = zip(names, numbers, strict=False)
    return {f"{name}.{part}": state[f"features.{i}.{part}"] for name, i in convs for part in ("weight", "bias")}
