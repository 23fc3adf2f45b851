from __future__ import annotations

import json
from pathlib import Path

import pytest

from qbench.errors import RecordError
from qbench.records.document import read_any, record_places
from tests.comparison.hand_made import make_record


def test_a_printed_document_a_file_and_a_folder_hold_the_same_records(tmp_path: Path) -> None:
    records = [make_record(r=8), make_record(r=16)]
    values = [record.to_dict() for record in records]
    (tmp_path / "plan.json").write_text(json.dumps({"records": values}))
    (tmp_path / "records.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in values))
    for path in (tmp_path / "plan.json", tmp_path / "records.jsonl", tmp_path):
        assert read_any(path) == records


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "has no list of records"),
        ('{"records": 3}', "has no list of records"),
        ('{"records": [3]}', "has no list of records"),
        ('{"records": [{}]}', "record 1: schema_version is None"),
    ],
)
def test_what_is_no_document_is_refused(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(RecordError, match=rf"plan\.json: {problem}"):
        read_any(tmp_path / "plan.json")
    with pytest.raises(RecordError, match="cannot be read: No such file"):
        read_any(tmp_path / "other.json")


def test_places_pass_over_a_torn_last_line(tmp_path: Path) -> None:
    record = make_record()
    (tmp_path / "records.jsonl").write_text(json.dumps(record.to_dict()) + '\n{"schema_version":1,"run')
    assert read_any(tmp_path) == [record]
    assert record_places(tmp_path).lines == {(record.kind, record.point_id): 1}
