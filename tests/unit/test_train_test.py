"""How `basicsr train` and `test` end: what the user can mend is a line, a fault keeps its traceback."""

import signal

import pytest

from basicsr_compat.images import UnreadableImage
from basicsr_compat.pipeline import loop, options
from basicsr_compat.schema import OptionProblems
from iter_model import commands
from iter_model.commands.train_test import TRACEBACK_VARIABLE


@pytest.fixture
def train(monkeypatch):
    """train(error, *words, begun=False): the command, with a loop that raises `error` before or after its start."""

    def run(error, *words, begun=False):
        def loop_that_fails(opt, args, run):
            run.folders.begun = begun
            raise error

        monkeypatch.setattr(options, "read_options", lambda *_: {})
        monkeypatch.setattr(loop, "train", loop_that_fails)
        return commands.main(["train", "-opt", "x.yml", *words])

    return run


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OptionProblems("alpha=2 must be in [0, 1]"), "alpha=2 must be in [0, 1]"),
        (FileNotFoundError("no photos/"), "no photos/"),
        (UnreadableImage("a.png is too small"), "a.png is too small"),
    ],
)
def test_a_problem_before_the_run_begins_is_one_line(train, capsys, error, message):
    assert train(error) == 2
    assert f"basicsr train: error: {message}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "words", "begun"),
    [
        (ValueError("a fault"), (), False),
        (ValueError("a fault"), (), True),
        (KeyError("optim_g"), (), False),
        (AssertionError("a fault"), (), False),
        (NotImplementedError("a fault"), (), False),
        (RuntimeError("a fault"), (), False),
        (TypeError("EDSR.__init__() got an unexpected keyword argument 'num_blok'"), (), False),
        (OptionProblems("a problem"), ("--traceback",), False),
        (OSError("a disk"), ("--traceback",), True),
    ],
)
def test_a_fault_keeps_its_traceback(train, error, words, begun):
    with pytest.raises(type(error)):
        train(error, *words, begun=begun)


@pytest.mark.parametrize("error", [OSError("disk full"), UnreadableImage("a.png is small"), OptionProblems("no GT")])
def test_what_fails_a_run_on_its_way_is_one_line_and_1(train, capsys, error):
    assert train(error, begun=True) == 1
    assert f"basicsr train: error: {error}" in capsys.readouterr().err


def test_a_workers_error_is_its_message(train, capsys):
    message = "Caught UnreadableImage in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
    assert train(UnreadableImage(f"{message}  File x\nUnreadableImage: a.png is too small\n")) == 2
    assert "basicsr train: error: a.png is too small\n" in capsys.readouterr().err


def test_the_environment_can_ask_for_the_traceback(train, monkeypatch):
    monkeypatch.setenv(TRACEBACK_VARIABLE, "1")
    with pytest.raises(OptionProblems, match="a problem"):
        train(OptionProblems("a problem"))


def test_each_problem_with_the_options_is_a_line(train, capsys):
    assert train(OptionProblems(["a=1 must be 2", "b is not an option"])) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["basicsr train: error: a=1 must be 2", "basicsr train: error: b is not an option"]


def test_an_interruption_is_130(train):
    assert train(KeyboardInterrupt()) == 130


def test_sigterm_lets_a_run_clean_up(monkeypatch):
    monkeypatch.setattr(options, "read_options", lambda *_: {})
    monkeypatch.setattr(loop, "train", lambda *_: signal.raise_signal(signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit):
        commands.main(["train", "-opt", "x.yml"])
    assert signal.getsignal(signal.SIGTERM) is before
