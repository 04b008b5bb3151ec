"""Data for ITER (arXiv:2312.05616): BasicSR's second-order degradation as a dataset and as a function on tensors.

Files named `*_degradation.py` in this folder are imported automatically, which registers their degradations.
"""

import basicsr_compat  # noqa: F401  isort: skip  (repairs BasicSR's imports, so it comes first)

import importlib
from pathlib import Path

from iter_data.degradation import DEGRADATION_REGISTRY, Degradation, Pair, make_pair, read_degradation
from iter_data.kernels import Kernels, draw_kernels
from iter_data.pair_pool import PairPool
from iter_data.real_pair_dataset import RealPairDataset
from iter_data.second_order_dataset import SecondOrderDegradationDataset, batch_to_pair
from iter_data.second_order_degradation import SecondOrderDegradation, degrade
from iter_data.sharpening import sharpen

for _file in sorted(Path(__file__).parent.glob("*_degradation.py")):
    importlib.import_module(f"{__name__}.{_file.stem}")

__all__ = [
    "DEGRADATION_REGISTRY",
    "Degradation",
    "Kernels",
    "Pair",
    "PairPool",
    "RealPairDataset",
    "SecondOrderDegradation",
    "SecondOrderDegradationDataset",
    "batch_to_pair",
    "degrade",
    "draw_kernels",
    "make_pair",
    "read_degradation",
    "sharpen",
]
