"""Weights on Hugging Face's hub, of which a local one is the peer."""

import os
import subprocess
import sys

import pytest
from hub_server import local_hub
from small_networks import small_iter

from iter_arch import save_pretrained

pytest.importorskip("huggingface_hub")

PUSH = """\
import sys
from iter_arch.pretrained.hub import HubITER
HubITER.from_checkpoint(sys.argv[1]).push_to_hub("me/small-iter", token="hf_nobody")
"""
# The second and third time from the cache alone.
FETCH = """\
import sys, torch, iter_arch
from iter_arch.pretrained.hub import HubITER
expected = iter_arch.load_pretrained(sys.argv[1])
for net in (HubITER.from_pretrained("me/small-iter"), iter_arch.load_pretrained("hf:me/small-iter/model.safetensors")):
    assert not net.training and net.sampling == expected.sampling and net.config == expected.config
    ours, theirs = net.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
"""


@pytest.fixture
def hub():
    with local_hub() as server:
        yield server


def python(hub, folder, *words):
    environment = {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), "ITER_CACHE": str(folder / "cache"),
        "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=280
    )


@pytest.mark.long
def test_a_network_is_pushed_and_fetched_by_the_mixin_and_by_its_name(hub, tmp_path):
    save_pretrained(small_iter(), tmp_path / "a.safetensors")
    result = python(hub, tmp_path, "-c", PUSH, "a.safetensors")
    assert result.returncode == 0, result.stderr
    names = {name for _, name in hub.files}
    assert {"model.safetensors", "README.md"} <= names
    card = hub.files["me/small-iter", "README.md"].decode()
    assert "library_name: iter-sr" in card and "arxiv.org/abs/2312.05616" in card and "{{" not in card
    result = python(hub, tmp_path, "-c", FETCH, "a.safetensors")
    assert result.returncode == 0, result.stderr


@pytest.mark.long
def test_what_the_hub_has_not_is_named_and_a_bad_name_too(hub, tmp_path):
    words = ["-m", "iter_model.commands", "weights", "download", "hf:me/nothing/model.safetensors", "hf:me/nothing"]
    result = python(hub, tmp_path, *words)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    first, second = result.stderr.strip().splitlines()[-2:]
    assert "hf:me/nothing/model.safetensors" in first and "cannot be downloaded" in first
    assert "'hf:me/nothing' must have the form hf:owner/repo/file" in second
