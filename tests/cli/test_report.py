"""`qbench report` from the command line: its JSON, and records that something has damaged."""

from __future__ import annotations

import csv
import json
import random
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from qbench.cli.main import main
from qbench.records.store import read_stored
from qbench.report.charts.all import charts
from qbench.report.content import gather_content
from qbench.report.export import csv_text, summary_document
from qbench.report.markdown import SUMMARY_LIMIT, markdown_text
from qbench.report.terminal.run import run_lines

DEMO = Path(__file__).parents[2] / "reports" / "demo" / "records.jsonl"
GIB = 1 << 30


def test_json_names_the_files_and_the_savings(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["report", str(DEMO), "--out", str(tmp_path / "out"), "--json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert captured.err == ""
    assert list(document) == [
        "files",
        "scope",
        "headline",
        "capacity",
        "quality",
        "accuracy",
        "warnings",
        "comparison",
    ]
    assert all(Path(path).exists() for path in document["files"].values())
    measured = {
        pair["candidate"]: pair["saved"]["peak_allocated_bytes"]
        for pair in document["comparison"]
        if pair["kind"] == "measurement"
    }
    # As measured in reports/demo: 605,071,872 B in bf16, 569,080,320 B in nf4.
    assert measured["nf4"]["baseline"] == 605_071_872
    assert measured["nf4"]["candidate"] == 569_080_320
    assert measured["nf4"]["saved"] == 35_991_552


def test_an_interrupted_run_is_said_to_be_one_above_all_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = tmp_path / "run"
    run.mkdir()
    # Four plans and the first two of four measurements.
    (run / "records.jsonl").write_bytes(b"".join(DEMO.read_bytes().splitlines(keepends=True)[:6]))
    assert main(["report", str(run)]) == 0
    said = "Not finished: 2 of 4 planned points are not measured yet (demo)."
    _, sentences = capsys.readouterr().out.split("\n\n", 1)
    assert sentences.startswith(said)
    page = (run / "report" / "report.html").read_text()
    assert page.index(said) < page.index("54\u00a0% more")


def test_failed_plans_are_said_above_all_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    records = [json.loads(line) for line in DEMO.read_text().splitlines()]
    for record in records:
        if record["kind"] == "plan":
            record |= {"outcome": "error", "metrics": {}, "detail": {"error": "OSError: no config.json"}}
    run = tmp_path / "records.jsonl"
    run.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    assert main(["report", str(run), "--out", str(tmp_path)]) == 0
    said = "4 plans failed: OSError: no config.json."
    _, sentences = capsys.readouterr().out.split("\n\n", 1)
    assert sentences.startswith(said)
    page = (tmp_path / "report.html").read_text()
    assert page.index(said) < page.index("54\u00a0% more")
    # The three pairs that were measured, and none of the plans.
    document = summary_document(gather_content(read_stored(run).records))
    assert document["warnings"][0] == said
    assert [pair["kind"] for pair in document["comparison"]] == ["measurement"] * 3


def test_a_comment_is_written_and_a_summary_appended(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    comment, summary = tmp_path / "comment.md", tmp_path / "summary.md"
    comment.write_text("old")
    summary.write_text("# Earlier\n")
    arguments = ["report", str(DEMO), "--out", str(tmp_path / "out"), "--pr", str(comment)]
    assert main([*arguments, "--summary", str(summary)]) == 0
    text = comment.read_text()
    assert text.startswith("## ")
    assert summary.read_text() == f"# Earlier\n{text}"
    assert main([*arguments[:4], "--pr", str(tmp_path / "no" / "file")]) == 2
    assert "--pr: " in capsys.readouterr().err


@pytest.mark.parametrize("room", [-1, 0, 99, 100, 2_000])
def test_a_summary_that_is_nearly_full_keeps_to_its_limit(
    room: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    summary = tmp_path / "summary.md"
    summary.write_bytes(b"x" * (SUMMARY_LIMIT - room))
    assert main(["report", str(DEMO), "--out", str(tmp_path / "out"), "--summary", str(summary)]) == 0
    added = summary.read_bytes()[SUMMARY_LIMIT - room :].decode()
    assert len(added.encode()) <= max(room, 0)
    assert ("too long for this place" in added) == (room >= 100)
    assert ("nothing was added" in capsys.readouterr().err) == (room < 100)


def test_rows_say_which_line_they_are_of(tmp_path: Path):
    assert main(["report", str(DEMO), "--out", str(tmp_path)]) == 0
    with (tmp_path / "report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines = DEMO.read_text().splitlines()
    for row in rows:
        path, _, number = row["stored_at"].rpartition(":")
        assert Path(path) == DEMO
        stored = json.loads(lines[int(number) - 1])
        assert stored["point_id"] == row["point_id"]
        assert stored["kind"] == row["kind"]


def test_damaged_lines_are_told_and_the_others_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    lines = DEMO.read_text().splitlines()
    bad = json.loads(lines[1])
    bad["metrics"]["peak_allocated_bytes"] = "much"
    nested = "[" * 100_000
    written = [lines[0], json.dumps(bad), *lines[2:], nested, ""]
    (tmp_path / "records.jsonl").write_text("\n".join(written))
    assert main(["report", str(tmp_path)]) == 0
    first, second = capsys.readouterr().err.splitlines()
    assert f"left out: {tmp_path}/records.jsonl:2: metrics.peak_allocated_bytes: Input should be" in first
    assert f"records.jsonl:{len(lines) + 1}: not JSON: it nests too deeply" in second
    assert len((tmp_path / "report" / "report.csv").read_text().splitlines()) == len(lines)


def test_many_damaged_lines_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    whole = DEMO.read_text().splitlines()[0]
    (tmp_path / "records.jsonl").write_text("\n".join([whole, *["{}"] * 10, ""]))
    assert main(["report", str(tmp_path), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["comparison"] == []
    assert len(captured.err.splitlines()) == 4
    assert "7 more lines" in captured.err


VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 10**18, 10**400, 1e308, float("nan"), float("-inf"), "", "text", "\ud800", "<b>",
    [], {}, [None], ["x"], [[1]], {"a": 1}, {"a": {"b": "c"}}, [1, "x", None],
)  # fmt: skip


def demo_records() -> list[dict[str, Any]]:
    """Return the committed records, timelines cut to four samples, which would draw most of the changes."""
    records = [json.loads(line) for line in DEMO.read_text().splitlines()]
    for record in records:
        if "timeline" in record["detail"]:
            del record["detail"]["timeline"][4:]
    return records


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value] if levels % 2 else {"in": value}
    return value


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return every container with each of its keys."""
    found = []
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        found += [(value, key), *places(part)]
    return found


def mutated(record: dict[str, Any], source: random.Random) -> str:
    """Return a line with one to three changes: a value replaced, a key lost, added or renamed, bytes cut."""
    copy = json.loads(json.dumps(record))
    for _ in range(source.randint(1, 3)):
        container, key = source.choice(places(copy))
        # A copy: a later change within the same record must not reach into VALUES.
        new = deepcopy(source.choice([*VALUES, deep(source.choice((3, 30, 300, 301)))]))
        kind = source.random()
        if kind < 0.7:
            container[key] = new
        elif kind < 0.85:
            del container[key]
        elif isinstance(container, dict):
            container[f"{key}x"] = container.pop(key)
        else:
            container.insert(key, new)
        if not copy:
            break
    line = json.dumps(copy)
    if source.random() < 0.03:
        start = source.randrange(len(line))
        line = line[:start] + source.choice(["", "\x00", "[", "}", '"']) + line[start + source.randrange(9) :]
    return line


def test_two_thousand_damaged_files_never_end_in_a_traceback(tmp_path: Path):
    """The page, which takes a fifth of a second to render, is left to the test below."""
    source = random.Random(20261124)
    demo = demo_records()
    demo = [demo[1], demo[2], demo[6]]  # bf16 and nf4 planned, nf4 measured
    whole = [json.dumps(record) for record in demo]
    file = tmp_path / "records.jsonl"
    refused: list[str] = []
    for number in range(2000):
        changed = number % len(demo)
        lines = [*whole[:changed], mutated(demo[changed], source), *whole[changed + 1 :]]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogatepass")
        stored = read_stored(file)
        refused += stored.damaged
        content = gather_content(stored.records)
        json.dumps(summary_document(content))
        run_lines(content.results)
        if number % 50 == 0:
            csv_text(stored.records)
            charts(content.results)
            markdown_text(content, "t").encode(errors="replace")
    assert 200 < len(refused) < 1900
    assert [text for text in refused if "\n" in text or not text.startswith(f"{file}:")] == []


@pytest.mark.parametrize("seed", range(8))
def test_damaged_files_are_reported_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: int):
    source = random.Random(seed)
    demo = demo_records()
    lines = [*map(json.dumps, demo[::2]), *(mutated(record, source) for record in demo)]
    (tmp_path / "records.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogatepass")
    assert main(["report", str(tmp_path), "--json"]) == 0
    captured = capsys.readouterr()
    json.loads(captured.out)
    assert all(line.startswith("qbench: left out: ") for line in captured.err.splitlines())
