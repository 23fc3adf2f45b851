"""A process that plans for the page."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from qbench.errors import QbenchError
from qbench.measure.answering import AnsweringProcess, GivenUp, ProcessEnded, TooLong
from qbench.records.plan_cache import PlanCache
from qbench.records.record import Record
from qbench.runs.plans import PlanFor, plans
from qbench.scenario.schema import Point

Question = tuple[Point, PlanFor]


class Superseded(Exception):
    """The answer is no longer needed: the same reader sent a newer request, or the page ends."""


class PlanProcess:
    """Plans one question at a time."""

    def __init__(self, cache: PlanCache | None) -> None:
        self.process = AnsweringProcess(partial(plan_of, cache), "qbench.runs.plan_preload")

    def prepare(self) -> None:
        """Begin to load the libraries; to be called in the main thread."""
        self.process.prepare()

    def plan(self, question: Question, wanted: Callable[[], bool]) -> Record:
        """Return the plan of a question; one that cannot be made has outcome error.

        Raises Superseded once it is not `wanted`, QbenchError where it takes too long or ends its process.
        """
        try:
            record: Record = self.process.ask(question, wanted)
        except GivenUp:
            raise Superseded from None
        except TooLong as most:
            raise QbenchError(
                f"no plan within {most}; change a setting, or plan it in a terminal (`qbench plan`)"
            ) from None
        except ProcessEnded:
            raise QbenchError(
                "the planning process ended, perhaps because memory ran out; change a setting"
            ) from None
        except QbenchError as error:
            raise QbenchError(f"planning failed unexpectedly: {error}; change a setting") from error
        return record

    def close(self) -> None:
        """End the plan in hand."""
        self.process.close()


def plan_of(cache: PlanCache | None, question: Question) -> Record:
    """Return the plan of a question, from the cache where it is there."""
    point, settings = question
    (record,) = plans([point], settings, cache)
    return record
