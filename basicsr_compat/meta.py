"""Networks without memory for their weights, to know their names and shapes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _WithoutInitialization(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable, types: Sequence, args: Sequence = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


@contextlib.contextmanager
def on_meta() -> Iterator[None]:
    """Networks that are built in the block have weights on the meta device.

    The weights are not initialized. PyTorch would import its compiler for random numbers that are nowhere: two seconds.
    """
    with torch.device("meta"), _WithoutInitialization():
        yield
