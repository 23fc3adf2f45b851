from __future__ import annotations

import csv
import io
import os

import pandas as pd
import pytest

from qbench.errors import RecordError
from qbench.report import export
from qbench.report.export import csv_text, write_report
from tests.comparison.hand_made import finding, make_record
from tests.report.sample_run import sample_run

FILES = ["report.charts.csv", "report.csv", "report.html", "report.md", "report.parquet"]

if not export.can_write_parquet():
    FILES.remove("report.parquet")


def test_a_report_is_a_page_and_what_stands_beside_it(tmp_path):
    paths = write_report(sample_run(), tmp_path / "new" / "folder", "Title")
    assert sorted(path.name for path in paths.values()) == FILES
    assert all(path.name == f"report.{suffix}" for suffix, path in paths.items())
    assert sorted(file.name for file in (tmp_path / "new" / "folder").iterdir()) == FILES
    assert paths["html"].read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_csv_has_a_line_for_each_record(tmp_path):
    records = [make_record(), make_record(precision="nf4", metrics={}, model='a,"b"')]
    paths = write_report(records, tmp_path, "Title")
    with paths["csv"].open(newline="", encoding="utf-8") as file:
        first, second = csv.DictReader(file)
    assert float(first["peak_allocated_bytes"]) == 14 * 2**30
    assert first["r"] == "16"
    assert second["peak_allocated_bytes"] == ""
    assert second["model"] == 'a,"b"'


def test_rows_have_the_numbers_that_the_report_names_and_their_place():
    records = [make_record(), make_record(precision="nf4")]
    first, second = csv.DictReader(io.StringIO(csv_text(records, ["a/records.jsonl:1", "a/records.jsonl:3"])))
    assert (first["record"], first["stored_at"]) == ("1", "a/records.jsonl:1")
    assert (second["record"], second["stored_at"]) == ("2", "a/records.jsonl:3")
    assert next(csv.DictReader(io.StringIO(csv_text(records))))["stored_at"] == ""


def test_a_speed_that_is_not_valid_is_marked():
    detail = {"validity": [finding("others_on_gpu", "invalid")]}
    records = [make_record(kind="measurement", detail=detail), make_record(precision="nf4")]
    first, second = csv.DictReader(io.StringIO(csv_text(records)))
    assert first["not_valid"] == "step_time_s, tokens_per_s"
    assert second["not_valid"] == ""


@pytest.mark.parametrize("start", list("=+-@\t\r"))
def test_no_text_becomes_a_formula(start):
    text = f"{start}1+cmd|' /C calc'!A0"
    record = make_record(run_id=text, metrics={"peak_allocated_bytes": -5})
    (row,) = csv.DictReader(io.StringIO(csv_text([record]), newline=""))
    assert row["run_id"] == "'" + text.replace("\r", " ")
    assert float(row["peak_allocated_bytes"]) == -5


def test_parquet_holds_what_the_csv_does(tmp_path):
    pytest.importorskip("pyarrow")
    paths = write_report(sample_run(), tmp_path, "Title")
    stored, written = pd.read_parquet(paths["parquet"]), export.report_frame(sample_run())
    pd.testing.assert_frame_equal(stored, written, check_dtype=False)


def test_no_records_is_an_error(tmp_path):
    with pytest.raises(RecordError, match="no records to report on"):
        write_report([], tmp_path, "Title")


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        RecordError, match=r"cannot be written: Not a directory; name another folder with --out"
    ):
        write_report([make_record()], tmp_path / "file" / "sub", "Title")


def test_a_report_that_is_there_is_replaced(tmp_path):
    write_report([make_record()], tmp_path, "Old title")
    paths = write_report([make_record()], tmp_path, "New title")
    assert "New title" in paths["md"].read_text()
    assert sorted(os.listdir(tmp_path)) == FILES


def test_text_that_utf8_cannot_hold_does_not_stop_the_report(tmp_path):
    failed = make_record(outcome="crashed", metrics={}, detail={"error": "bad byte \udcff"})
    paths = write_report([failed], tmp_path, "Title")
    assert "bad byte ?" in paths["html"].read_text(encoding="utf-8")
