"""Networks whose weights take no memory, to find out their names and shapes."""

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
    """Put the weights of networks that are built in the block on the meta device.

    The weights are not initialized: for random numbers on that device PyTorch would import its compiler, for seconds.
    """
    with torch.device("meta"), _WithoutInitialization():
        yield
