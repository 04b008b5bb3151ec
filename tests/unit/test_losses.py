"""Losses against values computed by hand, and metrics through BasicSR's own door."""

import math
import os

import cv2
import numpy as np
import pytest
import torch
from basicsr.losses import build_loss
from basicsr.metrics import calculate_metric
from pickles import Code

import iter_model  # noqa: F401
from iter_model.pyiqa_metric import build_metric, create_metric
from iter_model.token_loss import EvaluatorLoss


def logits_for(*probabilities):
    """(1, 2, 1, n) logits with these probabilities of 'good'."""
    p = torch.tensor(probabilities)
    return torch.stack([(1 - p).log(), p.log()])[None, :, None]


def test_token_cross_entropy_by_hand():
    # One position sure to 1/2, one to 1/4: (ln 2 + ln 4) / 2.
    logits = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]]).log().t()[None, :, None]
    loss = build_loss({"type": "TokenCrossEntropy", "loss_weight": 2.0})
    assert loss(logits, torch.tensor([[[0, 1]]])).item() == pytest.approx(2 * (math.log(2) + math.log(4)) / 2)


def test_evaluator_loss_by_hand():
    drawn, good_drawn = logits_for(0.5, 0.5), torch.tensor([[[True, False]]])
    on_l, good_l = logits_for(0.5, 0.5, 0.5, 0.25), torch.tensor([[[False, False, False, True]]])
    # beta 0.5: n = 3, 1; weights 0.5 / (1 - 0.125) = 4/7 and 0.5 / 0.5 = 1, of the sum 3 * 4/7 + 1 = 19/7.
    balanced = (3 * 4 / 7 * math.log(2) + math.log(4)) / (19 / 7)
    loss = build_loss({"type": "EvaluatorLoss", "beta": 0.5})
    assert loss(drawn, good_drawn, on_l, good_l).item() == pytest.approx(math.log(2) + balanced)


def test_balance_lets_the_rare_class_weigh_as_much_as_the_frequent_one():
    good = torch.zeros(1, 10, 10, dtype=torch.bool)
    good[0, 0, 0] = True
    logits = torch.zeros(1, 2, 10, 10, requires_grad=True)
    EvaluatorLoss().balanced(logits, good).backward()
    rare, frequent = logits.grad[0, 1, 0, 0].abs(), logits.grad[0, 1][~good[0]].abs().sum()
    assert rare / frequent == pytest.approx(1, rel=0.01)


def test_one_class_alone_gives_a_finite_loss():
    logits = torch.randn(1, 2, 4, 4)
    for label in (True, False):
        assert EvaluatorLoss().balanced(logits, torch.full((1, 4, 4), label)).isfinite()


def test_a_beta_out_of_range_is_refused():
    with pytest.raises(ValueError, match="beta=1.0 must be in"):
        EvaluatorLoss(beta=1.0)


def test_losses_are_float32_whatever_the_logits_are():
    logits = torch.randn(1, 4, 8, 8, dtype=torch.bfloat16)
    assert build_loss({"type": "TokenCrossEntropy"})(logits, torch.zeros(1, 8, 8).long()).dtype == torch.float32


