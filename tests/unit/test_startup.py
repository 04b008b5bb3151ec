"""What the start of a command does not wait for."""

import subprocess
import sys

import pytest
import torch
from photos import levels, save
from small_networks import config

from basicsr_compat.meta import on_meta
from iter_arch import ITER

# Each costs half a second of processor time or more: PyTorch's compiler, BasicSR, torchvision's networks.
SLOW = {"torch._dynamo", "sympy", "triton", "basicsr", "torchvision", "scipy", "matplotlib", "pandas"}


@pytest.mark.long
def test_upscale_imports_nothing_slow_but_pytorch(tmp_path):
    photo = save(tmp_path / "photo.png", levels((16, 16)))
    code = (
        "import sys; from iter_model.commands import main; "
        f"assert main(['upscale', '-i', {str(photo)!r}, '-o', {str(tmp_path / 'out')!r}, '--device', 'cpu']) == 0; "
        "print(*sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(result.stdout.splitlines()[-1].split())
    # Older versions of PyTorch import some of them themselves.
    torch_alone = [sys.executable, "-c", "import sys, torch; print(*sys.modules)"]
    of_torch = set(subprocess.run(torch_alone, capture_output=True, text=True, check=True).stdout.split())
    assert "torch" in loaded and not (SLOW & loaded) - of_torch
    assert len(SLOW - of_torch) > 3


def test_networks_on_meta_have_the_names_and_shapes_of_real_ones():
    with on_meta():
        state = ITER(**config()).state_dict()
    assert {value.device.type for value in state.values()} == {"meta"}
    expected = ITER(**config()).state_dict()
    assert {k: (v.shape, v.dtype) for k, v in state.items()} == {k: (v.shape, v.dtype) for k, v in expected.items()}


def test_networks_after_those_on_meta_are_initialized():
    with on_meta():
        torch.nn.Linear(4, 4)
    torch.manual_seed(0)
    weight = torch.nn.Linear(4, 4).weight
    assert weight.device.type == "cpu" and 0 < weight.abs().max() <= 0.5
