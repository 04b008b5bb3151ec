"""Reading, writing and finding the authors' released checkpoints: what is exact, and what is refused."""

import hashlib
import json
import os
import re

import pytest
import torch
from basicsr.archs.rrdbnet_arch import RRDBNet
from safetensors.torch import save_file
from small_networks import RELEASED_FORM, photo, small_iter

import iter_arch
from iter_arch import SamplingConfig, load_pretrained, load_released, save_pretrained
from iter_arch.pretrained import checkpoint, download
from iter_arch.pretrained.checkpoint import Checkpoint, build
from iter_arch.pretrained.infer import upgrade_config
from iter_arch.pretrained.released import DERIVED, from_released, is_released, to_released

SWIN = "token_refine_net.token_crit_net.swin_layers.swin_blks.0.residual_group.blocks"


def without(state, *prefixes):
    return {key: value for key, value in state.items() if not key.startswith(prefixes)}


def only_vqgan(theirs):
    """What ITER_swinvqgan.pth holds."""
    return {key.removeprefix("vqgan."): value for key, value in theirs.items() if key.startswith("vqgan.")}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


@pytest.fixture(scope="module")
def net():
    return small_iter(**RELEASED_FORM)


@pytest.fixture(scope="module")
def theirs(net):
    return to_released(net.state_dict())


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


def test_dtypes_are_kept(theirs):
    halves = {key: value.bfloat16() if value.is_floating_point() else value for key, value in theirs.items()}
    assert {value.dtype for value in from_released(halves).values()} == {torch.bfloat16}


def test_the_alias_and_derived_buffers_are_not_needed(theirs):
    plain = {key: value for key, value in theirs.items() if not key.endswith(DERIVED) and "generator" not in key}
    assert len(plain) < len(theirs)
    assert same(from_released(plain), from_released(theirs))
    nonsense = theirs | {key: torch.full((3,), 7.0) for key in theirs if key.endswith(DERIVED)}
    assert same(from_released(nonsense), from_released(theirs))
    assert same(from_released({k.replace("decoder", "generator"): v for k, v in plain.items()}), from_released(theirs))


def test_the_alias_must_be_one(theirs):
    key = "vqgan.generator.blocks.0.bias"
    with pytest.raises(ValueError, match=f"{key} must equal vqgan.decoder.blocks.0.bias"):
        from_released(theirs | {key: theirs[key] + 1})


def test_what_is_rebuilt_for_the_authors_code(theirs):
    for key, value in theirs.items():
        if key.startswith("vqgan.generator."):
            assert value is theirs[key.replace("generator", "decoder")] or key.endswith(DERIVED)
    index = theirs[f"{SWIN}.0.attn.relative_position_index"]
    assert index.shape == (64, 64) and index.dtype == torch.int64
    # Liu et al. (2021), Sec. 3.2: the bias of query (i, j) and key (k, l) is entry (i - k + 7, j - l + 7) of 15 x 15.
    for query, key in ((0, 0), (0, 63), (63, 0), (10, 37)):
        rows, columns = query // 8 - key // 8 + 7, query % 8 - key % 8 + 7
        assert index[query, key] == rows * 15 + columns
    masks = {key: value for key, value in theirs.items() if key.startswith(SWIN) and key.endswith("attn_mask")}
    assert list(masks) == [f"{SWIN}.1.attn_mask"]
    mask = masks[f"{SWIN}.1.attn_mask"]
    assert mask.shape == (16, 64, 64) and mask.dtype == torch.float32
    assert not mask[0].any() and mask[3].any() and mask[12].any() and mask[15].any()
    # The last window of the first row holds columns 28..31 of the grid and, rolled over, 0..3.
    assert mask[3, 0, 3] == 0 and mask[3, 0, 4] == -100


