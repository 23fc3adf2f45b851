"""Points measured on a null GPU, by the same engine and executors as on a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny import FAMILIES, tiny_point, write_tiny_model

from qbench.catalog.gpus import find_gpu
from qbench.measure.executors.local import LocalExecutor
from qbench.measure.request import request_of
from qbench.measure.runner import measure
from qbench.measure.task import Task
from qbench.nullgpu.environment import card_environment
from qbench.nullgpu.launcher import preload_environment
from qbench.planner.plan import plan
from qbench.records.record import Record
from qbench.records.store import read_records
from qbench.scenario.schema import MeasureSettings, Point
from tests.measure import faults

pytestmark = pytest.mark.nullgpu

CARD = "RTX 3070"
"""7.7 GiB of compute capability 8.6."""
EXACT = ("static_bytes", "peak_allocated_bytes", "trainable_params", "total_params")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    return write_tiny_model(folder, FAMILIES["llama"], vocab_size=32_000, max_position_embeddings=8192)


def task_of(point: Point, gpu: str = CARD, steps: int = 2) -> Task:
    settings = MeasureSettings(warmup_steps=1, steps=steps, timeout_s=300)
    return Task(point=point, device="null", settings=settings, repeat=0, gpu=gpu)


def measured(point: Point, gpu: str = CARD) -> Record:
    return measure(task_of(point, gpu), LocalExecutor(), "test")


def test_a_record_has_memory_and_the_hosts_time_and_nothing_of_a_gpu(model: str) -> None:
    point = tiny_point(model, "bf16", seq_len=2048)
    record = measured(point)
    assert record.outcome == "ok", record.detail
    assert record.environment["device"] == "null"
    assert (record.device_name, record.card, record.environment["driver"]) == (CARD, CARD, "nullgpu")
    assert set(record.metrics) == {*EXACT, "peak_reserved_bytes", "host_time_s"}
    # The size of its context was put into the null GPU by the plan.
    assert not {"context_bytes", "reconciliation_bytes", "device_used_bytes"} & set(record.detail)
    assert len(record.metrics["host_time_s"]) == 2
    assert set(record.detail["phases"]) == {"load", "forward", "loss", "backward", "optimizer"}
    low, high = record.detail["reserved_range_bytes"]
    assert low <= record.metrics["peak_reserved_bytes"] <= high
    assert record.detail["num_alloc_retries"] == 0
    assert {found["name"] for found in record.validity} <= {
        "allocator_retries",
        "foreign_processes",
        "git_dirty",
    }
    planned = plan(point, "cuda", [find_gpu(CARD)])
    assert {name: record.metrics[name] for name in EXACT} == {name: planned.metrics[name] for name in EXACT}


@pytest.mark.parametrize("weights", ["random", "pretrained"])
def test_loading_takes_what_the_plan_says(tmp_path: Path, weights: str) -> None:
    """A head that is tied to the embeddings comes in once; a 16-bit model is moved as a whole."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = write_tiny_model(
        tmp_path / "model", FAMILIES["llama"], vocab_size=32_000, tie_word_embeddings=True
    )
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    point = tiny_point(folder, "bf16", seq_len=64).model_copy(update={"weights": weights})
    record, planned = measured(point), plan(point, "cuda", [find_gpu(CARD)])
    assert record.outcome == "ok", record.detail
    before = [planned.detail["phases"].get(name, 0) for name in ("load", "prepare", "adapters")]
    assert record.detail["phases"]["load"] == max(before)
    assert record.metrics["peak_reserved_bytes"] == planned.metrics["peak_reserved_bytes"]


@pytest.mark.parametrize(("batch", "phase"), [(2, "backward"), (6, "loss")])
def test_out_of_memory_is_pytorchs_own_with_phase_and_sizes(model: str, batch: int, phase: str) -> None:
    point = tiny_point(model, "bf16", seq_len=8192, per_device_train_batch_size=batch)
    record = measured(point)
    assert record.outcome == "oom", record.detail
    oom = record.detail["oom"]
    assert (oom["kind"], oom["phase"]) == ("torch", phase)
    assert oom["free_bytes"] < oom["requested_bytes"]
    assert oom["total_bytes"] == pytest.approx(find_gpu(CARD).memory_bytes, rel=0.01)
    assert "CUDA out of memory" in record.detail["error"]


