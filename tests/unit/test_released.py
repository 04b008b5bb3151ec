"""Reading and writing the authors' released checkpoints: what is exact, and what is refused."""

import json
import os
import re

import pytest
import torch
from basicsr.archs.rrdbnet_arch import RRDBNet
from pickles import Code
from released_files import equal_weights, only_vqgan, same, without
from safetensors.torch import save_file
from small_networks import RELEASED_FORM, photo, small_iter

import iter_arch
from iter_arch import SamplingConfig, load_pretrained, load_released, save_pretrained
from iter_arch.pretrained import checkpoint
from iter_arch.pretrained.checkpoint import Checkpoint, build
from iter_arch.pretrained.infer import upgrade_config
from iter_arch.pretrained.released import DERIVED, from_released, is_released, to_released

SWIN = "token_refine_net.token_crit_net.swin_layers.swin_blks.0.residual_group.blocks"


# The mapping


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_both_ways_are_exact(scale):
    ours = small_iter(scale, **RELEASED_FORM).state_dict()
    theirs = to_released(ours)
    assert same(from_released(theirs), ours)
    assert same(to_released(from_released(theirs)), theirs)
    vqgan = {key.removeprefix("vqgan."): value for key, value in ours.items() if key.startswith("vqgan.")}
    assert same(to_released(vqgan), only_vqgan(theirs))
    assert same(from_released(only_vqgan(theirs)), vqgan)
    rest = without(ours, "vqgan.")
    assert same(to_released(rest), without(theirs, "vqgan."))
    assert same(from_released(without(theirs, "vqgan.")), rest)


def test_dtypes_are_kept(released_state):
    halves = {key: value.bfloat16() if value.is_floating_point() else value for key, value in released_state.items()}
    assert {value.dtype for value in from_released(halves).values()} == {torch.bfloat16}


def test_the_alias_and_derived_buffers_are_not_needed(released_state):
    plain = {
        key: value for key, value in released_state.items() if not key.endswith(DERIVED) and "generator" not in key
    }
    assert len(plain) < len(released_state)
    assert same(from_released(plain), from_released(released_state))
    nonsense = released_state | {key: torch.full((3,), 7.0) for key in released_state if key.endswith(DERIVED)}
    assert same(from_released(nonsense), from_released(released_state))
    assert same(
        from_released({k.replace("decoder", "generator"): v for k, v in plain.items()}), from_released(released_state)
    )


def test_the_alias_must_be_one(released_state):
    key = "vqgan.generator.blocks.0.bias"
    with pytest.raises(ValueError, match=f"{key} must equal vqgan.decoder.blocks.0.bias"):
        from_released(released_state | {key: released_state[key] + 1})


def test_what_is_rebuilt_for_the_authors_code(released_state):
    for key, value in released_state.items():
        if key.startswith("vqgan.generator."):
            assert value is released_state[key.replace("generator", "decoder")] or key.endswith(DERIVED)
    index = released_state[f"{SWIN}.0.attn.relative_position_index"]
    assert index.shape == (64, 64) and index.dtype == torch.int64
    # Liu et al. (2021), Sec. 3.2: the bias of query (i, j) and key (k, l) is entry (i - k + 7, j - l + 7) of 15 x 15.
    for query, key in ((0, 0), (0, 63), (63, 0), (10, 37)):
        rows, columns = query // 8 - key // 8 + 7, query % 8 - key % 8 + 7
        assert index[query, key] == rows * 15 + columns
    masks = {key: value for key, value in released_state.items() if key.startswith(SWIN) and key.endswith("attn_mask")}
    assert list(masks) == [f"{SWIN}.1.attn_mask"]
    mask = masks[f"{SWIN}.1.attn_mask"]
    assert mask.shape == (16, 64, 64) and mask.dtype == torch.float32
    assert not mask[0].any() and mask[3].any() and mask[12].any() and mask[15].any()
    # The last window of the first row holds columns 28..31 of the grid and, rolled over, 0..3.
    assert mask[3, 0, 3] == 0 and mask[3, 0, 4] == -100


@pytest.mark.long
def test_one_key_missing_or_more_is_named(released_state):
    weights = [key for key in released_state if not key.endswith(DERIVED) and "generator" not in key]
    assert len(weights) > 300
    plain = {key: released_state[key] for key in weights}
    for key in weights[::11]:
        with pytest.raises(ValueError, match=re.escape(key)):
            from_released(without(plain, key))
    for key in ("net.weight", "lq_encoder.model.9.weight", "vqgan.extra.weight", f"{SWIN}.7.norm1.weight"):
        with pytest.raises(ValueError, match=re.escape(f"{key} is not part of the network")):
            from_released(plain | {key: torch.zeros(3)})


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("token_refine_net.token_refine_net.combine.weight", (16, 33, 1, 1)),
        ("token_refine_net.token_refine_net.combine.weight", (16, 32, 3, 3)),
        ("token_refine_net.token_refine_net.combine.weight", (32,)),
        ("token_refine_net.token_refine_net.code_emb.weight", (16, 32, 1, 1)),
        ("token_refine_net.token_refine_net.code_emb.weight", ()),
        ("vqgan.quantize.embedding.weight", (32, 8, 1)),
        ("lq_encoder.model.0.weight", (0, 3, 3, 3)),
        ("vqgan.decoder.blocks.0.bias", (5,)),
    ],
)
def test_a_wrong_shape_is_named(released_state, key, shape):
    state = without(released_state, "vqgan.generator.") | {key: torch.zeros(shape)}
    with pytest.raises(ValueError, match=re.escape(key)):
        from_released(state)


