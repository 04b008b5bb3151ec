"""Files are written whole or not at all, checkpoints are read safely, and what does not fit is named."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from small_networks import config

from basicsr_compat.files import (
    NotSaved,
    atomic_save,
    atomic_write,
    checksum,
    find_state,
    read_checkpoint,
    read_metadata,
    remove_leftovers,
    state_difference,
)
from iter_arch import ITER


def test_a_written_file_replaces_the_older_one(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("older")
    with atomic_write(path) as temporary:
        assert os.path.dirname(temporary) == str(tmp_path)
        with open(temporary, "w") as file:
            file.write("newer")
        assert path.read_text() == "older"
    assert path.read_text() == "newer" and os.listdir(tmp_path) == ["a.txt"]
    assert path.stat().st_mode & 0o044 == 0o044 & ~umask()  # others may read it


def umask():
    value = os.umask(0)
    os.umask(value)
    return value


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    """The file is the one or the other as a whole: that of the last to end."""
    path = tmp_path / "a.txt"
    with atomic_write(path) as first, open(first, "w") as one:
        with atomic_write(path) as second, open(second, "w") as other:
            one.write("1" * 100)
            other.write("2" * 10)
        assert path.read_text() == "2" * 10
    assert path.read_text() == "1" * 100 and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    "name", ["a" * 251 + ".png", "ü" * 125 + ".png", "画" * 83 + ".png"], ids=["ascii", "two bytes", "three bytes"]
)
def test_a_file_may_have_the_longest_name_of_a_file_system(tmp_path, name):
    assert 253 <= len(os.fsencode(name)) <= 255
    save_text(tmp_path / name)
    assert os.listdir(tmp_path) == [name]


def test_the_bytes_of_a_checkpoint_do_not_depend_on_the_temporary_name(tmp_path):
    contents = []
    for _ in range(2):
        atomic_save({"x": torch.zeros(3)}, tmp_path / "net.pth")
        contents.append((tmp_path / "net.pth").read_bytes())
    assert contents[0] == contents[1]


@pytest.mark.parametrize("error", [OSError("no"), ValueError("no"), KeyboardInterrupt()], ids=repr)
def test_a_failed_write_leaves_the_older_file_and_no_other(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("older")
    with pytest.raises(NotSaved if isinstance(error, OSError) else type(error)):
        with atomic_write(path) as temporary:
            with open(temporary, "w") as file:
                file.write("half")
            raise error
    assert path.read_text() == "older" and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("write", [atomic_save, lambda obj, path: save_text(path)], ids=["torch", "text"])
def test_the_true_reason_is_named(tmp_path, write):
    (tmp_path / "file").write_text("")
    for folder, reason in (("gone", f"there is no folder {tmp_path}/gone"), ("file", "is a file, not a folder")):
        with pytest.raises(NotSaved, match=reason) as caught:
            write({}, tmp_path / folder / "net.pth")
        assert "disk" not in str(caught.value) and f"cannot write {tmp_path / folder / 'net.pth'}" in str(caught.value)


def save_text(path):
    with atomic_write(path) as temporary, open(temporary, "w") as file:
        file.write("text")


FULL = """
import resource, signal, sys, torch
from basicsr_compat.files import NotSaved, atomic_save, atomic_write
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))
try:
    if sys.argv[1] == "torch":
        atomic_save({"x": torch.zeros(10000)}, "net.pth")
    else:
        with atomic_write("net.pth") as temporary, open(temporary, "wb") as file:
            file.write(bytes(40000))
except NotSaved as error:
    print(error)
