"""The `basicsr` command: help that helps, mistakes told from faults."""

import importlib
import signal
import sys

import basicsr.train
import pytest

from basicsr_compat import replaced
from basicsr_compat.images import UnreadableImage
from basicsr_compat.pipeline.options import OptionProblems
from iter_model import commands, launch


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


@pytest.fixture
def train(monkeypatch):
    """train(error, *words, begun=False): the command, with a pipeline that raises `error` before or after its start."""

    def run(error, *words, begun=False):
        def pipeline(root_path):
            monkeypatch.setattr(replaced._start, "begun", begun)
            raise error

        monkeypatch.setattr(basicsr.train, "train_pipeline", pipeline)
        monkeypatch.setattr(sys, "argv", [])
        return commands.main(["train", "-opt", "x.yml", *words])

    return run


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("alpha=2 must be in [0, 1]"), "alpha=2 must be in [0, 1]"),
        (FileNotFoundError("no photos/"), "no photos/"),
        (KeyError("optim_g"), "the options lack 'optim_g'"),
        (KeyError("no object named 'X' in the 'arch' registry"), "no object named 'X'"),
        (NotImplementedError("optimizer Adan is not supported yet."), "optimizer Adan"),
        (TypeError("EDSR.__init__() got an unexpected keyword argument 'num_blok'"), "EDSR.__init__() got"),
    ],
)
def test_a_mistake_before_the_run_begins_is_one_line(train, capsys, error, message):
    assert train(error) == 2
    assert f"basicsr train: error: {message}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "words", "begun"),
    [
        (ValueError("a fault"), (), True),
        (ValueError("a mistake"), ("--traceback",), False),
        (RuntimeError("a fault"), (), False),
        (OSError("a disk"), ("--traceback",), True),
        (TypeError("unsupported operand type(s)"), (), False),
    ],
)
def test_a_fault_keeps_its_traceback(train, error, words, begun):
    with pytest.raises(type(error)):
        train(error, *words, begun=begun)


@pytest.mark.parametrize("error", [OSError("disk full"), UnreadableImage("a.png is too small")])
def test_a_file_that_fails_a_run_on_its_way_is_one_line_and_1(train, capsys, error):
    assert train(error, begun=True) == 1
    assert f"basicsr train: error: {error}" in capsys.readouterr().err


def test_a_workers_error_is_its_message(train, capsys):
    message = (
        'Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File "x"\n'
    )
    assert train(ValueError(f"{message}ValueError: a.png is too small\n")) == 2
    assert "basicsr train: error: a.png is too small\n" in capsys.readouterr().err


def test_the_environment_can_ask_for_the_traceback(train, monkeypatch):
    monkeypatch.setenv(launch.TRACEBACK_VARIABLE, "1")
    with pytest.raises(ValueError, match="a mistake"):
        train(ValueError("a mistake"))


def test_each_mistake_in_the_options_is_a_line(train, capsys):
    assert train(OptionProblems(["a=1 must be 2", "b is not an option"])) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["basicsr train: error: a=1 must be 2", "basicsr train: error: b is not an option"]


def test_an_interruption_is_130(train):
    assert train(KeyboardInterrupt()) == 130


def test_sigterm_lets_a_run_clean_up(monkeypatch):
    def pipeline(root_path):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(basicsr.train, "train_pipeline", pipeline)
    monkeypatch.setattr(sys, "argv", [])
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit):
        commands.main(["train", "-opt", "x.yml"])
    assert signal.getsignal(signal.SIGTERM) is before


def test_every_command_is_a_module_with_a_summary():
    for name, (module, summary) in commands.COMMANDS.items():
        assert summary, name
        assert {"add_arguments", "run"} <= vars(importlib.import_module(module)).keys(), name