def test_networks_of_another_form_cannot_become_released_ones():
    for form, message in (
        ({}, "vqgan is not of the released form"),
        ({"residual_groups": True}, "vqgan is not of the released form"),
        (RELEASED_FORM | {"window": 6}, "window=6"),
    ):
        with pytest.raises(ValueError, match=message):
            to_released(small_iter(**form).state_dict())
    config = small_iter(**RELEASED_FORM).config
    config["lq_encoder"]["res_blocks"] = 3
    with pytest.raises(ValueError, match="res_blocks=3"):
        to_released(iter_arch.ITER(**config).state_dict())


def test_is_released(released_state, released_net):
    assert (
        is_released(released_state)
        and is_released(only_vqgan(released_state))
        and is_released(without(released_state, "vqgan."))
    )
    assert not is_released(released_net.state_dict()) and not is_released(released_net.vqgan.state_dict())
    assert not is_released(RRDBNet(3, 3).state_dict())


def test_the_sampling_follows_the_form(released_net, released_state):
    """Weights that do not say what they are tuned for are sampled as the authors' are, if they have their form."""
    paper = small_iter()
    assert released_net.sampling == paper.sampling == SamplingConfig() != SamplingConfig.released()
    assert load_released(released_state).sampling == SamplingConfig.released()
    for state, expected in (
        (released_net.state_dict(), SamplingConfig.released()),
        (paper.state_dict(), SamplingConfig()),
    ):
        assert build(Checkpoint(state, None), "x").sampling == expected
    earlier = {name: released_net.config[name] for name in released_net.config}
    assert (
        build(Checkpoint(released_net.state_dict(), upgrade_config(earlier)), "x").sampling == SamplingConfig.released()
    )
    earlier["sampling"] = {"alpha": 0.2}
    assert build(Checkpoint(released_net.state_dict(), upgrade_config(earlier)), "x").sampling == SamplingConfig(
        alpha=0.2
    )


def test_the_config_of_an_earlier_version_is_read(tmp_path):
    earlier = {
        "scale": 4,
        "vqgan": {"base_channels": 8, "res_blocks": 1, "codebook_size": 32, "code_dim": 8, "swin_dim": 16}
        | {"swin_depth": 2, "heads": 2, "beta": 0.5},
        "lq_encoder": {"stem_channels": 8, "dim": 16, "depth": 2, "heads": 2},
        "refiner": {"dim": 16, "depth": 2, "heads": 2},
        "evaluator": {"dim": 16, "depth": 2, "heads": 2},
        "sampling": {"alpha": 0.2},
    }
    net = small_iter()
    path = tmp_path / "earlier.safetensors"
    save_file(
        {key: value.clone() for key, value in net.state_dict().items()}, path, {"iter_config": json.dumps(earlier)}
    )
    loaded = load_pretrained(path)
    assert equal_weights(loaded, net) and loaded.sampling.alpha == 0.2 and loaded.vqgan.quantizer.beta == 0.5
    save_pretrained(loaded, tmp_path / "now.safetensors")
    assert load_pretrained(tmp_path / "now.safetensors").sampling == loaded.sampling
    assert "codebook_size" not in json.dumps(loaded.config)


# Loading


def test_load_released_takes_paths_and_mappings(released_net, released_state, tmp_path):
    torch.save({"params": released_state}, tmp_path / "ITER_x4.pth")
    for given in (tmp_path / "ITER_x4.pth", str(tmp_path / "ITER_x4.pth"), {"params": released_state}, released_state):
        loaded = load_released(given)
        assert equal_weights(loaded, released_net) and not loaded.training
        assert loaded.scale == 4
    assert equal_weights(load_pretrained(tmp_path / "ITER_x4.pth"), released_net)
    lq = photo(1, 3, 9, 13)
    assert torch.equal(loaded(lq), released_net.restore(lq, config=SamplingConfig.released()).image)


@pytest.mark.long
def test_the_vqgan_may_be_in_a_file_of_its_own(released_net, released_state, tmp_path):
    rest, vqgan = {"params": without(released_state, "vqgan.")}, {"params": only_vqgan(released_state)}
    torch.save(rest, tmp_path / "ITER_x2.pth")
    torch.save(vqgan, tmp_path / "vqgan.pth")
    for given in (rest, tmp_path / "ITER_x2.pth"):
        for beside in (vqgan, tmp_path / "vqgan.pth", released_state):
            assert equal_weights(load_released(given, vqgan_checkpoint=beside), released_net)
        with pytest.raises(ValueError, match="holds no vqgan;.*put ITER_swinvqgan.pth beside it"):
            load_released(given)
    with pytest.raises(ValueError, match="holds no vqgan;"):
        load_pretrained(tmp_path / "ITER_x2.pth")
    with pytest.raises(ValueError, match="vqgan_checkpoint holds no Swin-VQGAN"):
        load_released(rest, rest)
    (tmp_path / "vqgan.pth").rename(tmp_path / "ITER_swinvqgan.pth")
    assert equal_weights(load_released(tmp_path / "ITER_x2.pth"), released_net)
    assert equal_weights(load_pretrained(tmp_path / "ITER_x2.pth"), released_net)


