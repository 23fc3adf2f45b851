"""Listings of the hub's repositories, without the hub: of the snapshot that is in its cache."""

from __future__ import annotations

import fnmatch
import functools
import os
from typing import Any


def list_from_cache(file_system: Any) -> None:
    """Let `HfFileSystem.glob` list a model's cached snapshot where the hub cannot be asked."""
    plain = file_system.HfFileSystem.glob

    @functools.wraps(plain)
    def glob(self: Any, path: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return plain(self, path, *args, **kwargs)
        except Exception:
            found = _in_cache(path)
            if found is None:
                raise
            return found

    file_system.HfFileSystem.glob = glob


def _in_cache(path: str) -> list[str] | None:
    """Return what a pattern OWNER/NAME/PATTERN finds, None where no snapshot is cached."""
    from huggingface_hub.constants import HF_HUB_CACHE

    owner, _, rest = path.partition("/")
    name, _, pattern = rest.partition("/")
    folder = os.path.join(HF_HUB_CACHE, f"models--{owner}--{name}")
    try:
        with open(os.path.join(folder, "refs", "main"), encoding="utf-8") as stream:
            files = sorted(os.listdir(os.path.join(folder, "snapshots", stream.read().strip())))
    except OSError:
        return None
    return [f"{owner}/{name}/{file}" for file in files if fnmatch.fnmatch(file, pattern)]
