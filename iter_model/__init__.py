"""Training, evaluation and commands of ITER (arXiv:2312.05616).

Every model, loss and metric of this package is in BasicSR's registries as soon as both are imported. BasicSR is not
imported for it: the `basicsr` command restores photos without.
"""

import importlib
import sys
import types
from pathlib import Path

from basicsr_compat.patching import is_importing, when_imported

_MODULES = [f"{__name__}.{file.stem}" for file in sorted(Path(__file__).parent.glob("*.py")) if file.stem != "__init__"]
_REGISTERED = [name for name in _MODULES if name.endswith(("_model", "_loss", "_metric"))]
# Any of them may be what imports BasicSR; it has to run to its end before those are imported that build on it.
_WATCHED = ["basicsr", "iter_arch", "iter_data", *_MODULES]


def _register(imported: types.ModuleType) -> None:
    """Called when one of `_WATCHED` has been imported."""
    unfinished = [name for name in _WATCHED if name != imported.__name__ and is_importing(sys.modules.get(name))]
    if sys.modules.get("basicsr") and not unfinished:  # None where somebody has blocked it
        for name in _REGISTERED:
            importlib.import_module(name)


for _name in _WATCHED:
    when_imported(_name, _register)
