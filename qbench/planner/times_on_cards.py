"""Time of a planned step on the devices that were asked about, as a record carries it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qbench.catalog.gpus import GpuSpec
from qbench.errors import StepError
from qbench.memory.work.log import WorkTable
from qbench.planner.speed_calibrated import REACH, CalibratedRates
from qbench.planner.speed_datasheet import DatasheetRates
from qbench.planner.step_time import Rates, StepTime, step_time
from qbench.planner.trace import Trace
from qbench.records.calibration import Calibration
from qbench.scenario.schema import Point

Held = tuple[GpuSpec, Trace | StepError]
"""A card with the trace of its kernels, or why there is none."""

FACTS = ("step_time_s", "tokens_per_s", "cost_usd_per_mtok")
"""What a plan says of time, as metrics for the first device and in `detail.fits` for each."""

_TOLD_SHARE = 0.1
"""Share of the kernels' time outside of what was measured, from which on a plan tells it."""


def gpu_times(
    held: Sequence[Held],
    point: Point,
    detail: dict[str, Any],
    calibrations: Sequence[Calibration],
) -> dict[str, Any]:
    """Add the step's time on each GPU to `detail.fits`; return the metrics, which are the first one's.

    A step that the first GPU does not hold takes no time there, so that these have none.
    """
    metrics: dict[str, Any] = {}
    for (gpu, found), fit in zip(held, detail["fits"], strict=True):
        if isinstance(found, StepError) or found.work is None:
            continue
        rates = rates_of(gpu, calibrations)
        facts = time_facts(step_time(found.work, rates), point, fit["usd_per_hour"])
        fit.update(facts)
        if isinstance(rates, CalibratedRates):
            detail["caveats"] += [
                f"{gpu.name}: {caveat}" for caveat in calibration_caveats(found.work, rates)
            ]
        if not metrics:
            metrics["flops"] = _flops(found.work)
            if fit["fits"]:
                metrics |= {name: facts[name] for name in FACTS if facts[name] is not None}
    return metrics


def cpu_times(
    work: WorkTable, point: Point, detail: dict[str, Any], calibration: Calibration
) -> dict[str, Any]:
    """Add where the time goes to `detail.time`; return the metrics; without times where a rate is unknown."""
    rates = CalibratedRates(calibration)
    facts = time_facts(step_time(work, rates), point, None)
    detail["time"] = facts["time"]
    detail["caveats"] += calibration_caveats(work, rates)
    return {"flops": _flops(work), **{name: facts[name] for name in FACTS if facts[name] is not None}}


def calibration_caveats(work: WorkTable, rates: CalibratedRates) -> list[str]:
    """Return what of a step lies outside of what a calibration measured, nothing where it is little."""
    kernels = [(entry.cost, times) for entry, times in work if entry.cost.kind != "none"]
    times_of = {cost: rates.kernel_s(cost) for cost, _ in kernels}
    unknown = sorted({f"{cost.op} in {cost.dtype}" for cost, timed in times_of.items() if timed is None})
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        return [f"no step time: the calibration timed nothing like {', '.join(unknown[:3])}{more}"]
    seconds: dict[bool, float] = {False: 0.0, True: 0.0}
    for cost, times in kernels:
        timed = times_of[cost]
        seconds[rates.is_beyond(cost)] += times * timed.seconds if timed else 0.0
    share = seconds[True] / (sum(seconds.values()) or 1.0)
    if share < _TOLD_SHARE:
        return []
    return [
        f"{100 * share:.0f} % of the planned kernel time is of kernels more than {REACH} times as large as "
        "any that was calibrated; their rates are not measured ones"
    ]


def time_facts(timed: StepTime | None, point: Point, usd_per_hour: float | None) -> dict[str, Any]:
    """Return step time, throughput and cost of a million tokens, and where the time goes; None unknown."""
    if timed is None:
        return dict.fromkeys((*FACTS, "time"))
    tokens_per_s = point.tokens_per_step / timed.seconds
    cost = None if usd_per_hour is None else usd_per_hour / 3600 / tokens_per_s * 1e6
    return {
        "step_time_s": timed.seconds,
        "tokens_per_s": tokens_per_s,
        "cost_usd_per_mtok": cost,
        "time": timed.to_dict(),
    }


def rates_of(gpu: GpuSpec, calibrations: Sequence[Calibration]) -> Rates:
    """Return what was measured of a card here, else what its datasheet says."""
    for calibration in calibrations:
        if calibration.device == "cuda" and calibration.device_name in (gpu.name, *gpu.aliases):
            return CalibratedRates(calibration)
    return DatasheetRates(gpu)


def _flops(work: WorkTable) -> float:
    return float(sum(times * entry.cost.flops for entry, times in work))
