"""`-opt iter:NAME.yml`: the project's own option files and photos, without a checkout; commands without BasicSR."""

import argparse
import subprocess
import sys
import types
from pathlib import Path

import pytest
import yaml

from iter_model import commands
from iter_model.commands import shipped


def resolved(name, **options):
    args = argparse.Namespace(opt=name, **{"force_yml": None, **options})
    shipped.resolve(args)
    return args


def test_the_sample_photos_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = resolved("iter:test_iter.yml", force_yml=["datasets:test:dataroot_lq=mine"])
    assert Path(args.opt).name == "test_iter.yml" and Path(args.opt).is_file()
    entries = [entry.partition("=") for entry in args.force_yml]
    assert [key for key, _, _ in entries] == [
        "datasets:test:dataroot_gt",
        "datasets:test:dataroot_lq",
        "datasets:test:dataroot_lq",  # what the user says comes last
    ]
    gt, lq = (sorted(file.name for file in Path(yaml.safe_load(entries[i][2])).iterdir()) for i in (0, 1))
    assert gt == lq and "coffee.png" in gt


def test_data_sets_of_the_users_stay_theirs():
    assert resolved("iter:train_iter.yml").force_yml == []


def test_other_files_stay_as_they_are():
    assert resolved("options/test_iter.yml") == argparse.Namespace(opt="options/test_iter.yml", force_yml=None)


@pytest.mark.parametrize("name", ["iter:", "iter:test_itr.yml", "iter:../setup.py"])
def test_an_unknown_name_is_wrong_usage_that_lists_the_known_ones(name, capsys):
    with pytest.raises(SystemExit) as exit_:
        commands.main(["test", "-opt", name])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert f"error: -opt {name}: the name must be one of test_iter.yml, " in error


@pytest.fixture
def failing(monkeypatch):
    """failing(error): the command `test`, whose module raises it."""

    def run(error):
        def raises(args):
            raise error

        module = types.SimpleNamespace(add_arguments=lambda parser: None, run=raises)
        monkeypatch.setitem(sys.modules, "failing_command", module)
        monkeypatch.setitem(commands.COMMANDS, "test", ("failing_command", "fails"))
        return commands.main(["test"])

    return run


@pytest.mark.parametrize("name", ["basicsr", "basicsr.utils"])
def test_without_basicsr_a_command_names_the_line_that_brings_it(failing, capsys, name):
    assert failing(ModuleNotFoundError(f"No module named {name!r}", name=name)) == 1
    assert capsys.readouterr().err == "basicsr test needs BasicSR: python -m basicsr_compat.install\n"


def test_train_test_and_check_all_say_so(tmp_path):
    code = """
import sys
sys.modules["basicsr"] = None
from iter_model import commands
for name in ("train", "test", "check"):
    assert commands.main([name, "-opt", "iter:test_iter.yml"]) == 1
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    said = "needs BasicSR: python -m basicsr_compat.install"
    assert result.stderr.splitlines() == [f"basicsr {name} {said}" for name in ("train", "test", "check")]
    assert list(tmp_path.iterdir()) == []


def test_another_missing_module_is_a_fault(failing):
    with pytest.raises(ModuleNotFoundError, match="einops"):
        failing(ModuleNotFoundError("No module named 'einops'", name="einops"))
