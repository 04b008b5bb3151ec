"""The examples of docs/extending.md run as they stand there, and do what the page says."""

import re
import sys
import types
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from small_models import iter_options
from small_networks import VQGAN, config, photo, small_iter

PAGE = (Path(__file__).parents[2] / "docs/extending.md").read_text(encoding="utf-8")


def chapter(title, kind):
    """The blocks of one kind below a heading."""
    text = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE).group(1)
    return re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL)


def options(title):
    return yaml.safe_load(chapter(title, "yaml")[0])


@pytest.fixture
def example():
    """Runs the code below a heading; what it adds to a table is gone after the test."""
    from basicsr.utils import registry

    import iter_data
    import iter_model.photo.writer
    from iter_arch import quantizer, selection
    from iter_model import commands

    kinds = ("ARCH", "LOSS", "METRIC", "MODEL")
    tables = [getattr(registry, f"{kind}_REGISTRY")._obj_map for kind in kinds]
    tables += [iter_data.DEGRADATION_REGISTRY._obj_map, quantizer.QUANTIZERS, selection.SELECTIONS]
    tables += [commands.COMMANDS, iter_model.photo.writer.WRITERS]
    before = [dict(table) for table in tables]

    def run(title):
        module = types.ModuleType("example_of_the_page")
        exec(chapter(title, "python")[0], vars(module))
        return module

    yield run
    for table, content in zip(tables, before, strict=True):
        table.clear()
        table.update(content)


def test_every_chapter_of_the_table_is_there():
    rows = re.findall(r"^\| \[(.*?)\]", PAGE, re.MULTILINE)
    assert [f"A{row[1:]}" for row in rows] == re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    assert all(chapter(f"A{row[1:]}", "python") for row in rows)


def test_a_selection_rule(example):
    from iter_arch import SamplingConfig

    sampling = options("A selection rule")["val"]["sampling"]
    with pytest.raises(ValueError, match="random"):
        SamplingConfig(**sampling)
    example("A selection rule")
    net, lq, config = small_iter(), photo(1, 3, 32, 32), SamplingConfig(**sampling, adaptive=False)
    kept = []
    net.restore(lq, config=config, on_step=lambda t, tokens, mask: kept.append(int(mask.sum())))
    assert kept == sorted(kept) and kept[-1] == 256
    assert not torch.equal(net.restore(lq, config=config).tokens, net.restore(lq, config=config, seed=1).tokens)


def test_a_quantizer(example):
    from basicsr.archs import build_network

    from iter_arch.quantizer import QUANTIZERS

    example("A quantizer")
    net = build_network({**VQGAN, **options("A quantizer")["network_g"]}).train()
    assert net.num_codes == 512
    tokens = torch.arange(512).view(1, 16, 32)
    assert torch.equal(net.quantizer.tokens(net.quantizer.codes(tokens)), tokens)
    output = net(photo(1, 3, 64, 64))
    (output.image.mean() + output.loss).backward()
    assert net.encoder[0].weight.grad.abs().sum() > 0
    assert "SignQuantizer" in QUANTIZERS


def test_a_tokenizer(example):
    from basicsr.archs import build_network

    example("A tokenizer")
    small = {name: part for name, part in config().items() if name not in ("vqgan", "scale")}
    net = build_network({**options("A tokenizer")["network_g"], **small}).eval()
    restored = net.restore(torch.rand(1, 3, 32, 48))
    assert restored.image.shape == (1, 3, 128, 192) and restored.tokens.shape == (1, 8, 16)
    image = torch.full((1, 3, 128, 128), 0.4)
    assert (net.vqgan.decode(net.vqgan.encode(image).tokens) - image).abs().max() <= 0.5 / 7


@pytest.mark.parametrize("phase", ["train", "val"])
def test_a_degradation(example, tmp_path, phase):
    from iter_data import SecondOrderDegradationDataset

    example("A degradation")
    section = options("A degradation")["datasets"]["train"]["degradation"]
    cv2.imwrite(str(tmp_path / "a.png"), np.full((64, 64, 3), 128, np.uint8))
    opt = {"phase": phase, "dataroot_gt": str(tmp_path), "scale": 4, "degrade_in_worker": True, "degradation": section}
    item = SecondOrderDegradationDataset(opt | ({"gt_size": 64} if phase == "train" else {}))[0]
    assert item["lq"].shape == (3, 16, 16) and item["gt"].shape == (3, 64, 64)
    assert 255 * item["lq"].std().item() == pytest.approx(section["sigma"], rel=0.15)
    with pytest.raises(ValueError, match="datasets.train.degradation.sigma=-1 must be a number >= 0"):
        SecondOrderDegradationDataset(opt | {"phase": "train", "gt_size": 64, "degradation": section | {"sigma": -1}})
    with pytest.raises(ValueError, match="degradation.type='Noisy' is not a registered degradation"):
        SecondOrderDegradationDataset(opt | {"degradation": {"type": "Noisy"}})


