"""The `basicsr` command: help that helps, and a table of commands."""

import importlib
import sys

import pytest

from iter_model import commands


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--help"], ["train", "test", "upscale", "torchrun --nproc_per_node=4 --no-python basicsr train"]),
        (["train", "--help"], ["--force_yml", "--auto_resume", "--launcher", "train:total_iter=", "experiments/NAME/"]),
        (["test", "--help"], ["-opt", "options/test_iter.yml", "results/NAME/"]),
        (["check", "--help"], ["-opt", "--force_yml", "check -opt options/train_iter.yml", "Nothing is written"]),
        (["upscale", "--help"], ["--alpha", "--steps", "--tile"]),
        (["--version"], ["iter-sr ", "(basicsr 1.4.2, torch "]),
    ],
)
def test_help_helps(words, expected, capsys):
    with pytest.raises(SystemExit) as exit_:
        commands.main(words)
    assert exit_.value.code == 0
    output = capsys.readouterr().out
    assert all(word in output for word in expected)


@pytest.mark.parametrize("words", [[], ["trian"], ["train"], ["train", "-opt", "x.yml", "--auto-resume"]])
def test_wrong_usage_is_2(words, capsys):
    with pytest.raises(SystemExit) as exit_:
        commands.main(words)
    assert exit_.value.code == 2
    assert "usage: basicsr" in capsys.readouterr().err


def test_a_missing_option_file_is_one_line_and_2(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [])
    assert commands.main(["train", "-opt", "nowhere.yml"]) == 2
    assert "basicsr train: error: -opt nowhere.yml: there is no such file" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_every_command_is_a_module_with_a_summary():
    for name, (module, summary) in commands.COMMANDS.items():
        assert summary, name
        assert {"add_arguments", "run"} <= vars(importlib.import_module(module)).keys(), name
