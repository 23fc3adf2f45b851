"""`qbench gate` and `qbench calibrate --noise`: what they refuse, and which budget a gate has."""

from __future__ import annotations

from pathlib import Path

import pytest

from qbench.cli.gate import DEFAULT_PROCESSES, _budget
from qbench.cli.main import main
from qbench.measure.environment import machine
from qbench.records.noise import Noise, Spread, write_noise


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--min-effect", "3"], "--min-effect: given '3'; must be between 0% and 100%, for example 3%"),
        (["--min-effect", "0%"], "--min-effect: given '0%'"),
        (["--budget", "30"], "--budget: given '30'; allowed: a duration, for example 90s, 30m or 2h"),
        (["--budget", "0m"], "--budget: given '0m'"),
        (["--max-processes", "3"], "--max-processes: given 3; allowed: 4 to 256 per side"),
        (["--max-processes", "257"], "--max-processes: given 257"),
        ([], "--baseline: no-such-ref is neither a commit of a git repository here nor a Python"),
    ],
)
def test_bad_input_is_one_line(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["gate", "demo.yaml", "--baseline", "no-such-ref", "--device", "cpu", *flags]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert said in line


def test_a_git_ref_that_starts_as_a_flag_is_no_git_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gate", "demo.yaml", "--baseline=--exec-path", "--device", "cpu"]) == 2
    assert "is neither a commit" in capsys.readouterr().err


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QBENCH_CONFIG_DIR", str(tmp_path))
    return tmp_path


def test_a_limit_given_alone_is_the_only_one(settings: Path) -> None:
    alone = _budget(None, 12, "cpu")
    assert (alone.pairs, alone.seconds) == (12, None)
    timed = _budget(90.0, None, "cpu")
    assert (timed.pairs, timed.seconds) == (256, 90.0)
    both = _budget(90.0, 12, "cpu")
    assert (both.pairs, both.seconds) == (12, 90.0)


def test_a_known_noise_sets_the_default_budget(settings: Path) -> None:
    unknown = _budget(None, None, "cpu")
    assert (unknown.pairs, unknown.seconds) == (DEFAULT_PROCESSES, 1800.0)
    spread = Spread(process=0.002, pair=0.003)
    name = str(machine("cpu")["device_name"])
    write_noise(Noise(device="cpu", machine=name, label="p", processes=48, spreads={"step_time_s": spread}))
    # 0.3 % between neighbours: the first look, at four pairs, shows 5 %.
    assert _budget(None, None, "cpu").pairs == 4


def test_calibrate_asks_what_for_and_needs_enough_processes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "--noise", "--device", "cpu", "--processes", "7"]) == 2
    assert "--processes: given 7; allowed: 8 or more" in capsys.readouterr().err
