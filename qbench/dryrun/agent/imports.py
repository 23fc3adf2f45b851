"""Calls a function once a module has been imported."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

Hook = Callable[[ModuleType], None]

_hooks: dict[str, Hook] = {}


def after(module: str, hook: Hook) -> None:
    """Call `hook` with the module once its code has run, in this process and those that it forks."""
    if not _hooks:
        sys.meta_path.insert(0, _Finder())
    _hooks[module] = hook


class _Finder(MetaPathFinder):
    """Finds the modules with a hook as the other finders do, and adds the call to their loader."""

    def __init__(self) -> None:
        self._looking: set[str] = set()

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in _hooks or name in self._looking:
            return None
        self._looking.add(name)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._looking.discard(name)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _hooks[name](module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
