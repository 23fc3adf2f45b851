"""Limits of what a config may describe: a list of its length, or its modules, would take all memory."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from torch.nn.modules.module import register_module_module_registration_hook

from qbench.errors import StepError, shown

MOST_LAYERS = 512
"""The deepest models that exist have some 200."""
MOST_MODULES = 200_000
"""DeepSeek-V3 with a module for each of its experts has 60,000."""
LARGEST_NUMBER = 1 << 40
LARGEST_IN_LIST = 1 << 24
_LAYERS = re.compile(r"(^|_)(n_?)?(layers?|depth|blocks)$")
"""Ends of the keys that count layers: num_hidden_layers, n_layer, n_layers, depth."""


def check_numbers(value: Any, name: str, key: str = "", *, in_list: bool = False) -> None:
    """Refuse numbers of a config that no model has: a list of that length would take all memory."""
    if isinstance(value, dict):
        for inner, each in value.items():
            check_numbers(each, name, inner)
    elif isinstance(value, list):
        for each in value:
            check_numbers(each, name, key, in_list=True)
    elif isinstance(value, int):
        counts_layers = _LAYERS.search(key) is not None
        most = MOST_LAYERS if counts_layers else LARGEST_IN_LIST if in_list else LARGEST_NUMBER
        if value > most:
            raise StepError(f"the config of {name} has {key} {shown(value)}; allowed: at most {most:,}")


@contextlib.contextmanager
def bounded_modules(name: str) -> Iterator[None]:
    """Raise StepError once a model has more modules than any that exists."""
    count = 0

    def registered(*_: Any) -> None:
        nonlocal count
        count += 1
        if count > MOST_MODULES:
            raise StepError(f"the config of {name} describes more than {MOST_MODULES:,} modules")

    handle = register_module_module_registration_hook(registered)
    try:
        yield
    finally:
        handle.remove()
