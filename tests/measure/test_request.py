"""The document that `qbench run-point` reads: what it takes, and what it says of one that it does not."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from qbench.errors import MeasureError, ScenarioError
from qbench.measure.request import read_request, request_of
from qbench.measure.settings import take_settings
from qbench.measure.task import Task
from qbench.scenario.schema import MeasureSettings, Point, RunDevice

SMALLEST: dict[str, Any] = {"schema_version": 1, "point": {"model": "gpt2"}, "device": "cpu"}


def written(folder: Path, document: Any) -> Path:
    file = folder / "point.json"
    file.write_text(document if isinstance(document, str) else json.dumps(document))
    return file


def test_what_is_left_out_is_what_it_is_in_a_scenario(tmp_path: Path):
    request = read_request(written(tmp_path, SMALLEST))
    assert request.task == Task(point=Point(model="gpt2"), device="cpu", settings=MeasureSettings(), repeat=0)
    assert (request.run_id, request.settings) == ("run-point", None)


@pytest.mark.parametrize(("device", "gpu"), [("cuda", None), ("null", "T4")])
def test_a_request_says_all_of_a_task(tmp_path: Path, device: RunDevice, gpu: str | None):
    task = Task(
        point=Point.model_validate({"model": "gpt2", "lora": None, "train": {"seq_len": 16}}),
        device=device,
        settings=MeasureSettings(steps=3, timeout_s=7),
        repeat=4,
        gpu=gpu,
    )
    request = request_of(task, "run-1", {"OMP_NUM_THREADS": "2"})
    read = read_request(written(tmp_path, request.to_json()))
    assert read == request
    assert read.task == task


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            {"devise": "cpu"},
            "devise: unknown key; allowed: schema_version, point, device",
        ),
        ({"point": {"model": "gpt2", "lora": {"rank": 4}}}, "point.lora.rank: unknown key; "),
        ({"measure": {"step": 2}}, "measure.step: unknown key; allowed: warmup_steps, steps"),
        ({"device": "tpu"}, "device: given 'tpu'; Input should be 'cuda', 'cpu' or 'null'"),
        ({"device": "null"}, "gpu: given null; Value error, device null needs a card"),
        ({"device": "cpu", "gpu": "T4"}, "gpu: given 'T4'; Value error, only device null takes a card"),
        ({"schema_version": 2}, "schema_version: given 2; Input should be 1"),
        ({"point": {}}, "point.model: missing; give it: Catalog id"),
        ({"point": {"model": "gpt2", "precision": "nf4", "lora": None}}, "point: given {'model'"),
        ({"repeat": -1}, "repeat: given -1; "),
        ({"repeat": True}, "repeat: given true; "),
        ({"settings": {"OMP_NUM_THREADS": 2}}, "settings.OMP_NUM_THREADS: given 2; "),
        ({"settings": {"PYTHONPATH": "/tmp"}}, "settings: given {'PYTHONPATH'"),
        ({"settings": {"LD_PRELOAD": "a.so"}}, "settings: given {'LD_PRELOAD'"),
        ({"settings": {"OMP_NUM_THREADS=": "2"}}, "settings: given {'OMP_NUM_THREADS='"),
        ({"settings": {"OMP_NUM_THREADS": "2\0"}}, "settings: given {'OMP_NUM_THREADS'"),
        ({"settings": {"OMP_NUM_THREADS": "\ud800"}}, "settings"),
        ({"settings": {"PYTORCH_ALLOC_CONF": "x=/tmp"}}, "settings: given {'PYTORCH_ALLOC_CONF'"),
    ],
)
def test_each_mistake_is_one_line_with_its_key(tmp_path: Path, change: dict[str, Any], problem: str):
    with pytest.raises(ScenarioError) as caught:
        read_request(written(tmp_path, SMALLEST | change))
    (line,) = map(str, caught.value.problems)
    assert line.startswith(f"{tmp_path / 'point.json'}: {problem}")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "not JSON"),
        ("[1]", "given [1]; "),
        ("\udcff".encode("utf-8", "surrogateescape").decode("latin-1"), "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('"' + " " * (1 << 20), "larger than 1 MiB"),
    ],
    ids=["empty", "list", "bytes", "deep", "large"],
)
def test_what_is_no_document_is_told_as_such(tmp_path: Path, text: str, problem: str):
    with pytest.raises(ScenarioError, match=r"point\.json") as caught:
        read_request(written(tmp_path, text))
    assert problem in str(caught.value)
    assert len(caught.value.problems) == 1


def test_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(ScenarioError, match="cannot be read: No such file"):
        read_request(tmp_path / "point.json")


@pytest.mark.parametrize(
    "value", ["expandable_segments:True", "roundup_power2_divisions:[256:1,512:2,>:4]", ""]
)
def test_settings_are_taken_as_torch_writes_them(tmp_path: Path, value: str):
    settings = {"PYTORCH_ALLOC_CONF": value, "CUBLAS_WORKSPACE_CONFIG": ":4096:2:16:8"}
    assert read_request(written(tmp_path, SMALLEST | {"settings": settings})).settings == settings


def test_nobody_sets_another_variable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with pytest.raises(MeasureError, match=r"settings\.PYTHONPATH: not a setting that qbench takes"):
        take_settings({"OMP_NUM_THREADS": "2", "PYTHONPATH": "/tmp"})
    assert (os.environ["OMP_NUM_THREADS"], os.environ.get("PYTHONPATH")) == ("3", None)


def test_a_setting_of_this_process_that_cannot_travel_is_one_line():
    with pytest.raises(ScenarioError, match=r"OMP_NUM_THREADS: allowed: at most 1000"):
        request_of(read_task(), "run-1", {"OMP_NUM_THREADS": "1\n2"})


def read_task() -> Task:
    return Task(point=Point(model="gpt2"), device="cpu", settings=MeasureSettings(), repeat=0)
