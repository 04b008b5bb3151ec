"""Registration in BasicSR's registries that survives a second import (reload, another sys.path entry)."""

from collections.abc import Callable

from basicsr.utils.registry import Registry


def register(registry: Registry) -> Callable[[type], type]:
    """Class decorator: like ``registry.register()``, but a class of the same name replaces an earlier import of itself.

    Raises:
        AssertionError: by BasicSR, where the name belongs to a class of another module.
    """

    def decorate(cls: type) -> type:
        known = registry._obj_map.get(cls.__name__)
        if known is not None and known.__module__ == cls.__module__:
            del registry._obj_map[cls.__name__]
        registry.register(cls)
        return cls

    return decorate
