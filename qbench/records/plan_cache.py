"""Plans that were made before: the same point, code and libraries give the same plan.

One file for each plan, a digest and the record, in a folder for each state of the code; folders of older
states are removed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from qbench.errors import RecordError
from qbench.files import read_text
from qbench.records.files import cache_folder, replaced
from qbench.records.record import SCHEMA_VERSION, Record, record_as_written
from qbench.records.software import software

KEPT_STATES = 3
"""How many states of code and libraries keep their plans; a developer's day makes many."""


class PlanCache:
    """Plans by what they depend on. A cache that cannot be read or written is an empty one.

    One that does not read only keeps what is put, in place of what was there.
    """

    def __init__(self, folder: Path | None = None, *, reads: bool = True) -> None:
        self._reads = reads
        self._root = (folder or cache_folder()) / "plans"
        self._folder = self._root / _digest(_text(software()))

    def get(self, facts: Mapping[str, Any]) -> Record | None:
        """Return the plan for these facts (point, device, cards, files), None if there is none."""
        if not self._reads:
            return None
        try:
            kept = json.loads(read_text(self._file(facts)))
            if kept["digest"] != _digest(kept["record"]):
                return None
            # What is as it was put needs no look at its shape, whose models take a while to build.
            values = json.loads(kept["record"])
            if values["schema_version"] != SCHEMA_VERSION:
                return None
            return record_as_written(values, "plan cache")
        except (OSError, ValueError, RecursionError, TypeError, KeyError, AttributeError, RecordError):
            return None

    def put(self, facts: Mapping[str, Any], record: Record) -> None:
        """Keep a plan for these facts, whole or not at all."""
        with suppress(OSError, RecordError):
            if not self._folder.exists():
                self._folder.mkdir(parents=True, exist_ok=True)
                self._remove_old_states()
            text = json.dumps(record.to_dict())
            with replaced(self._file(facts)) as part:  # Not synced: the digest tells what a crash left.
                part.write_text(json.dumps({"digest": _digest(text), "record": text}))

    def _file(self, facts: Mapping[str, Any]) -> Path:
        return self._folder / f"{_digest(_text(facts))}.json"

    def _remove_old_states(self) -> None:
        states = sorted(self._root.iterdir(), key=lambda folder: folder.stat().st_mtime, reverse=True)
        for folder in states[KEPT_STATES:]:
            shutil.rmtree(folder, ignore_errors=True)


def _text(facts: Mapping[str, Any]) -> str:
    """Return facts as text, whatever the order of their keys."""
    return json.dumps(facts, sort_keys=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]
