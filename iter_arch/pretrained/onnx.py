"""Exports the networks of an ITER (arXiv:2312.05616) as ONNX files for other runtimes. Sampling is left to the
caller."""

from __future__ import annotations

import dataclasses
import json
import logging
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim

from basicsr_compat.files import atomic_write
from iter_arch.iter_arch import ITER
from iter_arch.swin_vqgan_arch import SwinVQGAN

# The oldest set of ONNX operators that PyTorch writes without conversion.
OPSET = 18
# Height and width, in windows, of the example that the networks are traced on: neither equal nor 1.
EXAMPLE = (3, 4)
CODEBOOK, DESCRIPTION = "codebook", "iter.json"


class Exported(NamedTuple):
    """A network to export. inputs: an example, by name; multiple: what the sides of the inputs are multiples of."""

    network: nn.Module
    inputs: dict[str, Tensor]
    multiple: int


class _Decoder(nn.Module):
    def __init__(self, vqgan: SwinVQGAN) -> None:
        super().__init__()
        self.vqgan = vqgan

    def forward(self, codes: Tensor) -> Tensor:
        """codes (1, d, h, w) -> image (1, 3, H, W), not clamped."""
        return self.vqgan.decode_codes(codes)


class _Codebook(nn.Module):
    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        self.codes = nn.Parameter(codes, requires_grad=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (1, h, w) int64 -> codes (1, d, h, w)."""
        return nn.functional.embedding(tokens, self.codes).permute(0, 3, 1, 2)


def parts(net: ITER) -> dict[str, Exported]:
    """The networks to export, with an example of their inputs.

    Raises:
        ValueError: the tokenizer is not a SwinVQGAN.
    """
    if not isinstance(net.vqgan, SwinVQGAN):
        raise ValueError(f"vqgan.type={type(net.vqgan).__name__} must be SwinVQGAN to be exported")
    h, w = (net.window * windows for windows in EXAMPLE)
    lq = torch.rand(1, 3, EXAMPLE[0] * net.multiple, EXAMPLE[1] * net.multiple)
    tokens = torch.randint(net.vqgan.num_codes, (2, 1, h, w))
    masks = torch.rand(2, 1, h, w) > 0.5
    codes = net.vqgan.quantizer.codes(torch.arange(net.vqgan.num_codes).view(1, 1, -1))[0, :, 0].T.contiguous()
    refined = {"S_t": tokens[0], "m_t": masks[0], "S_l": tokens[1], "m_l": masks[1]}
    return {
        "lq_encoder": Exported(net.lq_encoder, {"lq": lq}, net.multiple),
        "refiner": Exported(net.refiner, refined, net.window),
        "evaluator": Exported(net.evaluator, {"S_t": tokens[0], "S_l": tokens[1]}, net.window),
        CODEBOOK: Exported(_Codebook(codes), {"tokens": tokens[0]}, 1),
        "decoder": Exported(_Decoder(net.vqgan), {"codes": torch.rand(1, codes.shape[1], h, w)}, net.window),
    }


def export_onnx(net: ITER, folder: str | Path) -> list[Path]:
    """Write the networks of an ITER to ONNX files, for one image of any size in whole windows.

    Files: lq_encoder (E_l: lq -> logits), refiner (phi_r), evaluator (phi_e), codebook (tokens -> codes) and decoder
    (D_H: codes -> image, not clamped), and iter.json with scale, window and sampling.

    Args:
        net: in eval mode, on the CPU, float32.
        folder: must exist; older files of these names are replaced.

    Returns:
        The files.

    Raises:
        ValueError: the tokenizer is not a SwinVQGAN.
        ImportError: onnx and onnxscript are not installed.
        NotSaved: a file cannot be written; says why.
    """
    written = []
    for name, part in parts(net).items():
        path = Path(folder) / f"{name}.onnx"
        with atomic_write(path) as temporary:
            _program(part).save(temporary, external_data=False)
        written.append(path)
    description = {
        "scale": net.scale,
        "token_pixels": net.vqgan.factor,
        "window": net.window,
        "lq_multiple": net.multiple,
        "num_codes": net.vqgan.num_codes,
        "sampling": dataclasses.asdict(net.sampling),
    }
    path = Path(folder) / DESCRIPTION
    with atomic_write(path) as temporary:
        Path(temporary).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    return [*written, path]


def _program(part: Exported) -> torch.onnx.ONNXProgram:
    """Rows and columns of every input are dynamic, in whole windows."""
    rows, columns = Dim("rows", min=1, max=1 << 12), Dim("columns", min=1, max=1 << 12)
    multiple = part.multiple
    if multiple > 1:
        rows, columns = multiple * rows, multiple * columns
    shapes = {name: {x.ndim - 2: rows, x.ndim - 1: columns} for name, x in part.inputs.items()}
    level = logging.getLogger("torch.onnx").level
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of PyTorch's own internals
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        try:
            program = torch.onnx.export(
                part.network.eval(),
                kwargs=part.inputs,
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=list(part.inputs),
                opset_version=OPSET,
                verbose=False,
            )
        finally:
            logging.getLogger("torch.onnx").setLevel(level)
    assert program is not None  # None is for dynamo=False
    return program
