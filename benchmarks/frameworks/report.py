"""The table of dry runs beside plans, and beside what the frameworks' documents say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from benchmarks.frameworks.cases import CASES, Case
from qbench.catalog.capabilities import context_size
from qbench.catalog.gpus import find_gpu
from qbench.planner.hardware import card_of
from qbench.records.record import Record
from qbench.units import GIB, format_bytes

HEAD = """# Dry runs of training frameworks

Made by `python -m benchmarks.frameworks VENV --suite SUITE`. Each program ran as it is for two or three steps
on a null GPU; weights, tokenizers and datasets are stand-ins. Planned is qbench's plan of the same step or
config file, where it models one; it is in brackets where keys of the file are not modelled.

"""
COLUMNS = (
    *("program", "card", "ended", "allocated", "reserved", "planned", "off, allocated"),
    *("off, reserved", "loading", "host", "s a step"),
)
PUBLISHED_HEAD = """
## Published figures

What the frameworks' documents say that a config takes, as nvidia-smi shows it: with the CUDA context. A dry
run's is what was reserved in its later steps, and the context of its card.

| program | card | published, GiB | dry run, GiB | difference |
|---|---|---:|---:|---:|
"""


NOTEBOOKS_HEAD = """
## Unsloth's notebooks

What the notebooks print, on the lengths of their own data; the dry run's rows are full. Versions are those of
environments/unsloth.txt, for the notebook's own or near it.

| notebook's model | card | after load, GiB | dry run | peak, GiB | dry run | difference |
|---|---|---:|---:|---:|---:|---:|
"""


def report_text(records: Mapping[str, Record], plans: Mapping[str, Record]) -> str:
    """Return the report of all cases that have a record."""
    done = [case for case in CASES if case.name in records]
    rows = [_cells(case, records[case.name], plans.get(case.name)) for case in done]
    table = [_line(COLUMNS), "|---|---|---|" + "---:|" * (len(COLUMNS) - 3), *map(_line, rows)]
    sections = [_section(PUBLISHED_HEAD, _published, done, records)]
    sections += [_section(NOTEBOOKS_HEAD, _notebook, done, records)]
    return HEAD + "\n".join(table) + "\n" + "".join(sections)


def _section(
    head: str,
    rows_of: Callable[[Case, Record], Iterator[str]],
    cases: Sequence[Case],
    records: Mapping[str, Record],
) -> str:
    rows = [line for case in cases for line in rows_of(case, records[case.name])]
    return head + "\n".join(rows) + "\n" if rows else ""


def _notebook(case: Case, record: Record) -> Iterator[str]:
    load, peak = case.published_load_gib, case.published_gib
    held, most = record.reserved_phases.get("load"), record.peak_reserved_bytes
    if load and peak and held and most:
        model = case.name.removeprefix("unsloth-")
        difference = f"{100 * (most / GIB / peak - 1):+.1f} %"
        yield _line((model, record.card, load, f"{held / GIB:.3f}", peak, f"{most / GIB:.3f}", difference))


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join('' if cell is None else str(cell) for cell in cells)} |"


def _cells(case: Case, record: Record, made: Record | None) -> Iterator[object]:
    yield from (case.name, record.card, record.outcome)
    yield from map(_size, (record.peak_allocated_bytes, record.peak_reserved_bytes))
    yield from (None, None, None) if made is None else _planned(made, record)
    times = record.raw("host_time_s")[1:]
    yield from (_size(record.phases.get("load")), _size(record.detail.get("host_peak_bytes")))
    yield f"{sum(times) / len(times):.2f}" if record.outcome == "ok" and times else None


def _planned(made: Record, record: Record) -> Iterator[str | None]:
    is_whole = not made.detail.get("unmodelled")
    size = _size(made.peak_allocated_bytes)
    yield size if is_whole else f"({size})"
    yield _error(made.peak_allocated_bytes, record.peak_allocated_bytes)
    yield _error(made.peak_reserved_bytes, record.peak_reserved_bytes)


def _size(value: int | None) -> str | None:
    return None if value is None else format_bytes(value)


def _error(planned: int | None, seen: int | None) -> str | None:
    return f"{100 * (planned / seen - 1):+.2f} %" if planned and seen else None


def _published(case: Case, record: Record) -> Iterator[str]:
    reserved = record.reserved_phases.get("later_steps")
    if reserved and case.published_gib and not case.published_load_gib:
        context = context_size(card_of(find_gpu(case.gpu)).capability).most
        held = (reserved + context) / GIB
        difference = f"{100 * (held / case.published_gib - 1):+.1f} %"
        yield _line((case.name, record.card, case.published_gib, f"{held:.2f}", difference))
