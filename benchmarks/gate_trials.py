"""Does `qbench check` cry wolf, and does it see what it should? Trials with real processes of one point.

    python -m benchmarks.gate_trials RUN [TRIALS]

RUN is a run folder in which a point was measured by 40 processes or more. Each trial draws processes from
them, none twice, for the baseline and for the run, whose times are then slowed down and whose peak is grown
by what is planted. Counts of verdicts are printed for each size of a side; the last size is
what the gate itself proposes for a change of 5 %.
"""

from __future__ import annotations

import random
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from math import log
from pathlib import Path

from qbench.compare.intervals import processes_needed
from qbench.compare.judgements import MIN_EFFECT, WANTED_EFFECT, Verdict
from qbench.compare.regressions import check
from qbench.records.metrics import scalar
from qbench.records.record import Record
from qbench.records.store import read_records

LEAST_PROCESSES = 40
SLOWDOWNS = (0.0, 0.05, 0.08, 0.15)
GROWTH = 0.02
SIZES = (2, 3, 5, 10)
TRIALS = 400

Drawn = Sequence[Record]


def processes(folder: Path) -> list[Record]:
    """Return the completed measurements of the first point that has enough of them."""
    by_point: dict[str, list[Record]] = {}
    for record in read_records(folder):
        if record.kind == "measurement" and record.outcome == "ok":
            by_point.setdefault(record.point_id, []).append(record)
    for members in by_point.values():
        if len(members) >= LEAST_PROCESSES:
            return members
    raise SystemExit(f"{folder}: no point has {LEAST_PROCESSES} processes; measure with repeats: 40")


def numbered(pool: Drawn, slowdown: float = 0, growth: float = 0) -> Drawn:
    """Return processes slowed down and grown, numbered anew."""
    return [
        replace(
            record,
            metrics=_planted(record, slowdown, growth),
            detail=record.detail | {"repeat": number, "validity": []},
        )
        for number, record in enumerate(pool)
    ]


def _planted(record: Record, slowdown: float, growth: float) -> dict[str, object]:
    metrics = {name: value for name, value in record.metrics.items() if name != "tokens_per_s"}
    times, peak = metrics["step_time_s"], metrics["peak_allocated_bytes"]
    return metrics | {
        "step_time_s": [time * (1 + slowdown) for time in times],
        "peak_allocated_bytes": int(peak * (1 + growth)),
    }


def verdicts(
    pool: Drawn, count: int, trials: int, metric: str, slowdown: float = 0, growth: float = 0
) -> Counter[Verdict]:
    """Return how often each verdict came out for a metric."""
    source = random.Random(count)
    seen: Counter[Verdict] = Counter()
    for _ in range(trials):
        chosen = source.sample(list(pool), 2 * count)
        found = check(numbered(chosen[:count]), numbered(chosen[count:], slowdown, growth))
        seen.update(finding.verdict for finding in found.findings if finding.metric == metric)
    return seen


def main(folder: Path, trials: int) -> None:
    """Print what was seen of each planted change with each size of a side."""
    pool = processes(folder)
    times = [log(scalar(record, "step_time_s") or 1) for record in pool]
    deviation = statistics.stdev(times)
    proposed = processes_needed(deviation, WANTED_EFFECT, MIN_EFFECT)
    print(f"{len(pool)} processes of {pool[0].point.label} on {pool[0].environment.get('device_name')}")
    print(f"deviation of a process: {100 * deviation:.2f} %; for 5 % the gate proposes {proposed} a side")
    print(f"{trials} trials a row, resampled from these processes")
    print(f"{'a side':>6}  {'planted':<12}  worse  better  ambiguous  same")
    most = len(pool) // 2
    for count in dict.fromkeys((*SIZES, *([min(proposed, most)] if proposed else []))):
        for slowdown in SLOWDOWNS:
            _print_row(
                f"{100 * slowdown:.0f} % slower",
                verdicts(pool, count, trials, "step_time_s", slowdown),
                count,
            )
        grown = verdicts(pool, count, trials, "peak_allocated_bytes", growth=GROWTH)
        _print_row(f"{100 * GROWTH:.0f} % memory", grown, count)


def _print_row(planted: str, seen: Counter[Verdict], count: int) -> None:
    total = seen.total()
    shares = {name: f"{100 * seen[name] / total:.1f} %" for name in ("worse", "better", "ambiguous", "same")}
    print(
        f"{count:>6}  {planted:<12}  {shares['worse']:>6}  {shares['better']:>6}  "
        f"{shares['ambiguous']:>9}  {shares['same']:>6}"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else TRIALS)
