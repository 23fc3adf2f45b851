"""The fewest GPUs of a kind that hold a training step, by the strategy of its point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qbench.errors import ScenarioError
from qbench.records.fits import Fit
from qbench.records.plan_cache import PlanCache
from qbench.records.record import Record
from qbench.runs.plans import PlanFor, plans
from qbench.scenario.distributed import MOST_GPUS
from qbench.scenario.expand import point_from
from qbench.scenario.schema import Point

if TYPE_CHECKING:
    from qbench.catalog.gpus import GpuSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Fewest:
    """The answer for one point and one card."""

    gpu: str
    records: tuple[Record, ...]
    """The plans of 1, 2, 3 and more GPUs, up to the first number that fits or the most there may be."""

    @property
    def record(self) -> Record:
        """The plan of the largest number that was planned."""
        return self.records[-1]

    @property
    def fit(self) -> Fit | None:
        """Whether a GPU holds its share of that; None where there is no plan."""
        return self.record.fits[0] if self.record.fits else None

    @property
    def gpus(self) -> int | None:
        """The fewest GPUs that hold the step; None where as many as there may be do not."""
        return self.record.point.num_gpus if self.fit is not None and self.fit.fits else None


def fewest_gpus(
    points: Sequence[Point], strategies: Sequence[str], cards: Sequence[GpuSpec], alloc_conf: str, cache: bool
) -> list[Fewest]:
    """Return the fewest GPUs for each point, strategy and card.

    Raises ScenarioError for a strategy that is not planned.
    """
    return [
        _fewest(point, strategy, card, alloc_conf, cache)
        for point in points
        for strategy in strategies
        for card in cards
    ]


def _fewest(point: Point, strategy: str, card: GpuSpec, alloc_conf: str, cache: bool) -> Fewest:
    records: list[Record] = []
    for gpus in range(1, MOST_GPUS + 1):
        several = point_from(
            {**point.model_dump(), "distributed": None}, {"strategy": strategy, "gpus": gpus}
        )
        settings = PlanFor(gpus=(card,), alloc_conf=alloc_conf)
        records += plans([several], settings, PlanCache(reads=cache))
        found = Fewest(gpu=card.name, records=tuple(records))
        if found.fit is None and gpus > 1:
            raise ScenarioError(f"{several.label}: {records[-1].error or 'cannot be planned'}")
        if found.gpus is not None:
            break
    return found
