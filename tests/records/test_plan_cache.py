"""Plans come back from the cache as they went in; anything else is no plan at all."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from qbench.records import plan_cache
from qbench.records import software as fingerprint
from qbench.records.plan_cache import KEPT_STATES, PlanCache
from qbench.records.record import SCHEMA_VERSION, Record
from qbench.records.software import software
from qbench.scenario.schema import Point

FACTS = {"point": {"model": "a"}, "device": "cuda"}


def record() -> Record:
    return Record(
        run_id="plan",
        point=Point(model="bigscience/bloom-560m"),
        kind="plan",
        outcome="ok",
        metrics={"peak_allocated_bytes": 1024},
        detail={"caveats": []},
        environment={"device": "cuda"},
        created_at="2026-11-30T12:00:00+00:00",
    )


def test_a_plan_comes_back_as_it_was(tmp_path: Path) -> None:
    cache = PlanCache(tmp_path)
    assert cache.get(FACTS) is None
    cache.put(FACTS, record())
    assert PlanCache(tmp_path).get({"device": "cuda", "point": {"model": "a"}}) == record()


def test_other_facts_have_other_plans(tmp_path: Path) -> None:
    cache = PlanCache(tmp_path)
    cache.put(FACTS, record())
    assert cache.get({**FACTS, "device": "cpu"}) is None


def test_other_libraries_have_other_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PlanCache(tmp_path).put(FACTS, record())
    monkeypatch.setattr(plan_cache, "software", lambda: {"versions": {"peft": "99"}})
    assert PlanCache(tmp_path).get(FACTS) is None


def test_an_edited_library_has_other_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PlanCache(tmp_path).put(FACTS, record())
    monkeypatch.setattr(plan_cache, "software", lambda: {**software(), "fingerprints": {"peft": "c0ffee"}})
    assert PlanCache(tmp_path).get(FACTS) is None


def test_a_cache_that_does_not_read_takes_the_new_plan(tmp_path: Path) -> None:
    PlanCache(tmp_path).put(FACTS, record())
    newer = replace(record(), metrics={"peak_allocated_bytes": 2048})
    fresh = PlanCache(tmp_path, reads=False)
    assert fresh.get(FACTS) is None
    fresh.put(FACTS, newer)
    assert PlanCache(tmp_path).get(FACTS) == newer


def test_a_plan_of_another_version_of_the_records_is_none(tmp_path: Path) -> None:
    cache = PlanCache(tmp_path)
    cache.put(FACTS, replace(record(), schema_version=SCHEMA_VERSION - 1))
    assert cache.get(FACTS) is None


@pytest.mark.parametrize("name", ["records/record.py", "units.py", "quick_imports.py", "runs/plans.py"])
def test_code_that_plans_go_through_is_in_the_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    package = tmp_path / "qbench"
    shutil.copytree(Path(fingerprint.__file__).parents[1], package, ignore=shutil.ignore_patterns("*.pyc"))
    monkeypatch.setattr(fingerprint, "__file__", str(package / "records" / "software.py"))
    before = fingerprint.code_id.__wrapped__()
    with (package / name).open("a") as file:
        file.write("# edited\n")
    assert fingerprint.code_id.__wrapped__() != before


def test_a_damaged_plan_is_none(tmp_path: Path) -> None:
    cache = PlanCache(tmp_path)
    cache.put(FACTS, record())
    (file,) = tmp_path.rglob("*.json")
    whole = file.read_text()
    file.write_text(whole[:-9])
    assert cache.get(FACTS) is None
    file.write_text(whole.replace("1024", "1025"))
    assert cache.get(FACTS) is None
    file.write_text('{"schema_version": 1}')
    assert cache.get(FACTS) is None
    file.write_text(whole)
    assert cache.get(FACTS) == record()


def test_a_folder_that_cannot_be_written_is_an_empty_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = PlanCache(tmp_path / "file")
    cache.put(FACTS, record())
    assert cache.get(FACTS) is None


def test_old_states_of_the_code_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for state in range(KEPT_STATES + 2):
        monkeypatch.setattr(plan_cache, "software", lambda state=state: {"code_id": str(state)})
        PlanCache(tmp_path).put(FACTS, record())
    assert len(list((tmp_path / "plans").iterdir())) == KEPT_STATES
    assert PlanCache(tmp_path).get(FACTS) == record()
