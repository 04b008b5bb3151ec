"""Repairs BasicSR without importing it: an import hook, and the repairs that it applies.

A repair is applied right after its target's module has run, or at once if that module is imported already. It replaces
only what is broken, only once, and nothing that another project has replaced before.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import inspect
import sys
import threading
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from typing import Any, TypeVar, overload

_T = TypeVar("_T")

REGISTRIES = ("arch", "dataset", "model", "loss", "metric")
_REGISTERED: dict[str, dict[str, Any]] = {kind: {} for kind in REGISTRIES}


@dataclass(frozen=True, kw_only=True)
class Repair:
    """The repair of one function or method of BasicSR that does not run.

    Args:
        target: `module:name` or `module:Class.name`.
        is_broken: looks for the fault in the present function, never at a version.
        replacement: makes the new function from the present one.
        reason: what fails without it.
    """

    target: str
    is_broken: Callable[[Any], bool]
    replacement: Callable[[Any], Any]
    reason: str

    @property
    def module(self) -> str:
        """The name of the module that the target is in."""
        return self.target.partition(":")[0]

    def arm(self) -> None:
        """Apply it when its module is imported, now if it is there."""
        when_imported(self.module, self.apply)

    def apply(self, module: types.ModuleType) -> None:
        """Replace the target, if that is BasicSR's own and broken."""
        owner, name, current = self._find(module)
        if _repaired_by(current) or not _is_own(module, current) or not self.is_broken(current):
            return
        new = self.replacement(current)
        new.repaired_by = self.target
        setattr(owner, name, new)
        if owner is module:
            _replace_imported_names(module, current, new)

    def is_needed(self) -> bool:
        """Whether it has been applied, or would be: imports the module that it targets."""
        module = importlib.import_module(self.module)
        current = self._find(module)[2]
        return _repaired_by(current) or (_is_own(module, current) and self.is_broken(current))

    def _find(self, module: types.ModuleType) -> tuple[Any, str, Any]:
        owner: Any = module
        *path, name = self.target.partition(":")[2].split(".")
        for part in path:
            owner = getattr(owner, part, None)
        return owner, name, getattr(owner, name, None)


@dataclass(frozen=True, kw_only=True)
class StandIn:
    """A replacement for one module that BasicSR imports, and that its package has dropped.

    Args:
        target: the missing module.
        replacement: where its functions are now.
        reason: what fails without it.
    """

    target: str
    replacement: str
    reason: str

    def arm(self) -> None:
        """Supply the module to everyone who imports it, unless there is a real one."""
        _HOOK.stand_ins[self.target] = self.replacement
        _HOOK.install()

    def is_needed(self) -> bool:
        """Whether the real module is missing."""
        package = importlib.import_module(self.target.rpartition(".")[0])
        return _HOOK.real_spec(self.target, package.__path__) is None


def when_imported(name: str, callback: Callable[[types.ModuleType], None]) -> None:
    """Call `callback(module)` now if the module `name` is imported, else right after its import; again after reloads.

    Examples:
        >>> basicsr_compat.when_imported("basicsr.utils.registry", lambda module: print(module.ARCH_REGISTRY))
    """
    _HOOK.watch(name, callback)


@overload
def register(kind: str) -> Callable[[_T], _T]: ...


@overload
def register(kind: str, obj: _T) -> _T: ...


def register(kind: str, obj: Any = None) -> Any:
    """Put a class or function into BasicSR's registry as soon as BasicSR is imported; this does not import it.

    Args:
        kind: arch, dataset, model, loss, or metric.
        obj: what to register by its name; without it, this is a decorator.

    Examples:
        >>> @basicsr_compat.register("arch")
        ... class MyNetwork(torch.nn.Module): ...
    """
    if kind not in REGISTRIES:
        raise ValueError(f"kind={kind!r} must be one of {', '.join(REGISTRIES)}")
    if obj is None:
        return lambda decorated: register(kind, decorated)

    def put(module: types.ModuleType) -> None:
        registry = getattr(module, f"{kind.upper()}_REGISTRY")
        known = registry._obj_map.get(obj.__name__)
        if known is not None and (known.__module__, known.__qualname__) == (obj.__module__, obj.__qualname__):
            registry._obj_map[obj.__name__] = obj  # its module was imported a second time, which BasicSR refuses
        else:
            registry.register(obj)

    _REGISTERED[kind][obj.__name__] = obj
    when_imported("basicsr.utils.registry", put)
    return obj


