"""What measuring costs a step: the timed pass as qbench runs it, against a bare loop of the same step.

    python -m benchmarks.step_overhead [PROCESSES]

Both train one small model in one process, step by step in the order A B B A B A A B, so that a drift of the
machine falls on both alike. Where memory lies makes a percent between processes, however long one runs;
so there are several processes, and intervals are over them. The bare loop is what a user writes: forward
and backward, optimizer, no hook of qbench on the model. The model has been through the memory pass, as in a
measurement.

Wall time says what a reader of a report sees; CPU time of the process says the same where others work on the
machine, and stands beside it.
"""

from __future__ import annotations

import importlib
import random
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

from qbench.measure.cpu import timed_steps
from qbench.measure.executors.local import LocalExecutor
from qbench.measure.task import Measurement
from qbench.memory.history.recording import record_steps
from qbench.quiet import quiet_libraries
from qbench.scenario.schema import LoraSettings, Point, Precision, TrainSettings
from qbench.step.training_step import build_step

MODEL = "EleutherAI/pythia-14m"
PRECISIONS: tuple[Precision, ...] = ("fp32", "nf4-dq")
QUADS = 60
WARMUP_QUADS = 3
RESAMPLES = 2000

Quad = list[tuple[float, float]]
"""Wall and CPU seconds of A, B, B and A."""


def point(precision: Precision) -> Point:
    """Return the point that is trained: LoRA or QLoRA on few tokens, which makes any overhead stand out."""
    train = TrainSettings(per_device_train_batch_size=1, seq_len=32, gradient_checkpointing=False)
    return Point(model=MODEL, precision=precision, lora=LoraSettings(), train=train)


def both_steps(precision: Precision) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return a step of the timed pass of a measurement, and one of a loop written by hand.

    They share model, optimizer, batch and outputs: two models of the same kind differ by a percent, only from
    where their memory lies. The bare step takes qbench's hook off the model and puts it back.
    """
    step = build_step(point(precision), "cpu")
    record_steps(step, {"cpu"}, "cpu")
    model, optimizer, batch = step.model, step.optimizer, step.batches[0]
    hooks = model.get_output_embeddings()._forward_pre_hooks

    def ours() -> None:
        timed_steps(step, 1)

    def bare() -> None:
        kept = dict(hooks)
        hooks.clear()
        # Outputs live until the next forward pass, as in a loop at module level; in the same place as those
        # of the other side, or the heap would hold both and look different to each.
        step._outputs = model(**batch)
        step._outputs.loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step._outputs.loss.item()
        hooks.update(kept)

    return ours, bare


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """Return wall and CPU seconds of some work."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def quads(ours: Callable[[], None], bare: Callable[[], None], count: int) -> list[Quad]:
    """Return the seconds of each quad as A, B, B, A; every other one was run as B, A, A, B."""
    found = []
    for number in range(count + WARMUP_QUADS):
        if number % 2:
            first, second, third, fourth = [timed(work) for work in (bare, ours, ours, bare)]
            found.append([second, first, fourth, third])
        else:
            found.append([timed(work) for work in (ours, bare, bare, ours)])
    return found[WARMUP_QUADS:]


def in_a_process(precision: Precision) -> Measurement:
    """Return the quads of one process."""
    quiet_libraries()
    return Measurement(outcome="ok", detail={"quads": quads(*both_steps(precision), QUADS)})


def of_medians(found: list[Quad], clock: int) -> float:
    """Return the ratio of the median steps of one process."""
    ours = [quad[place][clock] for quad in found for place in (0, 3)]
    bare = [quad[place][clock] for quad in found for place in (1, 2)]
    return statistics.median(ours) / statistics.median(bare)


def paired(found: list[Quad], clock: int) -> float:
    """Return the median of each quad's own ratio, which a slow drift leaves alone."""
    times = [[seconds[clock] for seconds in quad] for quad in found]
    return statistics.median((a + d) / (b + c) for a, b, c, d in times)


def interval(ratios: list[float]) -> tuple[float, float]:
    """Return the 95 % interval of the median over processes, by resampling them."""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
    return medians[RESAMPLES * 25 // 1000], medians[RESAMPLES * 975 // 1000 - 1]


def main() -> None:
    """Print for each precision the ratio, its interval and its range over processes, by wall and CPU time."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 12
    # By the module's own name, under which a worker finds it.
    work = importlib.import_module("benchmarks.step_overhead").in_a_process
    executor = LocalExecutor()
    for precision in PRECISIONS:
        done = [executor.run(partial(work, precision), 600, "cpu") for _ in range(count)]
        found: list[list[Quad]] = [process.detail["quads"] for process in done]
        bare_ms = 1e3 * statistics.median(quad[place][0] for one in found for quad in one for place in (1, 2))
        print(f"{MODEL} {precision}, qbench / bare: bare step {bare_ms:.1f} ms, {count} processes")
        for clock, name in enumerate(("wall", "CPU")):
            for kind, ratio in (("medians", of_medians), ("pairs", paired)):
                ratios = [ratio(one, clock) for one in found]
                low, high = interval(ratios)
                print(
                    f"  {name}, {kind}: {statistics.median(ratios):.4f} (95 % interval {low:.4f} "
                    f"to {high:.4f}; processes {min(ratios):.4f} to {max(ratios):.4f})"
                )


if __name__ == "__main__":
    main()
