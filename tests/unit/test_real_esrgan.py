"""The reader of Real-ESRGAN's ncnn weights, which `benchmarks/quality.py` compares with."""

import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from basicsr.archs.rrdbnet_arch import RRDBNet

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import real_esrgan
from real_esrgan import load


def ncnn(net: RRDBNet) -> bytes:
    """The convs of a network as ncnn stores them, fp16."""
    parts = []
    for conv in (module for module in net.modules() if isinstance(module, torch.nn.Conv2d)):
        weights = conv.weight.detach().numpy().astype("<f2").tobytes()
        padding = b"\0" * (-len(weights) % 4)
        parts += [struct.pack("<I", 0x01306B47), weights, padding, conv.bias.detach().numpy().astype("<f4").tobytes()]
    return b"".join(parts)


@pytest.fixture(scope="module")
def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return RRDBNet(3, 3, scale=4, num_feat=64, num_block=1, num_grow_ch=32).eval()


def test_the_network_of_a_file_is_the_one_that_was_stored(net, tmp_path):
    path = tmp_path / "x4.bin"
    path.write_bytes(ncnn(net))
    found = load(path, num_block=1)
    for name, value in net.state_dict().items():
        np.testing.assert_allclose(found.state_dict()[name], value, rtol=1e-3, atol=1e-6, err_msg=name)


def test_a_file_of_another_network_is_refused(net, tmp_path):
    path, data = tmp_path / "x4.bin", ncnn(net)
    for content, message in (
        (data[:-100], "too few"),
        (data + b"more", "bytes; Real"),
        (b"\1" * len(data), "the flag"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load(path, num_block=1)


def test_a_converted_file_is_what_spandrel_knows(net, tmp_path, monkeypatch, capsys):
    pytest.importorskip("spandrel")
    from iter_model.peer import load_peer

    monkeypatch.setattr(real_esrgan, "load", lambda path: load(path, num_block=1))
    words = [str(tmp_path / "x4.bin"), str(tmp_path / "x4.pth")]
    monkeypatch.setattr(sys, "argv", ["real_esrgan.py", *words])
    (tmp_path / "x4.bin").write_bytes(ncnn(net))
    real_esrgan.main()
    peer, lq = load_peer(tmp_path / "x4.pth"), torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert (peer.architecture, peer.scale) == ("ESRGAN", 4)
    with torch.no_grad():
        np.testing.assert_allclose(peer(lq), net(lq).clamp(0, 1), atol=2e-3)
    (tmp_path / "x4.bin").write_bytes(b"no weights")
    with pytest.raises(SystemExit):
        real_esrgan.main()
    assert "it must be fp16 or float32" in capsys.readouterr().err