def registered(kind: str) -> dict[str, Any]:
    """Everything of a kind by name: what `register` got, and what is in BasicSR's registry if that is imported."""
    module = sys.modules.get("basicsr.utils.registry")
    return _REGISTERED[kind] | (getattr(module, f"{kind.upper()}_REGISTRY")._obj_map if module else {})


def with_globals(function: types.FunctionType, **replaced: Any) -> types.FunctionType:
    """A copy of a function that uses `replaced` instead of these globals of its module."""
    same = types.FunctionType(
        function.__code__,
        {**function.__globals__, **replaced},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    same.__kwdefaults__ = function.__kwdefaults__
    return same


def _repaired_by(current: Any) -> bool:
    return getattr(current, "repaired_by", None) is not None


def _is_own(module: types.ModuleType, current: Any) -> bool:
    return inspect.isfunction(current) and current.__module__ == module.__name__


def _replace_imported_names(module: types.ModuleType, old: Any, new: Any) -> None:
    """Replace a function in the modules of its package that have imported it by name already."""
    package = module.__name__.partition(".")[0]
    for name, other in list(sys.modules.items()):
        if isinstance(other, types.ModuleType) and name.partition(".")[0] == package:
            for attribute in [key for key, value in vars(other).items() if value is old]:
                setattr(other, attribute, new)


class _Hook(importlib.abc.MetaPathFinder):
    """Finds modules as the other finders do, calls back when they have run, and supplies the missing ones."""

    def __init__(self) -> None:
        self.stand_ins: dict[str, str] = {}
        self._callbacks: dict[str, list[Callable]] = {}
        self._executed: set[str] = set()
        self._lock = threading.Lock()
        self._searching = threading.local()

    def install(self) -> None:
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def watch(self, name: str, callback: Callable) -> None:
        self.install()
        module = sys.modules.get(name)
        if is_importing(module) and name not in self._executed:
            importlib.import_module(name)  # in another thread: wait for it
        with self._lock:
            callbacks = self._callbacks.setdefault(name, [])
            if callback not in callbacks:
                callbacks.append(callback)
            module = sys.modules.get(name)
            ready = isinstance(module, types.ModuleType) and (name in self._executed or not is_importing(module))
        if ready:
            callback(module)

    def executed(self, module: types.ModuleType) -> None:
        with self._lock:
            self._executed.add(module.__name__)
            callbacks = tuple(self._callbacks[module.__name__])
        for callback in callbacks:
            callback(module)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self._callbacks and fullname not in self.stand_ins:
            return None
        spec = self.real_spec(fullname, path, target)
        if spec is None and fullname in self.stand_ins:
            return ModuleSpec(fullname, _StandInLoader(self.stand_ins[fullname]))
        if spec is not None and fullname in self._callbacks and hasattr(spec.loader, "exec_module"):
            spec.loader = _WatchedLoader(spec.loader, self)
        return spec

    def real_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        """What the other finders find; None within its own search, because another finder may ask all others too."""
        names = self._searching.__dict__.setdefault("names", set())
        if fullname in names:
            return None
        names.add(fullname)
        try:
            finders = [finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec")]
            return next(filter(None, (finder.find_spec(fullname, path, target) for finder in finders)), None)
        finally:
            names.discard(fullname)


def is_importing(module: types.ModuleType | None) -> bool:
    """Whether the import of a module has begun, but not finished."""
    return getattr(getattr(module, "__spec__", None), "_initializing", False)


class _WatchedLoader(importlib.abc.Loader):
    """A module's own loader, which also tells the hook when the module has run; the module itself never sees it."""

    def __init__(self, loader: Any, hook: _Hook) -> None:
        self._loader, self._hook = loader, hook

    def __getattr__(self, name: str) -> Any:  # get_code, get_source, get_resource_reader...
        return getattr(object.__getattribute__(self, "_loader"), name)

    def create_module(self, spec: ModuleSpec) -> types.ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._hook.executed(module)


class _StandInLoader(importlib.abc.Loader):
    """Fills a missing module with the content of the module that has its functions now."""

    def __init__(self, source: str) -> None:
        self._source = source

    def exec_module(self, module: types.ModuleType) -> None:
        source = importlib.import_module(self._source)
        module.__doc__ = f"Stand-in: its functions are in {self._source} now."
        vars(module).update({key: value for key, value in vars(source).items() if not key.startswith("__")})


_HOOK = _Hook()
