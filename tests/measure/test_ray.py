"""Points on a Ray that is started here: real Ray workers, real crashes, the same numbers as without Ray."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from tiny import tiny_point, write_tiny_model

from qbench.measure.executors.local import LocalExecutor
from qbench.measure.runner import Executor, record_of, results
from qbench.measure.task import Task
from qbench.measure.worker import run_task
from qbench.records.record import Record
from qbench.scenario.schema import MeasureSettings
from tests.measure import faults

pytest.importorskip("ray")

from qbench.measure.executors.ray import RayExecutor, reserved, slots


@pytest.fixture(scope="module")
def executor() -> Iterator[RayExecutor]:
    """Yield an executor on a Ray that ends with the module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        with RayExecutor("cpu") as executor:
            yield executor


def test_whatever_becomes_of_a_point_the_next_is_measured(executor: RayExecutor):
    works = [
        ("fine", faults.fine),
        ("killed", faults.is_killed),
        ("segfault", faults.segfaults),
        ("error", faults.raises),
        ("hung", faults.hangs),
        ("ray worker killed", faults.kills_the_ray_worker),
        ("fine again", faults.fine),
    ]
    begun = []
    done = {}
    for key, measurement in executor.stream(
        ((begun.append(key) or key, work) for key, work in works), 2, "cpu"
    ):
        done[key] = measurement
        # One at a time: no other is begun while one runs.
        assert len(begun) == len(done)
    assert list(done) == [key for key, _ in works]
    assert [measurement.outcome for measurement in done.values()] == [
        "ok", "crashed", "crashed", "error", "timeout", "crashed", "ok",
    ]  # fmt: skip
    assert done["segfault"].detail["error"] == "the worker was ended by SIGSEGV"
    assert done["segfault"].detail["stderr_tail"] == "about to read address 0\n"
    assert done["ray worker killed"].detail["error"].startswith("the Ray worker or its node was lost: ")
    # Nobody can say where that was; of the others the node is known, also of those that died.
    assert "device_name" not in done["ray worker killed"].environment
    assert done["ray worker killed"].environment["device"] == "cpu"
    assert done["killed"].environment["node"] == done["fine"].environment["node"] != ""
    assert socket.gethostname() not in str([measurement.environment for measurement in done.values()])


def test_the_process_that_measures_knows_nothing_of_ray(executor: RayExecutor):
    ((_, first), (_, second)) = executor.stream(
        [(n, faults.tells_its_surroundings) for n in range(2)], 60, "cpu"
    )
    assert first.detail["pid"] != second.detail["pid"]
    assert first.detail["ray_is_loaded"] is False
    assert first.detail["visible"] == ""


def records(executor: Executor, tasks: list[Task]) -> list[Record]:
    works = [(task, partial(run_task, task)) for task in tasks]
    return [record_of(task, done, "run") for task, done in results(executor, works, 120, "cpu")]


def test_the_numbers_are_those_of_the_local_executor(executor: RayExecutor, tmp_path: Path):
    model = write_tiny_model(tmp_path / "model", "HuggingFaceTB/SmolLM2-135M")
    settings = MeasureSettings(warmup_steps=1, steps=2)
    tasks = [
        Task(point=tiny_point(model, precision), device="cpu", settings=settings, repeat=0)
        for precision in ("bf16", "nf4-dq")
    ]
    here, there = records(LocalExecutor(), tasks), records(executor, tasks)
    assert [record.outcome for record in here + there] == ["ok"] * 4
    for local, ray in zip(here, there, strict=True):
        timed = {name for name in local.metrics if name.endswith(("_s", "per_s"))}
        assert {"step_time_s", "tokens_per_s"} <= timed
        assert local.metrics.keys() == ray.metrics.keys()
        for name in local.metrics.keys() - timed:
            assert local.metrics[name] == ray.metrics[name], name
        assert local.metrics["peak_allocated_bytes"] > 0
        # The settings on Ray are those of this process; the fork server here may be older than they are.
        assert ray.environment["settings"]["OMP_NUM_THREADS"] == "1"
        here_only = {"node": None, "settings": None}
        assert {**ray.environment, **here_only} == {**local.environment, **here_only}


ONE_GPU = {"CPU": 1, "GPU": 1}


@pytest.mark.parametrize(
    ("device", "gpus", "nodes", "needed", "expected"),
    [
        # On the CPU a whole node: one point at a time on each of the largest, none on the others.
        ("cpu", 1, [{"CPU": 8.0}], {"CPU": 8}, 1),
        ("cpu", 1, [{"CPU": 8.0}, {"CPU": 4.0}, {"CPU": 8.0, "GPU": 1.0}], {"CPU": 8}, 2),
        # A head node that is to do no work has no CPU; one that is all there is has no room.
        ("cpu", 1, [{}, {"CPU": 2.0}], {"CPU": 2}, 1),
        ("cpu", 1, [{}], {"CPU": 1}, 0),
        ("cuda", 1, [{"CPU": 8.0, "GPU": 4.0}, {"CPU": 64.0}, {"CPU": 2.0, "GPU": 1.0}], ONE_GPU, 5),
        # 4 // 3 + 8 // 3 + 2 // 3.
        ("cuda", 3, [{"CPU": 8.0, "GPU": n} for n in (4.0, 8.0, 2.0)], {"CPU": 1, "GPU": 3}, 3),
        ("cuda", 1, [{"CPU": 8.0}], ONE_GPU, 0),
    ],
)  # fmt: skip
def test_what_a_point_reserves_and_how_many_go_at_a_time(
    device: str, gpus: int, nodes: list[dict[str, float]], needed: dict[str, float], expected: int
):
    assert reserved(device, gpus, nodes) == needed  # type: ignore[arg-type]
    assert slots(needed, nodes) == expected
