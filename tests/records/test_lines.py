"""A record as a line: what the fast ways skip and refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qbench.errors import RecordError
from qbench.records.lines import encoded, parsed_record, without_timeline
from qbench.records.store import read_records
from tests.compare.hand_made import make_record


def line_of(timeline: Any, **detail: Any) -> bytes:
    return encoded(make_record(detail={"phases": {"forward": 3}, "timeline": timeline, **detail}))


def test_a_timeline_is_left_out_and_all_else_is_as_it_was(tmp_path: Path) -> None:
    # An error text may quote a timeline; its quotes are escaped, so that it is no key.
    line = line_of([[0, 1024], [12, 2048]], error='{"timeline":[[1,2]]}')
    (tmp_path / "records.jsonl").write_bytes(line)
    (whole,), (rest,) = read_records(tmp_path), read_records(tmp_path, timelines=False)
    assert whole.detail["timeline"] == [[0, 1024], [12, 2048]]
    assert rest.detail == whole.detail | {"timeline": None}
    assert (rest.metrics, rest.point, rest.environment) == (whole.metrics, whole.point, whole.environment)


@pytest.mark.parametrize(
    "timeline",
    [[[0, 1], [2]], [[0, 1, 2], [3, 4]], [[0, "x"]], [[0, 1.5]], [[0, [1, 2]]], [[[0, 1]]], [[0, 1], 3]],
)
def test_a_damaged_timeline_is_refused_with_and_without_it(timeline: Any) -> None:
    line = line_of(timeline)
    for each in (line, without_timeline(line)):
        with pytest.raises(RecordError, match=r"^here: detail\.timeline"):
            parsed_record(each, "here")


@pytest.mark.parametrize("damage", [b"]]\x00", b"],[5,7", b"1,]]", b"[[[0,"])
def test_a_damaged_byte_in_a_timeline_is_no_json_with_and_without_it(damage: bytes) -> None:
    line = line_of([[0, 1024], [12, 2048]]).replace(b"]]", damage, 1)
    for each in (line, without_timeline(line)):
        with pytest.raises(RecordError, match=r"^here: "):
            parsed_record(each, "here")


def test_an_empty_and_an_absent_timeline_stay() -> None:
    for line in (line_of([]), line_of(None), encoded(make_record())):
        assert without_timeline(line) == line


def test_what_json_lacks_is_unknown() -> None:
    line = encoded(make_record(metrics={"loss": [1.5, 2.5], "flops": 3.0}))
    line = line.replace(b"2.5", b"NaN").replace(b"3.0", b"-Infinity")
    assert parsed_record(line, "here").metrics == {"loss": [1.5, None], "flops": None}


def test_a_record_that_was_read_is_written_as_it_was() -> None:
    # Whole numbers where fractions are allowed, and keys in an order of their own.
    values = make_record(metrics={"loss": [2, 3.25], "flops": 7}).to_dict()
    values["detail"] = {"later": 1, "repeat": 2, "compute_capability": [8, 9], "earlier": {"b": 1, "a": 2}}
    line = json.dumps(values, separators=(",", ":")).encode() + b"\n"
    assert encoded(parsed_record(line, "here")) == line
