"""ITER in bfloat16, and the choice of it."""

import copy

import cv2
import numpy as np
import pytest
import torch
from small_networks import RELEASED_FORM, photo, small_iter

import iter_arch
from iter_arch import SamplingConfig
from iter_arch.precision import choose_dtype, has_bf16
from iter_model import commands

CPU = torch.device("cpu")


@pytest.mark.parametrize("form", [{}, RELEASED_FORM], ids=["paper", "released"])
def test_a_network_in_bfloat16_restores_what_it_restores_in_float32(form):
    net, lq = small_iter(**form), photo(2, 3, 20, 40)
    half = copy.deepcopy(net).bfloat16()
    config = SamplingConfig(alpha=0.0)
    exact, found = net.restore(lq, config=config), half.restore(lq, config=config)
    assert found.image.dtype == torch.float32 and found.image.shape == exact.image.shape
    assert (found.tokens == exact.tokens).float().mean() > 0.9
    exact, found = net.vqgan.decode(exact.tokens), half.vqgan.decode(exact.tokens)
    assert (exact - found).square().mean() < 1e-4
    # The result of the last layer has more steps than bfloat16 has between 0.5 and 1.
    assert len(found.unique()) > 256 and found.dtype == torch.float32
    stepped = half.restore(lq, config=SamplingConfig(adaptive=False))
    assert stepped.start_step.tolist() == [8, 8] and stepped.image.isfinite().all()


def test_expected_codes_take_the_memory_of_the_precision():
    """They are the largest map that is held for a large photo."""
    net, lq = small_iter(), photo(1, 3, 16, 16)
    whole, half = net.prepare(lq).expected, copy.deepcopy(net).bfloat16().prepare(lq).expected
    assert whole.dtype == torch.float32 and half.dtype == torch.bfloat16
    assert (whole - half.float()).abs().max() < 0.1 * whole.abs().max()


def test_the_seed_decides_in_bfloat16_too():
    net, lq = small_iter().bfloat16(), photo(1, 3, 16, 16)
    config = SamplingConfig(adaptive=False)
    first = net.restore(lq, config=config, seed=1)
    assert torch.equal(first.image, net.restore(lq, config=config, seed=1).image)
    assert not torch.equal(first.tokens, net.restore(lq, config=config, seed=2).tokens)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({"amx_bf16": True}, True), ({"avx512_bf16": True, "avx2": True}, True), ({"avx512_f": True}, False), ({}, False)],
)
def test_auto_is_bfloat16_where_the_cpu_multiplies_in_it(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert has_bf16(CPU) is expected
    assert choose_dtype("auto", CPU) == (torch.bfloat16 if expected else torch.float32)


@pytest.mark.parametrize(("capability", "expected"), [((9, 0), True), ((8, 0), True), ((7, 5), False)])
def test_auto_is_bfloat16_on_gpus_since_ampere(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert has_bf16(torch.device("cuda", 0)) is expected


def test_a_named_precision_is_obeyed_and_another_refused():
    assert choose_dtype("bf16", CPU) == torch.bfloat16 and choose_dtype("float32", CPU) == torch.float32
    with pytest.raises(ValueError, match="precision='int8' must be one of auto, bf16, fp16, float32"):
        choose_dtype("int8", CPU)


@pytest.mark.parametrize(
    ("given", "expected"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("float32", torch.float32)]
)
def test_upscale_computes_in_the_precision_it_is_told(monkeypatch, tmp_path, given, expected):
    net = small_iter()
    monkeypatch.setattr(iter_arch, "load_pretrained", lambda name: net)
    photo_path = tmp_path / "a.png"
    cv2.imwrite(str(photo_path), np.zeros((20, 24, 3), np.uint8))
    assert commands.main(["upscale", "-i", str(photo_path), "-o", str(tmp_path / "out"), "--precision", given]) == 0
    assert {parameter.dtype for parameter in net.parameters()} == {expected}
    assert cv2.imread(str(tmp_path / "out" / "a.png")).shape == (80, 96, 3)
