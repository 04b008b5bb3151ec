"""Sizes that keep the code readable: no file over 400 lines, no function over 60."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST_LINES = 400
MOST_LINES_OF_A_FUNCTION = 60


def python_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z", "*.py"], cwd=ROOT, capture_output=True, text=True)
    if not listed.stdout:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if (ROOT / name).is_file()]


def long_functions(source: str) -> list[str]:
    functions = (
        node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    return [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in functions
        if node.end_lineno - node.lineno + 1 > MOST_LINES_OF_A_FUNCTION
    ]


def test_no_file_is_too_long():
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in python_files()
    }
    assert not {name: length for name, length in lengths.items() if length > MOST_LINES}


def test_no_function_is_too_long():
    found = {str(path.relative_to(ROOT)): long_functions(path.read_text(encoding="utf-8")) for path in python_files()}
    assert not {name: functions for name, functions in found.items() if functions}


def test_a_long_function_is_found():
    body = "    x = 1\n" * MOST_LINES_OF_A_FUNCTION
    assert long_functions(f"def f():\n{body}") == ["f: 61 lines"]
    assert long_functions(f"async def f():\n{body}") == ["f: 61 lines"]
    assert long_functions(f"def f():\n{body[10:]}") == []
