"""`basicsr export`: the networks of an ITER as ONNX files (arXiv:2312.05616)."""

from __future__ import annotations

import argparse
from pathlib import Path

from iter_model.commands import usage_error

EPILOG = """\
OUT gets lq_encoder.onnx, refiner.onnx, evaluator.onnx, codebook.onnx, decoder.onnx, and iter.json with scale, window,
and sampling. They take one image of any size that is a multiple of lq_multiple pixels. Needs onnx and onnxscript.

examples:
  basicsr export iter_tiny_x4 -o onnx/
  basicsr export experiments/my_iter/models/iter_latest.safetensors -o onnx/

exit status: 0 exported; 2 not
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `basicsr export`."""
    parser.epilog = EPILOG
    parser.add_argument("model", metavar="MODEL", help="shipped weights, a file, released_x4 or released_x2")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="folder for the files")


def run(args: argparse.Namespace) -> int:
    """Export ``args.model`` to ``args.output``; returns the exit code, 0 or 2."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        return usage_error("export", f"{error}; pip install onnx onnxscript")
    from iter_arch import load_pretrained
    from iter_arch.pretrained.onnx import export_onnx

    try:
        net = load_pretrained(args.model)
        args.output.mkdir(parents=True, exist_ok=True)
        for path in export_onnx(net, args.output):
            print(path)
    except (ValueError, OSError) as error:
        return usage_error("export", error)
    return 0
