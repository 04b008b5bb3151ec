"""The frame holds: which package may import which, and that importing them does nothing but register."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = {
    "basicsr_compat": ROOT / "basicsr_compat",
    "iter_arch": ROOT / "iter_arch",
    "iter_data": ROOT / "datasets/iter_data",
    "iter_model": ROOT / "iter_model",
}
MAY_IMPORT = {
    "basicsr_compat": set(),
    "iter_arch": {"basicsr_compat"},
    "iter_data": {"basicsr_compat"},
    "iter_model": {"basicsr_compat", "iter_arch", "iter_data"},
}


def imported_packages(source: str) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_one_way(name):
    files = sorted(MODULES[name].rglob("*.py"))
    assert files
    for file in files:
        ours = imported_packages(file.read_text(encoding="utf-8")) & set(MODULES)
        assert ours <= MAY_IMPORT[name] | {name}, file


def test_no_module_lies_loose_at_the_top():
    packages = {*MODULES} - {"iter_data"}
    folders = {"benchmarks", "datasets", "docs", "integrations", "options", "tests"}
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    if not listed:
        pytest.skip("not a git checkout")
    assert {name.partition("/")[0] for name in listed} <= packages | folders | {"setup.py"}


def test_datasets_is_no_package():
    assert not (ROOT / "datasets/__init__.py").exists()


def run(code: str, folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_checkout_does_not_hide_hugging_faces_datasets():
    code = "import importlib.util; print(importlib.util.find_spec('datasets').origin)"
    origin = Path(run(code, ROOT).strip())
    assert origin.name == "__init__.py" and ROOT / "datasets" not in origin.parents


# Importing a module imports its package before: that, and what others have written, is shared by the forks.
IMPORT_EACH_FIRST = """
import importlib, os, sys, traceback
import cv2, lmdb, PIL.Image, requests, scipy.ndimage, scipy.special, scipy.stats, torch, torchvision.models, yaml

package, *names = sys.argv[1:]
importlib.import_module(package)
failed = []
for name in names:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            importlib.import_module(name)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    if os.waitpid(child, 0)[1]:
        failed.append(name)
sys.exit(f"cannot be imported first: {failed}" if failed else 0)
"""


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("name", MODULES)
def test_every_module_can_be_imported_first(name, tmp_path):
    files = [file.relative_to(MODULES[name]).with_suffix("") for file in MODULES[name].rglob("*.py")]
    names = [".".join([name, *file.parts]) for file in files if file.name not in ("__init__", "__main__")]
    run(IMPORT_EACH_FIRST, tmp_path, name, *sorted(names))


IMPORT_AND_REPORT = """
import socket, sys
sys.argv = ["someone-elses-program", "--an-option-of-theirs"]
def no_network(*args, **kwargs):
    raise AssertionError("the network was used")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = no_network

import iter_arch, iter_data, iter_model
import torch
assert sys.argv == ["someone-elses-program", "--an-option-of-theirs"]
assert not torch.cuda.is_initialized(), "CUDA was initialized"
assert not torch.distributed.is_initialized()
heavy = {"pyiqa", "transformers", "datasets", "timm", "matplotlib", "tensorboard"} & set(sys.modules)
assert not heavy, f"imported: {heavy}"
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, MODEL_REGISTRY
for name, registry in {"ITER": ARCH_REGISTRY, "SecondOrderDegradationDataset": DATASET_REGISTRY}.items():
    assert name in registry, name
"""


@pytest.mark.long
def test_importing_registers_and_does_nothing_else(tmp_path):
    run(IMPORT_AND_REPORT, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_iter_arch_alone_repairs_basicsr_for_another_project(tmp_path):
    run("import iter_arch, basicsr.data.degradations, basicsr.train; from basicsr.archs import build_network", tmp_path)
