"""`qbench baseline accept` from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qbench.cli.main import main
from qbench.records.store import encoded
from tests.comparison.hand_made import make_record

GIB = 1 << 30


def run(path: Path, *peaks: int) -> str:
    records = [
        make_record(r=8 * n, metrics={"peak_allocated_bytes": peak}) for n, peak in enumerate(peaks, 1)
    ]
    path.write_bytes(b"".join(map(encoded, records)))
    return str(path)


def test_accept_then_check_then_accept_what_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "baselines" / "plans.jsonl"
    first, later = run(tmp_path / "a.jsonl", GIB, 2 * GIB), run(tmp_path / "b.jsonl", GIB, 3 * GIB)
    assert main(["baseline", "accept", first, "--to", str(file), "--reason", "first"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{file}: 0 replaced, 2 added, 0 removed, 0 kept"
    assert main(["check", later, "--baseline", str(file)]) == 1
    before = file.read_text().splitlines()
    capsys.readouterr()
    assert main(["baseline", "accept", later, "--to", str(file), "--reason", "larger batch", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["replaced"] == ["Llama-2-7b-hf bf16 r=16 b=1 s=2048 (plan)"]
    (moved,) = document["moved"]
    assert (moved["metric"], moved["verdict"], moved["baseline"], moved["run"]) == (
        "peak_allocated_bytes",
        "worse",
        2 * GIB,
        3 * GIB,
    )
    assert len(set(before) & set(file.read_text().splitlines())) == 1
    assert main(["check", later, "--baseline", str(file)]) == 0
    assert [path.name for path in file.parent.iterdir()] == ["plans.jsonl"]


def test_of_several_at_once_none_is_lost(tmp_path: Path):
    file = tmp_path / "plans.jsonl"
    for number in range(4):
        made = make_record(r=number + 1)
        (tmp_path / f"{number}.jsonl").write_bytes(encoded(made))
    program = (
        "import sys; from qbench.cli import main; from qbench.comparison import baselines; "
        "input(); sys.exit(main.main(sys.argv[1:]))"
    )
    options = ["--to", str(file), "--reason", "first"]
    started = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                program,
                "baseline",
                "accept",
                str(tmp_path / f"{number}.jsonl"),
                *options,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for number in range(4)
    ]
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.close()
    assert [process.wait(timeout=120) for process in started] == [0] * 4
    assert len(file.read_text().splitlines()) == 4


def test_what_is_accepted_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    first, later = run(tmp_path / "a.jsonl", GIB, 2 * GIB), run(tmp_path / "b.jsonl", GIB, 3 * GIB)
    to = ["--to", str(tmp_path / "plans.jsonl"), "--reason", "why"]
    assert main(["baseline", "accept", first, *to]) == 0
    capsys.readouterr()
    assert main(["baseline", "accept", later, *to]) == 0
    replaced, point, value, _ = capsys.readouterr().out.splitlines()
    assert replaced.split()[0] == "replaced"
    assert point.startswith("Llama-2-7b-hf bf16 r=16")
    assert value.split() == ["worse", "peak_allocated_bytes", "2.00", "GiB", "3.00", "GiB", "+50.00", "%"]


def test_points_that_the_run_lacks_are_told_with_what_removes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    first, later = run(tmp_path / "a.jsonl", GIB, GIB, GIB), run(tmp_path / "b.jsonl", GIB)
    to = ["--to", str(tmp_path / "plans.jsonl"), "--reason", "why"]
    assert main(["baseline", "accept", first, *to]) == 0
    assert "--prune" not in capsys.readouterr().out
    assert main(["baseline", "accept", later, *to, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["lacking"] == {"plan": 2}
    assert main(["baseline", "accept", later, *to]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "the run lacks 2 plans of the baseline, kept as before; --prune removes them"
    )
    against = ["--baseline", to[1]]
    assert main(["check", later, *against]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "the run lacks 2 points of the baseline: plan or measure it again, or drop "
        "obsolete points with `qbench baseline accept --prune`"
    ]
    assert main(["baseline", "accept", later, *to, "--prune"]) == 0
    assert "the run lacks" not in capsys.readouterr().out
    assert main(["check", later, *against]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--to", "b.jsonl", "--reason", " "], "--reason: given nothing"),
        (["--to", "/proc", "--reason", "why"], "--to: /proc is a folder; name a file in it, such as /proc/"),
        (["--to", "b.txt", "--reason", "why"], "a baseline is a .jsonl file"),
        (["--to", "/proc/no/b.jsonl", "--reason", "why"], "cannot be written"),
        (["--to", "b.jsonl"], "Missing option '--reason'"),
    ],
)
def test_bad_options(tmp_path: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]):
    assert main(["baseline", "accept", run(tmp_path / "a.jsonl", GIB), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_a_damaged_baseline_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "b.jsonl"
    file.write_text("hello\n")
    assert (
        main(["baseline", "accept", run(tmp_path / "a.jsonl", GIB), "--to", str(file), "--reason", "x"]) == 2
    )
    assert "b.jsonl:1: not JSON" in capsys.readouterr().err
    assert file.read_text() == "hello\n"
