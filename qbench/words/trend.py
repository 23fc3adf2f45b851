"""The history of runs, in sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from qbench.comparison.methods import Difference
from qbench.comparison.trend import FEWEST_RUNS
from qbench.records.record import Record
from qbench.words.phrases import counted


def moved_text(moved: Difference) -> str:
    """Return what changed between two runs, for example 'peft 0.20.0 -> 0.21.2'."""
    name, before, after = moved
    return f"{name} {before or 'unknown'} -> {after or 'unknown'}"


def no_history_text(records: Iterable[Record], metrics: Sequence[str]) -> str:
    """Return why `trend` found no history in some records: what was read, what it takes, what to do next."""
    runs, followed = list(dict.fromkeys(record.run_id for record in records)), ", ".join(metrics)
    if len(runs) < FEWEST_RUNS:
        named = f" ({', '.join(runs)})" if runs else ""
        return (
            f"{counted(len(runs), 'run')} read{named}; a history needs {FEWEST_RUNS} or more that have the "
            f"metric ({followed}). Run or plan the scenario again, nightly for instance, each time into a "
            "folder of its own (`--out FOLDER`), and give all of the folders."
        )
    return (
        f"{len(runs)} runs read; fewer than {FEWEST_RUNS} of them have the same metric ({followed}) of the "
        "same point on the same machine. Follow another --metric, or give more runs of one scenario."
    )