def test_a_loss(example):
    from basicsr.losses import build_loss

    example("A loss")
    loss = build_loss(options("A loss")["train"]["pixel_opt"])
    ramp = torch.arange(8.0).expand(1, 3, 8, 8)
    assert loss(ramp, ramp + 5) == 0 and loss(ramp, 0 * ramp) == 2


def test_a_metric(example):
    from basicsr.metrics import calculate_metric

    example("A metric")
    images = {"img": np.full((4, 4, 3), 9, np.uint8), "img2": np.full((4, 4, 3), 4, np.uint8)}
    assert calculate_metric(images, options("A metric")["val"]["metrics"]["brightness"]) == 5


def test_a_model(example, tmp_path):
    from basicsr.models import build_model

    example("A model")
    model = build_model(iter_options(tmp_path) | options("A model"))
    model.feed_data({"lq": photo(1, 3, 16, 16), "gt": photo(1, 3, 64, 64)})
    model.update_learning_rate(1)
    model.optimize_parameters(1)
    log = model.get_current_log()
    assert log["lq_mean"] == pytest.approx(photo(1, 3, 16, 16).mean().item(), abs=1e-5) and "l_r" in log


def test_a_command(example, tmp_path, monkeypatch, capsys):
    from iter_model import commands

    monkeypatch.setitem(sys.modules, "iter_model.commands.psnr", example("A command"))
    exec(chapter("A command", "python")[1], {"COMMANDS": commands.COMMANDS})
    for name, level in (("a", 100), ("b", 110)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((8, 8, 3), level, np.uint8))
    assert commands.main(["psnr", str(tmp_path / "a.png"), str(tmp_path / "b.png")]) == 0
    assert capsys.readouterr().out == "28.13 dB\n"
    with pytest.raises(SystemExit):
        commands.main(["--help"])
    assert "print the PSNR of two images" in capsys.readouterr().out


def test_an_output_format(example, tmp_path):
    from basicsr_compat.images import Photo
    from iter_model.photo.writer import write_photo

    example("An output format")
    rgb = np.zeros((2, 3, 3), np.float32)
    rgb[0, 1] = (1, 0.2, 0)
    write_photo(tmp_path / "a.ppm", Photo(rgb), kind="ppm")
    assert cv2.imread(str(tmp_path / "a.ppm"))[0, 1].tolist() == [0, 51, 255]


@pytest.mark.parametrize(
    ("model_type", "train", "message"),
    [
        (
            "ITERModel",
            {"codebook_init": True},
            "train.codebook_init=True needs codes, and a MeanColor has no quantizer",
        ),
        ("DecoderModel", {}, "network_g.vqgan.type=MeanColor must be SwinVQGAN"),
    ],
)
def test_what_a_training_needs_of_a_tokenizer_is_checked(example, model_type, train, message):
    from basicsr.archs import build_network
    from basicsr.utils.registry import MODEL_REGISTRY

    example("A tokenizer")
    net = build_network(options("A tokenizer")["network_g"])
    model = MODEL_REGISTRY.get(model_type)
    assert list(model.tokenizer_problems({"train": train}, net.vqgan))[0].startswith(message)
    assert not list(model.tokenizer_problems({"train": train}, small_iter().vqgan))


def test_upscale_knows_a_new_output_format(example, tmp_path):
    from photos import save

    from iter_model import commands

    save(tmp_path / "in.png", np.zeros((8, 8, 3), np.uint8))
    words = ["upscale", "-i", str(tmp_path / "in.png"), "-o", str(tmp_path / "out"), "--ext", "ppm", "--steps", "1"]
    assert commands.main(words) == 2
    example("An output format")
    assert commands.main(words) == 0 and (tmp_path / "out/in.ppm").read_bytes().startswith(b"P6 32 32 255\n")
