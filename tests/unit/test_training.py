"""What training promises in all stages: averages, frozen weights, states of another run, one process and its GPUs."""

import copy
import logging
import time

import cv2
import numpy as np
import pytest
import torch
from basicsr.data import build_dataset
from basicsr.models import build_model
from small_models import iter_model_of, options, vqgan_model
from small_networks import VQGAN, config, photo, small_iter
from torch.utils.data import DataLoader

from iter_model import codebook
from iter_model.codebook import CodebookTraining, kmeans
from iter_model.options import ValOptions

IMAGES = {"gt": photo(4, 3, 64, 64)}
PAIRS = {"lq": photo(4, 3, 16, 16), "gt": photo(4, 3, 64, 64, seed=1)}


def train(model, iterations, data, first=1):
    for current_iter in range(first, first + iterations):
        model.feed_data(data)
        model.optimize_parameters(current_iter)


def distance(one, other):
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.fixture
def log():
    """The lines of BasicSR's log."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("basicsr").addHandler(handler)
    yield lines
    logging.getLogger("basicsr").removeHandler(handler)


@pytest.fixture
def two_states(tmp_path):
    """A checkpoint of stage I whose averaged weights are others than those that were trained."""
    states = {"params": small_iter(seed=8).vqgan.state_dict(), "params_ema": small_iter(seed=7).vqgan.state_dict()}
    torch.save(states, tmp_path / "two.pth")
    return states


# ---------------------------------------------------------------------------------------------------- averages


def test_fine_tuning_keeps_the_average_that_it_loads(tmp_path, two_states):
    model = vqgan_model(
        tmp_path, pretrained=tmp_path / "two.pth", revive_freq=0, ema_decay=0.999, optim_g={"type": "SGD", "lr": 1e-9}
    )
    train(model, 5, IMAGES)
    average = model.net_g_ema.state_dict()
    gap = distance(two_states["params"], two_states["params_ema"])
    assert distance(average, two_states["params_ema"]) < 0.01 * gap


def test_the_average_moves_with_steps_of_the_optimizer(tmp_path):
    model = vqgan_model(tmp_path, accumulate=4, ema_decay=0.25, quantize_start_iter=99)
    start = copy.deepcopy(model.net_g_ema.state_dict())
    train(model, 3, IMAGES)
    assert distance(model.net_g_ema.state_dict(), start) == 0
    train(model, 1, IMAGES, first=4)
    # The decay of an early step is (1 + i) / (10 + i) where that is less: 2 / 11 at the first.
    for name, value in model.net_g.state_dict().items():
        expected = 2 / 11 * start[name] + 9 / 11 * value
        assert torch.allclose(model.net_g_ema.state_dict()[name], expected, atol=1e-6)


def test_whether_the_average_warms_up_survives_a_resume(tmp_path):
    for pretrained, warms_up in ((None, True), (tmp_path / "models/net_g_1.pth", False)):
        model = vqgan_model(tmp_path, pretrained=pretrained)
        train(model, 1, IMAGES)
        model.save(0, 1)
        resumed = vqgan_model(tmp_path, pretrained=tmp_path / "models/net_g_1.pth")
        resumed.resume_training(torch.load(tmp_path / "training_states/1.state", weights_only=True))
        assert model.ema_warms_up == resumed.ema_warms_up == warms_up


# ---------------------------------------------------------------------------------------------------- decoder alone


@pytest.mark.parametrize("key", ["params", "params_ema"])
def test_a_decoder_alone_and_its_average_keep_one_set_of_tokens(tmp_path, two_states, key):
    opt = vqgan_model(tmp_path, pretrained=tmp_path / "two.pth").opt
    opt["train"] |= {"decoder_only": True, "ema_decay": 0.5, "scheduler": {"type": "MultiStepLR", "milestones": [9]}}
    opt["path"]["param_key_g"] = key if key == "params" else None
    model = build_model(opt)
    train(model, 3, IMAGES)
    for net in (model.net_g, model.net_g_ema):
        for name, value in net.state_dict().items():
            assert torch.equal(value, two_states[key][name]) == (not name.startswith("decoder.")), name


# ---------------------------------------------------------------------------------------------------- codebook


@pytest.mark.draws
def test_kmeans_finds_every_cluster():
    centers = 10 * torch.eye(32)
    noise = 0.1 * torch.randn(32, 50, 32, generator=torch.Generator().manual_seed(0))
    found = kmeans((centers[:, None] + noise).flatten(0, 1), 32, torch.Generator().manual_seed(0))
    distances = torch.cdist(centers, found)
    assert sorted(distances.argmin(1).tolist()) == list(range(32)) and distances.amin(1).max() < 2


def test_kmeans_looks_at_some_of_many_vectors(monkeypatch):
    seen = []
    scipys = codebook.kmeans2
    monkeypatch.setattr(
        codebook, "kmeans2", lambda data, *rest, **kw: seen.append(len(data)) or scipys(data, *rest, **kw)
    )
    start = time.process_time()
    kmeans(torch.rand(50_000, 32, generator=torch.Generator().manual_seed(0)), 256, torch.Generator().manual_seed(0))
    assert seen == [64 * 256]
    assert time.process_time() - start < 20  # SciPy's k-means++ alone takes minutes


class Fixed(torch.nn.Module):
    """A quantizer whose codes cannot be replaced."""

    num_codes = 4


def test_codes_that_cannot_be_replaced_are_counted_and_left_alone():
    training = CodebookTraining(
        [Fixed()], start_iter=1, revive_freq=1, generator=torch.Generator(), device=torch.device("cpu")
    )
    assert training.start_iter is None
    training.remember(torch.rand(1, 8, 2, 2))
    training.count(torch.tensor([[[0, 0], [1, 1]]]), 1)
    use = training.use()
    assert use["codes_used"] == 2 and use["perplexity"].item() == pytest.approx(2)


def test_a_quantizer_without_a_codebook_is_trained_and_resumed(tmp_path):
    """FSQ: nothing to start, nothing to revive, no VQ loss; the rest of stage I is the same."""
    opt = copy.deepcopy(vqgan_model(tmp_path, revive_freq=2).opt)
    opt["network_g"]["quantizer"] = {"type": "FSQ", "levels": [4, 4, 4]}
    opt["train"]["scheduler"]["type"] = "MultiStepLR"
    model = build_model(copy.deepcopy(opt))
    losses = []
    for current_iter in range(1, 26):
        train(model, 1, IMAGES, first=current_iter)
        losses.append(model.get_current_log())
    assert losses[-1]["l_pix"] < 0.9 * losses[0]["l_pix"] and losses[-1]["l_vq"] == 0
    assert 1 < losses[-1]["codes_used"] <= 64
    model.save(0, 25)
    opt["path"]["pretrain_network_g"] = str(tmp_path / "models/net_g_25.pth")
    resumed = build_model(opt)
    resumed.resume_training(torch.load(tmp_path / "training_states/25.state", weights_only=True))
    for one in (model, resumed):
        train(one, 1, IMAGES, first=26)
    assert distance(model.net_g.state_dict(), resumed.net_g.state_dict()) == 0


# ---------------------------------------------------------------------------------------------------- frozen weights


def test_a_state_refuses_another_vqgan_and_names_both(tmp_path):
    model = iter_model_of(tmp_path, vqgan=None)
    train(model, 1, PAIRS)
    model.save(0, 1)
    state = torch.load(tmp_path / "training_states/1.state", weights_only=True)
    # The same weights in a file of another name.
    torch.save({"params": torch.load(tmp_path / "vqgan.pth")["params_ema"]}, tmp_path / "moved.pth")
    iter_model_of(tmp_path, vqgan=tmp_path / "moved.pth").resume_training(state)
    # Stage I has gone on since, and overwritten its file.
    torch.save({"params_ema": small_iter(seed=8).vqgan.state_dict()}, tmp_path / "vqgan.pth")
    expected = r"vqgan.pth holds other frozen weights \(checksum \w+\) than .* trained on: .*vqgan.pth \(checksum \w+\)"
    with pytest.raises(ValueError, match=expected):
        iter_model_of(tmp_path, vqgan=tmp_path / "vqgan.pth").resume_training(state)


def test_stages_that_see_different_ground_truths_are_told_apart(tmp_path, log):
    first = vqgan_model(tmp_path)
    first.save(0, -1)
    saved = tmp_path / "models/net_g_latest.pth"
    assert torch.load(saved, weights_only=True)["gt_usm"] is False
    opt = copy.deepcopy(iter_model_of(tmp_path, vqgan=saved).opt)
    assert not [line for line in log if "gt_usm" in line]
    opt["train"]["scheduler"]["type"] = "MultiStepLR"
    opt["datasets"]["train"]["gt_usm"] = True
    build_model(opt)
    (line,) = [line for line in log if "gt_usm" in line]
    assert "datasets.train.gt_usm=true" in line and "net_g_latest.pth was trained with gt_usm: false" in line


# ---------------------------------------------------------------------------------------------------- one process


def test_one_process_uses_one_gpu_and_says_how_to_use_all(tmp_path, log):
    model = vqgan_model(tmp_path)
    model.opt["num_gpu"] = 4
    net = model.model_to_device(torch.nn.Linear(2, 2))
    assert type(net) is torch.nn.Linear
    assert "torchrun --nproc_per_node=4 --no-python basicsr train" in log[-1]


def test_a_pool_needs_a_degradation_that_is_drawn_for_a_batch(tmp_path):
    opt = iter_model_of(tmp_path).opt
    opt["train"] |= {"queue_size": 8, "scheduler": {"type": "MultiStepLR", "milestones": [9]}}
    opt["datasets"]["train"]["degrade_in_worker"] = True
    with pytest.raises(ValueError, match="train.queue_size=8 must be 0 with datasets.train.degrade_in_worker=true"):
        build_model(opt)


def test_options_that_basicsrs_commands_add_may_be_missing(tmp_path):
    opt = copy.deepcopy(vqgan_model(tmp_path).opt)
    opt["train"]["scheduler"]["type"] = "MultiStepLR"
    for key in ("manual_seed", "rank", "world_size"):
        del opt[key]
    model = build_model(opt)
    model.update_learning_rate(1)
    train(model, 1, IMAGES)
    model.save(0, 1)
    model.resume_training(torch.load(tmp_path / "training_states/1.state", weights_only=True))


# ---------------------------------------------------------------------------------------------------- tests


def test_a_test_measures_the_averaged_weights(tmp_path, two_states):
    opt = options(tmp_path) | {"is_train": False, "network_g": {"type": "SwinVQGAN", **VQGAN}, "val": {}}
    opt |= {"model_type": "SwinVQGANModel"}
    opt["path"]["pretrain_network_g"] = str(tmp_path / "two.pth")
    assert distance(build_model(copy.deepcopy(opt)).net_g.state_dict(), two_states["params_ema"]) == 0
    opt["path"]["param_key_g"] = "params"
    assert distance(build_model(opt).net_g.state_dict(), two_states["params"]) == 0
    source = iter_model_of(tmp_path)
    train(source, 2, PAIRS)
    source.save(0, 2)
    opt |= {"model_type": "ITERModel", "network_g": {"type": "ITER", **config()}}
    opt["path"] |= {"pretrain_network_g": str(tmp_path / "models/net_g_2.pth"), "param_key_g": None}
    opt["path"]["pretrain_network_vqgan"] = str(tmp_path / "vqgan.pth")
    assert distance(build_model(opt).net_g.state_dict(), source.net_g_ema.state_dict()) == 0


@pytest.mark.parametrize("is_train", [True, False])
def test_results_of_photos_of_one_name_do_not_overwrite_each_other(tmp_path, is_train):
    model = vqgan_model(tmp_path)
    model.is_train, model.val = is_train, ValOptions()
    for index, name in enumerate(("s1/1.png", "s2/1.png", "a.png", "a.bmp")):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "photos" / name), np.full((64, 64, 3), 60 * index, np.uint8))
    section = {"name": "set", "type": "SecondOrderDegradationDataset", "phase": "val", "scale": 4}
    dataset = build_dataset(section | {"dataroot_gt": str(tmp_path / "photos")})
    model.validation(DataLoader(dataset), 5, None, save_img=True)
    written = sorted(str(path.relative_to(tmp_path / "images")) for path in (tmp_path / "images").rglob("*_*.png"))
    if is_train:
        assert written == ["set/a.bmp/a.bmp_5.png", "set/a.png/a.png_5.png", "set/s1/1/1_5.png", "set/s2/1/1_5.png"]
    else:
        assert written == ["set/a.bmp_run.png", "set/a.png_run.png", "set/s1/1_run.png", "set/s2/1_run.png"]
