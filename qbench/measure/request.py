"""The document that asks for one measurement: what `qbench run-point` reads, whoever carries it there.

    {"schema_version": 1, "point": {"model": "bigscience/bloom-560m", "precision": "nf4", ...},
     "device": "cuda", "measure": {"warmup_steps": 2, "steps": 10, "timeout_s": 900}, "repeat": 0,
     "run_id": "demo-20260101T000000Z", "settings": {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}}

`point` and `measure` are written as in a scenario, and what they leave out is what it is there. Keys are
added to a version, never changed or taken away.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field, ValidationError, ValidationInfo, field_validator

from qbench.errors import Problem, ScenarioError, nearest
from qbench.files import open_file
from qbench.measure.settings import setting_problem
from qbench.measure.task import Task
from qbench.scenario.schema import MeasureSettings, Point, RunDevice
from qbench.scenario.settings import group_model
from qbench.scenario.strict import Strict
from qbench.scenario.training import Name

MAX_REPEAT = 1_000_000
MAX_FILE_BYTES = 1 << 20


def _settable(settings: dict[str, str]) -> dict[str, str]:
    for name, value in settings.items():
        problem = setting_problem(name, value)
        if problem is not None:
            raise ValueError(f"{name}: {problem}")
    return settings


class Request(Strict):
    """One measurement to be made."""

    schema_version: Literal[1] = Field(description="Version of this format: 1.")
    point: Point = Field(description="The training step, as a scenario's point.")
    device: RunDevice = Field(description="cuda, cpu or null.")
    gpu: Name | None = Field(default=None, description="Card of the catalog that a null GPU is.")
    measure: MeasureSettings = Field(default_factory=MeasureSettings, description="As in a scenario.")
    repeat: Annotated[int, Field(ge=0, le=MAX_REPEAT, strict=True)] = Field(
        default=0, description="Number of the process among those of its point, from 0."
    )
    run_id: Name = Field(default="run-point", description="Name of the run that the record will carry.")
    settings: Annotated[dict[str, str], AfterValidator(_settable)] | None = Field(
        default=None,
        description="Allocator, cuBLAS and thread variables to set for the measurement and no others; "
        "null leaves those of the process.",
    )

    @field_validator("gpu")
    @classmethod
    def _belongs_to_the_device(cls, gpu: str | None, known: ValidationInfo) -> str | None:
        is_null = known.data.get("device") == "null"
        if is_null != (gpu is not None):
            raise ValueError(
                f"{'device null needs' if is_null else 'only device null takes'} a card of the catalog"
            )
        return gpu

    @property
    def task(self) -> Task:
        """The request to a worker."""
        return Task(
            point=self.point,
            device=self.device,
            settings=self.measure,
            repeat=self.repeat,
            gpu=self.gpu,
        )

    def to_json(self) -> str:
        """Return the document as text."""
        return json.dumps(self.model_dump(mode="json"), indent=1) + "\n"


def request_of(task: Task, run_id: str, settings: dict[str, str] | None = None) -> Request:
    """Return the document that asks for a task. Raises ScenarioError when a setting cannot travel in it."""
    try:
        return Request(
            schema_version=1,
            point=task.point,
            device=task.device,
            gpu=task.gpu,
            measure=task.settings,
            repeat=task.repeat,
            run_id=run_id,
            settings=settings,
        )
    except ValidationError as error:
        raise ScenarioError(_problems(error)) from error


def read_request(file: Path) -> Request:
    """Return the request that a file holds. Raises ScenarioError with one line for each problem."""
    try:
        with open_file(file) as stream:
            text = stream.read(MAX_FILE_BYTES + 1)
        if len(text) > MAX_FILE_BYTES:
            raise ScenarioError(f"{file}: larger than 1 MiB, so it is not a request for one point")
        values = json.loads(text)
    except OSError as error:
        raise ScenarioError(f"{file}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ScenarioError(f"{file}: not JSON: {error}; `qbench run --points` writes such files") from error
    try:
        return Request.model_validate(values)
    except ValidationError as error:
        raise ScenarioError(replace(problem, file=str(file)) for problem in _problems(error)) from error


def _problems(error: ValidationError) -> Iterator[Problem]:
    for found in error.errors():
        path = found["loc"]
        if found["type"] == "extra_forbidden":
            names = list(_model_at(path[:-1]).model_fields)
            close = nearest(str(path[-1]), names, count=1)
            hint = close[0] if close else ""
            yield Problem(path, "unknown key", allowed=", ".join(names), hint=hint)
        elif found["type"] == "missing":
            field = _model_at(path[:-1]).model_fields[str(path[-1])]
            yield Problem(path, f"missing; give it: {field.description}")
        else:
            yield Problem(path, given=found["input"], note=found["msg"])


def _model_at(path: tuple[int | str, ...]) -> type[BaseModel]:
    """Return the class whose keys stand at a path of a request."""
    model: type[BaseModel] = Request
    for part in path:
        model = group_model(model, str(part)) or model
    return model
