"""How long plans take, beside what importing the libraries takes, in one run.

    python -m benchmarks.plan_speed [--points N]

A plan of few layers repeated is told beside one of all layers; a sweep runs on all cores; a plan from the
cache is a process of its own from its start. The sweep is 5 models x 4 precisions x 5 ranks x 10 lengths, of
which `--points` takes a part, evenly.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial

from qbench.measure.pool import num_cores
from qbench.plan.trace import trace
from qbench.planning import PlanFor, plans
from qbench.quiet import quiet_libraries
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


def sweep(count: int) -> tuple[int, float]:
    """Return the number of points planned and how long the sweep took, imports of its processes included."""
    product = list(itertools.product(MODELS, PRECISIONS, RANKS, LENGTHS))
    chosen = product[:: max(1, len(product) // count)]
    points: list[Point] = [
        point_from({"model": model}, {"precision": precision, "lora.r": r, "seq_len": seq_len})
        for model, precision, r, seq_len in chosen
    ]
    return len(points), seconds_of(lambda: plans(points, PlanFor()))


def main() -> None:
    """Print each time and its ratio to the imports."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--points", type=int, default=1000)
    count = parser.parse_args().points
    quiet_libraries()
    imports = min(command("-c", "import torch, transformers, peft, bitsandbytes") for _ in range(3))
    print(f"importing torch, transformers, peft and bitsandbytes: {imports:.2f} s")
    for model in ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-405B"):
        for all_layers in (False, True):
            taken = trace_again(model, all_layers=all_layers)
            run = "all layers run" if all_layers else "few layers run and repeated"
            print(f"{model}, {run}: {taken:.2f} s, {taken / imports:.2f} of the imports")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["QBENCH_CACHE_DIR"] = folder
        arguments = ("-m", "qbench", "plan", MODELS[-1], "--precision", "nf4-dq")
        first = command(*arguments)
        cached = statistics.median(command(*arguments) for _ in range(5))
    print(f"a process that plans {MODELS[-1]}: {first:.2f} s, {first / imports:.2f} of the imports")
    print(
        f"a process that finds that plan in the cache: {cached:.2f} s, {cached / imports:.2f} of the imports"
    )
    points, taken = sweep(count)
    each = taken / points
    print(f"a sweep of {points} points on {num_cores()} cores: {taken:.1f} s, {each:.3f} s a point")


if __name__ == "__main__":
    main()
