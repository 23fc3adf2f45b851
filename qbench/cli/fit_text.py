"""The result of `qbench fit` as lines for a terminal: a table of answers, and one of changes for each."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qbench.comparison.results import Result, gather, varying_settings
from qbench.report.terminal.table import GAP, NO_BREAK, with_text
from qbench.scenario.settings import SETTINGS
from qbench.units import NOT_AVAILABLE, format_bytes, plain_text
from qbench.words.fit_verdict import RETRIED_NOTE, left_text
from qbench.words.phrases import category_name
from qbench.words.settings import change_text, describe_all, short_model

if TYPE_CHECKING:
    from qbench.planner.fit import Axis, Largest
    from qbench.records.fits import Fit

MOST_FILLS = 3
"""Categories named as filling a card."""

_TITLES = {
    "seq_len": ("Longest sequence", "tokens", "{:,} tokens"),
    "per_device_train_batch_size": ("Largest batch", "batch", "batch {:,}"),
    "r": ("Largest rank", "rank", "rank {:,}"),
}
"""By setting: what is looked for, its column, one value of it in a sentence."""

_RETRIED = " *"
_CHANGES = (
    "Ways to free memory, evaluated one step above the answer: sufficient ones first, then by cost. Each was "
    "planned on its own; 'frees' is reserved memory, 'step time' is relative to no change."
)
_NONE_IS_ENOUGH = GAP + "None of these changes is sufficient on its own."

Columns = dict[str, list[str]]


def fit_lines(found: Sequence[Largest], width: int) -> list[str]:
    """Return what was found as lines of at most `width` columns, as far as names and numbers allow."""
    labels = _labels(found)
    lines = [*_wrapped(_title(found, labels), width), "", *_answers(found, labels, width), ""]
    for note in _notes(found, labels):
        lines += _wrapped(note, width)
    changes = [
        ["", _heading(largest, _name(labels, at)), *_changes(largest, width)]
        for at, largest in enumerate(found)
        if largest.reliefs
    ]
    if changes:
        lines += ["", *_wrapped(_CHANGES, width), *(line for block in changes for line in block)]
    return lines


def _labels(found: Sequence[Largest]) -> Columns:
    """Return the settings that differ between the answers, by title of their column: a cell for each."""
    results = list(map(_result, found))
    cards = [_fit(largest).gpu for largest in found]
    models = [short_model(largest.record.point.model) for largest in found]
    precisions = [largest.record.point.precision for largest in found]
    columns: Columns = {"GPU": cards, "model": models, "precision": [*precisions]}
    for name in varying_settings(results):
        if name != found[0].axis.setting:
            columns[SETTINGS[name].short] = [plain_text(result.settings[name]) for result in results]
    return {title: cells for title, cells in columns.items() if len(set(cells)) > 1}


def _fit(largest: Largest) -> Fit:
    (fit,) = largest.record.fits
    return fit


def _result(largest: Largest) -> Result:
    (result,) = gather([largest.record])
    return result


def _name(labels: Columns, at: int) -> str:
    """Return what distinguishes an answer from the others; empty where it is the only one."""
    plain = ("GPU", "model", "precision")
    return ", ".join(
        cells[at] if title in plain else f"{title} {cells[at]}" for title, cells in labels.items()
    )


def _title(found: Sequence[Largest], labels: Columns) -> str:
    """Return what was searched for, with the settings that all answers share."""
    first = found[0]
    what, _, _ = _TITLES[first.axis.setting]
    card = "" if "GPU" in labels else f" on {_fit(first).gpu}"
    own = [name for name in SETTINGS if SETTINGS[name].short in labels]
    return f"{what}{card}: {describe_all(first.record.point, (first.axis.setting, *own))}"


def _answers(found: Sequence[Largest], labels: Columns, width: int) -> list[str]:
    _, column, _ = _TITLES[found[0].axis.setting]
    header = [*labels, column, "bound by", "left", "filled by"]
    rows = [
        [*(cells[at] for cells in labels.values()), *_answer(largest)] for at, largest in enumerate(found)
    ]
    lines = with_text([header, *rows], "<" * len(labels) + "><>", width)
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def _answer(largest: Largest) -> list[str]:
    value = "none" if largest.value is None else f"{largest.value:,}"
    room = _fit(largest).headroom_bytes
    left = format_bytes(room) if room is None or room >= 0 else left_text(room)
    if _after_retries(largest):
        left = "-"  # What is free once the cache was emptied is no room to spare.
    total = sum(largest.fills.values())
    shares = {category_name(name): 100 * size / total for name, size in largest.fills.items()}
    fills = [f"{name} {share:.0f}{NO_BREAK}%" for name, share in shares.items()]
    mark = _RETRIED if _after_retries(largest) else ""
    unknown = " (unknown)" if _fit(largest).unmodelled else ""
    return [value + unknown, largest.limited_by + mark, left, ", ".join(fills[:MOST_FILLS])]


def _after_retries(largest: Largest) -> bool:
    return largest.value is not None and bool(_fit(largest).num_alloc_retries)


def _notes(found: Sequence[Largest], labels: Columns) -> list[str]:
    axis = found[0].axis
    by_memory = [largest.limited_by == "memory" for largest in found]
    notes = [f"In steps of {axis.step}."]
    if any(by_memory) and any(largest.value is not None for largest in found):
        where = "" if all(by_memory) else " where memory is the bound"
        notes[0] += f" One step above each answer was planned{where} and does not fit."
    if any(largest.value is None for largest in found):
        least = _at(axis, axis.step)
        notes.append(
            f"none: even the smallest value ({least}) does not fit; the rest of the row describes it."
        )
    unmodelled = {key: None for largest in found for key in _fit(largest).unmodelled or ()}
    if unmodelled:
        notes.append(
            f"unknown: the answers are for the step as planned, which leaves out {', '.join(unmodelled)}."
        )
    limits = {largest.axis.why: None for largest in found if largest.limited_by != "memory"}
    notes += [f"The search ends at a limit other than memory: {why}." for why in limits]
    for at, largest in enumerate(found):
        if largest.above is not None and largest.above.reserved_bytes is None:
            name = _name(labels, at)
            told = f"one step above cannot be planned ({largest.above.error})."
            notes.append(f"{name}: {told}" if name else told.capitalize())
    if any(map(_after_retries, found)):
        notes.append(RETRIED_NOTE)
    for at, largest in enumerate(found):
        if not largest.is_monotone:
            name = _name(labels, at)
            told = "not monotone: a larger value fits although a smaller one does not (see --json)."
            notes.append(f"{name}: {told}" if name else told.capitalize())
    return notes


def _at(axis: Axis, value: int) -> str:
    return _TITLES[axis.setting][2].format(value)


def _heading(largest: Largest, name: str) -> str:
    """Return which answer the changes are for, where they were planned, and what grows."""
    axis, above = largest.axis, largest.above
    # Where the step above cannot be planned, the changes were planned at the answer.
    is_planned = above is not None and above.reserved_bytes is not None
    value = above.value if above is not None and is_planned else largest.value or axis.step
    heading = f"{name} at {_at(axis, value)}" if name else f"At {_at(axis, value)}"
    if largest.grows is not None:
        grown = format_bytes(largest.grows_bytes)
        heading += f" (what grows most: {category_name(largest.grows)}, {grown} for {axis.step} more)"
    return f"{heading}:"


def _changes(largest: Largest, width: int) -> list[str]:
    """Return the changes as a table, sufficient ones first, and whether there is one.

    Times have a column only where some are known.
    """
    reliefs = sorted(largest.reliefs, key=lambda relief: not relief.fits)
    ratios = [relief.step_time_ratio for relief in reliefs]
    columns = {
        "change": [change_text(relief.changes) for relief in reliefs],
        "frees": [format_bytes(relief.freed_bytes) for relief in reliefs],
        "fits": ["yes" if relief.fits else "no" for relief in reliefs],
        "step time": [NOT_AVAILABLE if ratio is None else f"x {ratio:.2f}" for ratio in ratios],
        "what it costs": [relief.cost for relief in reliefs],
    }
    if not any(ratios):
        del columns["step time"]
    rows = [list(columns), *zip(*columns.values(), strict=True)]
    lines = [GAP + line for line in with_text(rows, "<><>"[: len(columns) - 1], width - len(GAP))]
    return lines if any(relief.fits for relief in reliefs) else [*lines, "", _NONE_IS_ENOUGH]


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
