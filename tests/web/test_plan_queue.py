from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from tiny import tiny_point, write_tiny_model

from qbench.catalog.gpus import find_gpu
from qbench.errors import QbenchError
from qbench.records.record import Record
from qbench.runs.plans import PlanFor
from qbench.web import plan_queue
from qbench.web.plan_process import Superseded
from qbench.web.plan_queue import MOST_READERS, URGENCY, PlanQueue

SETTINGS = PlanFor(gpus=(find_gpu("RTX 4090"),))


@pytest.fixture(scope="module")
def question(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("model")
    return tiny_point(write_tiny_model(folder, "meta-llama/Llama-3.1-8B"), "bf16"), SETTINGS


class Gate:
    """Stands for the processes: a plan begins, and goes on when it may; counts what was planned."""

    def __init__(self) -> None:
        self.begun, self.go_on, self.planned = threading.Semaphore(0), threading.Semaphore(0), 0

    def plan(self, question, wanted) -> Record:
        self.begun.release()
        assert self.go_on.acquire(timeout=120)
        self.planned += 1
        return Record(run_id="x", point=question[0], kind="plan", outcome="ok", metrics={}, environment={})

    def prepare(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def gated():
    gate = Gate()
    planner = PlanQueue(planner=lambda cache: gate)
    planner.start()
    with ThreadPoolExecutor(40) as readers:
        yield planner, gate, readers
        planner.close()
        gate.go_on.release(1000)


def other(question, rank: int):
    point, settings = question
    lora = point.lora.model_copy(update={"r": rank})
    return point.model_copy(update={"lora": lora}), settings


def ended(future: Future[list[Record]]) -> type[BaseException] | None:
    error = future.exception(timeout=120)
    return None if error is None else type(error)


def until(condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_plan_is_the_plan(question):
    planner = PlanQueue()
    planner.start()
    (record,) = planner.plan("me", "answer", 1.0, [question])
    planner.close()
    assert record.outcome == "ok"
    assert record.detail["fits"][0]["fits"]
    with pytest.raises(Superseded):
        planner.plan("me", "answer", 2.0, [question])


def test_of_many_changes_only_the_one_in_hand_and_the_last_are_planned(gated, question):
    planner, gate, readers = gated
    first = readers.submit(planner.plan, "me", "answer", 0.0, [question])
    assert gate.begun.acquire(timeout=120)
    waiting = []
    for stamp in range(1, 21):
        waiting.append(readers.submit(planner.plan, "me", "answer", float(stamp), [question]))
        until(lambda stamp=stamp: planner._stamps["me", "answer"] == stamp)
    # All but the last are told at once, while the planning still stands still.
    assert [ended(future) for future in (first, *waiting[:-1])] == [Superseded] * 20
    assert planner.num_waiting == 1
    gate.go_on.release(2)
    assert ended(waiting[-1]) is None
    assert gate.planned == 2
    assert planner.num_waiting == 0


def test_a_question_that_was_overtaken_on_its_way_is_not_planned(gated, question):
    planner, gate, readers = gated
    gate.go_on.release(10)
    assert ended(readers.submit(planner.plan, "me", "answer", 5.0, [question])) is None
    assert ended(readers.submit(planner.plan, "me", "answer", 4.0, [question])) is Superseded
    assert ended(readers.submit(planner.plan, "you", "answer", 4.0, [question])) is None


def test_an_answer_goes_before_the_rest_of_an_overview(gated, question):
    planner, gate, readers = gated
    overview = readers.submit(planner.plan, "me", "overview", 1.0, [question] * 5)
    assert gate.begun.acquire(timeout=120)
    answer = readers.submit(planner.plan, "me", "answer", 1.0, [question])
    until(lambda: planner.num_waiting == 2)
    gate.go_on.release(2)
    assert ended(answer) is None
    assert not overview.done()
    gate.go_on.release(4)
    assert len(overview.result(timeout=120)) == 5


def test_one_reader_has_one_plan_at_a_time_and_another_does_not_wait_for_it(gated, question):
    planner, gate, readers = gated
    mine = [
        readers.submit(planner.plan, "me", part, 1.0, [other(question, rank)])
        for rank, part in enumerate(URGENCY, 1)
    ]
    assert gate.begun.acquire(timeout=120)
    until(lambda: planner.num_waiting == len(mine))
    assert not gate.begun.acquire(timeout=0.2)
    yours = readers.submit(planner.plan, "you", "overview", 1.0, [other(question, 9)])
    assert gate.begun.acquire(timeout=120)
    gate.go_on.release(len(mine) + 1)
    assert [ended(each) for each in (*mine, yours)] == [None] * (len(mine) + 1)


def test_overviews_take_turns(question, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plan_queue, "PROCESSES", 1)
    gate, readers = Gate(), ThreadPoolExecutor(3)
    planner = PlanQueue(planner=lambda cache: gate)
    planner.start()
    names = ("a", "b", "c")
    all_of_them = [
        readers.submit(
            planner.plan, name, "overview", 1.0, [other(question, 10 * number + each) for each in range(1, 4)]
        )
        for number, name in enumerate(names)
    ]
    until(lambda: planner.num_waiting == 3)
    gate.go_on.release(5)
    until(lambda: gate.planned == 5)
    # a, b, c, a, b.
    until(lambda: sum(len(job.answers) for job in planner._jobs.values()) == 5)
    assert sorted(len(job.answers) for job in planner._jobs.values()) == [1, 2, 2]
    gate.go_on.release(4)
    assert [ended(each) for each in all_of_them] == [None] * 3
    planner.close()
    readers.shutdown()


def test_what_two_readers_ask_is_planned_once_at_a_time(gated, question):
    planner, gate, readers = gated
    both = [readers.submit(planner.plan, name, "answer", 1.0, [question]) for name in ("me", "you")]
    assert gate.begun.acquire(timeout=120)
    until(lambda: planner.num_waiting == 2)
    assert not gate.begun.acquire(timeout=0.2)
    gate.go_on.release(2)
    assert [ended(each) for each in both] == [None] * 2


def test_an_error_of_a_plan_is_the_readers(question):
    class Broken(Gate):
        def plan(self, question, wanted) -> Record:
            raise QbenchError("planning failed unexpectedly")

    planner = PlanQueue(planner=lambda cache: Broken())
    planner.start()
    for stamp in (1.0, 2.0):
        with pytest.raises(QbenchError, match="planning failed unexpectedly"):
            planner.plan("me", "answer", stamp, [question])
    planner.close()


def test_readers_are_forgotten(gated, question):
    planner, gate, _ = gated
    gate.go_on.release(1000)
    for number in range(len(URGENCY) * MOST_READERS + 5):
        planner.plan(f"reader {number}", "answer", 1.0, [question])
    assert len(planner._stamps) == len(URGENCY) * MOST_READERS
