"""`python -m basicsr_compat.install` on an sdist that fails as BasicSR 1.4.2's does, with an index that is a folder."""

import importlib.util
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from basicsr_compat import install

pytestmark = pytest.mark.long

# As BasicSR's, but for the namespace of exec: this look-up fails on every Python as BasicSR's does since 3.13.
SETUP = """\
from setuptools import setup

version_file = "standin/version.py"


def get_version():
    with open(version_file) as f:
        exec(compile(f.read(), version_file, "exec"), {})
    return locals()["__version__"]


setup(name="standin", version=get_version(), packages=["standin"])
"""


def make_sdist(folder, setup=SETUP):
    files = {
        "setup.py": setup,
        "PKG-INFO": "Metadata-Version: 2.1\nName: standin\nVersion: 1.4.2\n",
        "standin/__init__.py": "",
        "standin/version.py": "__version__ = '1.4.2'\n",
    }
    path = folder / "standin-1.4.2.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"standin-1.4.2/{name}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return path


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder in which pip looks for packages, and nowhere else; what it installs goes to tmp_path/site."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "CONFIG_FILE": os.devnull,
        "NO_INDEX": 1,
        "FIND_LINKS": folder,
        "NO_CACHE_DIR": 1,
        "TARGET": tmp_path / "site",
    }.items():
        monkeypatch.setenv(f"PIP_{name}", str(value))
    monkeypatch.setattr(install, "NAME", "standin")
    monkeypatch.setattr(install, "BUILD_TOOLS", {"setuptools": 81})
    return folder


def test_builds_and_installs_where_the_version_lookup_fails(index, tmp_path, capsys):
    make_sdist(index)
    assert install.main([]) == 0
    assert capsys.readouterr().out == "standin 1.4.2 is installed\n"
    assert (tmp_path / "site/standin/version.py").exists()


def test_the_sdist_does_not_build_by_itself(index):
    sdist = make_sdist(index)
    words = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", index, sdist]
    result = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1 and "KeyError: '__version__'" in result.stdout + result.stderr


def test_a_file_becomes_a_wheel_of_its_unchanged_files(index, tmp_path, monkeypatch):
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setenv("PYTHONPATH", str(hidden))
    sdist = make_sdist(tmp_path)
    wheel = install.build_wheel(sdist, tmp_path)
    assert wheel.name == "standin-1.4.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("standin/version.py") == b"__version__ = '1.4.2'\n"
    assert (tmp_path / "ran").exists()  # the environment's own sitecustomize


def test_an_installed_basicsr_is_left_alone(index, monkeypatch, capsys):
    monkeypatch.setattr(install, "_installed_version", lambda name: "1.4.2")
    assert install.main([]) == 0  # the index is empty: nothing could be built
    assert capsys.readouterr().out == "standin 1.4.2 is installed already\n"


@pytest.mark.parametrize(
    ("setup", "message"),
    [
        (None, "No matching distribution found for standin==1.4.2"),
        ("raise RuntimeError('no compiler')", "RuntimeError: no compiler"),
    ],
)
def test_a_failure_is_one_line_and_1(index, capsys, setup, message):
    if setup:
        make_sdist(index, setup)
    assert install.main([]) == 1
    error = capsys.readouterr().err
    assert error.startswith("python -m basicsr_compat.install: error: pip wheel failed: ") and error.count("\n") == 1
    assert message in error


def test_verbose_shows_pips_output(index, capfd):
    make_sdist(index, "raise RuntimeError('no compiler')")
    assert install.main(["--verbose"]) == 1
    captured = capfd.readouterr()
    assert "Traceback" in captured.out and captured.err.endswith("pip wheel failed: see above\n")


def test_torch_is_needed_first(index, monkeypatch, capsys):
    make_sdist(index)
    monkeypatch.setattr(install, "NEEDED", ("torch_that_is_missing", "torchvision_that_is_missing"))
    assert install.main([]) == 1
    assert capsys.readouterr().err == (
        "python -m basicsr_compat.install: error: standin needs torch_that_is_missing and torchvision_that_is_missing "
        "first: pip install torch_that_is_missing torchvision_that_is_missing\n"
    )


def test_a_missing_build_tool_is_installed_for_the_build_alone(index, tmp_path, monkeypatch):
    make_sdist(index, "import buildtool\n" + SETUP)
    wheel = "buildtool-1.0-py3-none-any.whl"
    with zipfile.ZipFile(index / wheel, "w") as archive:
        archive.writestr("buildtool.py", "")
        archive.writestr("buildtool-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: buildtool\nVersion: 1.0\n")
        archive.writestr(
            "buildtool-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("buildtool-1.0.dist-info/RECORD", "")
    monkeypatch.setattr(install, "BUILD_TOOLS", {"setuptools": 81, "buildtool": None})
    monkeypatch.delenv("PIP_TARGET")
    assert install.build_wheel("standin==1.4.2", tmp_path).exists()
    assert importlib.util.find_spec("buildtool") is None


@pytest.mark.parametrize(("version", "lacks"), [(None, True), ("80.9.0", False), ("81.0.0", True), ("82", True)])
def test_a_tool_that_is_too_new_counts_as_missing(monkeypatch, version, lacks):
    monkeypatch.setattr(install, "_installed_version", lambda name: version)
    assert install._lacks("setuptools", 81) is lacks


def test_a_file_that_is_missing_is_wrong_usage(capsys):
    with pytest.raises(SystemExit) as exit_:
        install.main(["--sdist", "nowhere.tar.gz"])
    assert exit_.value.code == 2
    assert "--sdist nowhere.tar.gz: there is no such file" in capsys.readouterr().err


@pytest.mark.network
def test_basicsr_itself(tmp_path):
    wheel = install.build_wheel("basicsr==1.4.2", tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        assert {"basicsr/train.py", "basicsr/version.py"} <= set(archive.namelist())


def test_an_environment_without_pip_uses_the_one_that_python_brings_along(tmp_path):
    """As `uv venv` makes them."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    python, root = venv / "bin/python", Path(install.__file__).parents[1]
    code = "import importlib.util as u; assert u.find_spec('pip') is None; from basicsr_compat import install; "
    code += "install._pip('help', verbose=True)"
    environment = {**os.environ, "PYTHONPATH": str(root)}
    result = subprocess.run([python, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
