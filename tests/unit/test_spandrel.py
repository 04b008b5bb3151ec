"""ITER in programs built on spandrel."""

import subprocess
import sys

import pytest
import torch
from small_networks import RELEASED_FORM, photo, small_iter

import iter_arch
from iter_arch import SamplingConfig, save_pretrained
from iter_arch.pretrained.download import WEIGHTS
from iter_arch.pretrained.released import to_released
from iter_model.commands.convert import convert

spandrel = pytest.importorskip("spandrel", reason="needs spandrel; pip install spandrel")
plugin = pytest.importorskip("iter_arch.spandrel_plugin")


def load(path):
    return spandrel.ModelLoader(device="cpu").load_from_file(path)


@pytest.fixture
def released(tmp_path):
    """(x2 network of the released form, its released file)."""
    net = small_iter(2, **RELEASED_FORM)
    torch.save({"params": to_released(net.state_dict())}, tmp_path / "ITER_x2.pth")
    return net, tmp_path / "ITER_x2.pth"


def test_our_released_and_converted_files_are_loaded(released, tmp_path):
    net, path = released
    convert(path, tmp_path / "converted.safetensors")
    paper = small_iter(4, window=4)
    save_pretrained(paper, tmp_path / "paper.safetensors")
    for file, expected, config in (
        (path, net, SamplingConfig.released()),
        (tmp_path / "converted.safetensors", net, SamplingConfig.released()),
        (tmp_path / "paper.safetensors", paper, SamplingConfig()),
    ):
        model = load(file)
        assert isinstance(model, spandrel.ImageModelDescriptor)
        assert (model.architecture.id, model.purpose, model.scale) == ("ITER", "SR", expected.scale)
        assert (model.input_channels, model.output_channels) == (3, 3)
        assert not model.model.training
        for size in ((9, 13), (1, 1)):
            lq = photo(1, 3, *size)
            assert torch.equal(model(lq), expected.restore(lq, config=config).image)


def test_spandrel_samples_as_the_weights_are_tuned_for(tmp_path):
    """It passes on tensors alone, without the metadata that holds the sampling."""
    net, lq = iter_arch.load_pretrained("iter_tiny_x4"), photo(1, 3, 24, 32)
    assert torch.equal(load(WEIGHTS / "iter_tiny_x4.safetensors")(lq), net(lq))
    assert not torch.equal(net(lq), net.restore(lq, config=SamplingConfig()).image)
    net.sampling = SamplingConfig(alpha=0.9, steps=3)
    save_pretrained(net, tmp_path / "net.safetensors")
    model = load(tmp_path / "net.safetensors")
    assert model.model.sampling == net.sampling and torch.equal(model(lq), net(lq))


def test_scale_1_is_a_restoration():
    model = spandrel.ModelLoader().load_from_state_dict(small_iter(1).state_dict())
    assert (model.purpose, model.scale) == ("Restoration", 1)


def test_large_images_are_restored_in_tiles(monkeypatch):
    net = small_iter()
    model = spandrel.ModelLoader().load_from_state_dict(net.state_dict())
    assert model.tiling is spandrel.ModelTiling.INTERNAL
    monkeypatch.setattr(
        type(model.model), "restore", lambda self, lq, **options: calls.append(options) or net_restore(lq)
    )
    calls, net_restore = [], lambda lq: type("Restored", (), {"image": lq})
    model(photo(1, 3, 4, 4))
    assert calls[0]["tile"] == 256


def test_bfloat16_runs():
    model = spandrel.ModelLoader().load_from_state_dict(small_iter().state_dict()).bfloat16()
    output = model(photo(1, 3, 9, 13).bfloat16())
    assert output.dtype == torch.bfloat16 and output.isfinite().all()


def test_no_other_architecture_claims_iter_and_iter_no_other():
    ours = small_iter(**RELEASED_FORM).state_dict()
    for state in (ours, to_released(ours), small_iter().state_dict()):
        detected = [arch.architecture.id for arch in spandrel.MAIN_REGISTRY if arch.detect(dict(state))]
        assert detected == ["ITER"]
    detect = spandrel.MAIN_REGISTRY["ITER"].detect
    for name in ("vqgan.", "refiner.", "lq_encoder."):
        part = {key.removeprefix(name): value for key, value in ours.items() if key.startswith(name)}
        assert not detect(part)


def test_a_released_file_without_vqgan_says_what_to_do(released):
    state = {key: value for key, value in torch.load(released[1])["params"].items() if not key.startswith("vqgan.")}
    with pytest.raises(ValueError, match="holds no vqgan.*basicsr convert --vqgan"):
        spandrel.ModelLoader().load_from_state_dict(state)


def test_a_registry_of_ones_own():
    registry = spandrel.ArchRegistry()
    plugin.install(registry)
    plugin.install(registry)
    assert [arch.architecture.id for arch in registry] == ["ITER"]


@pytest.mark.long
def test_without_spandrel_the_plugin_says_so_and_the_package_works():
    code = "import sys; sys.modules['spandrel'] = None; import iter_arch; import iter_arch.spandrel_plugin"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.stderr.splitlines()[-1].startswith("ImportError: iter_arch.spandrel_plugin needs spandrel")
    assert "pip install spandrel" in process.stderr
