"""Rows of `benchmarks/inference.py` that are not PyTorch's own."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import inference


@pytest.mark.slow
def test_onnxruntime_restores_what_pytorch_restores():
    pytest.importorskip("onnxruntime")
    lq = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = inference.prepare("onnxruntime/float32", {}, lq, None)[1]()
        net = inference.build("tiny")
        expected = net.restore(lq, config=inference.ALL_STEPS).image
    assert found.shape == expected.shape == (1, 3, 64, 64)
    # A draw in a close call may differ.
    assert (found - expected).abs().median() < 1e-3
