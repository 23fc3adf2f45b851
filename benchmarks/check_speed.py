"""How long `qbench check` and `qbench report` take on 10,000 full records a side, from process start to end.

    python -m benchmarks.check_speed [--records 10000] [--repeats 3]

The records are those of reports/demo at other ranks, each a point of its own: plan or measurement with its
timeline, environment and details. `slim` are the same as a baseline file keeps them.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from qbench.compare.baselines import accept
from qbench.records.record import Record
from qbench.records.store import RECORDS_FILE, read_records, write_records

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
        timeline = [[at, size + 512 * grown] for at, size in record.detail["timeline"]]
        lora = record.point.lora.model_copy(update={"r": grown + 1})
        yield replace(
            record,
            point=record.point.model_copy(update={"lora": lora}),
            metrics=metrics,
            detail=record.detail | {"timeline": timeline},
        )


def seconds(*arguments: str) -> float:
    """Return how long a command of qbench takes."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "qbench", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr or done.stdout)
    return time.perf_counter() - start


def main() -> None:
    """Make the files, time the commands and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for side, slower in (("before", 1.0), ("now", 1.01)):
            records = list(many(given.records, slower))
            write_records(folder / side / RECORDS_FILE, records)
            write_records(folder / f"{side}-slim" / RECORDS_FILE, accept([], records, "why").records)
        full, slim = (str(folder / f"now{kind}") for kind in ("", "-slim"))
        commands = {
            "check, full": ("check", full, "--baseline", str(folder / "before")),
            "check, slim": ("check", slim, "--baseline", str(folder / "before-slim")),
            "report, full": ("report", full, "--out", str(folder / "out")),
        }
        for title, arguments in commands.items():
            times = [seconds(*arguments) for _ in range(given.repeats)]
            size = (Path(arguments[1]) / RECORDS_FILE).stat().st_size / 1e6
            each = f"{statistics.median(times):.2f} s (median of {len(times)})"
            print(f"{title:12}  {given.records:,} records, {size:.0f} MB a side: {each}")


if __name__ == "__main__":
    main()
