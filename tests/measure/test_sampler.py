"""The process at the side, run for real on devices that stand in for a GPU."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qbench.measure import sampler as sampler_module
from qbench.measure.sampler import Sampler

MONITORS = "tests.measure.monitors"
LONG_S = 120.0


def test_readings_are_summed_up_and_the_absent_one_stays_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    samples = tmp_path / "samples"
    monkeypatch.setenv("RISING_SAMPLES", str(samples))
    deadline = time.monotonic() + 120
    with Sampler(f"{MONITORS}:rising", interval_s=0.01) as sampler:
        # The numbers hold for any count from 3; the last sample is taken at the end.
        while not (samples.exists() and samples.read_text() not in ("", "1")) and time.monotonic() < deadline:
            time.sleep(0.01)
        found = sampler.stop()
    assert found is not None
    count = found["count"]
    assert count >= 3
    # 1000, 2000, ... 1000 n: the largest is the last, the mean (n + 1) / 2 thousands.
    assert found["readings"]["memory_used_bytes"] == {
        "min": 1000,
        "mean": 500 * (count + 1),
        "max": 1000 * count,
        "count": count,
    }
    assert found["readings"]["temperature_c"]["max"] == 40
    assert "power_w" not in found["readings"]
    assert found["event_reasons"] == ["gpu_idle", "sw_power_cap"]
    # Asked at both ends: 10 J less 5 J, and one that is never known.
    assert found["counters"] == {"energy_j": 5.0, "throttled_thermal_s": None}
    assert found["interval_s"] == 0.01
    assert found["seconds"] > 0


def test_the_process_loads_nothing_heavy():
    with Sampler(f"{MONITORS}:tells", interval_s=0.01) as sampler:
        found = sampler.stop()
    assert found is not None
    assert found["event_reasons"] == []


@pytest.mark.parametrize("monitor", [f"{MONITORS}:absent", f"{MONITORS}:crashing", "no.such.module:at_all"])
def test_without_a_device_or_an_answer_nothing_is_known(monitor: str):
    with Sampler(monitor) as sampler:
        assert sampler.stop() is None


def test_without_a_gpu_the_real_probe_knows_nothing_or_something():
    """Here: no driver, so None. On a machine with a GPU: memory in use."""
    with Sampler() as sampler:
        found = sampler.stop()
    assert found is None or found["readings"]["memory_used_bytes"]["max"] > 0


def test_a_process_that_does_not_answer_is_ended(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sampler_module, "END_GRACE_S", 0.3)
    with Sampler(f"{MONITORS}:deaf") as sampler:
        pid = sampler.pid
        assert sampler.stop() is None
    assert pid is not None
    assert not is_alive(pid)


def test_stopping_twice_and_leaving_are_harmless():
    with Sampler(f"{MONITORS}:rising", interval_s=0.01) as sampler:
        assert sampler.stop() is not None
        assert sampler.stop() is None
    assert sampler.pid is None


def test_an_error_in_the_measurement_ends_the_process_too():
    sampler = Sampler(f"{MONITORS}:rising")
    with contextlib.suppress(RuntimeError), sampler:
        pid = sampler.pid
        raise RuntimeError("of the step")
    assert pid is not None
    assert not is_alive(pid)


OWNER = """
import os
from qbench.measure.sampler import Sampler
sampler = Sampler("tests.measure.monitors:rising", interval_s=0.01).__enter__()
print(sampler.pid, flush=True)
os.kill(os.getpid(), 9)
"""


def test_the_process_ends_with_a_worker_that_is_killed():
    root = str(Path(__file__).parents[2])
    owner = subprocess.run(
        [sys.executable, "-c", OWNER], cwd=root, capture_output=True, text=True, timeout=LONG_S, check=False
    )
    pid = int(owner.stdout)
    deadline = time.monotonic() + LONG_S
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(pid)


def is_alive(pid: int) -> bool:
    """Say whether a process runs; one that has ended and is not yet buried does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
