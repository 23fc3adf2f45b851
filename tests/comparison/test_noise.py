"""The noise of a machine by hand, what it proposes, and what is stored of it."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from qbench.comparison.check import Check, Finding
from qbench.comparison.noise import (
    cautious,
    noise_of,
    proposals,
    undecided_speeds,
)
from qbench.records.noise import Noise, Spread, noise_file, read_noise, write_noise
from qbench.records.record import Record
from tests.comparison.hand_made import make_point, make_record


def processes(times: list[float], **changes: object) -> list[Record]:
    return [
        make_record(kind="measurement", metrics={"step_time_s": [seconds], "trainable_params": 7}, **changes)
        for seconds in times
    ]


def make_noise(deviation: float) -> Noise:
    spread = Spread(process=deviation, pair=deviation * 2**0.5)
    return Noise(device="cuda", machine="NVIDIA L4", label="p", processes=48, spreads={"step_time_s": spread})


def test_deviations_are_of_logarithms_of_processes_and_of_neighbours() -> None:
    # Logarithms 0 1 1 0 | 0 1 1 0, of which the run's are 1 1 1 1 and the baseline's 0 0 0 0: no deviation.
    noise = noise_of(processes([1.0, math.e, math.e, 1.0] * 2))
    assert noise is not None
    spread = noise.spreads["step_time_s"]
    # Squares about 0.5: 8 x 0.25 = 2, over 7 degrees.
    assert spread.process == pytest.approx((2 / 7) ** 0.5)
    assert spread.pair == pytest.approx(0, abs=1e-9)
    assert (noise.device, noise.machine, noise.processes) == ("cuda", "NVIDIA A100-SXM4-80GB", 8)
    assert "trainable_params" not in noise.spreads


def test_too_few_processes_have_no_noise() -> None:
    assert noise_of(processes([1.0] * 7)) is None
    assert noise_of([*processes([1.0] * 7), *processes([1.0], outcome="oom")]) is None


def test_the_cautious_deviation_by_the_table() -> None:
    # Chi squared of 10 degrees at 0.1 is 4.865 (Abramowitz and Stegun, table 26.8): (10 / 4.865) ** 0.5.
    assert cautious(1.0, 10) == pytest.approx(1.434, abs=5e-3)


def test_the_true_deviation_is_below_the_cautious_one_nine_times_in_ten() -> None:
    source = random.Random(3)
    runs = [[source.gauss(0, 1) for _ in range(24)] for _ in range(1000)]
    covered = sum(cautious(statistics.stdev(run), 23) >= 1 for run in runs)
    assert 870 <= covered <= 930


def test_more_noise_proposes_more_processes_and_a_smaller_change_needs_more() -> None:
    quiet, loud = proposals(make_noise(0.003)), proposals(make_noise(0.02))
    assert [each.effect for each in loud] == [0.05, 0.08]
    assert [each.gate for each in quiet] == [4, 4]
    five, eight = loud
    assert five.gate is not None
    assert eight.gate is not None
    assert 4 < eight.gate < five.gate
    assert five.check is not None
    assert five.check > five.gate


def speed(deviation: float | None, **changes: object) -> Finding:
    values: dict[str, object] = {"metric": "step_time_s", "verdict": "ambiguous", "run": 1.0}
    found = Finding(make_point(), "measurement", "cuda", "", "same", deviation=deviation)
    return found._replace(**values | changes)  # type: ignore[arg-type]


def test_only_step_times_with_a_number_that_noise_hides_are_undecided() -> None:
    hidden = speed(0.02)
    others = [
        speed(0.02, metric="tokens_per_s"),
        speed(0.02, verdict="worse"),
        speed(None, run=None),
    ]
    assert undecided_speeds(Check(findings=(hidden, *others))) == [hidden]


def test_what_is_stored_is_read_for_its_machine_alone(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QBENCH_CONFIG_DIR", str(tmp_path_factory.mktemp("config")))
    noise = make_noise(0.02)
    assert read_noise("cuda", "NVIDIA L4") is None
    write_noise(noise)
    assert read_noise("cuda", "NVIDIA L4") == noise
    assert read_noise("cpu", "NVIDIA L4") is None
    assert read_noise("cuda", None) is None
    noise_file("cuda", "NVIDIA L4").write_text('{"version": 2}')
    assert read_noise("cuda", "NVIDIA L4") is None
