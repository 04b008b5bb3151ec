"""Networks and sampling of ITER (arXiv:2312.05616). Importing this package registers the networks in BasicSR."""

import basicsr_compat  # noqa: F401  (first: BasicSR 1.4.2 does not import on a current torchvision without it)
from iter_arch import color, sampling, schedule, tiling
from iter_arch.checkpoint import load_pretrained, load_released, save_pretrained, shipped
from iter_arch.iter_arch import ITER, Restored
from iter_arch.lq_encoder_arch import LQEncoder
from iter_arch.sampling import SamplingConfig
from iter_arch.swin_vqgan_arch import Encoded, SwinVQGAN
from iter_arch.token_arch import TokenEvaluator, TokenRefiner

__all__ = [
    "ITER",
    "Encoded",
    "LQEncoder",
    "Restored",
    "SamplingConfig",
    "SwinVQGAN",
    "TokenEvaluator",
    "TokenRefiner",
    "color",
    "load_pretrained",
    "load_released",
    "sampling",
    "save_pretrained",
    "schedule",
    "shipped",
    "tiling",
]
