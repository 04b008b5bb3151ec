"""The `basicsr` command: help that helps, and a table of commands."""

import importlib
import subprocess
import sys

import pytest
from photos import levels, save
from small_networks import small_iter

from iter_arch import save_pretrained
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


IMPORTED = """
import sys
from iter_model import commands
try:
    commands.main(sys.argv[1:])
except SystemExit as exit_:
    print("exit", exit_.code)
print("imported", sorted({"torch", "basicsr", "cv2", "numpy"} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    "words",
    [["--help"], ["--version"], [], ["trian"], *([name, "--help"] for name in commands.COMMANDS), ["upscale", "-i"]],
    ids=" ".join,
)
def test_help_and_usage_errors_import_neither_torch_nor_basicsr(words, tmp_path):
    result = subprocess.run([sys.executable, "-c", IMPORTED, *words], cwd=tmp_path, capture_output=True, text=True)
    code = 0 if words[-1:] in (["--help"], ["--version"]) else 2
    assert result.stdout.splitlines()[-2:] == [f"exit {code}", "imported []"]


RESTORE_WITHOUT_BASICSR = """
import importlib.abc, sys

class NoBasicSR(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "basicsr":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoBasicSR())
from iter_model import commands
sys.exit(commands.main(sys.argv[1:]))
"""


@pytest.mark.long
def test_upscale_needs_no_basicsr_and_train_says_what_brings_it(tmp_path):
    """A finder refuses BasicSR, as where it is not installed."""
    save(tmp_path / "a.png", levels((8, 8)))
    save_pretrained(small_iter(), tmp_path / "net.safetensors")

    def call(*words):
        words = [sys.executable, "-c", RESTORE_WITHOUT_BASICSR, *words]
        return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)

    result = call(
        "upscale", "-i", "a.png", "-o", "out", "--model", "net.safetensors", "--steps", "1", "--device", "cpu"
    )
    assert (result.returncode, result.stdout) == (0, "restored 1 of 1 image in out\n"), result.stderr
    assert (tmp_path / "out/a.png").is_file()
    (tmp_path / "a.yml").write_text("name: a")
    result = call("train", "-opt", "a.yml")
    assert result.returncode == 1 and "needs BasicSR: python -m basicsr_compat.install" in result.stderr


def test_every_command_is_a_module_with_a_summary():
    for name, (module, summary) in commands.COMMANDS.items():
        assert summary, name
        assert {"add_arguments", "run"} <= vars(importlib.import_module(module)).keys(), name
