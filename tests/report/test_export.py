from __future__ import annotations

import csv
import os

import pytest

from qbench.errors import RecordError
from qbench.report import export
from qbench.report.export import write_csv, write_report
from tests.compare.hand_made import make_record
from tests.report.sample_run import sample_run


def test_a_report_is_three_files(tmp_path):
    paths = write_report(sample_run(), tmp_path / "new" / "folder", "Title")
    assert {suffix: path.name for suffix, path in paths.items()} == {
        "html": "report.html",
        "md": "report.md",
        "csv": "report.csv",
    }
    assert sorted(file.name for file in (tmp_path / "new" / "folder").iterdir()) == [
        "report.csv",
        "report.html",
        "report.md",
    ]
    assert paths["html"].read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_csv_has_a_line_for_each_record(tmp_path):
    records = [make_record(), make_record(precision="nf4", metrics={}, model='a,"b"\nc')]
    write_csv(records, tmp_path / "r.csv")
    with (tmp_path / "r.csv").open(newline="", encoding="utf-8") as file:
        first, second = csv.DictReader(file)
    assert float(first["peak_allocated_bytes"]) == 14 * 2**30
    assert first["r"] == "16"
    assert second["peak_allocated_bytes"] == ""
    assert second["model"] == 'a,"b"\nc'


def test_no_records_is_an_error(tmp_path):
    with pytest.raises(RecordError, match="no records to report on"):
        write_report([], tmp_path, "Title")


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        RecordError, match=r"file/sub: cannot make the folder: Not a directory; name another with --out"
    ):
        write_report([make_record()], tmp_path / "file" / "sub", "Title")


def test_a_disk_that_fills_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    target = tmp_path / "r.csv"
    target.write_text("old")

    def full(source, destination):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export.os, "replace", full)
    with pytest.raises(RecordError, match=r"r\.csv: cannot be written: No space left on device"):
        write_csv([make_record()], target)
    assert [file.name for file in tmp_path.iterdir()] == ["r.csv"]
    assert target.read_text() == "old"


def test_a_report_that_is_there_is_replaced(tmp_path):
    write_report([make_record()], tmp_path, "Old title")
    paths = write_report([make_record()], tmp_path, "New title")
    assert "New title" in paths["md"].read_text()
    assert len(os.listdir(tmp_path)) == 3


def test_text_that_utf8_cannot_hold_does_not_stop_the_report(tmp_path):
    failed = make_record(outcome="crashed", metrics={}, detail={"error": "bad byte \udcff"})
    paths = write_report([failed], tmp_path, "Title")
    assert "bad byte ?" in paths["html"].read_text(encoding="utf-8")
