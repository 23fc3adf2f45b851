"""When a warm-up ends, on a step whose duration is scripted, and what it leaves of a real one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import FAMILIES, tiny_point, write_tiny_model

from qbench.measure import warmup
from qbench.measure.warmup import PATIENCE, Patience, is_steady, warm_up
from qbench.step.training_step import TrainingStep, build_step

ENDLESS = Patience(least_s=0.0, most_s=1e9)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ([], False),
        ([1.0, 1.0], False),
        ([9.0, 1.0, 1.0, 1.0], True),
        ([1.0, 1.04, 0.96], True),
        ([1.0, 1.06, 1.0], False),  # 6 % above the median of 1.
        ([1.0, 1.0, 1.0, 0.9], False),
    ],
)
def test_steady_is_three_times_within_five_percent_of_their_median(seconds: list[float], expected: bool):
    assert is_steady(seconds) == expected


class Scripted:
    """A step that takes the seconds it is told, by a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: Iterable[float]) -> None:
        self.seconds: Iterator[float] = iter(seconds)
        self.now = 0.0
        monkeypatch.setattr(warmup.time, "perf_counter", lambda: self.now)

    def run(self) -> torch.Tensor:
        self.now += next(self.seconds)
        return torch.tensor(2.5)

    rehearse = run


def warmed(step: Any, count: int, patience: Patience = ENDLESS) -> warmup.WarmUp:
    return warm_up(step, count, patience)


def test_steps_that_are_steady_already_need_no_rehearsal(monkeypatch: pytest.MonkeyPatch):
    done = warmed(Scripted(monkeypatch, [5.0, 1.0, 1.0, 1.0]), 4)
    assert done.step_time_s == [5.0, 1.0, 1.0, 1.0]
    assert done.rehearsal_time_s == []
    assert done.losses == [2.5] * 4
    assert done.steady


def test_rehearsals_follow_until_three_in_a_row_are_steady(monkeypatch: pytest.MonkeyPatch):
    done = warmed(Scripted(monkeypatch, [5.0, 2.0, 2.0, 1.5, 1.0, 1.0, 1.0]), 2)
    assert done.step_time_s == [5.0, 2.0]
    assert done.rehearsal_time_s == [2.0, 1.5, 1.0, 1.0, 1.0]
    assert len(done.losses) == 2
    assert done.steady


def test_at_the_cap_it_ends_unsteady(monkeypatch: pytest.MonkeyPatch):
    halving = [2.0**-number for number in range(40)]
    done = warmed(Scripted(monkeypatch, halving), 0, Patience(least_s=0.0, most_s=1.9))
    # 1 + 1/2 + 1/4 + 1/8 + 1/16 is the first sum above 1.9.
    assert len(done.rehearsal_time_s) == 5
    assert not done.steady


def test_long_steps_are_given_three_rehearsals_whatever_the_cap(monkeypatch: pytest.MonkeyPatch):
    done = warmed(Scripted(monkeypatch, [60.0] * 9), 2, Patience(least_s=0.0, most_s=0.5))
    assert len(done.rehearsal_time_s) == 3
    assert done.steady


def test_a_clock_that_rises_is_given_its_time(monkeypatch: pytest.MonkeyPatch):
    done = warmed(Scripted(monkeypatch, [0.25] * 99), 3, Patience(least_s=2.0, most_s=10.0))
    # Steady from the third step at 0.75 s on; 2 s are reached after five rehearsals.
    assert len(done.rehearsal_time_s) == 5
    assert done.steady


def test_the_raw_times_are_stored(monkeypatch: pytest.MonkeyPatch):
    assert warmed(Scripted(monkeypatch, [1.0] * 3), 3).as_detail() == {
        "warmup_step_time_s": [1.0] * 3,
        "rehearsal_time_s": [],
        "warmup_steady": True,
    }


def test_only_a_gpu_is_kept_at_work_for_a_time():
    assert PATIENCE["cpu"].least_s == 0
    assert PATIENCE["cpu"].most_s < 1 < PATIENCE["cuda"].most_s
    assert PATIENCE["cuda"].least_s > 0


@pytest.fixture
def built(tmp_path: Path) -> Callable[[], TrainingStep]:
    model = write_tiny_model(tmp_path / "m", FAMILIES["llama"])
    # Dropout, accumulation and several batches: random numbers and the order of batches must be kept, too.
    point = tiny_point(model, "nf4", lora={"lora_dropout": 0.5}, gradient_accumulation_steps=2)

    def build() -> TrainingStep:
        step = build_step(point, "cpu")
        generator = torch.Generator().manual_seed(7)
        ids = [torch.randint(0, 512, (2, 32), generator=generator) for _ in range(3)]
        step.batches = [{"input_ids": tokens, "labels": tokens.clone()} for tokens in ids]
        return step

    return build


def test_rehearsals_leave_no_trace_in_the_training(built: Callable[[], TrainingStep]):
    plain, rehearsed = built(), built()
    torch.manual_seed(3)
    expected = [plain.run().item() for _ in range(3)]
    torch.manual_seed(3)
    losses = [rehearsed.run().item()]
    for _ in range(4):
        rehearsed.rehearse()
    losses += [rehearsed.run().item() for _ in range(2)]
    assert losses == expected
    for ours, theirs in zip(rehearsed.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
