"""`basicsr export`: what other runtimes make of the ONNX files."""

import json

import pytest
import torch
from small_networks import small_iter

from iter_arch import save_pretrained
from iter_model import commands

onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime; pip install onnx onnxscript onnxruntime")
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(the network, the folder of its ONNX files)."""
    folder = tmp_path_factory.mktemp("onnx")
    net = small_iter()
    save_pretrained(net, folder / "net.safetensors")
    assert commands.main(["export", str(folder / "net.safetensors"), "-o", str(folder / "out")]) == 0
    return net, folder / "out"


@pytest.mark.slow
def test_networks_give_the_same_in_onnxruntime_at_any_size(exported):
    net, folder = exported
    ours = {
        "lq_encoder": net.lq_encoder,
        "refiner": net.refiner,
        "evaluator": net.evaluator,
        "codebook": net.vqgan.quantizer.codes,
        "decoder": net.vqgan.decode_codes,
    }
    sessions = {name: onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in ours}
    for seed, windows in enumerate(((1, 1), (1, 3), (4, 2))):
        generator = torch.Generator().manual_seed(seed)
        h, w = (net.window * n for n in windows)
        lq = torch.rand(1, 3, windows[0] * net.multiple, windows[1] * net.multiple, generator=generator)
        S_t, S_l = torch.randint(net.vqgan.num_codes, (2, 1, h, w), generator=generator)
        m_t, m_l = torch.rand(2, 1, h, w, generator=generator) > 0.5
        codes = torch.rand(1, net.vqgan.quantizer.dim, h, w, generator=generator)
        inputs = {
            "lq_encoder": {"lq": lq},
            "refiner": {"S_t": S_t, "m_t": m_t, "S_l": S_l, "m_l": m_l},
            "evaluator": {"S_t": S_t, "S_l": S_l},
            "codebook": {"tokens": S_t},
            "decoder": {"codes": codes},
        }
        for name, session in sessions.items():
            found = session.run(None, {key: value.numpy() for key, value in inputs[name].items()})[0]
            with torch.no_grad():
                expected = ours[name](*inputs[name].values())
            assert torch.allclose(torch.from_numpy(found), expected, atol=TOLERANCE, rtol=0), name


@pytest.mark.slow
def test_the_description_says_what_sampling_needs(exported):
    net, folder = exported
    description = json.loads((folder / "iter.json").read_text())
    assert description["scale"] == net.scale and description["window"] == net.window
    assert description["lq_multiple"] == net.multiple and description["num_codes"] == net.vqgan.num_codes
    assert description["sampling"]["steps"] == net.sampling.steps


def test_without_onnx_the_command_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    assert commands.main(["export", "iter_tiny_x4", "-o", str(tmp_path / "out")]) == 2
    assert "pip install onnx onnxscript" in capsys.readouterr().err and not (tmp_path / "out").exists()
