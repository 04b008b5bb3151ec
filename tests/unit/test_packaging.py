"""What `pip install` of this project brings."""

import re
import shutil
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"basicsr_compat": ROOT, "iter_arch": ROOT, "iter_data": ROOT / "datasets", "iter_model": ROOT}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this checkout, built as pip builds it, but for the isolation, which needs a package index."""
    folder = tmp_path_factory.mktemp("packaging")
    source = folder / "source"
    for name in ("basicsr_compat", "iter_arch", "iter_model", "datasets", "options"):
        # Of the data folder, what the project ships; a user's own photos are many.
        unwanted = ["__pycache__"] + (["train", "val"] if name == "datasets" else [])
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns(*unwanted))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    words = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source]
    result = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        yield archive


@pytest.mark.long
def test_the_wheel_carries_weights_options_photos_and_types(wheel):
    names = set(wheel.namelist())
    shipped = {"iter_arch/weights/iter_tiny_x4.safetensors", "iter_arch/pretrained/model_card.md"}
    shipped |= {f"{package}/py.typed" for package in PACKAGES}
    for folder in ("options", "datasets/sample"):
        files = [file.relative_to(ROOT) for file in (ROOT / folder).rglob("*") if file.is_file()]
        assert files
        shipped |= {f"iter_model/shipped/{file.as_posix()}" for file in files}
    assert not shipped - names


def test_every_module_is_in_the_wheel(wheel):
    modules = {
        file.relative_to(base).as_posix()
        for package, base in PACKAGES.items()
        for file in (base / package).rglob("*.py")
    }
    assert modules <= set(wheel.namelist())


def test_only_our_packages_are_at_its_top(wheel):
    top = {name.partition("/")[0] for name in wheel.namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == set(PACKAGES)


@pytest.fixture(scope="module")
def metadata(wheel):
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return message_from_bytes(wheel.read(name))


def test_basicsr_is_asked_for_where_its_setup_works(metadata):
    required = [line for line in metadata.get_all("Requires-Dist") if re.match("basicsr\\b", line)]
    assert [line.replace(" ", "") for line in required] == ['basicsr==1.4.2;python_version<"3.13"']
    assert metadata["Requires-Python"] == ">=3.10"


def test_lower_bounds_are_those_of_lowest_txt(metadata):
    bounds = dict(
        match.groups() for line in metadata.get_all("Requires-Dist") if (match := re.match(r"([\w-]+)>=([\d.]+)", line))
    )
    lines = (ROOT / "tests/lowest.txt").read_text().splitlines()
    lowest = dict(line.split("==") for line in lines if not line.startswith("#"))
    del lowest["opencv-python-headless"]  # pyiqa's; it shares a folder with opencv-python
    assert bounds == lowest
