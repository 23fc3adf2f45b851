"""What a model's folder is called on every machine."""

from __future__ import annotations

import os
import re

from qbench.files import content_digest


def portable_model(name: str, digest: str | None) -> str:
    """Return a folder as its last name and the digest of its config.json, any other name as it is."""
    if _FOLDER.fullmatch(name):
        return name
    if digest is None:
        digest = content_digest(os.path.join(os.path.expanduser(name), "config.json"))
    is_path = name.startswith((".", "/", "~")) or os.path.isabs(name) or name.endswith(".gguf")
    if not digest and not is_path:
        return name
    last = re.split(r"[/\\]", os.path.abspath(os.path.expanduser(name)).rstrip("/\\"))[-1]
    return f"{last}@{digest}" if digest else f"./{last}"


_FOLDER = re.compile(r"[^/\\]+@[0-9a-f]{12}")
"""A model's folder as `portable` names it."""