def test_a_vqgan_that_is_given_replaces_the_one_that_is_there(released_net, released_state):
    other = small_iter(seed=1, **RELEASED_FORM)
    loaded = load_released(released_state, only_vqgan(to_released(other.state_dict())))
    assert equal_weights(loaded.vqgan, other.vqgan)
    assert equal_weights(loaded.refiner, released_net.refiner)


def test_load_released_refuses_what_is_left_over_or_missing(released_state):
    key = "token_refine_net.token_refine_net.conv_out.2.bias"
    with pytest.raises(ValueError, match=f"{key} is missing"):
        load_released(without(released_state, key))
    with pytest.raises(ValueError, match="discriminator.weight is not part"):
        load_released(released_state | {"discriminator.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="holds no vqgan, lq_encoder, refiner, evaluator; its first keys are encoder"):
        load_released(only_vqgan(released_state))


def test_files_of_another_kind_are_refused_and_nothing_is_executed(released_state, tmp_path):
    def refused(message):
        for load in (load_released, load_pretrained):
            with pytest.raises(ValueError, match=message) as caught:
                load(path)
            assert str(path) in str(caught.value) and "\n" not in str(caught.value)

    path = tmp_path / "model.pth"
    rrdb = RRDBNet(3, 3, num_feat=8, num_block=1, num_grow_ch=4).state_dict()
    for key in ("params", "params_ema"):
        torch.save({key: rrdb}, path)
        refused("conv_first.weight, conv_first.bias")
    torch.save({"params": released_state}, path)
    path.write_bytes(path.read_bytes()[:-1000])
    refused("holds more than tensors")
    path.write_bytes(b"")
    refused("holds more than tensors")
    torch.save({"params": released_state | {"code": Code(str(tmp_path / "proof"))}}, path)
    refused("holds more than tensors")
    assert os.listdir(tmp_path) == ["model.pth"]
    for content in ([1, 2], {"params": {"epoch": 3}}, {"epoch": 3}, {}):
        torch.save(content, path)
        refused("holds no state dict")
    with pytest.raises(ValueError, match="has no state dict 'params_ema'"):
        torch.save({"params": released_state}, path)
        checkpoint.read_weights(path, "params_ema")


def test_our_files_say_their_architecture_and_a_foreign_one_is_refused(released_net, tmp_path):
    path = tmp_path / "ours.safetensors"
    save_pretrained(released_net, path)
    assert equal_weights(load_pretrained(path), released_net)
    assert os.listdir(tmp_path) == ["ours.safetensors"] and path.stat().st_mode & 0o077
    with pytest.raises(ValueError, match="is not a released checkpoint.*first keys are evaluator.embedding.weight"):
        load_released(path)
    plain = checkpoint.Checkpoint(released_net.state_dict(), None)
    checkpoint.write_safetensors(plain, path)
    assert load_pretrained(path).config["refiner"]["swin"]["gate"] and equal_weights(
        load_pretrained(path), released_net
    )
    for config, message in (
        (released_net.config | {"heads": 8}, "heads"),
        (released_net.config | {"refiner": {"deepth": 3}}, "deepth"),
        (released_net.config | {"scale": 3}, "scale=3"),
        ([1], "ours.safetensors"),
        (released_net.config | {"scale": 2}, "lq_encoder.stem.*is missing"),
    ):
        checkpoint.write_safetensors(plain._replace(config=config), path)
        with pytest.raises(ValueError, match=message):
            load_pretrained(path)


@pytest.mark.parametrize("kind", ["compiled", "wrapped", "model", "state_dict", "params_ema", "ours under .pth"])
def test_checkpoints_of_other_scripts_are_read(released_net, tmp_path, kind):
    path, state = tmp_path / "net.pth", released_net.state_dict()
    if kind == "ours under .pth":
        save_pretrained(released_net, path)
    elif kind in ("compiled", "wrapped"):
        prefix = "_orig_mod." if kind == "compiled" else "module._orig_mod."
        torch.save({"params": {f"{prefix}{key}": value for key, value in state.items()}}, path)
    else:
        torch.save({kind: state, "epoch": 3, "optimizer": {}}, path)
    assert equal_weights(load_pretrained(path), released_net)


def test_a_failed_write_leaves_the_older_file(released_net, tmp_path, monkeypatch):
    path = tmp_path / "ours.safetensors"
    path.write_bytes(b"older")

    def no_space(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        save_pretrained(released_net, path)
    assert os.listdir(tmp_path) == ["ours.safetensors"] and path.read_bytes() == b"older"
