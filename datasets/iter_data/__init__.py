"""Data for ITER (arXiv:2312.05616): BasicSR's second-order degradation as a dataset and as a function on tensors."""

import basicsr_compat  # noqa: F401  isort: skip  (repairs BasicSR's imports, so it comes first)

from iter_data.degradation import Pair, degrade, make_pair, sharpen
from iter_data.kernels import Kernels, draw_kernels, seeded
from iter_data.options import DegradationOptions
from iter_data.pair_pool import PairPool
from iter_data.second_order_dataset import SecondOrderDegradationDataset, batch_to_pair

__all__ = [
    "DegradationOptions",
    "Kernels",
    "Pair",
    "PairPool",
    "SecondOrderDegradationDataset",
    "batch_to_pair",
    "degrade",
    "draw_kernels",
    "make_pair",
    "seeded",
    "sharpen",
]
