"""The settings of PyTorch's caching allocator that are modelled."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qbench.errors import ScenarioError, nearest
from qbench.memory.allocator.blocks import LARGE_SEGMENT_BYTES
from qbench.units import MIB, format_bytes


def _flag(text: str) -> bool:
    if text not in ("True", "False"):
        raise ValueError
    return text == "True"


# Key of PYTORCH_ALLOC_CONF -> field, how to read its value, what is allowed.
_ENV_KEYS: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "expandable_segments": ("expandable_segments", _flag, "True or False"),
    "max_split_size_mb": ("max_split_size_bytes", lambda text: int(text) * MIB, "a whole number from 20 on"),
    "garbage_collection_threshold": ("garbage_collection_threshold", float, "a number between 0 and 1"),
}


def _items(text: str) -> list[str]:
    """Return the settings of a text; commas within brackets part no settings."""
    compact = "".join(text.split())
    return re.split(r",(?![^\[]*\])", compact) if compact else []


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatorConfig:
    """What PYTORCH_ALLOC_CONF sets, as far as it is modelled. Raises ScenarioError on what torch refuses."""

    expandable_segments: bool = False
    max_split_size_bytes: int | None = None
    """Blocks of this size or more are never split; 20 MiB or more. None: every block may be."""
    garbage_collection_threshold: float | None = None
    """Share of the limit, between 0 and 1, above which idle segments are released before new ones are made.

    torch collects only in a process that set a memory fraction below 1 (`setMemoryFraction`), and measures
    against that allowance; the model takes the limit for it. Without a fraction, leave this None.
    """

    def __post_init__(self) -> None:
        split, threshold = self.max_split_size_bytes, self.garbage_collection_threshold
        problems = []
        if split is not None and split < LARGE_SEGMENT_BYTES:
            problems.append(f"max_split_size_mb: {format_bytes(split)} given, allowed: 20 MiB or more")
        if threshold is not None and not 0 < threshold < 1:
            problems.append(f"garbage_collection_threshold: {threshold} given, allowed: above 0 and below 1")
        if problems:
            raise ScenarioError(problems)

    @classmethod
    def from_env_text(cls, text: str) -> AllocatorConfig:
        """Return the settings of a text such as 'expandable_segments:True,max_split_size_mb:128'.

        Raises ScenarioError on a key that is not modelled and on a value that torch would refuse.
        """
        settings: dict[str, Any] = {}
        problems = []
        for item in _items(text):
            key, _, value = item.partition(":")
            if key not in _ENV_KEYS:
                known = nearest(key, _ENV_KEYS) or list(_ENV_KEYS)
                problems.append(f"allocator setting {item!r} is not modelled; allowed: {', '.join(known)}")
                continue
            field, read, allowed = _ENV_KEYS[key]
            try:
                settings[field] = read(value)
            except ValueError:
                problems.append(f"{key}: {value!r} given, allowed: {allowed}")
        if problems:
            raise ScenarioError(problems)
        return cls(**settings)

    @classmethod
    def of_environment(cls, text: str) -> tuple[AllocatorConfig, tuple[str, ...]]:
        """Return what is modelled of the settings that a process has, and the settings that are not."""
        items = _items(text)
        unknown = tuple(item for item in items if item.partition(":")[0] not in _ENV_KEYS)
        return cls.from_env_text(",".join(item for item in items if item not in unknown)), unknown
