"""What a host project sees of BasicSR and of its own process, as JSON; argv[1] is what it imports."""

import hashlib
import importlib
import inspect
import json
import logging
import multiprocessing
import os
import pkgutil
import random
import re
import signal
import sys
import threading
import types
import warnings

import cv2
import numpy as np
import PIL.Image
import PIL.ImageFile
import torch
import torchvision.transforms._functional_tensor


def imported(statement):
    """Import BasicSR, which the host has made importable itself, and what `statement` says, on random states known."""
    sys.modules["torchvision.transforms.functional_tensor"] = torchvision.transforms._functional_tensor
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    exec(statement)


def code(function):
    """The byte code and constants of a function, those of its inner functions included."""
    parts = [function.co_name, function.co_filename, function.co_code, function.co_names, function.co_varnames]
    for constant in function.co_consts:
        parts.append(code(constant) if isinstance(constant, types.CodeType) else repr(constant))
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def text(value):
    """Its repr without addresses in memory."""
    return re.sub(" at 0x[0-9a-f]*", "", repr(value))


def describe(value):
    """What tells one function from another, for those within it too; of anything else its type."""
    value = getattr(value, "__func__", value)  # class and static methods
    if isinstance(value, property):
        return [describe(value.fget)]
    if not inspect.isfunction(value):
        return type(value).__name__
    inner = describe(value.__wrapped__) if hasattr(value, "__wrapped__") else None
    cells = [cell.cell_contents for cell in value.__closure__ or ()]
    closure = [describe(content) for content in cells if inspect.isfunction(content)]
    return [value.__module__, value.__qualname__, code(value.__code__), text(value.__defaults__), closure, inner]


def names_of_basicsr():
    """Every attribute of every module and class of BasicSR."""
    seen = {}
    basicsr = importlib.import_module("basicsr")
    modules = [name for _, name, _ in pkgutil.walk_packages(basicsr.__path__, "basicsr.") if ".ops" not in name]
    for module in [basicsr, *map(importlib.import_module, modules)]:
        for name, value in vars(module).items():
            if not name.startswith("__"):
                seen[f"{module.__name__}:{name}"] = describe(value)
            if inspect.isclass(value) and value.__module__ == module.__name__:
                for attribute, inner in vars(value).items():
                    seen[f"{module.__name__}:{name}.{attribute}"] = describe(inner)
    return seen


def process():
    """What is not BasicSR's, and one for the whole process."""
    loggers = {name: logging.getLogger(name) for name in ("basicsr", "PIL", "torch")}
    return {
        "environment": dict(os.environ),
        "signals": {str(number): str(signal.getsignal(number)) for number in signal.valid_signals()},
        "warnings": [text(rule) for rule in warnings.filters],
        "random": repr(random.getstate()),
        "numpy": repr(np.random.get_state()[1].tolist()),
        "torch": torch.get_rng_state().tolist(),
        "torch settings": repr(
            [
                torch.get_num_threads(),
                torch.get_default_dtype(),
                torch.is_grad_enabled(),
                torch.are_deterministic_algorithms_enabled(),
                torch.backends.cudnn.benchmark,
                torch.backends.cudnn.deterministic,
                torch.backends.cuda.matmul.allow_tf32,
                torch.get_float32_matmul_precision(),
            ]
        ),
        "torch safe globals": sorted(map(text, torch.serialization.get_safe_globals())),
        "numpy errors": repr(np.geterr()),
        "opencv threads": cv2.getNumThreads(),
        "pillow": repr([PIL.Image.MAX_IMAGE_PIXELS, PIL.ImageFile.LOAD_TRUNCATED_IMAGES]),
        "logging": text(
            [logging.root.handlers, logging.root.level, logging.root.manager.disable]
            + [(name, one.handlers, one.level, one.propagate) for name, one in loggers.items()]
        ),
        "hooks": text([sys.excepthook, threading.excepthook, sys.argv[2:], sys.getrecursionlimit()]),
        "start method": multiprocessing.get_start_method(allow_none=True),
    }


if __name__ == "__main__":
    imported(sys.argv[1])
    seen = {"process": process()}
    print(json.dumps({**seen, "names": names_of_basicsr()}))
