"""Calibration on this CPU, with small kernels: every one is of one operator, and takes time."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path

import pytest
import torch

from qbench.cli.calibrate import _calibrate_speed
from qbench.cli.main import main
from qbench.measure import calibrate, environment, micro_kernels, nvml, stopwatch
from qbench.measure.known_speed import usable_calibrations
from qbench.planner.speed_calibrated import CalibratedRates
from qbench.records import calibration
from qbench.records.calibration import calibration_file
from qbench.units import MIB


@pytest.fixture(autouse=True)
def small_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QBENCH_CONFIG_DIR", str(tmp_path))
    monkeypatch.setattr(micro_kernels, "ROWS", {"cpu": (4,)})
    monkeypatch.setattr(micro_kernels, "PRODUCT_SIZES", {"cpu": (8, 16)})
    monkeypatch.setattr(micro_kernels, "LENGTHS", {"cpu": (8,)})
    monkeypatch.setattr(micro_kernels, "POOL_BYTES", 4 * MIB)
    monkeypatch.setattr(stopwatch, "BUDGET_S", 1e-4)
    monkeypatch.setattr(calibrate, "ROUNDS", 1)
    monkeypatch.setattr(calibrate, "HOST_STEPS", 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_kernel_is_one_operator(dtype: torch.dtype) -> None:
    names = set()
    with torch.no_grad():
        for kernel in micro_kernels.kernels("cpu", dtype):
            costs = micro_kernels._Costs()
            with costs:
                kernel.runs[0]()
            working = [cost for cost in costs.seen if cost.kind != "none"]
            assert len(working) == 1
            names.add(working[0].op)
    assert names >= {"mm", "bmm", "add", "silu", "clone", "sum", "_log_softmax", "dequantize_4bit"}
    assert "_scaled_dot_product_flash_attention_for_cpu_backward" in names


def test_products_are_timed_in_all_layouts_with_another_operand_each_time() -> None:
    with torch.no_grad():
        products = list(micro_kernels._products("cpu", torch.float32))
    assert {micro_kernels.cost_of(kernel).layout for kernel in products} == {"nn", "nt", "tn"}
    assert len(products) == 3 * 2**3
    assert all(len(kernel.runs) > 1 for kernel in products)


def test_a_product_that_is_larger_than_the_pool_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    # In fp32 an operand of 1,024 x 1,024 takes 4 MiB.
    monkeypatch.setattr(micro_kernels, "POOL_BYTES", MIB)
    monkeypatch.setattr(micro_kernels, "PRODUCT_SIZES", {"cpu": (1024,)})
    with torch.no_grad():
        products = list(micro_kernels._products("cpu", torch.float32))
    assert len(products) == 3


def test_a_stopwatch_counts_what_a_function_takes() -> None:
    def wait() -> torch.Tensor:
        until = time.thread_time() + 0.002
        while time.thread_time() < until:
            pass
        return torch.empty(1)

    assert 0.002 <= stopwatch.seconds_of([wait], "cpu") < 0.02


def test_what_is_longer_than_the_budget_runs_few_times() -> None:
    ran: list[int] = []

    def wait() -> torch.Tensor:
        ran.append(1)
        time.sleep(0.002)
        return torch.empty(1)

    stopwatch.seconds_of([wait], "cpu", 1e-4)
    # One to warm up, then two; with one thread sleeping takes no CPU time, so that more may follow.
    assert len(ran) == 3 or torch.get_num_threads() == 1


def test_what_almost_nothing_takes_is_taken_off() -> None:
    def work(times: int) -> torch.Tensor:
        for _ in range(times):
            torch.ones(64, 64).sum()
        return torch.empty(1)

    whole = stopwatch.seconds_of([lambda: work(200)], "cpu", 0.05)
    most = stopwatch.seconds_of([lambda: work(200)], "cpu", 0.05, empty=lambda: work(180))
    assert most < whole / 2


def test_a_kernel_takes_the_median_of_its_rounds_without_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = list(itertools.islice(micro_kernels.kernels("cpu", torch.float32), 2))
    # The first round is cold; of the second kernel one round was disturbed.
    scripted = {id(kernels[0].runs): [9.0, 1.0, 1.2, 1.1], id(kernels[1].runs): [9.0, 2.0, 7.0, 2.2]}
    monkeypatch.setattr(calibrate, "ROUNDS", 4)
    monkeypatch.setattr(calibrate, "DTYPES", {"cpu": (torch.float32,)})
    monkeypatch.setattr(calibrate, "kernels", lambda device, dtype: iter(kernels))
    monkeypatch.setattr(calibrate, "seconds_of", lambda runs, *_, **__: scripted[id(runs)].pop(0))
    found = calibrate._kernel_times("cpu", lambda number: None)
    assert [kernel.seconds for kernel in found] == [1.1, 2.2]


def test_no_round_begins_that_would_end_after_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    monkeypatch.setattr(calibrate, "ROUNDS", 8)
    monkeypatch.setattr(calibrate, "BUDGET_S", 0.0)
    monkeypatch.setattr(calibrate, "DTYPES", {"cpu": (torch.float32,)})
    monkeypatch.setattr(
        calibrate, "kernels", lambda *_: itertools.islice(micro_kernels.kernels("cpu", torch.float32), 1)
    )
    calibrate._kernel_times("cpu", begun.append)
    assert begun == [0, 1, 2, 3]


def test_calibrate_stores_what_plans_then_find(capsys: pytest.CaptureFixture[str]) -> None:
    assert usable_calibrations("cpu") == ()
    assert main(["calibrate", "--device", "cpu", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    (found,) = usable_calibrations("cpu")
    assert said["file"] == str(calibration_file("cpu", found.device_name, torch.get_num_threads()))
    assert found.num_threads == torch.get_num_threads()
    assert all(kernel.seconds > 0 for kernel in found.kernels)
    assert all(0 < seconds < 0.01 for seconds in found.dispatch_s.values())
    assert set(said["rates"]) >= {"mm fp32", "mm bf16", "clone fp32", "host, forward"}


def test_an_exported_calibration_is_a_profile_where_nothing_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(calibrate, "busy_cpus_of_others", lambda *_: 0.7)
    folder = tmp_path / "profiles"
    folder.mkdir()
    assert main(["calibrate", "--device", "cpu", "--export", str(folder / "this-cpu.json")]) == 0
    assert "other processes kept 0.7 CPUs busy" in " ".join(capsys.readouterr().err.split())
    (own,) = usable_calibrations("cpu")
    assert own.profile == ""
    monkeypatch.setenv("QBENCH_CONFIG_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(calibration, "PROFILES", folder)
    calibration.profiles.cache_clear()
    try:
        (found,) = usable_calibrations("cpu")
    finally:
        calibration.profiles.cache_clear()
    assert found.profile == "this-cpu"
    assert found.kernels == own.kernels
    assert CalibratedRates(found).source.startswith(
        f"profile this-cpu, measured on {found.created_at[:10]} with"
    )


def test_a_calibration_of_other_libraries_is_not_used() -> None:
    assert main(["calibrate", "--device", "cpu"]) == 0
    name = environment.machine("cpu")["device_name"]
    file = calibration_file("cpu", str(name), torch.get_num_threads())
    file.write_text(file.read_text().replace(f'"torch": "{torch.__version__}"', '"torch": "1.0"'))
    assert usable_calibrations("cpu") == ()


def test_on_cuda_the_device_is_pinned_before_it_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else torch times its fastest card, and the calibration carries the name of another."""
    done: list[str] = []
    monkeypatch.setattr(nvml, "pin_device", lambda: done.append("pinned"))
    monkeypatch.setattr(calibrate, "_kernel_times", lambda *_: done.append("timed") or [])
    monkeypatch.setattr(calibrate, "host_seconds", lambda device: {})
    monkeypatch.setattr(calibrate, "machine", lambda device: {"device_name": "a card"})
    _calibrate_speed("cuda", as_json=True)
    assert done == ["pinned", "timed"]
    done.clear()
    _calibrate_speed("cpu", as_json=True)
    assert done == ["timed"]