"""


@pytest.mark.long
@pytest.mark.parametrize("kind", ["torch", "bytes"])
def test_a_write_that_the_system_refuses(tmp_path, kind):
    """A limit on the size of files, which fails in the middle as a full disk does."""
    (tmp_path / "net.pth").write_text("older")
    result = subprocess.run([sys.executable, "-c", FULL, kind], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.startswith("cannot write net.pth: "), result.stderr
    assert "no folder" not in result.stdout and (kind == "torch" or "File too large" in result.stdout)
    assert (tmp_path / "net.pth").read_text() == "older" and os.listdir(tmp_path) == ["net.pth"]


def test_an_error_of_the_device_is_not_one_of_the_disk(tmp_path, monkeypatch):
    def fail(*args):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(RuntimeError, match="^CUDA error"):
        atomic_save({}, tmp_path / "net.pth")


def test_a_checkpoint_is_what_it_is_whatever_its_suffix(tmp_path):
    state = {"a.weight": torch.arange(3.0)}
    save_file(state, tmp_path / "a.pth", {"format": "pt", "note": "x"})
    torch.save({"params": state}, tmp_path / "b.ckpt")
    assert torch.equal(read_checkpoint(tmp_path / "a.pth")["a.weight"], state["a.weight"])
    assert torch.equal(read_checkpoint(tmp_path / "b.ckpt")["params"]["a.weight"], state["a.weight"])
    assert read_metadata(tmp_path / "a.pth")["note"] == "x" and read_metadata(tmp_path / "b.ckpt") == {}
    assert checksum(tmp_path / "a.pth") == checksum(tmp_path / "a.pth") != checksum(tmp_path / "b.ckpt")


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"\xff" * 8 + b"{", b"\x02\0\0\0\0\0\0\0{}x"])
def test_a_damaged_safetensors_file_is_refused(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"\x47\x6b\x30\x01", "ncnn's weights; name the network's .pth"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "it is a web page; download the file itself"),
        (b"<HTML>", "it is a web page"),
        (b"# weights", "no checkpoint, or holds more than tensors"),
    ],
)
def test_what_is_taken_for_a_checkpoint_is_named(tmp_path, start, message):
    path = tmp_path / "net.bin"
    path.write_bytes(start + bytes(100))
    with pytest.raises(ValueError, match=message) as caught:
        read_checkpoint(path)
    # PyTorch's own message advises to run what is in the file.
    assert "weights_only" not in str(caught.value) and str(path) in str(caught.value)


STATE = {"a.weight": torch.zeros(2)}


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"params": STATE},
        {"params": {"other": torch.zeros(1)}, "params_ema": STATE},
        {"model": STATE, "optimizer": {}, "epoch": 3},
        {"state_dict": STATE, "hyper_parameters": {}},
        {"params": {"module.a.weight": STATE["a.weight"]}},
        {"params": {"_orig_mod.a.weight": STATE["a.weight"]}},
        {"params": {"module._orig_mod.a.weight": STATE["a.weight"]}},
        {"params": {"a._orig_mod.weight": STATE["a.weight"]}},
    ],
)
def test_the_state_dict_is_found_with_the_names_of_the_plain_network(content):
    assert find_state(content, "net.pth").keys() == STATE.keys()


@pytest.mark.parametrize(
    ("content", "key", "message"),
    [
        ([1, 2], None, "net.pth holds no state dict but a list"),
        ({}, None, "holds no state dict; its first keys are none"),
        ({"epoch": 3}, None, "holds no state dict; its first keys are epoch"),
        ({"params": {"epoch": 3}}, None, "holds no state dict; its first keys are epoch"),
        ({"params": STATE}, "params_ema", "has no state dict 'params_ema'; its first keys are params"),
    ],
)
def test_what_holds_no_state_dict_says_what_it_holds(content, key, message):
    with pytest.raises(ValueError, match=message):
        find_state(content, "net.pth", key)


def test_differences_name_the_first_of_every_kind():
    with torch.device("meta"):
        expected = ITER(**config()).state_dict()
    assert state_difference(expected, dict(expected)) == []
    found = {key: value for key, value in expected.items() if not key.startswith("refiner.swin")}
    found |= {"extra.weight": torch.zeros(1), "vqgan.encoder.0.bias": torch.zeros(7)}
    differences = state_difference(expected, found)
    assert [line.endswith("is missing") for line in differences] == [True] * 3 + [False] * 3
    assert "extra.weight is not part of the network" in differences
    assert "vqgan.encoder.0.bias has shape (7,), the network's has (8,)" in differences
    assert differences[-1].startswith("and ") and differences[-1].endswith(" more")


def test_what_a_killed_process_left_is_removed_and_what_is_being_written_is_not(tmp_path):
    for name in ("a.png.tmp-0123abcd", "b.png.tmp-0123abcd", "a.png.tmp-1", "notes.txt"):
        (tmp_path / name).touch()
    with atomic_write(tmp_path / "a.png") as temporary:
        remove_leftovers(tmp_path, of=["a.png"])
        assert os.path.exists(temporary)
        assert {path.name for path in tmp_path.iterdir()} == {
            os.path.basename(temporary), "b.png.tmp-0123abcd", "a.png.tmp-1", "notes.txt"
        }  # fmt: skip
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a.png.tmp-1", "notes.txt"]
