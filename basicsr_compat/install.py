"""Installs BasicSR 1.4.2, also on Pythons where its own setup.py fails: `python -m basicsr_compat.install`.

Its setup.py looks its version up in the locals() of a function, where exec() left it. Since Python 3.13 (PEP 667)
exec() leaves nothing there, and the build ends with KeyError: '__version__'. It also asks for PyTorch in the isolated
environment in which pip builds: several GB, for a package without compiled code. Here pip builds the unchanged sdist
with the PyTorch that is installed, and while it does, locals() knows the version.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

NAME, VERSION = "basicsr", "1.4.2"
NEEDED = ("torch", "torchvision")
# What setup.py wants: name, and the first major version that is too new. What is missing is there for the build only.
BUILD_TOOLS = {"setuptools": 81, "wheel": None, "cython": None, "numpy": None}  # setuptools 82 has no pkg_resources

# Every Python process of the build imports this at its start. It runs the sitecustomize that it hides, if there is one.
_SITECUSTOMIZE = '''\
import builtins
import os
import runpy
import sys
from importlib import machinery, util


def locals():
    """The caller's names; in setup.py's get_version also those of the version file, as before Python 3.13."""
    frame = sys._getframe(1)
    names = frame.f_locals if isinstance(frame.f_locals, dict) else dict(frame.f_locals)
    if frame.f_code.co_name == "get_version" and "version_file" in frame.f_globals:
        return {**runpy.run_path(frame.f_globals["version_file"]), **names}
    return names


builtins.locals = locals
sys.path.remove(os.path.dirname(__file__))
hidden = machinery.PathFinder.find_spec("sitecustomize", sys.path)
if hidden:
    hidden.loader.exec_module(util.module_from_spec(hidden))
'''


class NotInstalled(Exception):
    """Something is missing or failed; the message is one line that says what, and what to do."""


def main(argv: list[str] | None = None) -> int:
    """Install BasicSR into the environment of this interpreter.

    Args:
        argv: the command line; `sys.argv[1:]` by default.

    Returns:
        The exit code: 0 if BasicSR is installed now, 1 if something is missing or failed, 2 for wrong usage.
    """
    parser = argparse.ArgumentParser("python -m basicsr_compat.install", description=__doc__.partition(":")[0] + ".")
    parser.add_argument("--sdist", type=Path, metavar="FILE", help="build this file; by default pip downloads it")
    parser.add_argument("--verbose", action="store_true", help="show pip's output")
    args = parser.parse_args(argv)
    if args.sdist and not args.sdist.is_file():
        parser.error(f"--sdist {args.sdist}: there is no such file")
    try:
        if _installed_version(NAME) == VERSION:
            print(f"{NAME} {VERSION} is installed already")
            return 0
        missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            raise NotInstalled(f"{NAME} needs {' and '.join(missing)} first: pip install {' '.join(NEEDED)}")
        with tempfile.TemporaryDirectory(prefix=f"{NAME}-") as folder:
            wheel = build_wheel(args.sdist or f"{NAME}=={VERSION}", Path(folder), verbose=args.verbose)
            _pip("install", wheel, verbose=args.verbose)
    except NotInstalled as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 1
    print(f"{NAME} {VERSION} is installed")
    return 0


def build_wheel(source: str | Path, folder: Path, *, verbose: bool = False) -> Path:
    """Build a wheel of BasicSR from its unchanged sdist.

    Args:
        source: an sdist, or a requirement that pip finds one for.
        folder: an empty folder for the wheel, and for the tools of the build.

    Returns:
        The path of the wheel.

    Raises:
        NotInstalled: pip cannot find the sdist or build it.
    """
    shim, tools, wheels = folder / "shim", folder / "tools", folder / "wheels"
    shim.mkdir()
    (shim / "sitecustomize.py").write_text(_SITECUSTOMIZE, encoding="utf-8")
    lacking = [(name, limit) for name, limit in BUILD_TOOLS.items() if _lacks(name, limit)]
    missing = [f"{name}<{limit}" if limit else name for name, limit in lacking]
    if missing:
        _pip("install", "--target", tools, *missing, verbose=verbose)
    # No isolation: pip would fetch PyTorch once more, which setup_requires names. No binary: not another index's wheel.
    options = ["--no-deps", "--no-build-isolation", "--no-binary", NAME, "--wheel-dir", str(wheels)]
    _pip("wheel", *options, source, path=[shim, tools], verbose=verbose)
    return next(wheels.glob("*.whl"))


def _installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _lacks(name: str, limit: int | None) -> bool:
    version = _installed_version(name)
    return version is None or (limit is not None and int(version.partition(".")[0]) >= limit)


def _pip(command: str, *words: str | Path, path: list[Path] | None = None, verbose: bool = False) -> None:
    """Run pip with `path` in front of its and its build's sys.path; raises NotInstalled with its reason if it fails."""
    places = [*map(str, path or []), *_bundled_pip(), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))}
    pip = [sys.executable, "-m", "pip", command, "--disable-pip-version-check", *map(str, words)]
    to = None if verbose else subprocess.PIPE
    result = subprocess.run(pip, env=environment, stdout=to, stderr=subprocess.STDOUT, text=True, errors="replace")
    if result.returncode:
        reason = "see above" if verbose else f"{_reason(result.stdout)} (--verbose shows all)"
        raise NotInstalled(f"pip {command} failed: {reason}")


def _bundled_pip() -> list[str]:
    """Where the interpreter is of uv, or another without pip: the wheel of pip that Python brings along."""
    if importlib.util.find_spec("pip"):
        return []
    ensurepip = importlib.util.find_spec("ensurepip")
    wheels = sorted(Path(ensurepip.origin).parent.glob("_bundled/pip-*.whl")) if ensurepip and ensurepip.origin else []
    if not wheels:
        raise NotInstalled("pip is missing: `uv pip install pip`, or install your system's package of it")
    return [str(wheels[-1])]


def _reason(output: str) -> str:
    """The line of pip's output that says why it failed: the build's exception, or pip's own error."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for pattern in (r"\w+(Error|Exception|Exit)\b", r"(?i)error: "):
        found = [line for line in lines if re.match(pattern, line)]
        if found:
            return found[-1]
    return lines[-1] if lines else "it said nothing"


if __name__ == "__main__":
    sys.exit(main())
