"""Plans for the page: readers take turns, and of the questions of one reader only the latest counts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

from qbench.errors import QbenchError
from qbench.records.plan_cache import PlanCache
from qbench.records.record import Record
from qbench.web.plan_process import PlanProcess, Question, Superseded

Part = Literal["answer", "details", "overview", "limits"]
"""What a question is for, the most urgent first. The last two are many plans, between which they give way."""

URGENCY: tuple[Part, ...] = get_args(Part)

MOST_READERS = 100
"""Readers whose latest question is remembered; a reader is one open page."""

PROCESSES = 2
"""Plans at the same time, of different readers: one that takes long leaves room for the others."""

END_S = 1.0
"""How long threads are waited for at the end; each looks up many times a second."""


class Planner(Protocol):
    """Makes one plan at a time, as `PlanProcess` does."""

    def prepare(self) -> None:
        """Begin to load the libraries; called in the main thread."""

    def plan(self, question: Question, wanted: Callable[[], bool]) -> Record:
        """Return the plan of a request, as long as it is needed."""

    def close(self) -> None:
        """End what it is at."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Job:
    reader: str
    part: Part
    stamp: float
    questions: Sequence[Question]
    answers: list[Record] = field(default_factory=list)
    error: Exception | None = None
    done: threading.Event = field(default_factory=threading.Event)

    @property
    def next_question(self) -> Question:
        """The question that is planned next, or now."""
        return self.questions[len(self.answers)]

    def fail(self, error: Exception) -> None:
        """End the job; whoever waits for it gets the error."""
        self.error = error
        self.done.set()


class PlanQueue:
    """Makes plans in processes of their own, so that the server always answers, and ends when it is to.

    The libraries are loaded when they start. `start` begins, `close` ends at once.
    """

    def __init__(
        self, cache: PlanCache | None = None, planner: Callable[[PlanCache | None], Planner] = PlanProcess
    ) -> None:
        self._jobs: dict[tuple[str, Part], _Job] = {}
        self._running: list[_Job] = []
        self._stamps: dict[tuple[str, Part], float] = {}
        self._served: dict[str, int] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._planners = [planner(cache) for _ in range(PROCESSES)]
        self._threads = [
            threading.Thread(target=self._work, args=(each,), name="planner", daemon=True)
            for each in self._planners
        ]
        self.num_planned = 0
        """Plans that were made or taken from the cache so far."""

    def start(self) -> None:
        """Load the libraries and begin to plan; to be called in the main thread."""
        for planner in self._planners:
            planner.prepare()
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the plans in hand; questions that wait are given up."""
        with self._changed:
            self._closed = True
            for job in self._jobs.values():
                job.fail(Superseded())
            self._changed.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(END_S)

    def plan(self, reader: str, part: Part, stamp: float, questions: Sequence[Question]) -> list[Record]:
        """Return the plan of each question; one that cannot be made has outcome error.

        `stamp` grows with each question of a reader. Raises Superseded when a newer one has come or comes
        while this one waits, and QbenchError when planning failed in a way that it should not.
        """
        key, job = (reader, part), _Job(reader=reader, part=part, stamp=stamp, questions=questions)
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
            self._changed.notify_all()
        job.done.wait()
        if job.error is not None:
            raise job.error
        return job.answers

    @property
    def num_waiting(self) -> int:
        """Questions that are not answered yet, the one in hand among them."""
        with self._changed:
            return len(self._jobs)

    def _work(self, planner: Planner) -> None:
        while (job := self._next()) is not None:
            answered: list[Record] = []
            try:
                answered.append(planner.plan(job.next_question, lambda job=job: not job.done.is_set()))  # type: ignore[misc]
            except (QbenchError, Superseded) as error:
                job.fail(error)
            self._end_turn(job, answered)
        planner.close()

    def _next(self) -> _Job | None:
        """Return the job to plan for next, answers before overviews, of those the one who waited longest.

        A reader has one plan at a time; None when the thread is to end.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting())
            if self._closed:
                return None
            job = min(
                self._waiting(), key=lambda each: (URGENCY.index(each.part), self._served.get(each.reader, 0))
            )
            self._served[job.reader] = 1 + max(self._served.values(), default=0)
            self._running.append(job)
            return job

    def _waiting(self) -> list[_Job]:
        at_work = [job for job in self._running if not job.done.is_set()]
        readers = {job.reader for job in at_work}
        # What two readers ask is planned once: the other then finds it in the cache.
        questions = [job.next_question for job in at_work]
        return [
            job
            for job in self._jobs.values()
            if job.reader not in readers and job.next_question not in questions
        ]

    def _end_turn(self, job: _Job, answered: list[Record]) -> None:
        with self._changed:
            job.answers += answered  # Within the lock: others look at what a running job asks next.
            self._running = [other for other in self._running if other is not job]
            self.num_planned += 1
            if job.done.is_set() or len(job.answers) == len(job.questions):
                self._jobs = {key: other for key, other in self._jobs.items() if other is not job}
                waiting = {each.reader for each in self._jobs.values()}
                self._served = {reader: turn for reader, turn in self._served.items() if reader in waiting}
                job.done.set()
            self._changed.notify_all()