def test_ssim_loss_agrees_with_basicsrs_metric():
    generator = torch.Generator().manual_seed(0)
    target = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 8, generator=generator), (64, 64), mode="bicubic")
    target = (target.clamp(0, 1) * 255).round() / 255
    image = ((target + 0.1 * torch.randn(target.shape, generator=generator)).clamp(0, 1) * 255).round() / 255
    arrays = [(x[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)[..., ::-1] for x in (image, target)]
    expected = calculate_metric(
        {"img": arrays[0], "img2": arrays[1]}, {"type": "calculate_ssim", "crop_border": 0, "test_y_channel": False}
    )
    loss = build_loss({"type": "SSIMLoss", "loss_weight": 0.5})
    assert loss(image, target).item() == pytest.approx(0.5 * (1 - expected), abs=2e-3)
    assert loss(target, target).item() == pytest.approx(0, abs=1e-6)


def test_color_error_is_in_levels_and_passes_over_texture():
    rng = np.random.default_rng(0)
    lq = cv2.resize(rng.integers(50, 200, (3, 3, 3), dtype=np.uint8), (32, 32), interpolation=cv2.INTER_CUBIC)
    result = cv2.resize(lq, (128, 128), interpolation=cv2.INTER_CUBIC).astype(int)
    texture = rng.integers(-30, 31, (128, 128, 1))
    options = {"type": "calculate_color_error", "crop_border": 4, "better": "lower"}  # as all metrics of a yml
    for cast in (0, 12):
        image = (result + texture + cast).clip(0, 255).astype(np.uint8)
        assert calculate_metric({"img": image, "lq": lq}, options) == pytest.approx(cast, abs=0.7)


def test_pyiqa_metric_gives_psnr_and_no_value_without_gt():
    options = {"type": "pyiqa", "metric": "psnr", "better": "higher", "crop_border": 2}
    gt = np.full((32, 32, 3), 100, np.uint8)
    image = gt + 10
    image[:2] = 0  # cut away by crop_border
    assert calculate_metric({"img": image, "img2": gt}, options) == pytest.approx(20 * math.log10(25.5), abs=1e-3)
    assert math.isnan(calculate_metric({"img": image}, options))


def test_pyiqa_metric_sees_rgb():
    # psnry weighs green by 0.587 and blue by 0.114: blue and red swapped would differ.
    gt = np.zeros((32, 32, 3), np.uint8)
    blue, red = gt.copy(), gt.copy()
    blue[..., 0], red[..., 2] = 50, 50
    options = {"type": "pyiqa", "metric": "psnry"}
    assert calculate_metric({"img": blue, "img2": gt}, options) > calculate_metric({"img": red, "img2": gt}, options)


def test_an_unknown_metric_of_pyiqa_is_refused():
    with pytest.raises(ValueError, match="metric='psnrr' is not a metric of pyiqa"):
        calculate_metric({"img": np.zeros((32, 32, 3), np.uint8)}, {"type": "pyiqa", "metric": "psnrr"})


def test_weights_that_cannot_be_had_say_how_to_provide_them(monkeypatch):
    import pyiqa

    def fail(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(pyiqa, "create_metric", fail)
    with pytest.raises(ValueError, match="(?s)metric='musiq'.*no route to host.*pretrained_model_path"):
        calculate_metric({"img": np.zeros((32, 32, 3), np.uint8)}, {"type": "pyiqa", "metric": "musiq"})


def test_pickles_in_pyiqas_cache_are_not_run(tmp_path, monkeypatch):
    """pyiqa reads them with weights_only=False."""
    import pyiqa.archs.arch_util

    torch.save({"params": Code(str(tmp_path / "proof"))}, tmp_path / "cached.pth")
    monkeypatch.setattr(pyiqa.archs.arch_util, "load_file_from_url", lambda url: str(tmp_path / "cached.pth"))
    with pytest.raises(ValueError, match="metric='musiq' of pyiqa is not built.*holds more than weights"):
        create_metric("musiq")
    assert not (tmp_path / "proof").exists() and "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_a_metric_that_runs_out_of_memory_is_no_nan(monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    image = np.zeros((32, 32, 3), np.uint8)
    monkeypatch.setattr(type(build_metric("psnr")), "forward", fail)
    with pytest.raises(torch.OutOfMemoryError):
        calculate_metric({"img": image, "img2": image}, {"type": "pyiqa", "metric": "psnr"})


@pytest.mark.parametrize("metric", ["ssim", "ms_ssim", "vif", "cw_ssim", "mad", "piqe"])
def test_an_image_too_small_for_a_metric_has_no_value(metric):
    image = np.random.default_rng(0).integers(0, 256, (3, 3, 3), np.uint8)
    assert math.isnan(calculate_metric({"img": image, "img2": image}, {"type": "pyiqa", "metric": metric}))


def test_an_option_of_a_metric_may_be_a_list():
    # It reaches pyiqa, which does not know this one.
    image = np.zeros((64, 64, 3), np.uint8)
    options = {"type": "pyiqa", "metric": "ms_ssim", "weights": [0.5, 0.5]}
    with pytest.raises(ValueError, match="unexpected keyword argument 'weights'"):
        calculate_metric({"img": image, "img2": image}, options)


def test_pyiqa_loss_lowers_as_images_agree():
    loss = build_loss({"type": "PyIQALoss", "metric": "ssimc", "loss_weight": 1.0})
    target = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    image = (target * 0.5).requires_grad_()
    value = loss(image, target)
    value.backward()
    assert 0 < value.item() < 1 and image.grad.abs().sum() > 0
    assert loss(target, target).item() == pytest.approx(0, abs=1e-6)


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory):
    """Random weights of VGG16's first four blocks, as VGGLoss reads them, and the same in torchvision's layers."""
    from torchvision.models import vgg

    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = vgg.make_layers(vgg.cfgs["D"])[:23]
    convs = [layer for layer in layers if isinstance(layer, torch.nn.Conv2d)]
    names = [f"conv{block}_{i}" for block, count in ((1, 2), (2, 2), (3, 3), (4, 3)) for i in range(1, count + 1)]
    path = tmp_path_factory.mktemp("vgg") / "vgg.npz"
    arrays = {
        f"{n}.{k}": p.detach().numpy() for n, conv in zip(names, convs, strict=True) for k, p in conv.named_parameters()
    }
    np.savez(path, **arrays)
    return path, layers.eval()


def test_vgg_loss_is_the_distance_of_unit_features(vgg_file):
    path, layers = vgg_file
    a, b = torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean = torch.tensor([122.679, 116.669, 104.007]).view(1, 3, 1, 1) / 255
    x, distances = torch.cat([a, b]) - mean, []
    with torch.no_grad():
        for i, layer in enumerate(layers):
            x = layer(x)
            if i in (3, 8, 15, 22):
                one, other = (x / x.norm(dim=1, keepdim=True).clamp_min(1e-4)).chunk(2)
                distances.append(float((one - other).square().sum(1).mean()))
    loss = build_loss({"type": "VGGLoss", "path": str(path), "loss_weight": 0.5})
    assert loss(a, b).item() == pytest.approx(0.5 * sum(distances) / 4, rel=1e-3)
    assert loss(a, a).item() == 0


def test_vgg_loss_has_gradients_for_the_image_alone(vgg_file):
    loss = build_loss({"type": "VGGLoss", "path": str(vgg_file[0])})
    image, target = (torch.rand(1, 3, 16, 16, requires_grad=True) for _ in range(2))
    loss(image, target).backward()
    assert image.grad.abs().sum() > 0 and target.grad is None
    assert not any(parameter.requires_grad for parameter in loss.parameters())


@pytest.mark.parametrize("kind", ["missing", "damaged", "pickled", "other"])
def test_vgg_loss_names_a_file_that_it_cannot_use(tmp_path, vgg_file, kind):
    path = tmp_path / "vgg.npz"
    if kind == "damaged":
        path.write_bytes(vgg_file[0].read_bytes()[:1000])
    elif kind == "pickled":
        np.savez(path, **{"conv1_1.weight": np.array([object()])})
    elif kind == "other":
        np.savez(path, **{"conv1_1.weight": np.zeros((8, 3, 3, 3), np.float32)})
    expected = {"missing": "is not a file", "other": r"conv1_1.weight is of shape \(8, 3, 3, 3\)"}.get(kind, "damaged")
    with pytest.raises(ValueError, match=expected):
        build_loss({"type": "VGGLoss", "path": str(path)})


def test_vgg_loss_without_a_file_uses_torchvisions(monkeypatch, vgg_file):
    from torchvision.models import VGG16_Weights

    state = {f"features.{key}": value for key, value in vgg_file[1].state_dict().items()}
    monkeypatch.setattr(VGG16_Weights, "get_state_dict", lambda self, **options: state)
    loss = build_loss({"type": "VGGLoss"})
    assert torch.equal(loss.blocks[3][-2].weight, state["features.21.weight"])
    assert loss.std.flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])


def test_vgg_loss_without_a_file_and_without_a_network(monkeypatch):
    from torchvision.models import VGG16_Weights

    def offline(self, **options):
        raise OSError("no network")

    monkeypatch.setattr(VGG16_Weights, "get_state_dict", offline)
    with pytest.raises(ValueError, match="cannot be downloaded.*`path`"):
        build_loss({"type": "VGGLoss"})
