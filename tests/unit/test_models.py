"""The model classes of both stages, in one process and without files where none are needed."""

import copy

import pytest
import torch
from basicsr.models import build_model
from small_models import iter_model_of, iter_options, options, vqgan_model
from small_networks import VQGAN, config, photo, small_iter

from basicsr_compat.schema import OptionProblems, read_section
from iter_arch import SamplingConfig, load_pretrained, save_pretrained
from iter_model.options import ITERValOptions


def train(model, iterations, data, first=1):
    losses = []
    for current_iter in range(first, first + iterations):
        model.feed_data(data)
        model.optimize_parameters(current_iter)
        losses.append(model.get_current_log())
    return losses


IMAGES = {"gt": photo(4, 3, 64, 64)}
PAIRS = {"lq": photo(4, 3, 16, 16), "gt": photo(4, 3, 64, 64, seed=1)}


# ---------------------------------------------------------------------------------------------------- stage I


@pytest.mark.long
def test_stage_one_learns(tmp_path):
    log = train(vqgan_model(tmp_path), 25, IMAGES)
    assert log[-1]["l_pix"] < 0.9 * log[1]["l_pix"]
    assert set(log[0]) == {"l_pix", "l_ssim", "l_vq", "perplexity", "codes_used"}


def test_codebook_starts_from_encoder_outputs(tmp_path):
    model = vqgan_model(tmp_path)
    model.feed_data(IMAGES)
    model._start_codebook()
    with torch.no_grad():
        latent = model.net_g.latent(IMAGES["gt"])
        used = model.quantizer.tokens(latent).unique()
    # k-means of the 256 latents: every center has members.
    assert len(used) == VQGAN["quantizer"]["num_codes"]
    assert torch.equal(model.net_g_ema.quantizer.embedding.weight, model.quantizer.embedding.weight)


def test_warm_up_trains_a_plain_autoencoder_and_then_makes_the_codebook(tmp_path):
    model = vqgan_model(tmp_path, quantize_start_iter=4)
    before = model.quantizer.embedding.weight.clone()
    log = train(model, 3, IMAGES)
    assert torch.equal(model.quantizer.embedding.weight, before) and log[-1]["l_vq"] == 0
    log = train(model, 1, IMAGES, first=4)
    assert not torch.equal(model.quantizer.embedding.weight, before) and log[-1]["l_vq"] > 0
    assert log[-1]["codes_used"] > VQGAN["quantizer"]["num_codes"] / 2


def test_dead_codes_are_revived_and_live_ones_stay(tmp_path):
    model = vqgan_model(tmp_path, revive_freq=5, optim_g={"type": "Adam", "lr": 0.0})
    train(model, 4, IMAGES)
    with torch.no_grad():
        model.quantizer.embedding.weight[:20] = 1e3  # nothing is near
    model.codebook.counts.zero_()
    live = model.quantizer.embedding.weight[20:].clone()
    log = train(model, 1, IMAGES, first=5)
    weight = model.quantizer.embedding.weight
    assert log[-1]["codes_used"] <= 12
    assert weight[:20].abs().max() < 100 and torch.equal(model.net_g_ema.quantizer.embedding.weight[:20], weight[:20])
    used = model.codebook.window_counts[20:] > 0
    assert torch.equal(weight[20:][used], live[used])
    log = train(model, 1, IMAGES, first=6)
    assert log[-1]["codes_used"] > 12


def test_gan_starts_when_the_yml_says_so_and_trains_both_networks(tmp_path):
    model = vqgan_model(
        tmp_path, gan_opt={"type": "GANLoss", "gan_type": "hinge", "loss_weight": 0.1}, net_d_start_iter=2
    )
    before = copy.deepcopy(model.net_d.state_dict())
    log = train(model, 1, IMAGES)
    assert "l_gan" not in log[0] and all(torch.equal(v, before[k]) for k, v in model.net_d.state_dict().items())
    log = train(model, 1, IMAGES, first=2)
    assert {"l_gan", "l_d_real", "l_d_fake"} <= set(log[0])
    assert any(not torch.equal(v, before[k]) for k, v in model.net_d.state_dict().items())


