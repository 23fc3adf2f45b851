"""How busy others keep the CPUs, from hand-made counts and from the real ones."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from qbench.measure import host_load
from qbench.measure.host_load import CpuClock, busy_cpus_of_others, busy_seconds, cpu_clock, load_average

STAT = """cpu  9999 0 0 0 0 0 0 0 0 0
cpu0 100 20 30 4000 50 6 7 8 90 0
cpu1 200 0 0 0 0 0 0 0 0 0
cpu10 400 0 0 0 0 0 0 0 0 0
intr 12345 0
"""


def test_busy_is_all_but_idle_and_waiting_on_the_cpus_that_count(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(host_load, "TICKS_PER_S", 100)
    # cpu0: 100 + 20 + 30 + 6 + 7 + 8; guest time, 90, is within user's.
    assert busy_seconds(STAT, {0}) == 1.71
    assert busy_seconds(STAT, {1, 10}) == 6.0


def test_others_are_all_but_this_process():
    before = CpuClock(at_s=10, busy_s=100, own_s=5)
    # In 2 s all CPUs worked 3 s, this process 2 s of them: half a CPU is others'.
    assert busy_cpus_of_others(before, CpuClock(at_s=12, busy_s=103, own_s=7)) == 0.5
    # Counts in hundredths may fall short of one's own.
    assert busy_cpus_of_others(before, CpuClock(at_s=12, busy_s=101.99, own_s=7)) == 0.0
    assert busy_cpus_of_others(before, CpuClock(at_s=10.4, busy_s=103, own_s=7)) is None
    assert busy_cpus_of_others(None, before) is None


@pytest.mark.skipif(cpu_clock() is None, reason="no /proc/stat")
def test_a_process_beside_this_one_is_seen_and_this_one_is_not():
    burner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.2)
        before = cpu_clock()
        time.sleep(1.0)
        with_burner = busy_cpus_of_others(before, cpu_clock())
    finally:
        burner.kill()
        burner.wait()
    # On a crowded machine the burner gets less than a CPU, but then others are busy instead.
    assert with_burner is not None
    assert with_burner > 0.5


def test_the_load_is_that_of_the_system():
    assert load_average() == pytest.approx(os.getloadavg()[0], abs=0.5)
