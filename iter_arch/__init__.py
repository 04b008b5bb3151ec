"""Networks and sampling of ITER (arXiv:2312.05616). Importing this package registers the networks in BasicSR."""

from iter_arch import color, sampling, schedule, selection, tiling
from iter_arch.iter_arch import ITER, Restored
from iter_arch.lq_encoder_arch import LQEncoder
from iter_arch.pretrained import load_pretrained, load_released, save_pretrained, shipped
from iter_arch.quantizer import FSQ, VectorQuantizer
from iter_arch.restoration import Prepared
from iter_arch.sampling import SamplingConfig
from iter_arch.swin import SwinOptions
from iter_arch.swin_vqgan_arch import SwinVQGAN
from iter_arch.token_arch import TokenEvaluator, TokenRefiner
from iter_arch.tokenizer import Encoded, Tokenizer
from iter_arch.uncertainty import Uncertainty, uncertainty

__all__ = [
    "FSQ",
    "ITER",
    "Encoded",
    "LQEncoder",
    "Prepared",
    "Restored",
    "SamplingConfig",
    "SwinOptions",
    "SwinVQGAN",
    "TokenEvaluator",
    "TokenRefiner",
    "Tokenizer",
    "Uncertainty",
    "VectorQuantizer",
    "color",
    "load_pretrained",
    "load_released",
    "sampling",
    "save_pretrained",
    "schedule",
    "selection",
    "shipped",
    "tiling",
    "uncertainty",
]
