"""Training, evaluation and commands of ITER (arXiv:2312.05616). Importing it registers every model, loss and metric."""

import basicsr_compat  # noqa: F401, I001  (before BasicSR: it does not import on current torchvision without it)

import importlib
from pathlib import Path

for _file in sorted(Path(__file__).parent.glob("*.py")):
    if _file.stem.endswith(("_model", "_loss", "_metric")):
        importlib.import_module(f"{__name__}.{_file.stem}")
