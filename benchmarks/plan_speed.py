"""How long plans take, beside what importing the libraries takes, in one run.

    python -m benchmarks.plan_speed [--points N] [--out FILE]
    python -m benchmarks.plan_speed --verify 100 [--models bigscience/bloom-560m] [--lengths 512,1536,4096]
                                    [--batches 1,4] [--gpu "H100 SXM" ...]

A plan of few layers repeated is told beside one of all layers; a plan that was not made before takes turns
with the imports, both as processes from start to end, as is a plan from the cache; a sweep runs on all cores,
as `qbench plan` and as `qbench run` make it. The sweep is 5 models x 4 precisions x 5 ranks x 10 lengths, of
which `--points` takes a part, evenly; `--verify` plans some of it again, each point on its own. `--models`,
`--precisions`, `--ranks`, `--lengths` and `--batches` make it another one. With `--gpu`, step times are
planned, too, and the same sweep without a GPU is timed beside it.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.timing import Row, beside_imports, command, document, imports_time, seconds_of
from qbench.catalog.gpus import find_gpu
from qbench.measure.executors.local import LocalExecutor
from qbench.measure.pool import num_cores
from qbench.planner.trace import trace
from qbench.quiet import quiet_libraries
from qbench.records.record import Record
from qbench.runs.plans import PlanFor, plan_or_error, plans
from qbench.runs.run import run_scenario
from qbench.scenario.expand import point_from
from qbench.scenario.schema import PlanSettings, Point, Scenario

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


def trace_again(model: str, *, all_layers: bool) -> float:
    """Return the median time of a trace after imports, of few layers repeated or of all."""
    points = [point_from({"model": model}, {"precision": "nf4-dq", "seq_len": s}) for s in LENGTHS[:REPEATS]]
    trace(points[0], "cuda")
    repeats = points[:2] if all_layers else points
    return statistics.median(
        seconds_of(partial(trace, point, "cuda", all_layers=all_layers)) for point in repeats
    )


def sweep_points(
    count: int,
    models: Sequence[str] = MODELS,
    precisions: Sequence[str] = PRECISIONS,
    ranks: Sequence[int] = RANKS,
    lengths: Sequence[int] = LENGTHS,
    batches: Sequence[int] = (1,),
) -> list[Point]:
    """Return so many points of the sweep, evenly."""
    product = list(itertools.product(models, precisions, ranks, lengths, batches))
    return [
        point_from(
            {"model": model},
            {"precision": precision, "lora.r": r, "seq_len": seq_len, "per_device_train_batch_size": batch},
        )
        for model, precision, r, seq_len, batch in product[:: max(1, len(product) // count)]
    ]


def names(text: str) -> tuple[str, ...]:
    """Return the names of a list with commas."""
    return tuple(text.split(","))


def numbers(text: str) -> tuple[int, ...]:
    """Return the whole numbers of a list with commas."""
    return tuple(int(number) for number in text.split(","))


def differing(points: list[Point], found: list[Record], count: int, settings: PlanFor) -> list[str]:
    """Return which of so many random points have another record when each is planned on its own."""
    chosen = random.Random(count).sample(range(len(points)), min(count, len(points)))
    return [
        points[index].label
        for index in chosen
        if replace(plan_or_error(points[index], settings), created_at="")
        != replace(found[index], created_at="")
    ]


def planned(points: list[Point], settings: PlanFor) -> tuple[float, list[Record]]:
    """Return the plans of a sweep after the seconds that they took."""
    start = time.perf_counter()
    found = plans(points, settings)
    return time.perf_counter() - start, found


def run_plans(points: list[Point], settings: PlanFor) -> float:
    """Return the seconds that the plans of a run take, into a new folder and an empty cache."""
    scenario = Scenario(
        name="speed",
        question="How long do its plans take?",
        base={"model": points[0].model},
        plan=PlanSettings(gpus=tuple(gpu.name for gpu in settings.gpus)),
    )
    with tempfile.TemporaryDirectory() as folder:
        os.environ["QBENCH_CACHE_DIR"] = folder
        run = partial(run_scenario, scenario, tuple(points), Path(folder, "run"), "cuda", LocalExecutor())
        return seconds_of(lambda: run(lambda *_: None, kinds={"plan"}))


def rows_of_plans() -> Iterator[Row]:
    """Yield what was timed and the seconds it took, the sweep left aside."""
    for model in ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-405B"):
        for all_layers in (False, True):
            run = "all layers run" if all_layers else "few layers run and repeated"
            yield f"{model}, {run}", trace_again(model, all_layers=all_layers)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["QBENCH_CACHE_DIR"] = folder
        # With a recipe, so that nothing follows the answer: else what other recipes need is planned, too.
        arguments = ("-m", "qbench", "plan", MODELS[-1], "--precision", "nf4-dq", "--recipe", "peft")
        imports, taken = beside_imports(*arguments, "--no-cache")
        yield "the imports, in turns with the next line", imports
        yield f"a process that plans {MODELS[-1]}, {taken / imports:.2f} of the line above", taken
        command(*arguments)
        cached = statistics.median(command(*arguments) for _ in range(5))
        yield "a process that finds that plan in the cache", cached
    yield (
        "a process that prints the help",
        statistics.median(command("-m", "qbench", "--help") for _ in range(5)),
    )


def main() -> None:
    """Print each time and its ratio to the imports; exit 1 when a shared plan is not that of the point."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument(
        "--verify", type=int, default=0, help="plan so many of them each on its own and compare"
    )
    parser.add_argument("--models", type=names, default=MODELS, help="models, with commas")
    parser.add_argument("--precisions", type=names, default=PRECISIONS, help="precisions, with commas")
    parser.add_argument("--ranks", type=numbers, default=RANKS, help="ranks of the adapters, with commas")
    parser.add_argument("--lengths", type=numbers, default=LENGTHS, help="tokens of a sequence, with commas")
    parser.add_argument("--batches", type=numbers, default=(1,), help="sequences of a batch, with commas")
    parser.add_argument("--gpu", action="append", default=[], help="plan step times on it; may be repeated")
    parser.add_argument("--out", type=Path, help="write the table to this Markdown file")
    asked = parser.parse_args()
    gpus = tuple(find_gpu(name) for name in asked.gpu)
    quiet_libraries()
    imports = imports_time()
    # With few points to verify, the sweep alone is of interest.
    rows = [] if asked.verify else list(rows_of_plans())
    points = sweep_points(
        asked.points, asked.models, asked.precisions, asked.ranks, asked.lengths, asked.batches
    )
    found: list[Record] = []
    for settings in [PlanFor(), PlanFor(gpus=gpus)] if gpus else [PlanFor()]:
        taken, found = planned(points, settings)
        held = f", with step times on {' and '.join(asked.gpu)}" if settings.gpus else ""
        rows.append((f"a sweep of {len(points)} points on {num_cores()} cores{held}", taken))
        if not asked.verify:
            rows.append((f"the same as the plans of `qbench run`{held}", run_plans(points, settings)))
    text = document("How long plans take", "benchmarks.plan_speed", rows, imports)
    print(text)
    if asked.out is not None:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(text, encoding="utf-8")
    if asked.verify:
        wrong = differing(points, found, asked.verify, PlanFor(gpus=gpus))
        print(f"{len(wrong)} of {asked.verify} points differ from a plan of their own", *wrong, sep="\n")
        sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
