"""The order of a measurement on CUDA: the real code and a real step, on a stand-in for torch.cuda.

No number here is a measurement. What is held is when peaks are reset, when the host waits for the card, and
that nothing is read after it has been disturbed.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from tiny import FAMILIES, tiny_point, write_tiny_model

from qbench.measure import cuda, nvml, warmup
from qbench.measure.nvml import CardState, PinnedDevice
from qbench.measure.sampler import Sampler
from qbench.measure.task import Measurement, Task, measurement_from_json
from qbench.measure.warmup import Patience
from qbench.scenario.schema import MeasureSettings
from qbench.step.training_step import PHASES, build_step

MIB = 1 << 20
OWN = os.getpid()


class Card:
    """Stands in for torch.cuda and NVML, and writes down what is asked of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.states = iter(
            [
                CardState(used_bytes=10 * MIB, pids=()),
                CardState(used_bytes=412 * MIB, own_bytes=402 * MIB, pids=(OWN,)),
                CardState(used_bytes=500 * MIB, own_bytes=480 * MIB, pids=(OWN,)),
                CardState(used_bytes=600 * MIB, own_bytes=580 * MIB, pids=(OWN, 7)),
            ]
        )
        # The segment of the first tensor, and what is reserved at the end.
        self.reserved = iter([2 * MIB, 80 * MIB])
        answers: dict[str, Any] = {
            "init": None,
            "synchronize": None,
            "empty_cache": None,
            "reset_peak_memory_stats": None,
            "max_memory_allocated": 50 * MIB,
            "max_memory_reserved": 90 * MIB,
            "memory_allocated": 20 * MIB,
            "memory_stats": {"num_alloc_retries": 0, "num_ooms": 0},
        }
        for name, answer in answers.items():
            monkeypatch.setattr(torch.cuda, name, self.told(name, answer))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: next(self.reserved))
        monkeypatch.setattr(torch.cuda, "Event", self.event)
        monkeypatch.setattr(
            torch._C, "_cuda_clearCublasWorkspaces", self.told("clear workspaces", None), raising=False
        )
        monkeypatch.setattr(cuda, "_open_context", self.open_context(cuda._open_context, monkeypatch))
        monkeypatch.setattr(nvml, "card_state", lambda: next(self.states))
        monkeypatch.setattr(nvml, "pin_device", lambda: PinnedDevice(uuid="GPU-a", note=None))

    def told(self, name: str, answer: Any) -> Any:
        def asked(*_: Any, **__: Any) -> Any:
            self.log.append(name)
            return answer

        return asked

    def open_context(self, real: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
        def opened(before: CardState) -> int | None:
            with monkeypatch.context() as patch:
                patch.setattr(torch, "zeros", lambda *_, **__: None)
                found: int | None = real(before)
            return found

        return opened

    def event(self, enable_timing: bool) -> Any:
        assert enable_timing
        card = self

        class Event:
            def record(self) -> None:
                card.log.append("event")

            def elapsed_time(self, other: object) -> float:
                return 250.0  # ms

        return Event()


class Told(Sampler):
    """A sampler of a made-up device that tells when it is stopped."""

    log: list[str]

    def __init__(self) -> None:
        super().__init__("tests.measure.monitors:rising", 0.01)

    def stop(self) -> dict[str, Any] | None:
        if self.pid is not None:
            self.log.append("sampler stopped")
        return super().stop()


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Card, Measurement]:
    """Return the stand-in after one measurement on it, and the measurement."""
    point = tiny_point(write_tiny_model(tmp_path_factory.mktemp("m"), FAMILIES["llama"]), "nf4-dq")
    settings = MeasureSettings(warmup_steps=2, steps=4)
    task = Task(point=point, device="cuda", settings=settings, repeat=0)
    with pytest.MonkeyPatch.context() as monkeypatch:
        card = Card(monkeypatch)
        Told.log = card.log
        monkeypatch.setattr(cuda, "Sampler", Told)
        monkeypatch.setattr(cuda, "build_step", lambda point, device, share: build_step(point, "cpu"))
        monkeypatch.setattr(cuda, "text_loss", card.told("text loss", 6.5))
        monkeypatch.setitem(warmup.PATIENCE, "cuda", Patience(least_s=0.0, most_s=0.05))
        done = cuda.measure_cuda(task, card.log.append)
    return card, done


@pytest.fixture
def card(measured: tuple[Card, Measurement]) -> Card:
    return measured[0]