@pytest.mark.long
def test_one_key_missing_or_more_is_named(theirs):
    weights = [key for key in theirs if not key.endswith(DERIVED) and "generator" not in key]
    assert len(weights) > 300
    plain = {key: theirs[key] for key in weights}
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
def test_a_wrong_shape_is_named(theirs, key, shape):
    state = without(theirs, "vqgan.generator.") | {key: torch.zeros(shape)}
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


def test_is_released(theirs, net):
    assert is_released(theirs) and is_released(only_vqgan(theirs)) and is_released(without(theirs, "vqgan."))
    assert not is_released(net.state_dict()) and not is_released(net.vqgan.state_dict())
    assert not is_released(RRDBNet(3, 3).state_dict())


def test_the_sampling_follows_the_form(net, theirs):
    """Weights that do not say what they are tuned for are sampled as the authors' are, if they have their form."""
    paper = small_iter()
    assert net.sampling == paper.sampling == SamplingConfig() != SamplingConfig.released()
    assert load_released(theirs).sampling == SamplingConfig.released()
    for state, expected in ((net.state_dict(), SamplingConfig.released()), (paper.state_dict(), SamplingConfig())):
        assert build(Checkpoint(state, None), "x").sampling == expected
    earlier = {name: net.config[name] for name in net.config}
    assert build(Checkpoint(net.state_dict(), upgrade_config(earlier)), "x").sampling == SamplingConfig.released()
    earlier["sampling"] = {"alpha": 0.2}
    assert build(Checkpoint(net.state_dict(), upgrade_config(earlier)), "x").sampling == SamplingConfig(alpha=0.2)


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


def equal_weights(a, b):
    return same(a.state_dict(), b.state_dict())


def test_load_released_takes_paths_and_mappings(net, theirs, tmp_path):
    torch.save({"params": theirs}, tmp_path / "ITER_x4.pth")
    for given in (tmp_path / "ITER_x4.pth", str(tmp_path / "ITER_x4.pth"), {"params": theirs}, theirs):
        loaded = load_released(given)
        assert equal_weights(loaded, net) and not loaded.training
        assert loaded.scale == 4
    assert equal_weights(load_pretrained(tmp_path / "ITER_x4.pth"), net)
    lq = photo(1, 3, 9, 13)
    assert torch.equal(loaded(lq), net.restore(lq, config=SamplingConfig.released()).image)


def test_the_vqgan_may_be_in_a_file_of_its_own(net, theirs, tmp_path):
    rest, vqgan = {"params": without(theirs, "vqgan.")}, {"params": only_vqgan(theirs)}
    torch.save(rest, tmp_path / "ITER_x2.pth")
    torch.save(vqgan, tmp_path / "vqgan.pth")
    for given in (rest, tmp_path / "ITER_x2.pth"):
        for beside in (vqgan, tmp_path / "vqgan.pth", theirs):
            assert equal_weights(load_released(given, vqgan_checkpoint=beside), net)
        with pytest.raises(ValueError, match="holds no vqgan;.*put ITER_swinvqgan.pth beside it"):
            load_released(given)
    with pytest.raises(ValueError, match="holds no vqgan;"):
        load_pretrained(tmp_path / "ITER_x2.pth")
    with pytest.raises(ValueError, match="vqgan_checkpoint holds no Swin-VQGAN"):
        load_released(rest, rest)
    (tmp_path / "vqgan.pth").rename(tmp_path / "ITER_swinvqgan.pth")
    assert equal_weights(load_released(tmp_path / "ITER_x2.pth"), net)
    assert equal_weights(load_pretrained(tmp_path / "ITER_x2.pth"), net)


def test_a_vqgan_that_is_given_replaces_the_one_that_is_there(net, theirs):
    other = small_iter(seed=1, **RELEASED_FORM)
    loaded = load_released(theirs, only_vqgan(to_released(other.state_dict())))
    assert equal_weights(loaded.vqgan, other.vqgan)
    assert equal_weights(loaded.refiner, net.refiner)


