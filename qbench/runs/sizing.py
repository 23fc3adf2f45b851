"""What `fit` and `rank` answer: the largest setting that a card holds, and every card for a training."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qbench.errors import QbenchError, StepError, shown
from qbench.scenario.settings import flag_of

if TYPE_CHECKING:
    from qbench.catalog.gpus import GpuSpec
    from qbench.catalog.hourly_prices import HourlyPrice
    from qbench.planner.changes import Relief
    from qbench.planner.fit import Axis, Largest, Varied
    from qbench.planner.ranking import Ranked
    from qbench.planner.workload import Workload
    from qbench.records.record import Record
    from qbench.scenario.schema import Point

FIT_PRECISIONS = ("bf16", "nf4", "nf4-dq")
"""Precisions of a fit if none is named: LoRA and both usual forms of QLoRA."""

RANK_PRECISIONS = ("bf16", "nf4")
"""Precisions of a ranking if none is named: LoRA, and QLoRA for the cards that do not hold it."""

MOST_GPUS = 1_000_000

OnSearch = Callable[[int, int, str], None]
"""Called before each part of the work: its number from 1, how many there are, what it is."""


def unwatched(number: int, total: int, name: str) -> None:
    """Report nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitFor:
    """What is made as large as fits, and for which cards."""

    gpus: tuple[GpuSpec, ...]
    setting: Varied = "seq_len"
    step: int | None = None
    """Only its multiples are tried; None for the default of the setting."""
    alloc_conf: str = ""
    cache: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class RankFor:
    """How much there is to train on, on which cards, at which prices."""

    gpus: tuple[GpuSpec, ...]
    tokens: int | None = None
    """Tokens of the dataset, in full sequences; None where `lengths` are given."""
    lengths: tuple[int, ...] = ()
    packing: bool = False
    epochs: float = 1.0
    prices: Mapping[str, HourlyPrice] = field(default_factory=dict)
    """Prices of an hour by the catalog's name of the card."""
    num_gpus: int = 1
    """Number of GPUs that share the batches; communication is not modelled."""

    def workloads(self, points: Sequence[Point]) -> dict[Point, Workload]:
        """Return the passes of the training for each point. Raises QbenchError for what makes no training."""
        from qbench.planner.workload import of_lengths, of_tokens

        if not 0 < self.epochs <= 1_000_000:
            raise QbenchError(f"--epochs: given {self.epochs:g}; allowed: a number above 0, for example 3")
        if not 1 <= self.num_gpus <= MOST_GPUS:
            raise QbenchError(
                f"--num-gpus: given {shown(self.num_gpus)}; allowed: a whole number from 1 to {MOST_GPUS:,}"
            )
        if self.num_gpus > 1 and any(point.num_gpus > 1 for point in points):
            raise QbenchError("--num-gpus conflicts with --gpus, which plans the strategy as well; omit one")
        if self.tokens is not None:
            return {point: of_tokens(self.tokens, self.epochs, point) for point in points}
        lengths = list(self.lengths)
        return {point: of_lengths(lengths, self.epochs, point, packing=self.packing) for point in points}


def varied(name: str) -> Varied:
    """Return the setting that `vary` names, by its flag, its field or another of its names.

    Raises QbenchError for a setting that fit does not search for.
    """
    from qbench.planner.fit import STEPS

    by_flag = {flag_of(setting): setting for setting in STEPS}
    setting = by_flag.get(flag_of(name.replace("-", "_")))
    if setting is None:
        raise QbenchError(f"--vary: given {name!r}; allowed: {', '.join(by_flag)}")
    return setting


SEARCHES_WORTH_PROCESSES = 3
"""Fewer searches end sooner here than the processes have started."""


def fits(
    points: Sequence[Point], asked: FitFor, watch: OnSearch = unwatched
) -> tuple[list[Largest], dict[str, StepError]]:
    """Return the largest value for each point and card, and by card and precision why some have none.

    Points that differ in the varied setting only count once. Many are planned on all cores. Raises StepError
    when none can be planned.
    """
    from qbench.measure.pool import num_cores
    from qbench.planner.fit import with_value

    once = dict.fromkeys(with_value(point, asked.setting, 1) for point in points)
    searches = [_OneSearch(point, gpu, asked) for point, gpu in itertools.product(once, asked.gpus)]
    apart = len(searches) >= SEARCHES_WORTH_PROCESSES and num_cores() > 1
    found: list[Largest] = []
    failed: dict[str, StepError] = {}
    for search, answer in zip(searches, (_together if apart else _in_turn)(searches, watch), strict=True):
        if isinstance(answer, StepError):
            failed[f"{search.gpu.name}, {search.point.precision}"] = answer
        else:
            found.append(answer)
    if failed and not found:
        raise next(iter(failed.values()))
    return found, failed


