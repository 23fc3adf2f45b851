"""How long `qbench check` and `qbench report` take on 10,000 records, from process start to end.

    python -m benchmarks.check_speed [--records 10000] [--repeats 5] [--out FILE]

The records are those of reports/demo at other ranks, each a point of its own: plan or measurement with its
timeline, environment and details. `slim` are the same as a baseline file keeps them.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks.timing import Row, command, document, imports_time
from qbench.comparison.baselines import accept
from qbench.records.record import Record
from qbench.records.store import RECORDS_FILE, read_records, write_records
from qbench.units import MIB

SOURCE = Path(__file__).parents[1] / "reports" / "demo"


def many(count: int, slower: float) -> Iterator[Record]:
    """Yield so many records of different points, step times multiplied by `slower`."""
    kept = read_records(SOURCE)
    for number in range(count):
        record, grown = kept[number % len(kept)], number // len(kept)
        assert record.point.lora is not None
        metrics = dict(record.metrics) | {"peak_allocated_bytes": 512 * grown + (1 << 29)}
        if isinstance(metrics.get("step_time_s"), list):
            metrics["step_time_s"] = [slower * seconds for seconds in metrics["step_time_s"]]
        timeline = [[at, size + 512 * grown] for at, size in record.timeline]
        lora = record.point.lora.model_copy(update={"r": grown + 1})
        yield replace(
            record,
            point=record.point.model_copy(update={"lora": lora}),
            metrics=metrics,
            detail=record.detail | {"timeline": timeline},
        )


def write_sides(folder: Path, count: int) -> None:
    """Write so many records as a run before and now, in full, and as a baseline file keeps them."""
    for side, slower in (("before", 1.0), ("now", 1.01)):
        records = list(many(count, slower))
        write_records(folder / "full" / side / RECORDS_FILE, records)
        write_records(folder / "slim" / side / RECORDS_FILE, accept([], records, "why").records)


def rows_of(folder: Path, count: int, repeats: int) -> Iterator[Row]:
    """Yield what each command takes: the median over so many times, all in turn."""
    commands: dict[str, tuple[str, ...]] = {}
    for number in (count, count // 2):
        write_sides(folder / str(number), number)
        for kind, said in (("full", "as a run holds them"), ("slim", "as a baseline holds them")):
            now, before = (folder / str(number) / kind / side for side in ("now", "before"))
            size = f"{(now / RECORDS_FILE).stat().st_size / MIB:.0f} MiB"
            title = f"check of {number:,} records a side, {said} ({size})"
            commands[title] = ("check", str(now), "--baseline", str(before))
    full = folder / str(count) / "full" / "now"
    commands[f"report of {count:,} records"] = ("report", str(full), "--out", str(folder / "out"))
    times: dict[str, list[float]] = {title: [] for title in commands}
    for _ in range(repeats):
        for title, arguments in commands.items():
            times[title].append(command("-m", "qbench", *arguments))
    yield from ((title, statistics.median(taken)) for title, taken in times.items())


def main() -> None:
    """Make the files, time the commands and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the table to this Markdown file")
    given = parser.parse_args()
    imports = imports_time()
    with tempfile.TemporaryDirectory() as name:
        rows = list(rows_of(Path(name), given.records, given.repeats))
    text = document(
        "How long a check and a report of many records take", "benchmarks.check_speed", rows, imports
    )
    print(text)
    if given.out is not None:
        given.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
