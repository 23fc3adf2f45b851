from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from qbench.errors import RecordError
from qbench.records.record import SCHEMA_VERSION, Record, record_from_dict, sound_record, upgraded
from qbench.scenario.schema import LoraSettings, Point

RECORD = Record(
    run_id="run-1",
    point=Point(model="m", precision="nf4", lora=LoraSettings(r=8, target_modules=("q_proj", "v_proj"))),
    kind="measurement",
    outcome="ok",
    metrics={"step_time_s": [0.5, 0.25], "peak_allocated_bytes": 1 << 40},
    detail={"repeat": 1},
    environment={"device": "cpu"},
    created_at="2026-01-02T03:04:05+00:00",
)


NESTED: Any = []
for _ in range(20):
    NESTED = [NESTED]


def test_a_record_survives_its_dictionary() -> None:
    assert record_from_dict(RECORD.to_dict(), "here") == RECORD


def test_a_record_that_was_read_is_the_same_in_a_folder_that_holds_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Record(
        run_id="run-1",
        point=Point(model="org/name", precision="nf4"),
        kind="plan",
        outcome="ok",
        metrics={},
        created_at="2026-01-02T03:04:05+00:00",
    )
    stored = made.to_dict()
    line = json.dumps(stored).encode()
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "org" / "name" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    for read in (record_from_dict(stored, "here"), sound_record(line)):
        assert read is not None
        assert read.to_dict() == stored
        assert read.point_id == read.point.point_id == stored["point_id"]
        # A point of another precision, as comparisons make it, is of the same model.
        assert read.point.model_copy(update={"precision": "bf16"}).point_id == bf16_id(stored["point"])
        assert (read.point, hash(read.point)) == (made.point, hash(made.point))
        assert "is_stored" not in read.point.model_dump_json()
    # The point of a scenario that is read here is that of the folder.
    assert made.point_id != stored["point_id"]


def bf16_id(point: dict[str, Any]) -> str:
    canonical = json.dumps(point | {"precision": "bf16"}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def test_the_dictionary_has_the_keys_of_the_format_in_order() -> None:
    assert list(RECORD.to_dict()) == [
        "schema_version",
        "run_id",
        "point_id",
        "point",
        "kind",
        "outcome",
        "metrics",
        "detail",
        "environment",
        "created_at",
    ]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"schema_version": 3}, "schema_version 3 is newer than 2; update qbench"),
        ({"schema_version": 0}, "schema_version 0 cannot be read; 1 to 2 can"),
        ({"schema_version": "1"}, "schema_version is '1'; this is not a qbench record"),
        ({"kind": "guess"}, "kind is 'guess'; allowed: plan, measurement"),
        ({"outcome": None}, "outcome is None; allowed: ok, oom, timeout, crashed, error"),
        ({"metrics": [1]}, r"metrics is \[1\]; it must be an object"),
        ({"run_id": 3}, "run_id: Input should be a valid string"),
        (
            {"run_id": "\ud800"},
            "run_id: Input should be a valid string, unable to parse raw data as a unicode",
        ),
        ({"metrics": {"step_time_s": "slow"}}, "metrics.step_time_s: Input should be a valid number"),
        ({"metrics": {"step_time_s": [1.0, "slow"]}}, r"metrics.step_time_s(\.1)?: Input should be a valid"),
        ({"metrics": {"step_time_s": [1.0, -1.0]}}, r"metrics.step_time_s(\.1)?: Input should be"),
        ({"metrics": {"step_time_s": float("nan")}}, "metrics.step_time_s: Input should be"),
        ({"metrics": {"peak_allocated_bytes": -1}}, "metrics.peak_allocated_bytes: Input should be"),
        ({"metrics": {"breakdown_bytes": {"weights": -1}}}, "metrics.breakdown_bytes.weights: Input should"),
        ({"metrics": {"peak_allocated_bytes": 10**30}}, "metrics.peak_allocated_bytes: Input should be"),
        ({"metrics": {"breakdown_bytes": {"weights": [1]}}}, "metrics.breakdown_bytes.weights: Input should"),
        ({"detail": {"skipped": [{"module": "m"}]}}, "detail.skipped.0: Field required"),
        ({"point_id": [1]}, "point_id: Input should be a valid string"),
        ({"detail": {"allocator": "none"}}, "detail.allocator: Input should be a valid dict"),
        ({"detail": {"later": NESTED}}, "detail nests more than 20 levels"),
        ({"environment": {"versions": ["torch"]}}, "environment.versions: Input should be a valid dict"),
        ({"point": {"model": "m", "precision": "nf5"}}, "point.precision: Input should be 'fp32'"),
        ({"point": {}}, "point.model: Field required"),
        ({"point": 3}, "point: Input should be a valid dictionary"),
    ],
)
def test_what_is_not_a_record_is_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(RecordError, match=f"^a.jsonl:7: {problem}"):
        record_from_dict(RECORD.to_dict() | changes, "a.jsonl:7")


def test_missing_keys_are_named() -> None:
    values = RECORD.to_dict()
    del values["kind"], values["environment"]
    with pytest.raises(RecordError, match="the record lacks kind, environment; it was not written by qbench"):
        record_from_dict(values, "here")


def test_old_versions_are_upgraded_one_version_at_a_time() -> None:
    upgrades = {
        1: lambda values: values | {"vram": values["memory"]},
        2: lambda values: {"peak": values["vram"]},
    }
    values = upgraded({"schema_version": 1, "memory": 5}, "here", upgrades=upgrades, newest=3)
    assert values == {"schema_version": 3, "peak": 5}
    assert upgraded({"schema_version": 3}, "here", upgrades=upgrades, newest=3) == {"schema_version": 3}
    with pytest.raises(RecordError, match="here: schema_version 2 cannot be read"):
        upgraded({"schema_version": 1}, "here", upgrades={1: dict}, newest=3)


def test_every_older_version_has_its_upgrade() -> None:
    assert upgraded({"schema_version": 1}, "here")["schema_version"] == SCHEMA_VERSION
