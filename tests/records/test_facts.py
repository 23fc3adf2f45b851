"""What a result stands on, of records that were made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny import write_tiny_model

from qbench.records.facts import environment_facts, facts_of, input_digests, machine_of
from qbench.records.record import Record
from qbench.scenario.schema import Point
from tests.comparison.hand_made import make_record

SOFTWARE = {"code_id": "c0de", "versions": {"torch": "2.13.0", "peft": "0.21.2"}}


def plan(**detail: Any) -> Record:
    environment = {"device": "cuda", **SOFTWARE, "inputs": {"data": "abc"}}
    return make_record(environment=environment, detail=detail)


def measured(device: str, settings: dict[str, str] | None, **environment: Any) -> Record:
    known = {"device": device, **SOFTWARE, "device_name": "abacus", "settings": settings, **environment}
    protocol = {"warmup_steps": 2, "steps": 10}
    return make_record(kind="measurement", environment=known, detail={"protocol": protocol})


def test_a_plan_stands_on_code_files_and_cards():
    record = plan(fits=[{"gpu": "T4", "fits": True}], alloc_conf="expandable_segments:True")
    assert facts_of(record).standing == {
        "code": "c0de",
        "version of torch": "2.13.0",
        "version of peft": "0.21.2",
        "content of data": "abc",
        "GPUs": ["T4"],
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        "calibrations": [],
    }


def test_plans_are_compared_where_kernels_and_allocator_are_the_same():
    allocator = {"expandable_segments": True, "max_split_size_bytes": None}
    comparable = facts_of(plan(compute_capability=[8, 9], allocator=allocator)).comparable
    assert comparable == {
        "device": "cuda",
        "content of data": "abc",
        "compute capability": "8.9",
        "allocator": "expandable_segments=True",
    }
    plain = facts_of(plan(allocator={"expandable_segments": False})).comparable
    assert (plain["allocator"], "compute capability" in plain) == ("defaults", False)


def test_a_measurement_stands_on_its_machine_settings_and_steps():
    cpu = facts_of(measured("cpu", {"OMP_NUM_THREADS": "2"}, cpu_count=4, driver="550"))
    cuda = facts_of(measured("cuda", {}, cpu_count=4, driver="550"))
    steps = {"warmup_steps": 2, "steps": 10}
    software = {"code": "c0de", "version of torch": "2.13.0", "version of peft": "0.21.2"}
    counted = {"machine": "abacus", "number of CPUs": 4, **steps}
    assert cpu.standing == {**software, **counted, "OMP_NUM_THREADS": "2"}
    assert cuda.standing == {**software, "machine": "abacus", "driver": "550", **steps}
    assert cpu.comparable == {
        "device": "cpu",
        "settings": "OMP_NUM_THREADS=2",
        **{name: str(value) for name, value in counted.items()},
    }
    assert cuda.comparable["settings"] == "none"
    assert "settings" not in facts_of(measured("cpu", None)).comparable


def test_the_machine_of_a_measurement_is_its_device_and_libraries():
    fingerprint = (("device_name", "abacus"), ("peft", "0.21.2"), ("torch", "2.13.0"))
    assert machine_of(measured("cpu", {})) == fingerprint
    assert machine_of(plan()) == ()


def test_facts_of_an_environment_are_its_texts_and_flags():
    environment = {
        "device": "cpu",
        "cpu_count": 4,
        "git_dirty": True,
        "versions": {"torch": "2", "peft": None},
    }
    assert environment_facts(environment) == {"device": "cpu", "git_dirty": True, "versions.torch": "2"}


def test_a_catalog_model_and_random_data_are_no_files():
    assert input_digests(Point(model="bigscience/bloom-560m")) == {}


def test_the_files_of_a_point_count_by_their_content(tmp_path: Path):
    model = write_tiny_model(tmp_path / "model", "HuggingFaceTB/SmolLM2-135M")
    text = tmp_path / "text.txt"
    text.write_text("one")
    point = Point(model=model, weights="pretrained", data=str(text))
    before = input_digests(point)
    # sha256sum of "one" begins with 7692c3ad3540.
    assert before["data"] == "7692c3ad3540"
    (tmp_path / "model" / "config.json").write_text("{}")
    after = input_digests(point)
    assert after["config.json"] != before["config.json"]
    assert after["data"] == before["data"]


def test_a_gguf_counts_by_its_content(tmp_path: Path):
    file = tmp_path / "model.gguf"
    file.write_text("one")
    assert input_digests(Point(model=str(file))) == {"gguf": "7692c3ad3540"}
    file.write_text("other")
    assert input_digests(Point(model=str(file)))["gguf"] != "7692c3ad3540"
    assert input_digests(Point(model=str(tmp_path / "none.gguf"))) == {}


def test_the_home_of_nobody_is_no_folder():
    assert input_digests(Point(model="~no_such_user/model")) == {}
