"""What `qbench check` advises where step times stayed ambiguous."""

from __future__ import annotations

from pathlib import Path

import pytest

from qbench.cli.main import main
from qbench.records.noise import Noise, Spread, write_noise
from qbench.records.record import Record
from qbench.records.store import encoded
from tests.comparison.hand_made import finding
from tests.comparison.test_check import STEADY, processes

GATE = "`qbench gate SCENARIO --baseline REF` measures both sides next to each other until it is clear"


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QBENCH_CONFIG_DIR", str(tmp_path / "config"))


def advice(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    before: list[Record],
    now: list[Record],
    *options: str,
) -> list[str]:
    """Return what a check says on stderr."""
    for name, records in (("before", before), ("now", now)):
        (tmp_path / f"{name}.jsonl").write_bytes(b"".join(map(encoded, records)))
    run, baseline = (str(tmp_path / f"{name}.jsonl") for name in ("now", "before"))
    assert main(["check", run, "--baseline", baseline, *options]) == 0
    return capsys.readouterr().err.splitlines()


def spread(deviation: float, count: int = 4, **changes: object) -> list[Record]:
    """Return processes half of which are above one second by a share, and half below."""
    return processes(*[1 + deviation, 1 - deviation] * (count // 2), **changes)


def test_what_is_decided_needs_no_advice(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert advice(tmp_path, capsys, processes(*STEADY), processes(*STEADY)) == []


def test_a_little_noise_says_how_many_processes_show_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    said, way = advice(tmp_path, capsys, spread(0.02), spread(0.02))
    # Logarithms +0.0198 and -0.0202 about their mean of -0.0002, so +-0.0200; of eight values on two sides:
    # (8 x 0.0200^2 / 6)^0.5 = 0.0231. The error of a ratio of means of n is 2 x 0.0231 x (2 / n)^0.5. With 36
    # a side it is 0.0109; the quantiles of t with 35 degrees are 2.724 and 1.690, so exp(4.414 x 0.01089) - 1
    # = 4.92 % is seen; with 35, 0.01104 and 34 degrees, 5.00 %. With 16 a side, 0.01633 and 15 degrees, it is
    # exp((2.947 + 1.753) x 0.01633) - 1 = 7.98 %; with 15, 0.01687 and 14 degrees, 8.32 %.
    assert said == (
        "step_time_s is ambiguous at 1 point: its processes differ by 2.3 %. Processes per side that check "
        "needs to show a change of 5 %: 36; 8 %: 16 (measure.repeats, in both runs)."
    )
    assert way == f"{GATE}; `qbench calibrate --noise` says how many processes that takes here."


def test_much_noise_says_that_no_number_shows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    said, way = advice(tmp_path, capsys, spread(0.4, 6), spread(0.4, 6))
    # Logarithms ln 1.4 = 0.3365 and ln 0.6 = -0.5108 are 0.4236 from their mean: (12 x 0.4236^2 / 10)^0.5 =
    # 0.4641. With 100 a side the error is 2 x 0.4641 x (2 / 100)^0.5 = 0.1313, and the quantiles with 99
    # degrees are 2.626 and 1.660: exp(4.287 x 0.1313) - 1 = 75.6 %.
    assert said == (
        "step_time_s is ambiguous at 1 point: its processes differ by 46.4 %. No affordable number of "
        "processes shows 5 % or 8 % by check: 100 per side would show 76 %."
    )
    assert way.startswith(GATE)


@pytest.mark.parametrize("metric", ["step_time_s", "tokens_per_s"])
def test_a_larger_tolerance_asks_for_larger_changes(
    metric: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    said, _ = advice(tmp_path, capsys, spread(0.05), spread(0.05), "--tolerance", f"{metric}=10%")
    # One and a half times the tolerance is the change that is asked for.
    assert "Processes per side that check needs to show a change of 15 %: " in said


def test_too_few_processes_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    said, way = advice(tmp_path, capsys, processes(1.0), processes(1.0))
    assert said == (
        "step_time_s is ambiguous at 1 point: with fewer than 3 processes per side its noise is unknown "
        "(measure.repeats, in both runs)."
    )
    assert way.startswith(GATE)


def test_a_known_noise_of_the_machine_is_told_instead(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    noise = Noise(
        device="cuda",
        machine="NVIDIA A100-SXM4-80GB",
        label="p",
        processes=48,
        spreads={"step_time_s": Spread(process=0.02, pair=0.01)},
    )
    write_noise(noise)
    said, way = advice(tmp_path, capsys, spread(0.02), spread(0.02))
    assert said.startswith("Noise of NVIDIA A100-SXM4-80GB (")
    assert "per side by gate" in said
    assert way == f"{GATE}."


def test_the_noisiest_point_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    sides = [*spread(0.02), *spread(0.4, 6, r=64), *processes(1.0, r=8)]
    said, _ = advice(tmp_path, capsys, sides, sides)
    assert said.startswith("step_time_s is ambiguous at 3 points: processes of one differ by 46.4 %.")


def test_times_that_are_not_valid_are_not_cured_by_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    invalid = {"validity": [finding("clocks", "invalid")]}
    assert advice(tmp_path, capsys, spread(0.02), spread(0.02, detail=invalid)) == []
