"""Models of the page: rows of the catalog, and config.json files that a reader dropped. No other path."""

from __future__ import annotations

import hashlib
import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from qbench.catalog.models import HUB_ID, find_model
from qbench.catalog.names import nearest_text
from qbench.errors import CatalogError

LARGEST_CONFIG = 2**20
"""Bytes of a config.json."""

MOST_KEPT = 50
MOST_LAYERS = 512
"""As a plan has it."""
LARGEST_NUMBER = 2**31
LONGEST_LIST = 4096
_NAME = re.compile(r"config-[0-9a-f]{12}")


class Uploads:
    """A folder of dropped configs, each in a folder of its own, named after its content."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, content: bytes) -> str:
        """Store a config.json and return the name that the page knows it by.

        Raises CatalogError when it is too large, no JSON object with model_type, or describes a model that
        is too large to be built.
        """
        config = _read(content)
        _check(config, "config.json")
        name = f"config-{hashlib.sha256(content).hexdigest()[:12]}"
        target = self._folder / name
        try:
            target.mkdir(parents=True, exist_ok=True)
            (target / "config.json").write_bytes(content)
            self._remove_oldest()
        except OSError as error:
            raise CatalogError(f"config.json cannot be kept in {target}: {error.strerror}") from error
        return name

    def resolve(self, name: str) -> str:
        """Return what a Point calls the model: a hub id, or the folder of a dropped config.

        Raises CatalogError for every other name: the page opens no path.
        """
        if not _NAME.fullmatch(name):
            return _hub_id(name)
        if not (self._folder / name / "config.json").is_file():
            raise CatalogError(f"model {name!r} is no longer available here; drop its config.json again")
        return str(self._folder / name)

    def _remove_oldest(self) -> None:
        files = (
            file for file in self._folder.glob("config-*/config.json") if _NAME.fullmatch(file.parent.name)
        )
        for file in sorted(files, key=_changed_at)[:-MOST_KEPT]:
            with suppress(OSError):  # Whatever else stands there is not ours, and is in nobody's way.
                file.unlink(missing_ok=True)
                file.parent.rmdir()


def _changed_at(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:  # Another server has just removed it.
        return 0.0


def _hub_id(name: str) -> str:
    """Return the catalog's id of a model, or a hub id that the catalog does not have."""
    try:
        return find_model(name).hub_id
    except CatalogError as error:
        if HUB_ID.fullmatch(name) and not os.path.exists(name):  # A path of that name would be opened.
            return name
        shown, close = name if len(name) <= 100 else f"{name[:100]}...", nearest_text(error.nearest)
        raise CatalogError(
            f"model {shown!r} is not in the catalog{close}; choose one from the list, give a hub id "
            "(org/name) or drop a config.json"
        ) from error


def _read(content: bytes) -> dict[str, Any]:
    if len(content) > LARGEST_CONFIG:
        raise CatalogError(f"config.json has {len(content):,} bytes; the limit is {LARGEST_CONFIG:,}")
    try:
        config = json.loads(content)
    except (ValueError, RecursionError):
        raise CatalogError("config.json is not JSON; drop the file of a model's folder as it is") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise CatalogError("config.json must be a JSON object with model_type, such as llama")
    return config


def _check(value: Any, path: str) -> None:
    """Raise CatalogError where a number is so large that the model could not be built in any time."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_layers(name, inner, path)
            _check(inner, f"{path}: {name[:60]}")
    elif isinstance(value, list):
        if len(value) > LONGEST_LIST:
            raise CatalogError(f"{path}: a list of {len(value):,} values; the limit is {LONGEST_LIST:,}")
        for inner in value:
            _check(inner, path)
    elif isinstance(value, (int, float)) and not abs(value) <= LARGEST_NUMBER:  # NaN is refused, too.
        raise CatalogError(f"{path}: a number above the limit of {LARGEST_NUMBER:,}")


def _check_layers(name: str, value: Any, path: str) -> None:
    counts = "layers" in name or name in ("n_layer", "depth")
    if counts and isinstance(value, (int, float)) and value > MOST_LAYERS:
        raise CatalogError(f"{path}: {name}: at most {MOST_LAYERS:,} layers are planned")
