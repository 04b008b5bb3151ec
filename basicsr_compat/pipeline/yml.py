"""Reads option files, and reports values that YAML takes for something else than they look like."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from basicsr_compat.schema import OptionProblems, format_error


class OptionLoader(yaml.SafeLoader):
    """A loader that runs no Python tags and reads 1e-4 as a number, unlike BasicSR's (YAML 1.1 wants a dot in it)."""

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """Read 4e5 as a whole number, as total_iter must be one."""
        value = self.construct_yaml_float(node)
        return int(value) if "." not in node.value and value.is_integer() else value


OptionLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)
OptionLoader.add_constructor("tag:yaml.org,2002:float", OptionLoader.construct_number)

_MOST_OPTIONS, _DEEPEST = 100_000, 50


def read_yml(path: str) -> tuple[dict, list[str]]:
    """Read an option file; returns its content and the problems: values that YAML takes for something else."""
    text = _read_text(path)
    try:
        loader = OptionLoader(text)
        node = loader.get_single_node()
        problems = [*_repeated_keys(node), *_misread_names(loader, node)]
        opt = loader.construct_document(node) if node is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise OptionProblems(f"-opt {path} is not valid YAML: {error.problem or error.context}{where}") from None
    except Exception as error:  # whatever a tag raises of a text that it does not fit: !!bool maybe
        raise OptionProblems(f"-opt {path} is not valid YAML: {format_error(error)}") from None
    if not isinstance(opt, dict):
        raise OptionProblems(f"-opt {path} must hold options as `key: value`, it holds {type(opt).__name__}")
    _refuse_endless(opt, path)
    return opt, problems


def _read_text(path: str) -> str:
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise OptionProblems(f"-opt {path}: there is no such file (looked from {os.getcwd()})") from None
    except OSError as error:
        raise OptionProblems(f"-opt {path} cannot be read: {error.strerror}") from None
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise OptionProblems(f"-opt {path} is text in UTF-16, as Notepad and PowerShell may write it; save it in UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise OptionProblems(f"-opt {path} is not text in UTF-8 (line {line}); save it in UTF-8") from None


def _repeated_keys(node: yaml.Node | None) -> Iterator[str]:
    """Say which keys are repeated; YAML silently takes the last value."""
    waiting, seen = [(node, "")], set()
    while waiting:
        node, where = waiting.pop()
        if id(node) in seen or not isinstance(node, yaml.CollectionNode):
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += [(item, where) for item in node.value]
            continue
        lines: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            name = f"{where}.{key.value}" if where else str(key.value)
            waiting.append((value, name))
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                line = key.start_mark.line + 1
                first = lines.setdefault((key.tag, key.value), line)
                if first != line:
                    yield f"{name} is given twice, in lines {first} and {line}; take one out"


def _misread_names(loader: OptionLoader, node: yaml.Node | None) -> Iterator[str]:
    """Say which names YAML takes for something else: `on` for true, 007 for 7."""
    for where, scalar in _scalars(node):
        path = where.split(".")
        if path != ["name"] and (path[0] != "datasets" or path[2:] != ["name"]):
            continue
        value = loader.construct_object(scalar)
        if isinstance(value, str) or value is None or (type(value) is int and str(value) == scalar.value):
            continue
        read_as = str(value).lower() if isinstance(value, int | float) else f"a {type(value).__name__}"
        yield f"{where}={scalar.value} is read as {read_as} by YAML; put it in quotes: '{scalar.value}'"


def _scalars(node: yaml.Node | None, where: str = "", depth: int = 3) -> Iterator[tuple[str, yaml.ScalarNode]]:
    """The values of all sections and subsections, with their keys."""
    if isinstance(node, yaml.ScalarNode):
        yield where, node
    elif isinstance(node, yaml.MappingNode) and depth:
        for key, value in node.value:
            yield from _scalars(value, f"{where}.{key.value}" if where else str(key.value), depth - 1)


def _refuse_endless(opt: dict, path: str) -> None:
    """Refuse files that YAML's aliases make endless, because nothing could copy or print them."""
    waiting, count = [(opt, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if depth > _DEEPEST or count > _MOST_OPTIONS:
            raise OptionProblems(f"-opt {path} is nested too deeply, or refers to itself by an alias (*name)")
        if isinstance(value, dict | list):
            waiting += [(item, depth + 1) for item in (value.values() if isinstance(value, dict) else value)]
