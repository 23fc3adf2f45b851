"""From what an executor made of a task to a record."""

from __future__ import annotations

import pytest

from qbench.measure.environment import environment
from qbench.measure.runner import measure
from qbench.measure.task import Attempt, Measurement, Task
from qbench.scenario.schema import Device, MeasureSettings, Point

TASK = Task(
    point=Point(model="bigscience/bloom-560m"),
    device="cpu",
    settings=MeasureSettings(warmup_steps=1, steps=5, timeout_s=7),
    repeat=2,
)


class Answers:
    """Gives one answer to whatever it is asked to run, and notes how it was asked."""

    def __init__(self, answer: Measurement) -> None:
        self.answer = answer
        self.asked: list[tuple[float, Device]] = []

    def run(self, work: Attempt, timeout_s: float, device: Device) -> Measurement:
        self.asked.append((timeout_s, device))
        return self.answer


def test_a_record_is_what_the_worker_said_of_the_task():
    answer = Measurement(
        outcome="ok", metrics={"flops": 1}, detail={"load_time_s": 2.0}, environment={"device": "cpu"}
    )
    executor = Answers(answer)
    record = measure(TASK, executor, "run-1")
    assert executor.asked == [(7, "cpu")]
    assert (record.run_id, record.kind, record.point, record.outcome) == (
        "run-1",
        "measurement",
        TASK.point,
        "ok",
    )
    assert record.metrics == {"flops": 1}
    assert record.detail == {
        "repeat": 2,
        "protocol": {"warmup_steps": 1, "steps": 5},
        "load_time_s": 2.0,
    }
    assert record.environment == {"device": "cpu"}


@pytest.mark.parametrize("outcome", ["crashed", "timeout", "oom"])
def test_for_a_worker_that_died_the_runner_names_the_machine(outcome: str):
    record = measure(TASK, Answers(Measurement(outcome=outcome)), "run-1")  # type: ignore[arg-type]
    assert record.outcome == outcome
    assert record.environment == environment("cpu")
    assert record.detail["repeat"] == 2


def test_a_record_names_neither_user_nor_home(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/alice")
    text = 'File "/home/alice/env/lib/torch/nn.py", line 1'
    done = Measurement(outcome="error", detail={"error": text, "traceback": text, "load_time_s": 2.0})
    record = measure(TASK, Answers(done), "run-1")
    assert "alice" not in str(record.to_dict())
    assert record.detail["traceback"] == 'File "~/env/lib/torch/nn.py", line 1'
