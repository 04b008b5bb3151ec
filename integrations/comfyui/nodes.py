"""Two nodes of ComfyUI for ITER (arXiv:2312.05616): one loads weights, the other restores images.

ComfyUI's types: IMAGE is (b, h, w, c), MASK (b, h, w), float32 in [0, 1]. Nothing of ComfyUI is imported:
its progress bar and its stop button are used where it is running.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import iter_arch
from iter_arch.color import METHODS, match_color
from iter_arch.precision import choose_dtype

# The deviation of values in [0, 1] that are half 0 and half 1: white in the mask.
LARGEST_DEVIATION = 0.5
OF_THE_WEIGHTS = -1


class LoadITER:
    """Weights by name, or from a file."""

    CATEGORY = "image/upscaling"
    FUNCTION = "load"
    RETURN_TYPES = ("ITER_MODEL",)
    RETURN_NAMES = ("model",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's hook: names and widgets of the inputs."""
        names = [*iter_arch.shipped(), "released_x4", "released_x2"]
        return {
            "required": {
                "name": (names, {"tooltip": "released_x4, released_x2: the authors' weights, downloaded once"}),
                "device": (["auto", "cpu", "cuda"],),
            },
            "optional": {"file": ("STRING", {"default": "", "tooltip": "a checkpoint, in the place of the name"})},
        }

    def load(self, name: str, device: str, file: str = "") -> tuple[iter_arch.ITER]:
        """The network on its device, in the fastest precision there."""
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        where = torch.device(device)
        return (iter_arch.load_pretrained(file.strip() or name).to(where, choose_dtype("auto", where)),)


class RestoreITER:
    """Restores images, and says how far results with other seeds differ."""

    CATEGORY = "image/upscaling"
    FUNCTION = "restore"
    RETURN_TYPES = ("IMAGE", "MASK")
    RETURN_NAMES = ("image", "uncertainty")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's hook: names and widgets of the inputs."""
        weights = "-1: as the weights say"
        fraction = {"default": OF_THE_WEIGHTS, "min": OF_THE_WEIGHTS, "max": 1.0, "step": 0.01}
        return {
            "required": {
                "model": ("ITER_MODEL",),
                "image": ("IMAGE",),
                "alpha": (
                    "FLOAT",
                    fraction | {"tooltip": f"low keeps the first estimate, high redraws more; {weights}"},
                ),
                "steps": ("INT", {"default": OF_THE_WEIGHTS, "min": OF_THE_WEIGHTS, "max": 1000, "tooltip": weights}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**63 - 1}),
                "fidelity": ("FLOAT", fraction | {"tooltip": f"high is truer and softer; {weights}"}),
                "color_correction": (["wavelet", *(name for name in METHODS if name != "wavelet")],),
                "tile": ("INT", {"default": 128, "min": 0, "max": 8192, "step": 8, "tooltip": "input pixels; 0: none"}),
                "samples": (
                    "INT",
                    {"default": 4, "min": 0, "max": 64, "tooltip": "results that the uncertainty compares; 0: none"},
                ),
            },
            "optional": {"alpha_map": ("MASK", {"tooltip": "alpha at every place, in the place of alpha: white is 1"})},
        }

    def restore(
        self,
        model: iter_arch.ITER,
        image: Tensor,
        alpha: float,
        steps: int,
        seed: int,
        fidelity: float,
        color_correction: str,
        tile: int,
        samples: int,
        alpha_map: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """image (b, h, w, 1, 3 or 4) -> IMAGE (b, s h, s w, 3) and MASK (b, s h, s w), deviation over seeds / 0.5.

        Raises:
            ValueError: names the input, its value and the rule.
        """
        given = {"alpha": alpha, "steps": steps, "fidelity": fidelity}
        config = replace(model.sampling, **{name: one for name, one in given.items() if one != OF_THE_WEIGHTS})
        maps = _maps(alpha_map, len(image))
        device = next(model.parameters()).device
        restored, deviations = [], []
        # One image at a time: memory is that of one, however long the batch is.
        for number, (one, alpha_of_one) in enumerate(zip(image, maps, strict=True)):
            lq = _rgb(one)[None].to(device)
            tell = _progress(number, len(image), 2 if samples else 1)
            prepared = model.prepare(lq, tile=tile or None)
            options = {"config": config, "alpha": alpha_of_one}
            result = model.restore(prepared, seed=seed, on_progress=tell(0), **options)
            restored.append(match_color(result.image, lq, color_correction).cpu())
            if samples:
                found = iter_arch.uncertainty(
                    model, lq, samples, seed, prepared=prepared, color_correction=color_correction, on_progress=tell(1),
                    **options,
                )  # fmt: skip
                deviations.append((found.std[:, 0] / LARGEST_DEVIATION).cpu())
        images = torch.cat(restored).movedim(1, -1).float().contiguous()
        return images, torch.cat(deviations).float() if samples else torch.zeros(images.shape[:3])


def _rgb(image: Tensor) -> Tensor:
    """(h, w, 1, 3 or 4) -> (3, h, w) in [0, 1]; gray is repeated, and alpha left out. Other nodes may overshoot."""
    if image.shape[-1] not in (1, 3, 4):
        raise ValueError(f"image has {image.shape[-1]} channels; it must have 1, 3 or 4")
    return (
        (image[..., :3] if image.shape[-1] > 1 else image.expand(-1, -1, 3))
        .movedim(-1, 0)
        .float()
        .clamp(0, 1)
        .contiguous()
    )


def _maps(alpha_map: Tensor | None, images: int) -> list[Tensor | None]:
    """A map (1, 1, height, width) for every image, or None."""
    if alpha_map is None:
        return [None] * images
    alpha_map = alpha_map[None] if alpha_map.ndim == 2 else alpha_map
    if alpha_map.ndim != 3 or len(alpha_map) not in (1, images):
        raise ValueError(f"alpha_map has shape {tuple(alpha_map.shape)}; it must be ({images} or 1, height, width)")
    return [alpha_map[i % len(alpha_map)][None, None].float().clamp(0, 1) for i in range(images)]


def _progress(image: int, images: int, parts: int) -> Callable[[int], Callable[[int, int], None]]:
    """on_progress of a part of an image: moves ComfyUI's bar, and ends the restoration where it was stopped."""
    utilities, management = sys.modules.get("comfy.utils"), sys.modules.get("comfy.model_management")
    bar = utilities.ProgressBar(1000) if utilities else None

    def of_part(part: int) -> Callable[[int, int], None]:
        def tell(done: int, total: int) -> None:
            if management:
                management.throw_exception_if_processing_interrupted()
            if bar:
                bar.update_absolute(round(1000 * (image * parts + part + done / total) / (images * parts)))

        return tell

    return of_part
