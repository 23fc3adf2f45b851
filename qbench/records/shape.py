"""The shape of what a record carries, so that nothing that reads a record meets text for a number.

Metrics have the shape that their unit in the registry implies. Of details and environment, the keys that
something reads are described here; others may hold anything that is not nested too deeply.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model

from qbench.records.metrics import METRICS

MOST_LEVELS = 20
"""Levels of lists and objects within each other that a record may have; qbench writes six."""


def _is_unicode(text: str) -> str:
    if not text.isascii():
        text.encode()  # Half of a surrogate pair raises UnicodeEncodeError, which is a ValueError.
    return text


Whole = Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)]
Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Words = Annotated[str, Field(strict=True), AfterValidator(_is_unicode)]
Flag = Annotated[bool, Field(strict=True)]


class _Shape(BaseModel):
    model_config = ConfigDict(extra="allow", protected_namespaces=())


def _metric_type(name: str) -> Any:
    if name == "peak_at":
        return dict[str, Words | None] | None
    number: Any = Whole if METRICS[name].unit in ("bytes", "count") else Real
    if name == "breakdown_bytes":
        return dict[str, number] | None
    return number | list[number | None] | None


_fields: dict[str, Any] = {name: (_metric_type(name), None) for name in METRICS}
_Metrics: type[BaseModel] = create_model("_Metrics", __base__=_Shape, **_fields)


class _Skipped(_Shape):
    module: Words
    reason: Words
    params: Whole
    share: Real | None = None


class _Time(_Shape):
    parts_s: dict[str, Real]
    bound: Words
    mfu: Real | None = None
    rates: Words


class _Fit(_Shape):
    gpu: Words
    fits: Flag
    memory_bytes: Whole | None = None
    headroom_bytes: Whole | None = None
    usd_per_hour: Real | None = None
    verdict: Words | None = None
    step_time_s: Real | None = None
    tokens_per_s: Real | None = None
    cost_usd_per_mtok: Real | None = None
    time: _Time | None = None


class _BaseWeights(_Shape):
    sixteen_bit_bytes: Whole
    quantized_bytes: Whole
    quant_state_bytes: Whole
    unquantized_bytes: Whole
    quantized_params: Whole
    unquantized_params: Whole


class _ValidityFinding(_Shape):
    name: Words
    verdict: Literal["ok", "warn", "invalid"]
    why: Words
    value: Any
    voids: list[Words] | None = None


class _Sampled(_Shape):
    readings: dict[str, dict[str, Real | None] | None] | None = None


class _OutOfMemory(_Shape):
    phase: Words | None = None
    requested_bytes: Whole | None = None
    free_bytes: Whole | None = None


class _Quality(_Shape):
    loss_before: Real | None = None
    loss_after: Real | None = None
    steps: Whole | None = None
    tokens: Whole | None = None
    data: Words | None = None
    weight_error: Real | None = None
    by_module: dict[Words, Real] | None = None
    weights_error: Words | None = None


class _Detail(_Shape):
    repeat: Whole | None = None
    error: Words | None = None
    stderr_tail: Words | None = None
    caveats: list[Words] | None = None
    skipped: list[_Skipped] | None = None
    model: dict[str, Any] | None = None
    protocol: dict[str, Any] | None = None
    phases: dict[str, Whole] | None = None
    static_breakdown_bytes: dict[str, Whole] | None = None
    base_weights: _BaseWeights | None = None
    timeline: list[tuple[Whole, Whole]] | None = None
    fits: list[_Fit] | dict[str, Any] | None = None
    context_bytes: list[Whole] | None = None
    alloc_conf: Words | None = None
    compute_capability: tuple[Whole, Whole] | None = None
    validity: list[_ValidityFinding] | None = None
    reconciliation_bytes: dict[str, Whole | None] | None = None
    sampled: _Sampled | None = None
    energy_j_per_step: Real | None = None
    oom: _OutOfMemory | None = None
    loss_before: Real | None = None
    loss_after: Real | None = None
    quality: _Quality | None = None


class _Head(_Shape):
    run_id: Words
    created_at: Words


class _Environment(_Shape):
    device: Words | None = None
    device_name: Words | None = None
    code_id: Words | None = None
    versions: dict[str, Words | None] | None = None
    settings: dict[str, Words | None] | None = None
    inputs: dict[str, Words] | None = None


_SHAPES: dict[str, type[BaseModel]] = {"metrics": _Metrics, "detail": _Detail, "environment": _Environment}


def shape_problem(values: Mapping[str, Any]) -> str | None:
    """Return the first thing in a record's metrics, detail, environment or names of the wrong shape, or None.

    The text names the key: 'metrics.step_time_s: Input should be a valid number'.
    """
    for part, shape in _SHAPES.items():
        if _too_deep(values[part]):
            return f"{part} nests more than {MOST_LEVELS} levels"
        problem = _problem(values[part], shape, (part,))
        if problem is not None:
            return problem
    return _problem(values, _Head, ())


def _problem(values: Any, shape: type[BaseModel], path: tuple[str, ...]) -> str | None:
    try:
        shape.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        return f"{_place(path, values, first['loc'])}: {first['msg']}"
    return None


def _place(path: tuple[str, ...], value: Any, location: tuple[int | str, ...]) -> str:
    """Return the keys of a location that are in the data; pydantic names branches of a type beside them."""
    names = list(path)
    for key in location:
        held = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        if key in held:
            value = value[key]
            names.append(str(key))
    return ".".join(names)


def _too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MOST_LEVELS):
        # Level by level: a file of 10,000 records has some million containers, and calls would show.
        level = [
            part
            for holder in level
            for part in (holder.values() if type(holder) is dict else holder)
            if type(part) is dict or type(part) is list
        ]
        if not level:
            return False
    return True


def brief(value: Any) -> str:
    """Return any value on one short line, however deeply it nests."""
    return reprlib.repr(value)
