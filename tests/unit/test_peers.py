"""Networks of others, by spandrel: in code, in `basicsr test` and in `basicsr upscale`."""

import subprocess
import sys

import numpy as np
import peers
import pytest
import torch
from basicsr.models import build_model
from basicsr.utils.registry import MODEL_REGISTRY
from photos import save, smooth
from pickles import Code
from PIL import Image
from small_networks import photo, small_iter
from upscale_stand_ins import run

from iter_arch import save_pretrained
from iter_arch.color import match_color
from iter_model.peer import NoPeer, load_peer

spandrel = pytest.importorskip("spandrel", reason="needs spandrel; pip install spandrel")
plugin = pytest.importorskip("iter_arch.spandrel_plugin")
AUTHORS = [(peers.rrdb, "ESRGAN", 4), (peers.compact, "RealESRGAN Compact", 3), (peers.swinir, "SwinIR", 2)]
authors = pytest.mark.parametrize("make, name, scale", AUTHORS, ids=[name for _, name, _ in AUTHORS])


@authors
def test_files_of_other_projects_give_what_their_networks_give(tmp_path, make, name, scale):
    expected, lq = make(tmp_path / "net.pth"), photo(2, 3, 16, 24)
    net = load_peer(tmp_path / "net.pth")
    assert (net.architecture, net.scale) == (name, scale)
    with torch.no_grad():
        assert torch.allclose(net(lq), expected(lq).clamp(0, 1), atol=1e-6)


@authors
@pytest.mark.parametrize("size", [(1, 1), (9, 13)])
def test_any_size_is_restored(tmp_path, make, name, scale, size):
    make(tmp_path / "net.pth")
    image = load_peer(tmp_path / "net.pth")(photo(1, 3, *size))
    assert image.shape == (1, 3, scale * size[0], scale * size[1]) and image.isfinite().all()


def test_tiles_cover_the_image_without_seams_and_report_progress(tmp_path):
    peers.compact(tmp_path / "net.pth")
    net, lq, seen = load_peer(tmp_path / "net.pth"), photo(1, 3, 70, 90), []
    tiled = net.restore(lq, tile=40, batch=2, on_progress=lambda *counts: seen.append(counts)).image
    # Three convs of 3x3 see three pixels far: the feathered overlap of 10 hides most of what tiles change.
    assert (tiled - net(lq)).abs().max() < 0.01
    assert seen == [(1, 6), (2, 6), (3, 6), (4, 6), (5, 6), (6, 6)]
    with pytest.raises(ValueError, match="tile=8 must be at least 32 for RealESRGAN Compact"):
        net.restore(lq, tile=8)


def test_rows_that_are_handed_on_are_those_of_the_image(tmp_path):
    peers.compact(tmp_path / "net.pth")
    net, lq = load_peer(tmp_path / "net.pth"), photo(1, 3, 70, 40)
    for tile in (None, 40):
        image, rows = net.restore(lq, tile=tile).image, []
        restored = net.restore(lq, tile=tile, on_rows=lambda top, strip, rows=rows: rows.append((top, strip.clone())))
        assert [top for top, _ in rows] == sorted(top for top, _ in rows) and restored.image.shape[2] == 0
        assert torch.equal(torch.cat([strip for _, strip in rows], 2), image)


def test_what_is_no_network_for_photos_is_refused_by_name(tmp_path, monkeypatch):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(NoPeer, match="other.pth: spandrel knows no such network"):
        load_peer(tmp_path / "other.pth")
    peers.compact(tmp_path / "gray.pth", channels=1)
    with pytest.raises(NoPeer, match="RealESRGAN Compact maps 1 channels to 1; photos need 3 and 3"):
        load_peer(tmp_path / "gray.pth")
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(NoPeer, match="need spandrel; pip install spandrel"):
        load_peer(tmp_path / "other.pth")


