"""Plans for the page: one thread makes them, and of the questions of one reader only the latest counts."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, get_args

from qbench.errors import QbenchError, first_line
from qbench.quick_imports import quick_imports
from qbench.records.plan_cache import PlanCache
from qbench.records.record import Record
from qbench.runs.plans import PlanFor, plans
from qbench.scenario.schema import Point

Part = Literal["answer", "details", "limits", "overview"]
"""What a question is for, the most urgent first. The last two are many plans, between which they give way."""

URGENCY: tuple[Part, ...] = get_args(Part)

MOST_READERS = 100
"""Readers whose latest question is remembered; a reader is one open page."""

Question = tuple[Point, PlanFor]


class Superseded(Exception):
    """The same reader asked something newer, so nobody waits for this any more."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Job:
    part: Part
    stamp: float
    questions: Sequence[Question]
    answers: list[Record] = field(default_factory=list)
    error: Exception | None = None
    done: threading.Event = field(default_factory=threading.Event)

    def fail(self, error: Exception) -> None:
        """End the job; whoever waits for it gets the error."""
        self.error = error
        self.done.set()


class PlanQueue:
    """Makes plans in a thread of its own, so that the server always answers.

    torch and its like are loaded when the thread starts. `start` begins, `close` ends after the plan in hand.
    """

    def __init__(self, cache: PlanCache | None = None) -> None:
        self._cache = cache
        self._jobs: dict[tuple[str, Part], _Job] = {}
        self._stamps: dict[tuple[str, Part], float] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="planner", daemon=True)
        self.num_planned = 0
        """Plans that were made or taken from the cache so far."""

    def start(self) -> None:
        """Load the libraries and begin to plan."""
        self._thread.start()

    def close(self) -> None:
        """End the thread after the plan that it is at; questions that wait are given up."""
        with self._changed:
            self._closed = True
            for job in self._jobs.values():
                job.fail(Superseded())
            self._changed.notify()

    def plan(self, reader: str, part: Part, stamp: float, questions: Sequence[Question]) -> list[Record]:
        """Return the plan of each question; one that cannot be made has outcome error.

        `stamp` grows with each question of a reader. Raises Superseded when a newer one has come or comes
        while this one waits, and QbenchError when planning failed in a way that it should not.
        """
        key, job = (reader, part), _Job(part=part, stamp=stamp, questions=questions)
        with self._changed:
            if self._closed or stamp < self._stamps.get(key, stamp):
                raise Superseded
            self._stamps.pop(key, None)
            self._stamps[key] = stamp
            while len(self._stamps) > len(URGENCY) * MOST_READERS:
                self._stamps.pop(next(iter(self._stamps)))
            if key in self._jobs:
                self._jobs.pop(key).fail(Superseded())
            self._jobs[key] = job
            self._changed.notify()
        job.done.wait()
        if job.error is not None:
            raise job.error
        return job.answers

    @property
    def num_waiting(self) -> int:
        """Questions that are not answered yet, the one in hand among them."""
        with self._changed:
            return len(self._jobs)

    def _work(self) -> None:
        _load_libraries()
        while (job := self._next()) is not None:
            try:
                point, settings = job.questions[len(job.answers)]
                job.answers += plans([point], settings, self._cache)
                self.num_planned += 1
            except Exception as error:  # The thread must outlive a model that breaks a library.
                logging.getLogger(__name__).exception("a plan failed")
                job.fail(QbenchError(f"planning failed unexpectedly: {first_line(error)}; change a setting"))
            self._end_if_complete(job)

    def _next(self) -> _Job | None:
        """Return the job to plan for next, answers before overviews; None when the thread is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._jobs)
            return None if self._closed else min(self._jobs.values(), key=lambda job: URGENCY.index(job.part))

    def _end_if_complete(self, job: _Job) -> None:
        with self._changed:
            if job.done.is_set() or len(job.answers) == len(job.questions):
                self._jobs = {key: other for key, other in self._jobs.items() if other is not job}
                job.done.set()


def _load_libraries() -> None:
    with suppress(Exception), quick_imports():  # The first plan fails in the same way, and says so.
        import qbench.planner.plan
        import qbench.step.training_step  # noqa: F401
