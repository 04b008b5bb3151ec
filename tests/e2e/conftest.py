"""Fixtures that several files of commands as typed need."""

import logging
import sys

import pytest
from bad_input import content
from basicsr.utils import logger
from photos import encoded, smooth, unusable
from small_networks import small_iter

import iter_arch
from iter_model import commands


@pytest.fixture(scope="module")
def small_iter_folder(tmp_path_factory):
    """A working folder with a small ITER."""
    folder = tmp_path_factory.mktemp("bad")
    iter_arch.save_pretrained(small_iter(), folder / "small.safetensors")
    return folder


@pytest.fixture(scope="module")
def training_photos(small_iter_folder):
    """Folders of photos: good and bad, of one small photo, and of nothing."""
    for name in ("train", "photo", "nothing"):
        (small_iter_folder / name).mkdir()
    for index in range(4):
        (small_iter_folder / f"train/{index}.png").write_bytes(encoded(smooth(64, 64, seed=index)))
    bad = unusable(smooth(64, 64))
    for name in ("letter.jpg", "cut.png", "cut.jpeg", "empty.png"):
        (small_iter_folder / "train" / name).write_bytes(bad[name])
    (small_iter_folder / "photo/a.png").write_bytes(encoded(smooth(40, 64)))
    return small_iter_folder


@pytest.fixture
def run_in_folder(small_iter_folder, monkeypatch, capfd):
    """run_in_folder(*words) -> exit code and stderr of a command in this process."""

    def call_main(*words):
        monkeypatch.chdir(small_iter_folder)
        monkeypatch.setattr(sys, "argv", [])
        # BasicSR makes its logger once a process, for the stderr of then
        monkeypatch.setattr(logger, "initialized_logger", {})
        monkeypatch.setattr(logging.getLogger("basicsr"), "handlers", [])
        capfd.readouterr()
        code = commands.main([str(word) for word in words])
        return code, capfd.readouterr().err

    return call_main


@pytest.fixture
def refused(small_iter_folder, run_in_folder):
    """refused(*words) -> the message of a command that must end with 2 and leave the folder as it was."""

    def call_main(*words):
        before = content(small_iter_folder)
        code, err = run_in_folder(*words)
        assert code == 2, err
        assert content(small_iter_folder) == before
        assert "Traceback" not in err
        return err

    return call_main
