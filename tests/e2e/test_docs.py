"""Every bash and python block of the README and of the pages in docs/ runs, in a folder like a fresh clone.

CONTRIBUTING.md, "Documentation", has the rules for those who write pages.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"^(?:<!-- doctest: (\w+)(?: \((.*?)\))? -->\n)?```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL
)


class Block(NamedTuple):
    """A fenced block. mark: skip, slow or None."""

    mark: str | None
    reason: str | None
    language: str
    code: str


def blocks(text):
    return [Block(*[group or None for group in match.groups()]) for match in BLOCK.finditer(text)]


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """What the pages take for granted: a clone, two photos in photos/, and a few in the folders of the data sets."""
    for name in ("options", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    sample = tmp_path / "datasets/sample"
    shutil.copytree(ROOT / "datasets/sample", sample)
    for folder in ("train", "val/kodak24"):
        shutil.copytree(sample / "gt", tmp_path / "datasets" / folder)
    shutil.copytree(ROOT / "iter_arch/weights", tmp_path / "iter_arch/weights")
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    (tmp_path / "photos").mkdir()
    for photo in (sample / "lq/dog.jpg", sample / "real/cap.png"):
        shutil.copy(photo, tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("ITER_CACHE", str(tmp_path / "cache"))
    return tmp_path


def run(block, names):
    """Run a block; python blocks of a page share their names."""
    if block.language == "python":
        exec(compile(block.code, "<page>", "exec"), names)
        return
    result = subprocess.run(["bash", "-euo", "pipefail", "-c", block.code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, f"{block.code}\n{result.stdout[-2000:]}{result.stderr[-2000:]}"


@pytest.mark.long
@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page.read_text("utf-8"))], ids=lambda page: page.stem
)
def test_the_blocks_of_a_page_run(page, clone, request):
    names = {"__name__": "page"}
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.mark != "skip" and (block.mark != "slow" or request.config.getoption("--slow")):
            run(block, names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_marks_are_known_and_give_their_reason(page):
    text = page.read_text(encoding="utf-8")
    marked = [block for block in blocks(text) if block.mark]
    assert len(re.findall(r"^<!-- doctest: .*-->$", text, re.MULTILINE)) == len(marked)  # none stands elsewhere
    for block in marked:
        assert block.mark == "slow" or (block.mark == "skip" and block.reason), block


def test_a_block_that_fails_is_told():
    with pytest.raises(AssertionError, match="no-such-command"):
        run(*_first("```bash\nno-such-command\ntrue\n```\n"))
    with pytest.raises(NameError):
        run(*_first("```python\nnothing\n```\n"))
    assert blocks("<!-- doctest: skip (takes hours) -->\n```bash\nx\n```\n") == [("skip", "takes hours", "bash", "x\n")]


def _first(text):
    return blocks(text)[0], {}


@pytest.mark.parametrize("package", ["basicsr_compat", "iter_arch", "datasets/iter_data", "iter_model"])
def test_examples_in_docstrings_are_shown_as_code(package):
    """mkdocstrings knows a section called Examples; it shows one called Example as nested quotes."""
    files = list((ROOT / package).rglob("*.py"))
    assert files
    assert not [file for file in files if re.search(r"^ *Example:$", file.read_text(encoding="utf-8"), re.MULTILINE)]
