"""`qbench check` from the command line: exit codes, its JSON, the Markdown summary, and bad input."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from tiny import write_tiny_model

from qbench.cli.ci_outputs import append_summary
from qbench.cli.main import main
from qbench.comparison.check import check
from qbench.records.document import read_any
from qbench.records.record import UPGRADES, Record
from qbench.records.store import encoded
from qbench.report.ci.check import summary_markdown
from qbench.report.markdown import SUMMARY_LIMIT
from tests.comparison.hand_made import ENVIRONMENT, make_record
from tests.comparison.test_check import STEADY, processes

GIB = 1 << 30


def written(path: Path, records: list[Record]) -> str:
    path.write_bytes(b"".join(map(encoded, records)))
    return str(path)


@pytest.fixture
def baseline(tmp_path: Path) -> str:
    return written(tmp_path / "before.jsonl", processes(*STEADY))


def test_nothing_changed(baseline: str, capsys: pytest.CaptureFixture[str]):
    assert main(["check", baseline, "--baseline", baseline]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    first, seen = captured.out.splitlines()
    assert first.startswith("No regression: 10 values of 1 point: 10 same.")
    assert seen.startswith("The smallest change of step time that could have been detected is ")


def test_a_regression_fails_and_is_told(tmp_path: Path, baseline: str, capsys: pytest.CaptureFixture[str]):
    run = written(tmp_path / "now.jsonl", processes(1.2, 1.2, 1.21, peak=8 * GIB))
    assert main(["check", run, "--baseline", baseline]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Llama-2-7b-hf bf16 r=16 b=1 s=2048, measured on cuda"
    assert [line.split()[:2] for line in lines if line.startswith("  worse")] == [
        ["worse", "peak_allocated_bytes"],
        ["worse", "step_time_s"],
        ["worse", "tokens_per_s"],
        ["worse", "breakdown_bytes.weights"],
    ]


def test_json_is_one_document_with_every_finding(
    tmp_path: Path, baseline: str, capsys: pytest.CaptureFixture[str]
):
    run = written(tmp_path / "now.jsonl", processes(*STEADY, peak=8 * GIB))
    assert main(["check", run, "--baseline", baseline, "--json"]) == 1
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert captured.err == ""
    assert document["exit_code"] == 1
    assert document["verdicts"]["worse"] == 2
    (peak,) = [found for found in document["findings"] if found["metric"] == "peak_allocated_bytes"]
    assert (peak["baseline"], peak["run"], peak["verdict"]) == (7 * GIB, 8 * GIB, "worse")
    assert peak["change"] == pytest.approx(1 / 7)


def test_what_is_ambiguous_fails_only_when_strict(tmp_path: Path, baseline: str):
    run = written(tmp_path / "now.jsonl", processes(1.0, 1.3, 0.8))
    assert main(["check", run, "--baseline", baseline]) == 0
    assert main(["check", run, "--baseline", baseline, "--strict"]) == 1


def test_another_machine_is_not_comparable(tmp_path: Path, baseline: str, capsys: pytest.CaptureFixture[str]):
    other = processes(*STEADY, environment=ENVIRONMENT | {"device_name": "NVIDIA L4"})
    assert main(["check", written(tmp_path / "now.jsonl", other), "--baseline", baseline]) == 2
    out = capsys.readouterr().out
    assert "machine: NVIDIA A100-SXM4-80GB against NVIDIA L4" in out
    assert "Not comparable: " in out
    assert re.search(r"\(not comparable\) +peak_allocated_bytes +7.00 GiB +7.00 GiB +\+0.00 %", out)


def test_a_baseline_that_was_cut_off_is_damage(
    tmp_path: Path, baseline: str, capsys: pytest.CaptureFixture[str]
):
    torn = tmp_path / "torn.jsonl"
    torn.write_bytes(Path(baseline).read_bytes()[:-40])
    assert main(["check", baseline, "--baseline", str(torn)]) == 2
    captured = capsys.readouterr()
    assert f"{torn}:3: the last line is incomplete; restore" in captured.err
    assert captured.out == ""


def test_where_no_point_is_common_ci_is_told_why(
    tmp_path: Path, baseline: str, capsys: pytest.CaptureFixture[str]
):
    other = written(tmp_path / "now.jsonl", [make_record(r=64)])
    summary = tmp_path / "summary.md"
    junit, sarif = tmp_path / "junit.xml", tmp_path / "qbench.sarif"
    files = ["--summary", str(summary), "--junit", str(junit), "--sarif", str(sarif)]
    assert main(["check", other, "--baseline", baseline, "--annotations", "github", *files]) == 2
    captured = capsys.readouterr()
    assert captured.out.startswith("::error title=qbench::the run and the baseline have no point in common")
    assert "qbench baseline accept" in captured.err
    # What it costs is shown, although nothing is judged.
    assert re.search(r"\nbaseline .* r=16 .* 7.00 GiB .*\nrun .* r=64 .* 14.00 GiB", captured.out)
    assert summary.read_text().startswith("### qbench check: not comparable\n\nthe run and the baseline")
    assert "\n    run " in summary.read_text()
    suites = ElementTree.parse(junit).getroot()
    assert (suites.get("tests"), suites.get("failures"), suites.get("errors")) == ("1", "0", "1")
    assert "no point in common" in suites.findall(".//error")[0].attrib["message"]
    (log,) = json.loads(sarif.read_text())["runs"]
    (ended,) = log["invocations"]
    assert (ended["executionSuccessful"], log["results"]) == (False, [])
    assert "no point in common" in ended["toolExecutionNotifications"][0]["message"]["text"]


def test_a_scenario_is_planned_now(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = write_tiny_model(tmp_path / "model", "meta-llama/Llama-3.1-8B")
    scenario, plan = tmp_path / "ci.yaml", tmp_path / "plan.json"
    text = f"name: ci\nquestion: Does it still fit?\nbase: {{model: {model}, train: {{seq_len: 32}}}}\n"
    for device in ("cuda", "cpu"):
        scenario.write_text(text)
        assert main(["plan", str(scenario), "--json", "--device", device]) == 0
        plan.write_text(capsys.readouterr().out)
        assert main(["check", str(scenario), "--baseline", str(plan), "--strict"]) == 0
        scenario.write_text(text.replace("32", "64"))
        assert main(["check", str(scenario), "--baseline", str(plan)]) == 2
        assert "seq_len is 64, was 32" in capsys.readouterr().err


def test_a_plan_that_was_printed_is_a_run(tmp_path: Path):
    before, now = (tmp_path / f"{name}.json" for name in ("before", "now"))
    record = make_record()
    before.write_text(json.dumps({"records": [record.to_dict()]}))
    grown = replace(record, metrics=record.metrics | {"peak_allocated_bytes": 15 * GIB})
    now.write_text(json.dumps({"records": [grown.to_dict()]}))
    against = ["--baseline", str(before)]
    assert main(["check", str(before), *against]) == 0
    assert main(["check", str(now), *against]) == 1
    assert main(["check", str(now), *against, "--tolerance", "peak_allocated_bytes=8%"]) == 0
    assert main(["check", str(now), *against, "--tolerance", "peak_allocated_bytes=1GiB"]) == 0


def test_a_summary_is_appended_as_markdown(tmp_path: Path, baseline: str):
    run = written(tmp_path / "now.jsonl", processes(*STEADY, peak=8 * GIB))
    file = tmp_path / "summary.md"
    file.write_text("before\n")
    assert main(["check", run, "--baseline", baseline, "--summary", str(file)]) == 1
    text = file.read_text()
    assert text.startswith("before\n### qbench check: Failed\n")
    assert "| worse | peak\\_allocated\\_bytes |" in text or "| worse | peak_allocated_bytes |" in text


NOTICE = "\n\nThe rest is left out: a step's summary holds 1 MiB. `--json` has all.\n"


def test_a_summary_keeps_to_the_limit_of_github_at_every_edge(tmp_path: Path):
    file = tmp_path / "summary.md"
    text = "### Ä\n\n| \U0001f4a9 | é |\n|---|---|\n" + "| naïve | \U0001f4a9\U0001f4a9 |\n" * 20
    whole = text.encode()
    for room in range(len(whole) + 3):
        file.write_bytes(b"x" * (SUMMARY_LIMIT - room))
        append_summary(file, text)
        added = file.read_bytes()[SUMMARY_LIMIT - room :]
        assert len(added) <= room
        if room >= len(whole):
            assert added == whole
        elif room < len(NOTICE):
            assert added == b""
        else:
            kept = added.decode().removesuffix(NOTICE)
            assert len(kept) < len(added.decode())
            assert text.startswith(kept)
            # Rows are kept whole, and as many as there is room for.
            following = text.removeprefix(kept + "\n").partition("\n")[0] if kept else "### Ä"
            assert len(f"{kept}\n{following}{NOTICE}".encode()) > room
            assert kept == "" or text[len(kept)] == "\n"


def test_a_full_summary_is_said_and_left_as_it_is(
    tmp_path: Path, baseline: str, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "summary.md"
    file.write_bytes(b"x" * (SUMMARY_LIMIT + 5))
    assert main(["check", baseline, "--baseline", baseline, "--summary", str(file)]) == 0
    assert file.stat().st_size == SUMMARY_LIMIT + 5
    assert capsys.readouterr().err == (
        f"--summary: {file} already has the 1 MiB that GitHub shows per step; nothing was added\n"
    )
    other = written(tmp_path / "now.jsonl", [make_record(r=64)])
    assert main(["check", other, "--baseline", baseline, "--summary", str(file)]) == 2
    assert file.stat().st_size == SUMMARY_LIMIT + 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tolerance", "peak_allocatd=1%"], ["'peak_allocatd'", "did you mean peak_allocated_bytes?"]),
        (["--tolerance", "peak_at=1%"], ["'peak_at' is not a metric"]),
        (["--tolerance", "step_time_s=1MiB"], ["step_time_s", "'1MiB'", "such as 1%"]),
        (["--tolerance", "step_time_s"], ["given ''"]),
        (["--tolerance", "static_bytes=-1%"], ["given '-1%'"]),
        (["--tolerance", "static_bytes=nan%"], ["given 'nan%'"]),
        (["--summary", "/proc/no/summary.md"], ["--summary", "cannot be written"]),
        (["--junit", "/proc/no/junit.xml"], ["--junit", "cannot be written"]),
        (["--sarif", "/proc/no/log.sarif"], ["--sarif", "cannot be written"]),
        (["--annotations", "gitlab"], ["--annotations", "github"]),
    ],
)
def test_bad_options(
    baseline: str, arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
):
    assert main(["check", baseline, "--baseline", baseline, *arguments]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert captured.out == ""
    assert all(word in line for word in words), line


def test_an_idle_tolerance_is_a_line_of_the_result(baseline: str, capsys: pytest.CaptureFixture[str]):
    assert main(["check", baseline, "--baseline", baseline, "--tolerance", "device_bytes=1%"]) == 0
    assert "--tolerance device_bytes: no point has a value of it." in capsys.readouterr().out


def test_a_new_point_fails_when_strict(tmp_path: Path):
    before = written(tmp_path / "before.jsonl", [make_record(r=8)])
    now = written(tmp_path / "now.jsonl", [make_record(r=8), make_record(r=16)])
    assert main(["check", now, "--baseline", before]) == 0
    assert main(["check", now, "--baseline", before, "--strict"]) == 1


def test_files_and_marks_for_ci(
    tmp_path: Path, baseline: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    run = written(tmp_path / "now.jsonl", processes(*STEADY, peak=8 * GIB))
    files = ["--junit", "j.xml", "--sarif", "s.sarif", "--annotations", "github"]
    assert main(["check", run, "--baseline", baseline, *files]) == 1
    marks = [line for line in capsys.readouterr().out.splitlines() if line.startswith("::")]
    # The last of the baseline's three processes is on line 3.
    assert marks[0].startswith("::error file=before.jsonl,line=3,title=qbench%3A Llama-2-7b-hf bf16")
    assert 'failures="1"' in (tmp_path / "j.xml").read_text()
    (log,) = json.loads((tmp_path / "s.sarif").read_text())["runs"]
    assert len(log["results"]) == len(marks) == 2
    place = log["results"][0]["locations"][0]["physicalLocation"]
    assert place == {"artifactLocation": {"uri": "before.jsonl"}, "region": {"startLine": 3}}


@pytest.mark.parametrize(
    ("workspace", "folder", "given", "file"),
    [
        (".", "sub", "../baselines/b.jsonl", "file=baselines/b.jsonl,line=3,"),
        (".", "sub", "{root}/baselines/b.jsonl", "file=baselines/b.jsonl,line=3,"),
        (".", "baselines", "b.jsonl", "file=baselines/b.jsonl,line=3,"),
        ("sub", "sub", "../baselines/b.jsonl", ""),
        ("sub", "baselines", "b.jsonl", ""),
        (None, "baselines", "b.jsonl", "file=b.jsonl,line=3,"),
        (None, "sub", "../baselines/b.jsonl", ""),
    ],
)
def test_marks_are_at_paths_from_the_root_of_the_repository(
    workspace: str | None,
    folder: str,
    given: str,
    file: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    for name in ("sub", "baselines"):
        (tmp_path / name).mkdir()
    monkeypatch.delenv("GITHUB_WORKSPACE", raising=False)
    if workspace is not None:
        monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path / workspace))
    written(tmp_path / "baselines" / "b.jsonl", processes(*STEADY))
    run = written(tmp_path / "now.jsonl", processes(*STEADY, peak=8 * GIB))
    monkeypatch.chdir(tmp_path / folder)
    outputs = ["--annotations", "github", "--sarif", "s.sarif"]
    assert main(["check", run, "--baseline", given.format(root=tmp_path), *outputs]) == 1
    (mark, *_) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("::")]
    assert mark.startswith(f"::error {file}title=qbench%3A Llama-2-7b-hf bf16")
    outside = f"; line 3 of {tmp_path}/baselines/b.jsonl"
    assert mark.endswith(outside) == (file == "")
    (result, *_) = json.loads(Path("s.sarif").read_text())["runs"][0]["results"]
    uri = file.removeprefix("file=").removesuffix(",line=3,") or f"file://{tmp_path}/baselines/b.jsonl"
    assert result["locations"][0]["physicalLocation"]["artifactLocation"] == {"uri": uri}


def test_marks_leave_stdout_to_the_json(tmp_path: Path, baseline: str, capsys: pytest.CaptureFixture[str]):
    run = written(tmp_path / "now.jsonl", processes(*STEADY, peak=8 * GIB))
    assert main(["check", run, "--baseline", baseline, "--json", "--annotations", "github"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["exit_code"] == 1
    assert captured.err.startswith("::error ")


def changed(line: bytes, **values: Any) -> bytes:
    return json.dumps(json.loads(line) | values).encode() + b"\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "has no records"),
        (changed(encoded(make_record()), schema_version=0), "schema_version 0 cannot be read; 1 to 2 can"),
        (changed(encoded(make_record()), schema_version=9), "update qbench"),
        (b"hello\n", "not JSON"),
        (encoded(make_record(r=99)), "no point in common"),
    ],
)
def test_a_bad_baseline(
    tmp_path: Path, baseline: str, content: bytes, words: str, capsys: pytest.CaptureFixture[str]
):
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(content)
    assert main(["check", baseline, "--baseline", str(bad)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_a_baseline_of_an_older_schema_is_upgraded(
    tmp_path: Path, baseline: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(UPGRADES, 0, lambda values: values | {"kind": values["kind"].lower()})
    older = [changed(encoded(r), schema_version=0, kind="MEASUREMENT") for r in processes(*STEADY)]
    (tmp_path / "older.jsonl").write_bytes(b"".join(older))
    assert main(["check", baseline, "--baseline", str(tmp_path / "older.jsonl")]) == 0


def test_a_folder_that_is_no_run_says_what_may_be_meant(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["check", str(tmp_path), "--baseline", str(tmp_path)]) == 2
    assert "is not a run folder: it has no records.jsonl; give a folder" in capsys.readouterr().err
    (tmp_path / "runs").mkdir()
    written(tmp_path / "runs" / "records.jsonl", processes(*STEADY))
    assert main(["check", str(tmp_path), "--baseline", str(tmp_path)]) == 2
    assert f"did you mean {tmp_path / 'runs'}?" in capsys.readouterr().err


def test_ten_thousand_records_take_little_time(tmp_path: Path):
    records = [record for r in range(1, 2501) for record in [make_record(r=r), *processes(*STEADY, r=r)]]
    file = written(tmp_path / "many.jsonl", records)
    assert len(records) == 10_000
    start = time.process_time()
    assert main(["check", file, "--baseline", file]) == 0
    assert time.process_time() - start < 60  # 10,000 records on either side


def test_the_upgrade_that_the_readme_shows_is_found(capsys: pytest.CaptureFixture[str]):
    folder = Path(__file__).parents[2] / "reports" / "upgrade"
    new, old = (str(folder / f"peft-{version}.jsonl") for version in ("0.21.2", "0.18.1"))
    assert main(["check", new, "--baseline", old]) == 1
    told = capsys.readouterr().out
    assert told.strip() in (folder / "README.md").read_text(encoding="utf-8")
    assert "trainable_params                 13,369,344     996,507,648  +7353.68 %" in told


def test_what_was_not_decided_is_not_called_no_regression(
    tmp_path: Path, baseline: str, capsys: pytest.CaptureFixture[str]
):
    run, summary = written(tmp_path / "now.jsonl", processes(1.0, 1.6, 0.9)), tmp_path / "summary.md"
    assert main(["check", run, "--baseline", baseline, "--summary", str(summary)]) == 0
    assert "\nUndecided: " in capsys.readouterr().out
    assert summary.read_text().startswith("### qbench check: Undecided")
    assert main(["check", run, "--baseline", baseline, "--strict", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["headline"] == "Undecided"
    worse = written(tmp_path / "worse.jsonl", processes(1.0, 1.6, 0.9, peak=8 * GIB))
    assert main(["check", worse, "--baseline", baseline]) == 1
    assert "\nFailed: " in capsys.readouterr().out


def test_a_summary_is_titled_by_its_own_verb(baseline: str):
    before = read_any(Path(baseline))
    text = summary_markdown(check(before, before), 0, "gate", ["To decide it takes more."])
    assert text.startswith("### qbench gate: No regression")
    assert "To decide it takes more." in text