@pytest.mark.long
def test_reading_one_warns_of_nothing(tmp_path):
    peers.compact(tmp_path / "net.pth")
    words = ["-W", "error::FutureWarning", "-c", "import sys, iter_model.peer as p; p.load_peer(sys.argv[1])"]
    done = subprocess.run([sys.executable, *words, tmp_path / "net.pth"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_code_in_a_file_is_not_run(tmp_path):
    torch.save({"params": Code(tmp_path / "ran")}, tmp_path / "net.pth")
    with pytest.raises(ValueError, match="holds more than tensors"):
        load_peer(tmp_path / "net.pth")
    assert not (tmp_path / "ran").exists()


# ---------------------------------------------------------------------------------------------------- basicsr test


def model_options(folder, **changes):
    val = {"tile": None, "color_correction": "wavelet", "metrics": None} | changes.pop("val", {})
    return {
        "name": "peer", "model_type": "SpandrelModel", "scale": 3, "num_gpu": 0, "is_train": False, "dist": False,
        "manual_seed": 0, "path": {"pretrain_network_g": str(folder / "net.pth")}, "val": val, "datasets": {},
    } | changes  # fmt: skip


def test_the_model_restores_with_color_correction(tmp_path):
    peers.compact(tmp_path / "net.pth")
    model = build_model(model_options(tmp_path))
    model.feed_data({"lq": photo(1, 3, 20, 24), "gt": photo(1, 3, 60, 72)})
    model.test()
    raw = load_peer(tmp_path / "net.pth")(model.lq)
    assert torch.equal(model.output, match_color(raw, model.lq, "wavelet"))
    assert model.draw().shape == (3, 60, 3 * 72)


def test_scale_and_tile_must_fit_the_network(tmp_path):
    peers.compact(tmp_path / "net.pth")
    with pytest.raises(ValueError, match="scale=4 must be 3, that of the RealESRGAN Compact"):
        build_model(model_options(tmp_path, scale=4))
    with pytest.raises(ValueError, match="val.tile=8 must be at least 32"):
        build_model(model_options(tmp_path, val={"tile": 8}))


def test_a_yml_without_the_networks_file_names_the_option(tmp_path):
    options = model_options(tmp_path, path={})
    missing = "path.pretrain_network_g is missing: name a checkpoint"
    with pytest.raises(ValueError, match=missing):
        build_model(options)
    problems = MODEL_REGISTRY.get("SpandrelModel").option_problems(options, False, {})
    assert any(problem.startswith(missing) for problem in problems)


# ---------------------------------------------------------------------------------------------------- basicsr upscale


@authors
def test_photos_are_restored_at_the_networks_scale(tmp_path, make, name, scale):
    make(tmp_path / "net.pth")
    source = save(tmp_path / "photo.png", smooth(40, 48))
    options = ("--model", tmp_path / "net.pth", "--color-correction", "none", "--precision", "float32")
    assert run(source, tmp_path / "out", *options) == 0
    lq = torch.from_numpy(smooth(40, 48)).permute(2, 0, 1)[None] / 255
    expected = 255 * load_peer(tmp_path / "net.pth")(lq)[0].permute(1, 2, 0).numpy()
    found = np.asarray(Image.open(tmp_path / "out/photo.png"))
    assert found.shape == (40 * scale, 48 * scale, 3) and np.abs(found - expected).max() < 0.51


@pytest.mark.parametrize("option", [("--alpha", 0.3), ("--steps", 4), ("--seed", 1), ("--no-adaptive",)])
def test_what_needs_tokens_is_refused(tmp_path, capsys, option):
    peers.compact(tmp_path / "net.pth")
    source = save(tmp_path / "photo.png")
    assert run(source, tmp_path / "out", "--model", tmp_path / "net.pth", *option) == 2
    message = f"{option[0].replace('no-', '')} cannot be applied: {tmp_path / 'net.pth'} is a RealESRGAN Compact"
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_file_of_neither_kind_says_both(tmp_path, capsys):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    source = save(tmp_path / "photo.png")
    assert run(source, tmp_path / "out", "--model", tmp_path / "other.pth") == 2
    error = capsys.readouterr().err
    assert "is not a whole ITER" in error and "spandrel knows no such network" in error


def test_an_iter_is_no_peer_where_spandrel_knows_it_too(tmp_path):
    plugin.install()
    save_pretrained(small_iter(), tmp_path / "net.safetensors")
    with pytest.raises(NoPeer, match="it holds an ITER"):
        load_peer(tmp_path / "net.safetensors")