def test_a_gan_loss_without_a_discriminator_names_what_is_missing(tmp_path):
    """BasicSR's own train.py checks no options before it builds the model."""
    opt = options(tmp_path, gan_opt={"type": "GANLoss", "gan_type": "hinge"})
    opt |= {"model_type": "SwinVQGANModel", "network_g": {"type": "SwinVQGAN", **VQGAN}}
    with pytest.raises(OptionProblems, match="network_d is missing(.|\n)*train.optim_d is missing"):
        build_model(opt)


def test_accumulated_gradients_equal_those_of_the_joint_batch(tmp_path):
    halves = [{"gt": IMAGES["gt"][:2]}, {"gt": IMAGES["gt"][2:]}]
    optim = {"type": "SGD", "lr": 0.1}
    whole = vqgan_model(tmp_path, quantize_start_iter=9, optim_g=optim)
    parts = vqgan_model(tmp_path, quantize_start_iter=9, optim_g=optim, accumulate=2)
    train(whole, 1, IMAGES)
    train(parts, 1, halves[0])
    unchanged = vqgan_model(tmp_path, quantize_start_iter=9, optim_g=optim)
    for p, q in zip(parts.net_g.parameters(), unchanged.net_g.parameters(), strict=True):
        assert torch.equal(p, q)
    train(parts, 1, halves[1], first=2)
    for p, q in zip(parts.net_g.parameters(), whole.net_g.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-5)


def test_gradient_clipping_bounds_the_step(tmp_path):
    optim = {"type": "SGD", "lr": 1.0}
    model = vqgan_model(tmp_path, optim_g=optim, clip_grad_norm=1e-3, quantize_start_iter=9)
    before = torch.cat([p.detach().flatten().clone() for p in model.net_g.parameters()])
    train(model, 1, IMAGES)
    after = torch.cat([p.detach().flatten() for p in model.net_g.parameters()])
    assert 0 < (after - before).norm() <= 1.01e-3


def test_ema_follows_with_its_decay(tmp_path):
    model = vqgan_model(tmp_path, ema_decay=0.25)
    train(model, 1, IMAGES)
    start = [p.clone() for p in model.net_g_ema.parameters()]
    train(model, 1, IMAGES, first=2)
    for old, average, p in zip(start, model.net_g_ema.parameters(), model.net_g.parameters(), strict=True):
        # The decay of an early iteration is (1 + i) / (10 + i) where that is less: 3 / 12 at the second.
        assert torch.allclose(average, 0.25 * old + 0.75 * p, atol=1e-6)


def test_bf16_keeps_losses_finite_and_weights_float32(tmp_path):
    model = vqgan_model(tmp_path, autocast="bf16", channels_last=True)
    log = train(model, 3, IMAGES)
    assert all(value == value for value in log[-1].values())
    assert {p.dtype for p in model.net_g.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("switch", "message"),
    [
        ({"autocast": "fp16"}, "train.autocast='fp16' must be none or bf16"),
        ({"accumulate": 0}, "train.accumulate=0 must be a whole number >= 1"),
        ({"ema_decay": 1.0}, "train.ema_decay=1.0 must be a number in"),
        ({"optim_g": {"type": "Adm", "lr": 1}}, "train.optim_g.type='Adm' is not a class of torch.optim"),
    ],
)
def test_impossible_switches_are_refused(tmp_path, switch, message):
    with pytest.raises(ValueError, match=message):
        vqgan_model(tmp_path, **switch)


def test_stage_one_reconstructs_images_of_any_size_in_tests(tmp_path):
    model = vqgan_model(tmp_path)
    model.feed_data({"gt": photo(1, 3, 50, 90)})
    model.test()
    assert model.output.shape == (1, 3, 50, 90)


def test_the_decoder_alone_is_trained_and_tokens_stay(tmp_path):
    first = vqgan_model(tmp_path)
    train(first, 2, IMAGES)
    first.save(0, 2)
    model = vqgan_model(tmp_path, pretrained=tmp_path / "models/net_g_2.pth", decoder_only=True)
    before = {key: value.clone() for key, value in model.net_g.state_dict().items()}
    train(model, 3, IMAGES)
    for key, value in model.net_g.state_dict().items():
        assert torch.equal(value, before[key]) == (not key.startswith("decoder.")), key


