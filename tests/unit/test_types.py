"""The type checker accepts all four packages."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy", reason="needs mypy; pip install mypy")
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_mypy_accepts_all_packages(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", tmp_path], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