def test_a_card_without_kernels_in_this_torch_is_refused(model: str) -> None:
    record = measured(tiny_point(model, "bf16", seq_len=16), "P100-PCIE-16GB")
    assert record.outcome == "error"
    assert (
        "has no kernels for P100-PCIE-16GB, compute capability 6.0; it has them for" in record.detail["error"]
    )


def test_a_function_that_is_missing_is_a_crash_that_names_it() -> None:
    done = LocalExecutor().run(faults.calls_what_a_null_gpu_lacks, 60, "null")
    assert done.outcome == "crashed"
    assert "cusparseSpMM is not answered by the null GPU" in str(done.detail["stderr_tail"])


def test_a_worker_that_is_killed_is_one_outcome_and_the_next_runs(model: str) -> None:
    executor = LocalExecutor()
    assert executor.run(faults.is_killed, 60, "null").outcome == "crashed"
    assert executor.run(faults.segfaults, 60, "null").outcome == "crashed"
    record = measure(task_of(tiny_point(model, "bf16", seq_len=16)), executor, "test")
    assert record.outcome == "ok", record.detail


def test_workers_of_other_devices_have_no_shim() -> None:
    executor = LocalExecutor()
    found = [executor.run(faults.tells_of_the_shim, 60, device).detail for device in ("null", "cpu", "null")]
    assert found == [{"caveats": [answer]} for answer in ("True", "False", "True")]
    assert "nullgpu" not in os.environ.get("LD_PRELOAD", "")


