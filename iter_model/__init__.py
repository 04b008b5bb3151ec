"""Training, evaluation, and commands of ITER (arXiv:2312.05616).

All models, losses, and metrics of this package are registered in BasicSR as soon as both are imported. Importing this
package does not import BasicSR: the `basicsr` command restores photos without it.
"""

import importlib
import sys
import types
from pathlib import Path

from basicsr_compat.patching import is_importing, when_imported

_MODULES = [f"{__name__}.{file.stem}" for file in sorted(Path(__file__).parent.glob("*.py")) if file.stem != "__init__"]
_REGISTERED = [name for name in _MODULES if name.endswith(("_model", "_loss", "_metric"))]
# Any of these may import BasicSR, and must finish before the modules are imported that build on it.
_WATCHED = ["basicsr", "iter_arch", "iter_data", *_MODULES]


def _register(imported: types.ModuleType) -> None:
    """Called when one of `_WATCHED` has been imported."""
    unfinished = [name for name in _WATCHED if name != imported.__name__ and is_importing(sys.modules.get(name))]
    if sys.modules.get("basicsr") and not unfinished:  # None where somebody has blocked it
        for name in _REGISTERED:
            importlib.import_module(name)


for _name in _WATCHED:
    when_imported(_name, _register)
