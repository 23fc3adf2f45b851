"""Import torch's libraries without what a plan never runs: the same libraries, loaded later where called."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, wraps
from types import FunctionType, ModuleType
from typing import Any, cast

Function = Callable[..., Any]


@contextmanager
def quick_imports() -> Iterator[None]:
    """Shorten the imports of torch, transformers, peft and bitsandbytes in the block.

    The block gets the real libraries, and so does whoever imports them later in this process. Where they are
    loaded already, nothing happens.
    """
    if "bitsandbytes" in sys.modules:
        yield
        return
    with without_collections(), _scipy_when_called():
        with suppress(ImportError), _compiled_when_called():
            importlib.import_module("bitsandbytes")
        yield


@contextmanager
def without_collections() -> Iterator[None]:
    """Keep the garbage collector off: what imports make stays, and it would go over it again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():
            # Moves all objects to the oldest generation, so that the next collection skips them.
            gc.freeze()
            gc.unfreeze()
        if was_on:
            gc.enable()


@contextmanager
def _scipy_when_called() -> Iterator[None]:
    """Let what is imported from `scipy.optimize` import it when it is called for the first time.

    transformers takes one function of it, for losses of object detection, which costs 320 modules.
    """
    name = "scipy.optimize"
    if name in sys.modules:
        yield
        return
    stand_in = ModuleType(name)

    def optimize() -> ModuleType:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]
        return importlib.import_module(name)

    def assignment(*args: Any, **kwargs: Any) -> Any:
        return optimize().linear_sum_assignment(*args, **kwargs)

    def other(wanted: str) -> Any:
        if wanted.startswith("__"):  # The import system asks for some.
            raise AttributeError(wanted)
        return getattr(optimize(), wanted)

    stand_in.__dict__.update(linear_sum_assignment=assignment, __getattr__=other)
    sys.modules[name] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]


@contextmanager
def _compiled_when_called() -> Iterator[None]:
    """Let `torch.compile` as a decorator compile a function when it is called for the first time.

    bitsandbytes decorates functions that compute on the CPU, which imports inductor, some 550 modules; on
    meta none of them is called.
    """
    torch: Any = importlib.import_module("torch")
    compile_now = torch.compile

    def compile_later(model: Function | None = None, **settings: Any) -> Function:
        if model is None:
            return lambda decorated: compile_later(decorated, **settings)
        if not isinstance(model, FunctionType):
            return cast(Function, compile_now(model, **settings))
        compiled = cache(lambda: compile_now(model, **settings))
        return wraps(model)(lambda *args, **kwargs: compiled()(*args, **kwargs))

    torch.compile = compile_later
    try:
        yield
    finally:
        torch.compile = compile_now
