"""Time of a planned step on the devices that were asked about, as a record carries it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from qbench.catalog.efficiencies import Case
from qbench.catalog.gpus import GpuSpec
from qbench.errors import StepError
from qbench.memory.work.log import WorkTable
from qbench.planner.network import Network
from qbench.planner.speed_calibrated import REACH, CalibratedRates
from qbench.planner.speed_datasheet import DatasheetRates
from qbench.planner.step_time import Rates, StepTime, step_time
from qbench.planner.trace import Trace
from qbench.records.calibration import Calibration
from qbench.records.fits import Fit
from qbench.records.parts import Metrics, TimeParts
from qbench.scenario.schema import Point

Held = tuple[GpuSpec, Trace | StepError]
"""A card with the trace of its kernels, or why there is none."""

_TOLD_SHARE = 0.1
"""Share of the kernels' time outside of what was measured, from which on a plan tells it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """What a plan says of time."""

    metrics: Metrics
    """Those of the first GPU with kernels, or of the CPU; none where it does not hold the step."""
    fits: tuple[Fit, ...] = ()
    """The cards, each with what the step would take there, memory aside."""
    time: TimeParts | None = None
    """Where the time goes on the CPU."""
    caveats: tuple[str, ...] = ()


def gpu_times(
    held: Sequence[Held], point: Point, fits: Sequence[Fit], calibrations: Sequence[Calibration]
) -> Timed:
    """Return the step's time on each GPU. A step that the first GPU does not hold takes no time there."""
    metrics: Metrics = {}
    timed: list[Fit] = []
    caveats: list[str] = []
    for (gpu, found), fit in zip(held, fits, strict=True):
        if isinstance(found, StepError) or found.work is None:
            timed.append(fit)
            continue
        rates = rates_of(gpu, calibrations)
        between = seconds_between(found, gpu, rates)
        fit = _timed_fit(fit, step_time_on(found, gpu, rates), point, between)
        timed.append(fit)
        if isinstance(rates, CalibratedRates):
            caveats += [f"{gpu.name}: {caveat}" for caveat in calibration_caveats(found.work, rates)]
        if not metrics:
            metrics["flops"] = _flops(found.work)
            if fit.fits and fit.step_time_s is not None:
                metrics |= {"step_time_s": fit.step_time_s, "tokens_per_s": fit.tokens_per_s}
                if fit.cost_usd_per_mtok is not None:
                    metrics["cost_usd_per_mtok"] = fit.cost_usd_per_mtok
    return Timed(metrics=metrics, fits=tuple(timed), caveats=tuple(caveats))


def step_time_on(traced: Trace, gpu: GpuSpec, rates: Rates, case: Case = "value") -> StepTime | None:
    """Return the time of a traced step on a card, with what it waits for other GPUs; None if not known."""
    assert traced.work is not None
    network = None
    if traced.collectives:
        network = Network(gpu, traced.num_gpus, traced.collectives, case)
    return step_time(traced.work, rates, network, is_compiled=traced.is_compiled)


def seconds_between(traced: Trace, gpu: GpuSpec, rates: Rates) -> tuple[float, float] | None:
    """Return the least and the most seconds of a step by the spread of published rates.

    None where the card's rates were measured, or one is not known.
    """
    if not isinstance(rates, DatasheetRates):
        return None
    cases: tuple[Case, ...] = ("fastest", "slowest")
    ends = [step_time_on(traced, gpu, DatasheetRates(gpu, case), case) for case in cases]
    fastest, slowest = (None if end is None else end.seconds for end in ends)
    return None if fastest is None or slowest is None else (fastest, slowest)


def _timed_fit(fit: Fit, timed: StepTime | None, point: Point, between: tuple[float, float] | None) -> Fit:
    if timed is None:
        return fit
    rate, price = point.num_gpus * point.tokens_per_step / timed.seconds, fit.usd_per_hour
    time = timed.to_values()
    if between is not None:
        time["range_s"] = list(between)
    return replace(
        fit,
        step_time_s=timed.seconds,
        tokens_per_s=rate,
        cost_usd_per_mtok=None if price is None else price / 3600 / rate * 1e6,
        time=time,
    )


def cpu_times(work: WorkTable, point: Point, calibration: Calibration) -> Timed:
    """Return the step's time on the CPU; without it where a rate is unknown."""
    rates = CalibratedRates(calibration)
    timed = step_time(work, rates, is_compiled=point.train.torch_compile)
    metrics: Metrics = {"flops": _flops(work)}
    if timed is not None:
        metrics |= {"step_time_s": timed.seconds, "tokens_per_s": point.tokens_per_step / timed.seconds}
    return Timed(
        metrics=metrics,
        time=None if timed is None else timed.to_values(),
        caveats=tuple(calibration_caveats(work, rates)),
    )


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


def rates_of(gpu: GpuSpec, calibrations: Sequence[Calibration]) -> Rates:
    """Return what was measured of a card here, else what its datasheet says."""
    for calibration in calibrations:
        if calibration.device == "cuda" and calibration.device_name in (gpu.name, *gpu.aliases):
            return CalibratedRates(calibration)
    return DatasheetRates(gpu)


def _flops(work: WorkTable) -> float:
    return float(sum(times * entry.cost.flops for entry, times in work))
