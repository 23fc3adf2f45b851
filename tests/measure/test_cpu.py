"""The CPU engine on tiny models: what it stores, and which phase it was in when it failed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import write_tiny_model

from qbench.measure import warmup
from qbench.measure.cpu import measure_cpu
from qbench.measure.environment import git_state
from qbench.measure.task import Task, measurement_from_json
from qbench.measure.worker import PhaseNote, run_task
from qbench.scenario.schema import MeasureSettings, Point
from qbench.step.training_step import PHASES

SETTINGS = MeasureSettings(warmup_steps=1, steps=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_model(tmp_path_factory.mktemp("llama"), "HuggingFaceTB/SmolLM2-135M")


def task(model: str, **changes: Any) -> Task:
    train = {"per_device_train_batch_size": 2, "seq_len": 16, "gradient_checkpointing": False}
    point = Point.model_validate({"model": model, "train": train, **changes})
    return Task(point=point, device="cpu", settings=SETTINGS, repeat=0)


def test_times_are_raw_and_warm_up_is_kept_apart(model: str):
    done = measure_cpu(task(model), PhaseNote())
    times = done.metrics["step_time_s"]
    assert len(times) == 3
    assert min(times) > 0
    assert len(done.detail["warmup_step_time_s"]) == 1
    # 2 sequences of 16 tokens.
    assert done.metrics["tokens_per_s"] == [32 / seconds for seconds in times]
    # 2 steps of the memory pass, 1 of warm-up, 3 timed ones; random tokens of a vocabulary of 512.
    assert len(done.metrics["loss"]) == 6
    assert all(5 < loss < 8 for loss in done.metrics["loss"])
    assert done.detail["loss_before"] is None


def test_what_speaks_for_and_against_the_numbers_is_stored_beside_them(model: str):
    done = measure_cpu(task(model), PhaseNote())
    found = {finding["name"]: finding for finding in done.detail["validity"]}
    assert found["warmup_steady"]["value"] == done.detail["warmup_steady"]
    # Timed steps of half a second tell who else was busy; shorter ones, only the load before them.
    assert len({"other_cpus_busy", "load_average_before"} & set(found)) == 1
    assert done.detail["load_average_before"] >= 0
    assert {finding["verdict"] for finding in found.values()} <= {"ok", "warn"}
    if git_state()["git_commit"] is not None:
        assert found["git_dirty"]["value"] == git_state()["git_dirty"]


def test_a_longer_warm_up_trains_no_more(model: str, monkeypatch: pytest.MonkeyPatch):
    short = measure_cpu(task(model), PhaseNote())
    monkeypatch.setattr(warmup, "is_steady", lambda seconds: len(seconds) >= 9)
    monkeypatch.setitem(warmup.PATIENCE, "cpu", warmup.Patience(least_s=0.0, most_s=600.0))
    long = measure_cpu(task(model), PhaseNote())
    assert len(long.detail["rehearsal_time_s"]) == 9
    assert long.metrics["loss"] == short.metrics["loss"]


def test_a_measurement_survives_its_journey_as_json(model: str):
    done = run_task(task(model, precision="nf4-dq"))
    assert done.outcome == "ok", done.detail
    assert measurement_from_json(done.to_json()) == done
    assert done.environment["device"] == "cpu"
    assert sum(done.metrics["breakdown_bytes"].values()) == done.metrics["peak_allocated_bytes"]


def test_each_phase_is_told_in_order(model: str):
    heard: list[str] = []
    measure_cpu(task(model), heard.append)
    # The memory pass and the warm-up, 2 + 1 times the four phases, and the timed steps, 3 times. Between them
    # are the rehearsals, which have no optimizer's phase.
    assert heard[:12] == list(PHASES) * 3
    assert heard[-12:] == list(PHASES) * 3
    assert heard.count("optimizer") == 6
    rehearsed = heard[12:-12]
    assert rehearsed == ["forward", "loss", "backward"] * (len(rehearsed) // 3)


def test_an_error_of_the_step_is_the_outcome(model: str):
    done = run_task(task(model, lora={"target_modules": ["no_such_module"]}))
    assert done.outcome == "error"
    assert "no_such_module" in done.detail["error"]
    assert done.environment["device"] == "cpu"


def test_running_out_of_memory_while_loading_is_told_as_such(tmp_path: Path):
    # An embedding of 2^40 rows of 64 values: 128 TiB in bf16.
    model = write_tiny_model(tmp_path / "m", "HuggingFaceTB/SmolLM2-135M", vocab_size=2**40)
    done = run_task(task(model, precision="bf16"))
    assert done.outcome == "oom", done.detail
    assert done.detail["oom"]["phase"] == "load"
    assert done.detail["oom"]["requested_bytes"] >= 2**40 * 64 * 2