# ---------------------------------------------------------------------------------------------------- stages II and III


@pytest.mark.long
def test_stages_two_and_three_learn(tmp_path):
    model = iter_model_of(tmp_path, optim_g={"type": "Adam", "lr": 5e-3})
    log = train(model, 40, PAIRS)
    assert set(log[0]) == {"l_dist", "l_r", "l_e", "acc_l", "acc_r", "acc_e"}
    for name in ("l_dist", "l_r"):
        assert log[-1][name] < 0.8 * log[0][name]


def test_tokens_of_similar_codes_start_with_similar_embeddings_and_logits(tmp_path):
    net = iter_model_of(tmp_path, codebook_init=True).iter
    heads = [part.head.weight.flatten(1) for part in (net.lq_encoder, net.refiner)]
    codes = net.vqgan.quantizer.embedding.weight
    expected = torch.nn.functional.normalize(codes - codes.mean(0))
    for weight in (*heads, net.refiner.embedding.weight[:-1], net.evaluator.embedding.weight):
        directions = torch.nn.functional.normalize(weight)
        torch.testing.assert_close(directions @ directions.T, expected @ expected.T)


def test_the_vqgan_is_frozen_in_eval_mode_and_has_no_gradients(tmp_path):
    model = iter_model_of(tmp_path)
    expected = torch.load(tmp_path / "vqgan.pth")["params_ema"]
    train(model, 3, PAIRS)
    assert all(torch.equal(value, expected[key]) for key, value in model.iter.vqgan.state_dict().items())
    assert not any(module.training for module in model.iter.vqgan.modules())
    assert all(p.grad is None and not p.requires_grad for p in model.iter.vqgan.parameters())
    assert model.iter_ema.vqgan is model.iter.vqgan
    trained = {id(p) for group in model.optimizer_g.param_groups for p in group["params"]}
    assert trained == {id(p) for p in model.net_g.parameters()}
    model.feed_data(PAIRS)
    model.test()
    assert model.iter.lq_encoder.training and not model.iter.vqgan.training


def test_checkpoints_hold_the_trained_networks_only_and_the_last_one_everything(tmp_path):
    model = iter_model_of(tmp_path)
    train(model, 1, PAIRS)
    model.save(0, 1)
    checkpoint = torch.load(tmp_path / "models" / "net_g_1.pth")
    assert {key.partition(".")[0] for key in checkpoint["params_ema"]} == {"lq_encoder", "refiner", "evaluator"}
    assert not (tmp_path / "models" / "iter_latest.safetensors").exists()
    model.save(-1, -1)
    net = load_pretrained(tmp_path / "models" / "iter_latest.safetensors")
    lq = photo(1, 3, 16, 16)
    assert torch.equal(net(lq), model.iter_ema(lq))


@pytest.mark.parametrize("whole", [True, False], ids=["a whole ITER", "a checkpoint of a training run"])
def test_training_can_start_from_weights(tmp_path, whole):
    source = iter_model_of(tmp_path)
    train(source, 1, PAIRS)
    opt = copy.deepcopy(source.opt)
    opt["train"]["optim_g"] |= {"type": "Adam"}
    opt["train"]["scheduler"]["type"] = "MultiStepLR"
    if whole:
        save_pretrained(source.iter, tmp_path / "whole.safetensors")
        opt["path"] = opt["path"] | {"pretrain_network_g": str(tmp_path / "whole.safetensors")}
        opt["path"].pop("pretrain_network_vqgan")
    else:
        source.save(0, 1)
        opt["path"] = opt["path"] | {"pretrain_network_g": str(tmp_path / "models" / "net_g_1.pth")}
    model = build_model(opt)
    for key, value in source.iter.state_dict().items():
        assert torch.equal(model.iter.state_dict()[key], value)


@pytest.mark.parametrize("make", [vqgan_model, iter_model_of])
def test_a_resumed_run_continues_with_its_averaged_weights(tmp_path, make):
    source = make(tmp_path, ema_decay=0.9)
    train(source, 3, PAIRS)
    source.save(0, 3)
    opt = copy.deepcopy(source.opt)
    opt["train"]["scheduler"]["type"] = "MultiStepLR"
    opt["path"] |= {"pretrain_network_g": str(tmp_path / "models" / "net_g_3.pth"), "param_key_g": "params"}
    model = build_model(opt)
    for expected, found in ((source.net_g, model.net_g), (source.net_g_ema, model.net_g_ema)):
        for key, value in expected.state_dict().items():
            assert torch.equal(found.state_dict()[key], value)