@pytest.fixture
def done(measured: tuple[Card, Measurement]) -> Measurement:
    return measured[1]


def places(log: list[str], name: str) -> list[int]:
    return [place for place, entry in enumerate(log) if entry == name]


def test_within_the_timed_steps_nothing_waits_and_nothing_is_reset(card: Card):
    events = places(card.log, "event")
    assert len(events) == 5
    window = card.log[events[0] : events[-1]]
    assert set(window) <= {"event", *PHASES}
    assert window.count("optimizer") == 4
    # The host waits right before and right after.
    assert card.log[events[0] - 1] == "synchronize"
    assert card.log[events[-1] + 1] == "synchronize"


def test_the_sampler_has_ended_before_the_timed_steps(card: Card, done: Measurement):
    (stopped,) = places(card.log, "sampler stopped")
    assert stopped < places(card.log, "event")[0]
    assert done.detail["sampled"]["count"] >= 1


def test_the_cache_of_loading_stays_and_that_of_the_text_goes(card: Card):
    first_step = card.log.index("forward")
    # A user's own program keeps what loading left in the cache, and plans do; they know of no text.
    (emptied,) = places(card.log, "empty_cache")
    assert card.log.index("text loss") < emptied < first_step
    # At rest is read before the text is gone through, whose workspaces and peaks are then taken back.
    before = card.log[:first_step]
    at_rest, text, cleared = (
        before.index(name) for name in ("memory_allocated", "text loss", "clear workspaces")
    )
    assert at_rest < text < cleared < max(places(before, "reset_peak_memory_stats"))


def test_the_memory_pass_resets_at_each_boundary_and_has_steps_of_its_own(card: Card):
    resets = places(card.log, "reset_peak_memory_stats")
    in_pass = [
        card.log[place - 4 : place] for place in resets if card.log[place - 1] == "max_memory_reserved"
    ]
    # Two steps of four phases, and the end of the last; each waits and reads before it resets. The load phase
    # is reset in another way.
    assert len(in_pass) == 9
    assert all(
        entry[1:] == ["synchronize", "max_memory_allocated", "max_memory_reserved"] for entry in in_pass
    )
    assert [entry[0] for entry in in_pass[:8]] == list(PHASES) * 2
    assert max(resets) < places(card.log, "event")[0]


def test_the_text_is_gone_through_again_only_when_all_is_read(card: Card, done: Measurement):
    assert card.log.index("memory_stats") < places(card.log, "text loss")[-1]
    assert card.log[-1] == "text loss"
    assert (done.detail["loss_before"], done.detail["loss_after"]) == (6.5, 6.5)


def test_the_device_is_this_processs_part_with_reserved_at_its_peak(done: Measurement):
    # Context 402 - 2 MiB; at the end 580 are ours, 80 of them reserved, 500 not; at the peak 90 are reserved.
    # A range as in a plan; one number could be written but not read back.
    assert done.detail["context_bytes"] == [400 * MIB, 400 * MIB]
    assert done.metrics["device_bytes"] == (90 + 500) * MIB
    assert done.metrics["peak_reserved_bytes"] == 90 * MIB
    assert done.detail["device_used_bytes"] == 600 * MIB
    assert done.detail["reconciliation_bytes"] == {
        "device_bytes": 590 * MIB,
        "context_bytes": 400 * MIB,
        "reserved_bytes": 80 * MIB,
        "non_torch_bytes": 100 * MIB,
        "unexplained_bytes": 10 * MIB,
    }


def test_what_is_stored_is_json_with_a_ledger_of_findings(done: Measurement):
    assert measurement_from_json(done.to_json()) == done
    assert done.metrics["step_time_s"] == [0.25] * 4
    assert done.detail["foreign_processes"] == {"before": [], "during": [], "after": [7]}
    # 2 steps of warm-up, 2 of the memory pass, 4 timed ones; rehearsals have no loss.
    assert len(done.metrics["loss"]) == 8
    assert len(done.detail["rehearsal_time_s"]) >= 3 or done.detail["warmup_steady"]
    verdicts = {finding["name"]: finding["verdict"] for finding in done.detail["validity"]}
    assert verdicts["allocator_retries"] == "ok"
    assert verdicts["nvml"] == "ok"
    assert verdicts["foreign_processes"] == "warn"
    assert "host_lead_s" in verdicts
    assert set(done.detail["phases"]) == {"load", *PHASES}
