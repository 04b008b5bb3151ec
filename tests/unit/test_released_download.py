"""Finding and downloading the authors' released checkpoints."""

import hashlib
import os

import pytest
import torch
from released_files import equal_weights, only_vqgan, without
from small_networks import RELEASED_FORM, small_iter

from iter_arch import load_pretrained, load_released
from iter_arch.pretrained import checkpoint, download
from iter_arch.pretrained.released import to_released


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


def test_released_names_are_downloaded_once_into_the_cache(released_net, released_state, site, tmp_path):
    torch.save({"params": released_state}, site / "ITER_x4.pth")
    assert equal_weights(load_pretrained("released_x4"), released_net)
    assert os.listdir(tmp_path / "some/cache") == ["ITER_x4.pth"] and os.listdir() == []
    (site / "ITER_x4.pth").unlink()
    assert equal_weights(load_released("released_x4"), released_net)


def test_the_folder_of_basicsr_comes_before_the_cache(released_net, released_state, site, tmp_path):
    (tmp_path / "some/cache").mkdir(parents=True)
    (tmp_path / "some/cache/ITER_x4.pth").write_bytes(b"other")
    os.makedirs("experiments/pretrained_models")
    torch.save({"params": released_state}, "experiments/pretrained_models/ITER_x4.pth")
    assert equal_weights(load_pretrained("released_x4"), released_net)


def test_the_vqgan_is_downloaded_where_it_is_needed(released_state, site, tmp_path):
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


def test_a_download_that_is_cut_or_another_file_is_not_kept(released_state, site, tmp_path, monkeypatch):
    torch.save({"params": released_state}, site / "ITER_x4.pth")
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