def test_resuming_keeps_the_frozen_vqgan(tmp_path):
    """BasicSR's check_resume rewrites paths and keys of the options."""
    from basicsr.utils.misc import check_resume

    vqgan = tmp_path / "vqgan.pth"
    torch.save(
        {"params": small_iter(seed=8).vqgan.state_dict(), "params_ema": small_iter(seed=7).vqgan.state_dict()}, vqgan
    )
    source = iter_model_of(tmp_path, vqgan=vqgan)
    source.save(0, 1)
    opt = copy.deepcopy(source.opt)
    opt["train"]["scheduler"]["type"] = "MultiStepLR"
    opt["path"]["resume_state"] = str(tmp_path / "training_states" / "1.state")
    check_resume(opt, 1)
    model = build_model(opt)
    for key, value in source.iter.state_dict().items():
        assert torch.equal(model.iter.state_dict()[key], value)


def test_a_run_that_started_from_a_whole_iter_resumes_with_its_vqgan(tmp_path):
    whole = tmp_path / "whole.safetensors"
    net = small_iter(seed=3)
    net.sampling = SamplingConfig(alpha=0.25, fidelity=0.5)
    save_pretrained(net, whole)
    opt = iter_options(tmp_path)
    opt["path"] |= {"pretrain_network_vqgan": None, "pretrain_network_g": str(whole)}
    source = build_model(opt)
    assert source.sampling == net.sampling
    train(source, 1, PAIRS)
    source.save(0, 1)
    opt = copy.deepcopy(source.opt)
    opt["train"]["scheduler"]["type"] = "MultiStepLR"
    opt["path"] |= {"pretrain_network_vqgan": None, "pretrain_network_g": str(tmp_path / "models" / "net_g_1.pth")}
    with pytest.raises(ValueError, match="holds no VQGAN"):
        build_model(copy.deepcopy(opt))
    opt["path"]["started_from"] = str(tmp_path / "models" / "net_g_1.pth")
    with pytest.raises(ValueError, match="holds no VQGAN"):
        build_model(copy.deepcopy(opt))
    opt["path"]["started_from"] = str(whole)
    model = build_model(opt)
    model.load_training_state(source.training_state(1))
    assert model.sampling == model.iter.sampling == model.iter_ema.sampling == source.sampling
    for key, value in source.iter.state_dict().items():
        assert torch.equal(model.iter.state_dict()[key], value)


def test_masks_follow_algorithm_1(tmp_path):
    model = iter_model_of(tmp_path)
    m_t, alpha, uniform = model.draw_training_masks(torch.Size((2000, 4, 4)))
    masked = (~m_t).flatten(1).sum(1)
    # r in (0, 1]: at least one position is masked, all of them may be.
    assert masked.min() == 1 and masked.max() == 16
    # E[ceil(16 sin(pi r / 2))] over r ~ U(0, 1]: 16 * 2/pi = 10.19, and half a position for the ceiling.
    assert masked.float().mean().item() == pytest.approx(10.7, abs=0.3)
    # Any position is as likely as another.
    assert m_t.float().mean(0).std() < 0.03
    assert alpha.shape == (2000,) and 0 <= alpha.min() and alpha.max() < 1 and uniform.shape == (2000, 4, 4)


