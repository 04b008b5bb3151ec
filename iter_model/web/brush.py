"""What a visitor painted on the page of `basicsr web`, as masks over the photo (ITER, arXiv:2312.05616)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

# The least opacity that counts as painted; the brush has soft edges.
OPAQUE = 128


def painted(editor: dict[str, Any] | None) -> np.ndarray | None:
    """The layers of a `gr.ImageEditor`, each (H, W, 4) uint8 -> (H, W) bool, True = painted; None if nothing is."""
    layers = [layer for layer in (editor or {}).get("layers", []) if layer is not None and layer.ndim == 3]
    if not layers:
        return None
    mask = np.any([layer[..., 3] >= OPAQUE for layer in layers], axis=0)
    return mask if mask.any() else None


def alpha_map(mask: np.ndarray, inside: float, outside: float) -> Tensor:
    """mask (H, W) bool -> (1, 1, H, W) float32, ``inside`` where it is True and ``outside`` elsewhere."""
    return torch.from_numpy(np.where(mask, inside, outside).astype(np.float32))[None, None]


def redraw_mask(mask: np.ndarray) -> Tensor:
    """mask (H, W) bool -> (1, 1, H, W) bool."""
    return torch.from_numpy(mask)[None, None]
