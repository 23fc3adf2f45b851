"""A record as a line: what the fast ways skip and refuse."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qbench.comparison.check import check
from qbench.errors import RecordError
from qbench.records.lines import encoded, parsed_record, parsed_without_bulk, without_bulk
from qbench.records.metrics import METRICS
from qbench.records.store import read_records
from tests.comparison.hand_made import make_record

REPORTS = Path(__file__).parents[2] / "reports"


def line_of(timeline: Any, **detail: Any) -> bytes:
    return encoded(make_record(detail={"phases": {"forward": 3}, "timeline": timeline, **detail}))


def test_what_is_long_is_left_out_and_all_else_is_as_it_was(tmp_path: Path) -> None:
    # An error text may quote a timeline; its quotes are escaped, so that it is no key.
    errors = {"base_model.model.layers.0.q_proj": 0.09, "layers.1": 1.5e-05}
    quality = {"loss_before": 2.5, "by_module": errors, "weights_error": "none"}
    line = line_of([[0, 1024], [12, 2048]], quality=quality, error='{"timeline":[[1,2]]}')
    (tmp_path / "records.jsonl").write_bytes(line)
    (whole,), (rest,) = read_records(tmp_path), read_records(tmp_path, bulk=False)
    assert (whole.detail["timeline"], whole.detail["quality"]) == ([[0, 1024], [12, 2048]], quality)
    assert rest.detail == whole.detail | {"timeline": None, "quality": quality | {"by_module": None}}
    assert (rest.metrics, rest.point, rest.environment) == (whole.metrics, whole.point, whole.environment)


@pytest.mark.parametrize(
    "errors",
    [{}, {"a": [1]}, {"a": {"b": 0.5}}, {"a b": 0.5}, {"a": 0.5, "b": "0.5"}, {'"': 0.5}],
)
def test_errors_by_module_of_another_form_stay(errors: Any) -> None:
    line = line_of(None, quality={"by_module": errors})
    assert without_bulk(line) == line


@pytest.mark.parametrize(
    "timeline",
    [[[0, 1], [2]], [[0, 1, 2], [3, 4]], [[0, "x"]], [[0, 1.5]], [[0, [1, 2]]], [[[0, 1]]], [[0, 1], 3]],
)
def test_a_damaged_timeline_is_refused_with_and_without_it(timeline: Any) -> None:
    line = line_of(timeline)
    for read in (parsed_record, parsed_without_bulk):
        with pytest.raises(RecordError, match=r"^here: detail\.timeline"):
            read(line, "here")


@pytest.mark.parametrize("damage", [b"]]\x00", b"],[5,7", b"1,]]", b"[[[0,"])
def test_a_damaged_byte_in_a_timeline_is_no_json_with_and_without_it(damage: bytes) -> None:
    line = line_of([[0, 1024], [12, 2048]]).replace(b"]]", damage, 1)
    for read in (parsed_record, parsed_without_bulk):
        with pytest.raises(RecordError, match=r"^here: "):
            read(line, "here")


def test_an_empty_and_an_absent_timeline_stay() -> None:
    for line in (line_of([]), line_of(None), encoded(make_record())):
        assert without_bulk(line) == line


def test_what_json_lacks_is_unknown() -> None:
    line = encoded(make_record(metrics={"loss": [1.5, 2.5], "flops": 3.0}))
    line = line.replace(b"2.5", b"NaN").replace(b"3.0", b"-Infinity")
    for read in (parsed_record, parsed_without_bulk):
        assert read(line, "here").metrics == {"loss": [1.5, None], "flops": None}


def test_what_json_lacks_is_unknown_where_anything_is_allowed() -> None:
    line = line_of(None, later=0.25, model={"scale": 0.5})
    line = line.replace(b"0.25", b"NaN").replace(b"0.5", b"Infinity")
    for read in (parsed_record, parsed_without_bulk):
        detail = read(line, "here").detail
        assert (detail["later"], detail["model"]) == (None, {"scale": None})


def test_an_error_by_module_that_is_no_number_is_unknown() -> None:
    line = line_of(None, quality={"by_module": {"a": float("nan"), "b": 0.5}})
    assert parsed_record(line, "here").detail["quality"]["by_module"] == {"a": None, "b": 0.5}


def test_a_place_in_a_message_is_that_of_the_whole_line() -> None:
    line = line_of([[0, 1024], [12, 2048]]).replace(b'"created_at":"', b'"created_at":')
    # The year is a number, and what follows it has no place there.
    end = line.index(b'"created_at":') + len(b'"created_at":2026')
    for read in (parsed_record, parsed_without_bulk):
        with pytest.raises(RecordError, match=rf"char {end}\b"):
            read(line, "here")


@pytest.mark.parametrize("key", ["later", "model", "skipped"])
def test_what_nests_too_deeply_is_refused_in_either_way(key: str) -> None:
    deep: Any = 1
    for _ in range(30):
        deep = [deep]
    held = {"later": deep, "model": {"x": deep}}.get(
        key, [{"module": "a", "reason": "", "params": 1, "more": deep}]
    )
    line = line_of(None, **{key: held})
    for read in (parsed_record, parsed_without_bulk):
        with pytest.raises(RecordError, match=r"^here: detail nests more than 20 levels"):
            read(line, "here")


@pytest.mark.parametrize(
    "file",
    sorted([*REPORTS.rglob("records.jsonl"), *REPORTS.glob("upgrade/*.jsonl")]),
    ids=lambda file: str(file.relative_to(REPORTS)),
)
def test_the_fast_way_reads_what_the_other_does(file: Path) -> None:
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        whole, fast = parsed_record(line, "here"), parsed_without_bulk(line, "here")
        known = {name: value for name, value in whole.metrics.items() if name in METRICS}
        detail = {
            name: None
            if name == "timeline"
            else value | {"by_module": None}
            if name == "quality" and value and value.get("by_module")
            else value
            for name, value in whole.detail.items()
        }
        assert fast == replace(whole, metrics=known, detail=detail), number
        assert list(check([whole], [fast]).findings) == list(check([whole], [whole]).findings)


def test_a_record_that_was_read_is_written_as_it_was() -> None:
    # Whole numbers where fractions are allowed, and keys in an order of their own.
    values = make_record(metrics={"loss": [2, 3.25], "flops": 7}).to_dict()
    values["detail"] = {"later": 1, "repeat": 2, "compute_capability": [8, 9], "earlier": {"b": 1, "a": 2}}
    line = json.dumps(values, separators=(",", ":")).encode() + b"\n"
    assert encoded(parsed_record(line, "here")) == line