def test_refiner_sees_kept_tokens_of_S_h_and_evaluator_sees_drawn_ones(tmp_path):
    model = iter_model_of(tmp_path)
    S_h = torch.randint(32, (2, 8, 8))
    m_t = torch.zeros(2, 8, 8, dtype=torch.bool)
    m_t[:, :4] = True
    alpha, uniform = torch.full((2,), 0.5), torch.rand(2, 8, 8)
    predicted = model.net_g(PAIRS["lq"][:2], S_h, m_t, alpha, uniform)
    assert torch.equal(predicted.S_r[:, :4], S_h[:, :4]) and not torch.equal(predicted.S_r[:, 4:], S_h[:, 4:])
    assert torch.equal(predicted.S_l, predicted.lq_logits.argmax(1))
    good = model.iter.evaluator(predicted.S_l, predicted.S_l).softmax(1)[:, 1] >= 0.5
    expected = model.iter.refiner(S_h, m_t, predicted.S_l, good)
    assert torch.allclose(predicted.refiner_logits, expected, atol=1e-4)
    assert torch.allclose(predicted.drawn_logits, model.iter.evaluator(predicted.S_r, predicted.S_l), atol=1e-4)


def test_degradation_happens_in_feed_data_where_the_data_set_left_it(tmp_path):
    model = iter_model_of(tmp_path)
    kernel = torch.zeros(2, 21, 21)
    kernel[:, 10, 10] = 1
    data = {"gt": photo(2, 3, 64, 64), "kernel1": kernel, "kernel2": kernel, "sinc_kernel": kernel}
    model.feed_data(data)
    first = model.lq
    assert first.shape == (2, 3, 16, 16) and model.gt.shape == (2, 3, 64, 64)
    model.feed_data(data)
    assert not torch.equal(model.lq, first)


def test_a_pool_mixes_pairs_of_different_batches(tmp_path):
    model = iter_model_of(tmp_path, queue_size=4)
    kernel = torch.zeros(2, 21, 21)
    kernel[:, 10, 10] = 1
    kernels = {"kernel1": kernel, "kernel2": kernel, "sinc_kernel": kernel}
    brightness = set()
    for batch in range(10):
        model.feed_data({"gt": torch.full((2, 3, 64, 64), batch / 10), **kernels})
        brightness.add(tuple(round(float(gt.mean()) * 10) for gt in model.gt))
        assert model.lq.shape == (2, 3, 16, 16)
    assert any(first != second for first, second in brightness)


def test_training_without_a_vqgan_is_refused(tmp_path):
    losses = {name: {"type": "TokenCrossEntropy"} for name in ("dist_opt", "refiner_opt")}
    opt = options(tmp_path, **losses, evaluator_opt={"type": "EvaluatorLoss"})
    opt |= {"model_type": "ITERModel", "network_g": {"type": "ITER", **config()}}
    with pytest.raises(ValueError, match="path.pretrain_network_vqgan is missing.*train_swin_vqgan.yml"):
        build_model(opt)


def test_a_vqgan_of_another_architecture_is_refused_by_its_keys(tmp_path):
    other = small_iter().vqgan
    torch.save(
        {"params_ema": {k: v for k, v in other.state_dict().items() if "encoder.0" not in k}}, tmp_path / "v.pth"
    )
    with pytest.raises(ValueError, match="encoder.0.weight is missing"):
        iter_model_of(tmp_path, vqgan=tmp_path / "v.pth")


def test_sampling_options_are_checked_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"val.sampling.step is not an option \(did you mean 'steps'\?\)"):
        read_section(ITERValOptions, {"sampling": {"step": 3}}, "val")
    with pytest.raises(ValueError, match="val.sampling.alpha=2 must be a number in"):
        read_section(ITERValOptions, {"sampling": {"alpha": 2}}, "val")


def test_validation_samples_as_the_yml_or_else_the_network_says(tmp_path):
    opt = iter_model_of(tmp_path).opt
    opt["train"]["scheduler"]["type"] = "MultiStepLR"
    opt["network_g"] = {"type": "ITER", **config(), "sampling": {"alpha": 0.2}}
    assert build_model(copy.deepcopy(opt)).sampling == SamplingConfig(alpha=0.2)
    opt["val"]["sampling"] = {"steps": 3}
    opt["train"]["scheduler"]["type"] = "MultiStepLR"
    assert build_model(opt).sampling == SamplingConfig(steps=3)


@pytest.mark.slow
def test_compiled_networks_learn_and_keep_their_names(tmp_path):
    model = iter_model_of(tmp_path, compile=True)
    names = set(model.net_g.state_dict())
    log = train(model, 5, PAIRS)
    assert log[-1]["l_dist"] < log[0]["l_dist"] and set(model.net_g.state_dict()) == names