def command(*arguments: str, **variables: str) -> subprocess.Popen[str]:
    env = {**os.environ, **variables}
    return subprocess.Popen(
        [sys.executable, "-m", "qbench", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )


def run_point(folder: Path, task: Task, **settings: str) -> dict[str, Any]:
    request, result = folder / "point.json", folder / "result.json"
    request.write_text(request_of(task, "test", settings).to_json())
    process = command("run-point", str(request), str(result))
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return dict(json.loads(result.read_text()))


def test_expandable_segments_are_those_of_the_plan(tmp_path: Path, model: str) -> None:
    point, conf = tiny_point(model, "bf16", seq_len=4096), "expandable_segments:True"
    found = run_point(tmp_path, task_of(point), PYTORCH_ALLOC_CONF=conf)
    assert found["outcome"] == "ok", found["detail"]
    assert found["environment"]["settings"]["PYTORCH_ALLOC_CONF"] == conf
    from qbench.memory.allocator.config import AllocatorConfig

    allocator, _ = AllocatorConfig.of_environment(conf)
    planned = plan(point, "cuda", [find_gpu(CARD)], allocator=allocator)
    assert found["metrics"]["peak_reserved_bytes"] == planned.metrics["peak_reserved_bytes"]


SCENARIO = """
name: resumed
question: Does a run go on where it was ended?
base: {model: MODEL, train: {seq_len: 32}}
matrix: {precision: [bf16, fp32], r: [4, 8]}
measure: {warmup_steps: 1, steps: 1}
"""


def finished(folder: Path) -> list[Record]:
    file = folder / "records.jsonl"
    records = read_records(folder) if file.exists() else []
    return [record for record in records if record.kind == "measurement"]


def test_a_run_that_is_killed_goes_on_and_keeps_what_it_had(tmp_path: Path, model: str) -> None:
    scenario, out = tmp_path / "s.yaml", tmp_path / "run"
    scenario.write_text(SCENARIO.replace("MODEL", model))
    arguments = ("run", str(scenario), "--device", "null", "--gpu", CARD, "--out", str(out))
    process = command(*arguments)
    deadline = time.monotonic() + 240
    while not finished(out) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    process.kill()
    process.communicate()
    kept = {record.created_at: record.point_id for record in finished(out)}
    assert 1 <= len(kept) < 4
    done = command(*arguments, "--json")
    printed, said = done.communicate(timeout=300)
    assert done.returncode == 0, said
    assert json.loads(printed)["kept"] >= len(kept) + 4
    records = finished(out)
    assert {record.outcome for record in records} == {"ok"}
    assert sorted(record.point_id for record in records) == sorted({record.point_id for record in records})
    assert len(records) == 4


WITH_OTHERS = """
import json, os, subprocess, sys
holder = "import torch; x = torch.empty(100 << 20, dtype=torch.int8, device='cuda'); print(flush=1); input()"
other = subprocess.Popen([sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
other.stdout.readline()
from qbench.measure.request import read_request
from pathlib import Path
from qbench.measure.cuda import measure_cuda
task = read_request(Path(sys.argv[1])).task
done = measure_cuda(task, lambda phase: None)
other.communicate(b"\\n")
print(json.dumps({"other": other.pid, "own": os.getpid(), "detail": done.detail, "metrics": done.metrics}))
"""


def test_of_several_cards_the_chosen_one_is_measured_and_who_else_is_on_it_is_told(
    tmp_path: Path, model: str
) -> None:
    request = tmp_path / "point.json"
    request.write_text(request_of(task_of(tiny_point(model, "bf16", seq_len=64)), "test").to_json())
    env = {
        **os.environ,
        **preload_environment(),
        **card_environment(find_gpu(CARD), count=3),
        "NULLGPU_STATE": str(tmp_path / "state"),
        "CUDA_VISIBLE_DEVICES": "2",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }
    done = subprocess.run(
        [sys.executable, "-c", WITH_OTHERS, str(request)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=env,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    other, detail = found["other"], found["detail"]
    assert detail["foreign_processes"] == {"before": [other], "during": [other], "after": [other]}
    (seen,) = (finding for finding in detail["validity"] if finding["name"] == "foreign_processes")
    assert (seen["value"], seen["verdict"]) == (1, "warn")
    # 400 MB of context; the other process's 100 MiB and context are not this one's.
    assert detail["context_bytes"] == [400_000_000, 400_000_000]
    assert found["metrics"]["device_bytes"] == found["metrics"]["peak_reserved_bytes"] + 400_000_000


CALIBRATES = """
import os
from qbench.cli.calibrate import _calibrate_speed
from qbench.measure import nvml
pin = nvml.pin_device
def pin_and_time_nothing():
    found = pin()
    # Its imports start CUDA, so that a card pinned later is not the one that is timed.
    from qbench.measure import calibrate
    calibrate._kernel_times, calibrate.host_seconds = lambda *_: [], lambda device: {}
    return found
nvml.pin_device = pin_and_time_nothing
_calibrate_speed("cuda", as_json=True)
import torch
print(torch.cuda.device_count(), os.environ["CUDA_VISIBLE_DEVICES"], nvml.choose_device().uuid)
"""


@pytest.mark.parametrize("visible", [None, " 2,1"])
def test_a_calibration_times_the_card_that_it_names(tmp_path: Path, visible: str | None) -> None:
    env = {**os.environ, **preload_environment(), **card_environment(find_gpu(CARD), count=3)}
    env["QBENCH_CONFIG_DIR"] = str(tmp_path)
    env.pop("CUDA_VISIBLE_DEVICES", None)
    env |= {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    done = subprocess.run(
        [sys.executable, "-c", CALIBRATES], capture_output=True, text=True, timeout=300, check=False, env=env
    )
    assert done.returncode == 0, done.stderr
    count, shown, named = done.stdout.splitlines()[-1].split()
    assert (count, shown) == ("1", named)


FAILS_TO_ANSWER = """
from qbench.measure.null import _in_child
from qbench.measure.task import Measurement
try:
    print(_in_child(lambda: Measurement(outcome="ok", detail={"caveats": object()}))().outcome)
finally:
    print("ended", flush=True)
"""


def test_a_child_that_cannot_answer_ends_where_it_is() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAILS_TO_ANSWER], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.split() == ["crashed", "ended"], done.stderr


def test_neither_a_gpus_run_nor_a_calibration_takes_the_null_gpu_for_one(tmp_path: Path) -> None:
    env = {**preload_environment(), **card_environment(find_gpu(CARD))}
    for arguments in (("run", "demo.yaml", "--device", "cuda"), ("calibrate", "--device", "cuda")):
        process = command(*arguments, **env)
        _, said = process.communicate(timeout=120)
        assert process.returncode == 2, said
        assert "CUDA in this process is the null GPU, which cannot be measured as a GPU" in said
