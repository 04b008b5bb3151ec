"""The tokenizer interface of ITER, the network between images and tokens (ITER, arXiv:2312.05616, Sec. 3.1).

`SwinVQGAN` is the paper's. Another one is a network registered in BasicSR's ARCH_REGISTRY that has what `Tokenizer`
lists; a yml names it under ``vqgan``: ``vqgan: {type: MyTokenizer, ...}``.
"""

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple, Protocol, TypeGuard

from torch import Tensor

from basicsr_compat import registered
from basicsr_compat.schema import OneOf
from iter_arch.quantizer import Quantizer

DEFAULT = "SwinVQGAN"
# Pixels of a token's side in the paper: the default of an LQEncoder alone. An ITER takes it from its tokenizer.
FACTOR = 8


class Encoded(NamedTuple):
    """latent: (b, d, h, w) before quantization; tokens: (b, h, w) int64; loss: () float32, the VQ loss of Eq. 1."""

    latent: Tensor
    tokens: Tensor
    loss: Tensor


class Tokenizer(Protocol):
    """num_codes: N; factor: pixels of a token's side; window: tokens of the side that grids are multiples of.

    Fidelity above 0 needs a `CodeTokenizer`.
    """

    factor: int
    window: int

    @property
    def num_codes(self) -> int:
        """N."""

    def encode(self, image: Tensor) -> Encoded:
        """image (b, 3, H, W) RGB in [0, 1], sides multiples of ``factor * window`` -> Encoded; h = H / factor."""

    def decode(self, tokens: Tensor) -> Tensor:
        """tokens (b, h, w) int64 -> image (b, 3, factor * h, factor * w) RGB in [0, 1]."""


class CodeTokenizer(Tokenizer, Protocol):
    """A tokenizer that can also decode codes that are not in its codebook."""

    quantizer: Quantizer

    def decode_codes(self, codes: Tensor) -> Tensor:
        """codes (b, d, h, w) -> image as of `decode`, not clamped."""


def has_codes(tokenizer: Tokenizer) -> TypeGuard[CodeTokenizer]:
    """Whether it is a `CodeTokenizer`."""
    return hasattr(tokenizer, "quantizer") and hasattr(tokenizer, "decode_codes")


PROTOCOL = ("num_codes", "factor", "window", "encode", "decode")

TokenizerSection = Annotated[
    Mapping[str, Any] | None,
    OneOf("registered network", lambda name: registered("arch").get(name), lambda: registered("arch"), default=DEFAULT),
]


def build_tokenizer(section: Mapping[str, Any] | None) -> Tokenizer:
    """The tokenizer of a yml's section; `SwinVQGAN` if it names no type.

    Raises:
        ValueError: an unknown type, or a network that is not a tokenizer; names what is missing.
    """
    options = dict(section or {})
    name = options.pop("type", DEFAULT)
    network = registered("arch").get(name)
    if network is None:
        raise ValueError(f"vqgan.type={name!r} is not a network in BasicSR's ARCH_REGISTRY")
    tokenizer = network(**options)
    lacking = [part for part in PROTOCOL if not hasattr(tokenizer, part)]
    if lacking:
        raise ValueError(f"vqgan.type={name} is not a tokenizer: it has no {', '.join(lacking)}")
    return tokenizer