@dataclass(frozen=True, slots=True)
class _OneSearch:
    """One point and one card."""

    point: Point
    gpu: GpuSpec
    asked: FitFor

    @property
    def name(self) -> str:
        return f"{self.point.precision} on {self.gpu.name}"

    def axis(self) -> Axis:
        from qbench.planner.fit import axis_of

        return axis_of(self.point, self.asked.setting, self.asked.step)

    def plan(self, points: Sequence[Point]) -> list[Record]:
        return _planned_for(self.gpu, self.asked)(points)


def _in_turn(searches: Sequence[_OneSearch], watch: OnSearch) -> Iterator[Largest | StepError]:
    from qbench.planner.fit import largest

    for number, search in enumerate(searches, 1):
        watch(number, len(searches), search.name)
        try:
            yield largest(search.point, search.axis(), search.plan)
        except StepError as error:
            yield error


def _together(searches: Sequence[_OneSearch], watch: OnSearch) -> Iterator[Largest | StepError]:
    """Search side by side, with each plan made by the next process that is free."""
    from concurrent.futures import BrokenExecutor, ThreadPoolExecutor

    from qbench.measure.pool import num_cores, open_pool
    from qbench.planner.fit import largest

    with ThreadPoolExecutor(len(searches)) as threads, open_pool(num_cores()) as pool:

        def answer(search: _OneSearch) -> Largest | StepError:
            def planned(points: Sequence[Point]) -> list[Record]:
                made = [pool.submit(search.plan, [point]) for point in points]
                return [record for future in made for record in future.result()]

            try:
                return largest(search.point, pool.submit(search.axis).result(), planned)
            except StepError as error:
                return error
            except BrokenExecutor as error:
                return StepError(f"the planning process ended: {error}")

        answers = threads.map(answer, searches)
        for number, search in enumerate(searches, 1):
            watch(number, len(searches), search.name)
            yield next(answers)


def changes_that_fit(
    record: Record, gpu: GpuSpec, alloc_conf: str = ""
) -> tuple[tuple[Relief, ...], dict[str, Any] | None]:
    """Return the changes each of which alone makes a plan fit a card, cheapest first.

    Where there is none, several that do so together come second; None where these do not suffice either.
    """
    from qbench.planner.changes import reliefs, together

    planned = _planned_for(gpu, FitFor(gpus=(gpu,), alloc_conf=alloc_conf))
    alone = tuple(relief for relief in reliefs(record, "", planned) if relief.fits)
    return alone, None if alone else together(record, planned)


def _planned_for(gpu: GpuSpec, asked: FitFor) -> Callable[[Sequence[Point]], list[Record]]:
    from qbench.measure.known_speed import usable_calibrations
    from qbench.memory.allocator.config import AllocatorConfig
    from qbench.records.plan_cache import PlanCache
    from qbench.runs.plans import PlanFor, plans

    AllocatorConfig.from_env_text(asked.alloc_conf)
    settings = PlanFor(gpus=(gpu,), alloc_conf=asked.alloc_conf, calibrations=usable_calibrations("cuda"))
    cache = PlanCache(reads=asked.cache)
    return lambda points: plans(points, settings, cache)


def ranks(points: Sequence[Point], asked: RankFor, watch: OnSearch = unwatched) -> list[Ranked]:
    """Return a row for each point and card. Raises QbenchError where no point can be planned for any."""
    from qbench.catalog.models import resolve_model
    from qbench.measure.known_speed import usable_calibrations
    from qbench.planner.ranking import Terms, ranked

    workloads = asked.workloads(points)
    resolve_model(points[0].model)
    terms = Terms(
        hourly_prices=asked.prices, num_gpus=asked.num_gpus, calibrations=usable_calibrations("cuda")
    )
    rows: list[Ranked] = []
    for number, point in enumerate(points, 1):
        watch(number, len(points), f"{point.precision} on {len(asked.gpus)} cards")
        rows += ranked([point], asked.gpus, workloads, terms)
    return rows
