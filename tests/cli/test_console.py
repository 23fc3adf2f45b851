"""What is printed moves no cursor, ends no line and is no command of a CI system, whatever names hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from comparison.hand_made import make_point, make_record

from qbench.cli.console import print_command, print_error, print_json, print_note, print_table, print_text
from qbench.cli.main import main
from qbench.records.store import open_store
from qbench.report.markdown import escaped
from qbench.report.table import Column, Table
from qbench.units import printable

EVIL = "2.0\n::add-mask::2\r##[error]x\x1b]0;title\x07\x9b31m\u202e"


def acts(text: str) -> list[str]:
    """Return the lines that a terminal or GitHub's log would act on."""
    lines = text.split("\n")
    return [
        line for line in lines if line.lstrip().startswith("::") or "##[" in line or printable(line) != line
    ]


@pytest.mark.parametrize("show", [print_text, print_note, print_error], ids=["text", "note", "error"])
def test_a_line_is_harmless(show, capsys: pytest.CaptureFixture[str]):
    show(EVIL)
    show("  ::error::in the middle of nothing")
    captured = capsys.readouterr()
    assert acts(captured.out + captured.err) == []
    assert "add-mask" in captured.out + captured.err


def test_a_line_keeps_what_is_text(capsys: pytest.CaptureFixture[str]):
    print_text("a\tb: 3 x 4 °C, qbench::x\n\nnext")
    assert capsys.readouterr().out == "a\tb: 3 x 4 °C, qbench::x\n\nnext\n"


def test_a_command_is_one_line(capsys: pytest.CaptureFixture[str]):
    print_command(f"::error title=a::{EVIL}")
    assert capsys.readouterr().out.count("\n") == 1


def test_a_table_is_harmless(capsys: pytest.CaptureFixture[str]):
    table = Table(
        columns=(Column(EVIL), Column("b")), rows=(("::error::x", EVIL),), notes=("::error::y", EVIL)
    )
    print_table(table, title=f"[bold]{EVIL}")
    out = capsys.readouterr().out
    assert acts(out) == []
    assert "[bold]" in out


def test_a_document_reads_back_as_it_was(capsys: pytest.CaptureFixture[str]):
    print_json({"name": EVIL, "umlaut": "ö"})
    out = capsys.readouterr().out
    assert acts(out) == []
    assert json.loads(out) == {"name": EVIL, "umlaut": "ö"}
    assert "ö" in out


def test_nothing_is_printed_of_a_document_that_json_cannot_write(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(ValueError, match="not JSON compliant"):
        print_json({"first": 1, "then": float("nan")})
    assert capsys.readouterr().out == ""


def test_markdown_has_no_control_characters():
    assert acts(escaped(EVIL)) == []


def test_a_check_of_foreign_records_is_harmless(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Versions, errors and labels of a baseline reach terminal, marks and summary."""
    for folder, version in (("a", "1.0"), ("b", EVIL)):
        record = make_record(point=make_point(), environment={"device": "cuda", "torch": version})
        with open_store(tmp_path / folder) as store:
            store.append(record)
    summary = tmp_path / "summary.md"
    command = ["check", str(tmp_path / "b"), "--baseline", str(tmp_path / "a"), "--summary", str(summary)]
    main([*command, "--annotations", "github"])
    captured = capsys.readouterr()
    assert acts(captured.out + captured.err + summary.read_text()) == []
    main(["report", str(tmp_path / "b")])
    captured = capsys.readouterr()
    assert acts(captured.out + captured.err) == []
