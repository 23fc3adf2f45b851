"""What `qbench rank` says below its table."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING

from qbench.scenario.distributed import TIMED
from qbench.words.phrases import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from qbench.catalog.hourly_prices import PriceSource
    from qbench.planner.ranking import Ranked
    from qbench.planner.workload import Workload
    from qbench.scenario.schema import Point


OLD_PRICE_DAYS = 90
"""Age from which a price is shown with its age."""

MOST_NAMED = 10
"""Cards that are named of those that may as well be the first."""

NOTES = (
    "Times are planned, from datasheet rates unless the card was calibrated here; energy is the board's "
    "power limit over the whole time, host left out.",
    "'Bound by' names what takes most of a step's time, and its share: arithmetic (compute), memory traffic, "
    "or waiting for the host; where that is memory, bandwidth counts for more than peak arithmetic.",
    "A price is the lowest known for one GPU of an instance: a guide, not a quote.",
)
SHARED = (
    "Each GPU trains on its share of the batches; communication between them is left out, so hours and cost "
    "are lower bounds."
)
NETWORK = (
    "What GPUs send to each other counts as far as computing does not hide it, over the card's NVLink, "
    "Infinity Fabric or PCIe; ranges reach to a network that hides nothing."
)
NO_SHARDING = "Models that do not fit on one card may fit on several: --gpus 4 --strategy fsdp2."


def close_note(best: Sequence[Ranked], key: str) -> list[str]:
    """Say which cards may as well be the first."""
    from qbench.planner.ranking import like_the_first  # The heavy libraries.

    close = [row.gpu.name for row in like_the_first(best, key)]
    if not close:
        return []
    named = ", ".join(close[:MOST_NAMED])
    more = f" and {counted(len(close) - MOST_NAMED, 'more card')}" if len(close) > MOST_NAMED else ""
    return [
        f"Any of these may be better than {best[0].gpu.name}, whose range by the spread of published rates "
        f"reaches to theirs: {named}{more}."
    ]


def source_text(source: PriceSource | None, today: date | None = None) -> str | None:
    """Return who sells at a price and when it was seen, with its age once that is worth a second look."""
    if source is None:
        return None
    try:
        days = ((today or date.today()) - date.fromisoformat(source.date)).days
    except ValueError:  # Undated, or a span of months.
        days = 0
    age = f", {days} days old" if days > OLD_PRICE_DAYS else ""
    return f"{source.seller} ({source.date or 'undated'}{age})"


def _sources(rows: Sequence[Ranked]) -> str:
    prices = [row.hourly_price for row in rows if row.hourly_price is not None and row.fits]
    sources = {source for price in prices for source in (price.on_demand_from, price.spot_from) if source}
    texts = sorted(filter(None, map(source_text, sources)))
    return f"Prices: {'; '.join(texts)}." if texts else "No prices are known."


def gpus_note(points: Iterable[Point], num_gpus: int) -> list[str]:
    """Say what is planned of the messages between `num_gpus` GPUs, nothing for one."""
    if any(point.distributed is not None and point.distributed.strategy in TIMED for point in points):
        return [NETWORK]
    return [SHARED] if num_gpus > 1 else []


def notes(rows: Sequence[Ranked], workloads: Mapping[Point, Workload], num_gpus: int) -> list[str]:
    notes = [*NOTES, _sources(rows)]
    workload = next(iter(workloads.values()))
    if workload.num_truncated:
        cut = counted(workload.num_truncated, "sequence")
        notes.append(f"Longer than seq_len, and cut to it: {cut}.")
    if workload.padded_tokens > workload.tokens:
        share = 1 - workload.tokens / workload.padded_tokens
        notes.append(f"{100 * share:.0f} % of the computed tokens are padding.")
    notes += gpus_note(workloads, num_gpus)
    if any(row.fits and row.hours is None for row in rows):
        notes.append(
            "Hours are n/a where a dtype of the step has no known rate, for example bf16 before Ampere."
        )
    if left := left_note(rows):
        notes.append(left)
    return notes


def left_note(rows: Sequence[Ranked]) -> str:
    """Return on which cards no point fits, and for which none can be planned; empty if each holds one."""
    held = {row.gpu.name for row in rows if row.fits}
    left = [row for row in rows if row.gpu.name not in held]
    planned = {row.gpu.name for row in left if row.fit.error is None}
    unplanned = {row.gpu.name: row.fit.error for row in left if row.gpu.name not in planned}
    short = list(dict.fromkeys(row.gpu.name for row in left if row.gpu.name in planned))
    precisions = " or ".join(dict.fromkeys(row.point.precision for row in rows))
    said = []
    if short:
        said.append(f"It does not fit on {counted(len(short), 'card')} in {precisions}: {', '.join(short)}.")
        said.append(NO_SHARDING)
    if unplanned:
        said.append(
            f"It cannot be planned for {counted(len(unplanned), 'card')}: {', '.join(unplanned)} "
            f"({next(iter(unplanned.values()))})."
        )
    return " ".join(said)
