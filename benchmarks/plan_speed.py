"""How long plans take, beside what importing the libraries takes, in one run.

    python -m benchmarks.plan_speed [--points N] [--out FILE]
    python -m benchmarks.plan_speed --verify 100 [--lengths 512,1536,4096] [--batches 1,4]

A plan of few layers repeated is told beside one of all layers; a sweep runs on all cores; a plan from the
cache is a process of its own from its start. The sweep is 5 models x 4 precisions x 5 ranks x 10 lengths, of
which `--points` takes a part, evenly; `--verify` plans some of it again, each point on its own. `--lengths`
and `--batches` give the sweep other sizes.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from qbench.measure.pool import num_cores
from qbench.plan.trace import trace
from qbench.planning import PlanFor, plan_or_error, plans
from qbench.quiet import quiet_libraries
from qbench.records.record import Record
from qbench.records.software import library_versions
from qbench.scenario.expand import point_from
from qbench.scenario.schema import Point

MODELS = (
    "Qwen/Qwen2.5-0.5B",
    "meta-llama/Llama-3.2-1B",
    "meta-llama/Llama-3.2-3B",
    "meta-llama/Llama-2-7b-hf",
    "meta-llama/Llama-3.1-8B",
)
PRECISIONS = ("fp32", "bf16", "nf4", "nf4-dq")
RANKS = (4, 8, 16, 32, 64)
LENGTHS = tuple(256 * step for step in range(1, 11))
REPEATS = 5


def seconds_of(work: Callable[[], object]) -> float:
    """Return how long a piece of work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def command(*arguments: str) -> float:
    """Return how long a process of this Python takes, from start to end."""
    return seconds_of(
        lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True)
    )


def trace_again(model: str, *, all_layers: bool) -> float:
    """Return the median time of a trace after imports, of few layers repeated or of all."""
    points = [point_from({"model": model}, {"precision": "nf4-dq", "seq_len": s}) for s in LENGTHS[:REPEATS]]
    trace(points[0], "cuda")
    repeats = points[:2] if all_layers else points
    return statistics.median(
        seconds_of(partial(trace, point, "cuda", all_layers=all_layers)) for point in repeats
    )


def sweep_points(count: int, lengths: Sequence[int] = LENGTHS, batches: Sequence[int] = (1,)) -> list[Point]:
    """Return so many points of the sweep, evenly."""
    product = list(itertools.product(MODELS, PRECISIONS, RANKS, lengths, batches))
    return [
        point_from(
            {"model": model},
            {"precision": precision, "lora.r": r, "seq_len": seq_len, "per_device_train_batch_size": batch},
        )
        for model, precision, r, seq_len, batch in product[:: max(1, len(product) // count)]
    ]


def numbers(text: str) -> tuple[int, ...]:
    """Return the whole numbers of a list with commas."""
    return tuple(int(number) for number in text.split(","))


def differing(points: list[Point], found: list[Record], count: int) -> list[str]:
    """Return which of so many random points have another record when each is planned on its own."""
    chosen = random.Random(count).sample(range(len(points)), min(count, len(points)))
    alone = (plan_or_error(points[index], PlanFor()) for index in chosen)
    return [
        points[index].label
        for index, record in zip(chosen, alone, strict=True)
        if (record.outcome, record.metrics, record.detail)
        != (found[index].outcome, found[index].metrics, found[index].detail)
    ]


def rows_of_plans(imports: float) -> Iterator[tuple[str, float]]:
    """Yield what was timed and the seconds it took, the sweep left aside."""
    yield "importing torch, transformers, peft and bitsandbytes", imports
    for model in ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-405B"):
        for all_layers in (False, True):
            run = "all layers run" if all_layers else "few layers run and repeated"
            yield f"{model}, {run}", trace_again(model, all_layers=all_layers)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["QBENCH_CACHE_DIR"] = folder
        arguments = ("-m", "qbench", "plan", MODELS[-1], "--precision", "nf4-dq")
        yield f"a process that plans {MODELS[-1]}", command(*arguments)
        cached = statistics.median(command(*arguments) for _ in range(5))
        yield "a process that finds that plan in the cache", cached


def document(rows: list[tuple[str, float]], imports: float) -> str:
    """Return the times as a page of Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in library_versions().items() if version)
    table = [f"| {what} | {taken:.2f} | {taken / imports:.2f} |" for what, taken in rows]
    return "\n".join(
        [
            "# How long plans take",
            "",
            f"Written by `python -m benchmarks.plan_speed` on {num_cores()} cores ({platform.machine()}), "
            f"Python {platform.python_version()}; {versions}.",
            "",
            "| What | Seconds | Of the imports |",
            "|---|--:|--:|",
            *table,
            "",
        ]
    )


def main() -> None:
    """Print each time and its ratio to the imports; exit 1 when a shared plan is not that of the point."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument(
        "--verify", type=int, default=0, help="plan so many of them each on its own and compare"
    )
    parser.add_argument("--lengths", type=numbers, default=LENGTHS, help="tokens of a sequence, with commas")
    parser.add_argument("--batches", type=numbers, default=(1,), help="sequences of a batch, with commas")
    parser.add_argument("--out", type=Path, help="write the table to this Markdown file")
    asked = parser.parse_args()
    quiet_libraries()
    imports = min(command("-c", "import torch, transformers, peft, bitsandbytes") for _ in range(3))
    # With few points to verify, the sweep alone is of interest.
    rows = [] if asked.verify else list(rows_of_plans(imports))
    points = sweep_points(asked.points, asked.lengths, asked.batches)
    found: list[Record] = []
    taken = seconds_of(lambda: found.extend(plans(points, PlanFor())))
    rows.append((f"a sweep of {len(points)} points on {num_cores()} cores", taken))
    for what, seconds in rows:
        print(f"{what}: {seconds:.2f} s, {seconds / imports:.2f} of the imports")
    if asked.out is not None:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(document(rows, imports), encoding="utf-8")
    if asked.verify:
        wrong = differing(points, found, asked.verify)
        print(f"{len(wrong)} of {asked.verify} points differ from a plan of their own", *wrong, sep="\n")
        sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