def test_load_released_refuses_what_is_left_over_or_missing(theirs):
    key = "token_refine_net.token_refine_net.conv_out.2.bias"
    with pytest.raises(ValueError, match=f"{key} is missing"):
        load_released(without(theirs, key))
    with pytest.raises(ValueError, match="discriminator.weight is not part"):
        load_released(theirs | {"discriminator.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="holds no vqgan, lq_encoder, refiner, evaluator; its first keys are encoder"):
        load_released(only_vqgan(theirs))


class Code:
    """A pickle that creates a file where it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_files_of_another_kind_are_refused_and_nothing_is_executed(theirs, tmp_path):
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
    torch.save({"params": theirs}, path)
    path.write_bytes(path.read_bytes()[:-1000])
    refused("holds more than tensors")
    path.write_bytes(b"")
    refused("holds more than tensors")
    torch.save({"params": theirs | {"code": Code(str(tmp_path / "proof"))}}, path)
    refused("holds more than tensors")
    assert os.listdir(tmp_path) == ["model.pth"]
    for content in ([1, 2], {"params": {"epoch": 3}}, {"epoch": 3}, {}):
        torch.save(content, path)
        refused("holds no state dict")
    with pytest.raises(ValueError, match="has no state dict 'params_ema'"):
        torch.save({"params": theirs}, path)
        checkpoint.read_weights(path, "params_ema")


def test_our_files_say_their_architecture_and_a_foreign_one_is_refused(net, tmp_path):
    path = tmp_path / "ours.safetensors"
    save_pretrained(net, path)
    assert equal_weights(load_pretrained(path), net)
    assert os.listdir(tmp_path) == ["ours.safetensors"] and path.stat().st_mode & 0o077
    with pytest.raises(ValueError, match="is not a released checkpoint.*first keys are evaluator.embedding.weight"):
        load_released(path)
    plain = checkpoint.Checkpoint(net.state_dict(), None)
    checkpoint.write_safetensors(plain, path)
    assert load_pretrained(path).config["refiner"]["swin"]["gate"] and equal_weights(load_pretrained(path), net)
    for config, message in (
        (net.config | {"heads": 8}, "heads"),
        (net.config | {"refiner": {"deepth": 3}}, "deepth"),
        (net.config | {"scale": 3}, "scale=3"),
        ([1], "ours.safetensors"),
        (net.config | {"scale": 2}, "lq_encoder.stem.*is missing"),
    ):
        checkpoint.write_safetensors(plain._replace(config=config), path)
        with pytest.raises(ValueError, match=message):
            load_pretrained(path)


@pytest.mark.parametrize("kind", ["compiled", "wrapped", "model", "state_dict", "params_ema", "ours under .pth"])
def test_checkpoints_of_other_scripts_are_read(net, tmp_path, kind):
    path, state = tmp_path / "net.pth", net.state_dict()
    if kind == "ours under .pth":
        save_pretrained(net, path)
    elif kind in ("compiled", "wrapped"):
        prefix = "_orig_mod." if kind == "compiled" else "module._orig_mod."
        torch.save({"params": {f"{prefix}{key}": value for key, value in state.items()}}, path)
    else:
        torch.save({kind: state, "epoch": 3, "optimizer": {}}, path)
    assert equal_weights(load_pretrained(path), net)


def test_a_failed_write_leaves_the_older_file(net, tmp_path, monkeypatch):
    path = tmp_path / "ours.safetensors"
    path.write_bytes(b"older")

    def no_space(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        save_pretrained(net, path)
    assert os.listdir(tmp_path) == ["ours.safetensors"] and path.read_bytes() == b"older"


# Finding and downloading


@pytest.fixture
def site(tmp_path, monkeypatch):
    """The release page: a folder. The current folder is another, and the cache is not there yet."""
    site, here = tmp_path / "site", tmp_path / "here"
    site.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("ITER_CACHE", str(tmp_path / "some/cache"))
    serve(monkeypatch, site.as_uri())
    return site


def serve(monkeypatch, url):
    remotes = {name: one._replace(url=f"{url}/{one.name}") for name, one in download.REMOTES.items()}
    monkeypatch.setattr(download, "REMOTES", remotes)
    monkeypatch.setattr(checkpoint, "REMOTES", remotes)


def test_released_names_are_downloaded_once_into_the_cache(net, theirs, site, tmp_path):
    torch.save({"params": theirs}, site / "ITER_x4.pth")
    assert equal_weights(load_pretrained("released_x4"), net)
    assert os.listdir(tmp_path / "some/cache") == ["ITER_x4.pth"] and os.listdir() == []
    (site / "ITER_x4.pth").unlink()
    assert equal_weights(load_released("released_x4"), net)


def test_the_folder_of_basicsr_comes_before_the_cache(net, theirs, site, tmp_path):
    (tmp_path / "some/cache").mkdir(parents=True)
    (tmp_path / "some/cache/ITER_x4.pth").write_bytes(b"other")
    os.makedirs("experiments/pretrained_models")
    torch.save({"params": theirs}, "experiments/pretrained_models/ITER_x4.pth")
    assert equal_weights(load_pretrained("released_x4"), net)


def test_the_vqgan_is_downloaded_where_it_is_needed(theirs, site, tmp_path):
    net = small_iter(2, **RELEASED_FORM)
    torch.save({"params": without(to_released(net.state_dict()), "vqgan.")}, site / "ITER_x2.pth")
    torch.save({"params": only_vqgan(to_released(net.state_dict()))}, site / "ITER_swinvqgan.pth")
    assert equal_weights(load_pretrained("released_x2"), net)
    assert sorted(os.listdir(tmp_path / "some/cache")) == ["ITER_swinvqgan.pth", "ITER_x2.pth"]


def test_without_network_the_message_says_what_to_put_where_and_nothing_is_left(site, tmp_path, monkeypatch):
    for url in (site.as_uri(), "http://localhost:9/nothing"):
        serve(monkeypatch, url)
        with pytest.raises(FileNotFoundError) as caught:
            load_pretrained("released_x4")
        path = os.path.join(os.getcwd(), "experiments/pretrained_models/ITER_x4.pth")
        assert f"get {url}/ITER_x4.pth and put it at {path}" in str(caught.value)
        assert os.listdir() == [] and sorted(os.listdir(tmp_path)) == ["here", "site"]


def test_a_download_that_is_cut_or_another_file_is_not_kept(theirs, site, tmp_path, monkeypatch):
    torch.save({"params": theirs}, site / "ITER_x4.pth")
    real = download.urlopen

    def cut(url, timeout):
        response = real(url, timeout=timeout)
        response.headers.replace_header("Content-Length", str(2 * int(response.headers["Content-Length"])))
        return response

    monkeypatch.setattr(download, "urlopen", cut)
    with pytest.raises(FileNotFoundError, match="ended after"):
        load_pretrained("released_x4")
    monkeypatch.setattr(download, "urlopen", real)
    one = download.REMOTES["released_x4"]
    monkeypatch.setitem(download.REMOTES, "released_x4", one._replace(sha256="0" * 64))
    with pytest.raises(FileNotFoundError, match="has SHA-256"):
        load_pretrained("released_x4")
    assert sorted(os.listdir(tmp_path)) == ["here", "site"]
    right = hashlib.sha256((site / "ITER_x4.pth").read_bytes()).hexdigest()
    monkeypatch.setitem(download.REMOTES, "released_x4", one._replace(sha256=right))
    load_pretrained("released_x4")


def test_the_release_page():
    assert {one.url.rpartition("/")[0] for one in download.REMOTES.values()} == {
        "https://github.com/chaofengc/ITER/releases/download/v0.1.0"
    }


def test_unknown_names_are_told_the_known_ones():
    with pytest.raises(FileNotFoundError, match="released_x4, released_x2"):
        load_pretrained("released_x3")
