"""`qbench trend` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qbench.cli.main import main
from qbench.records.store import encoded
from tests.comparison.test_trend import GIB, plans


@pytest.fixture
def history(tmp_path: Path) -> Path:
    """Return a folder of run folders, and of a file that is no records."""
    for number, record in enumerate(plans(*[14 * GIB] * 6, *[15 * GIB] * 6)):
        folder = tmp_path / f"night-{number:02}"
        folder.mkdir()
        (folder / "records.jsonl").write_bytes(encoded(record))
    (tmp_path / "night-00" / "other.jsonl").write_text("{}\n")
    return tmp_path


def test_a_folder_of_runs(history: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("otava", reason="Apache Otava is not installed")
    assert main(["trend", str(history)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "1 series, 1 changes of level"
    assert "+7.1 %" in out
    # The dates of a day's runs are alike; their names are not.
    assert "night-00" in out
    assert "night-06" in out
    assert main(["trend", str(history), "--json"]) == 0
    (series,) = json.loads(capsys.readouterr().out)["series"]
    assert len(series["samples"]) == 12
    assert series["changes"][0]["run_id"] == "night-06"


def test_a_young_history_says_what_it_takes(history: Path, capsys: pytest.CaptureFixture[str]):
    few = [str(history / "night-00"), str(history / "night-01")]
    assert main(["trend", *few]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("2 runs read (night-00, night-01); a history needs 3 or more")
    assert "Run or plan the scenario again" in line
    assert main(["trend", *few, "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"series": []}
    assert captured.err == f"{line}\n"


def test_enough_runs_without_the_metric_are_said(history: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["trend", str(history), "--metric", "step_time_s"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("12 runs read; fewer than 3 of them have the same metric (step_time_s)")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--metric", "steptime"], "did you mean step_time_s?"),
        (["nowhere"], "cannot be read"),
        (["/proc/self/fd"], "contains no run folder and no .jsonl file"),
    ],
)
def test_bad_input(history: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]):
    assert main(["trend", str(history), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
