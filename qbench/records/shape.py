"""The shape of what a record carries, so that nothing that reads a record meets text for a number.

Metrics have the shape that their unit in the registry implies. Of details and environment, the keys that
something reads are described here; others may hold anything that is not nested too deeply.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import NotRequired, TypedDict  # pydantic cannot read that of Python before 3.12.

from qbench.records.metrics import METRICS
from qbench.scenario.schema import Point

MOST_LEVELS = 20
"""Levels of lists and objects within each other that a record may have; qbench writes six."""


Whole = Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)]
Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]
# A bound on the length, whichever, makes pydantic read the text, and half of a surrogate pair is none.
Words = Annotated[str, Field(strict=True, min_length=0)]
Flag = Annotated[bool, Field(strict=True)]
_Pair = Annotated[list[Whole], Field(min_length=2, max_length=2)]

_WITH_OTHERS = ConfigDict(extra="allow")
"""Of a part of a record that may have keys which nothing reads."""


def _metric_type(name: str) -> Any:
    if name == "peak_at":
        return dict[str, Words | None] | None
    number: Any = Whole if METRICS[name].unit in ("bytes", "count") else Real
    if name == "breakdown_bytes":
        return dict[str, number] | None
    return number | list[number | None] | None


_Metrics: Any = TypedDict("_Metrics", {name: _metric_type(name) for name in METRICS}, total=False)  # type: ignore[misc]


class _Skipped(TypedDict):
    module: Words
    reason: Words
    params: Whole
    share: NotRequired[Real | None]


class _Time(TypedDict):
    parts_s: dict[str, Real]
    bound: Words
    mfu: NotRequired[Real | None]
    rates: Words


class _Fit(TypedDict):
    gpu: Words
    fits: Flag
    memory_bytes: NotRequired[Whole | None]
    headroom_bytes: NotRequired[Whole | None]
    peak_allocated_bytes: NotRequired[Whole | None]
    peak_reserved_bytes: NotRequired[Whole | None]
    usd_per_hour: NotRequired[Real | None]
    verdict: NotRequired[Words | None]
    step_time_s: NotRequired[Real | None]
    tokens_per_s: NotRequired[Real | None]
    cost_usd_per_mtok: NotRequired[Real | None]
    time: NotRequired[_Time | None]


class _BaseWeights(TypedDict):
    sixteen_bit_bytes: Whole
    quantized_bytes: Whole
    quant_state_bytes: Whole
    unquantized_bytes: Whole
    quantized_params: Whole
    unquantized_params: Whole


class _ValidityFinding(TypedDict):
    name: Words
    verdict: Literal["ok", "warn", "invalid"]
    why: Words
    value: Any
    voids: NotRequired[list[Words] | None]


class _Sampled(TypedDict, total=False):
    readings: dict[str, dict[str, Real | None] | None] | None


class _OutOfMemory(TypedDict, total=False):
    phase: Words | None
    requested_bytes: Whole | None
    free_bytes: Whole | None


class _Quality(TypedDict, total=False):
    loss_before: Real | None
    loss_after: Real | None
    steps: Whole | None
    tokens: Whole | None
    data: Words | None
    weight_error: Real | None
    by_module: dict[Words, Real | None] | None
    weights_error: Words | None


class _Detail(TypedDict, total=False):
    __pydantic_config__ = _WITH_OTHERS  # type: ignore[misc]

    repeat: Whole | None
    error: Words | None
    stderr_tail: Words | None
    caveats: list[Words] | None
    skipped: list[_Skipped] | None
    model: dict[str, Any] | None
    protocol: dict[str, Any] | None
    phases: dict[str, Whole] | None
    static_breakdown_bytes: dict[str, Whole] | None
    base_weights: _BaseWeights | None
    timeline: list[_Pair] | None
    fits: list[_Fit] | dict[str, Any] | None
    context_bytes: list[Whole] | None
    alloc_conf: Words | None
    compute_capability: _Pair | None
    allocator: dict[str, Any] | None
    validity: list[_ValidityFinding] | None
    reconciliation_bytes: dict[str, Whole | None] | None
    sampled: _Sampled | None
    energy_j_per_step: Real | None
    oom: _OutOfMemory | None
    loss_before: Real | None
    loss_after: Real | None
    quality: _Quality | None


class _Environment(TypedDict, total=False):
    __pydantic_config__ = _WITH_OTHERS  # type: ignore[misc]

    device: Words | None
    device_name: Words | None
    code_id: Words | None
    versions: dict[str, Words | None] | None
    settings: dict[str, Words | None] | None
    inputs: dict[str, Words] | None


class _Line(TypedDict):
    schema_version: Whole
    run_id: Words
    point_id: Words
    point: Point
    kind: Words
    outcome: Words
    metrics: _Metrics
    detail: _Detail
    environment: _Environment
    created_at: Words


_LINE = TypeAdapter(_Line).validator
_SHALLOW: dict[str, frozenset[str]] = {
    "metrics": frozenset(METRICS),
    "detail": frozenset(
        (
            "caveats",
            "compute_capability",
            "context_bytes",
            "phases",
            "reconciliation_bytes",
            "static_breakdown_bytes",
            "timeline",
        )
    ),
    "environment": frozenset(("versions", "settings", "inputs")),
}
"""Parts of a record, and their keys whose type leaves no room for nesting, which most of a record is in."""


_HOLDERS = (dict, list)


def sound_point(values: Mapping[str, Any]) -> Point | None:
    """Return the point of a record whose values have their shape, None where something is wrong."""
    try:
        point: Point = _LINE.validate_python(values)["point"]
    except ValidationError:
        return None
    return None if _nests_too_deeply(values, _SHALLOW) else point


def sound_line(line: bytes) -> dict[str, Any] | None:
    """Return the values of a record's line, each of its shape, None where something is wrong.

    Takes two thirds of the time of parsing and `sound_point`, but loses what nothing reads: the order of
    keys, unknown metrics, and whether a number was written with a fraction. The point is a Point.
    """
    if b"NaN" in line or b"Infinity" in line:
        return None  # Numbers to pydantic, but they are none in a record.
    try:
        values: dict[str, Any] = _LINE.validate_json(line)
    except ValidationError:
        return None
    return None if _nests_too_deeply(values, _SHALLOW) else values


def shape_problem(values: Mapping[str, Any]) -> str | None:
    """Return the first thing in a record's metrics, detail, environment or names of the wrong shape, or None.

    The text names the key: 'metrics.step_time_s: Input should be a valid number'. The point has its own.
    """
    try:
        _LINE.validate_python(values)
    except ValidationError as error:
        for problem in error.errors(include_input=False, include_url=False):
            if problem["loc"][0] != "point":
                return f"{_place(values, problem['loc'])}: {problem['msg']}"
    for part in _SHALLOW:
        if _nests_too_deeply(values, (part,)):
            return f"{part} nests more than {MOST_LEVELS} levels"
    return None


def _place(value: Any, location: tuple[int | str, ...]) -> str:
    """Return the keys of a location that are in the data; pydantic names branches of a type beside them."""
    names: list[str] = []
    for key in location:
        held = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        if key in held:
            value = value[key]
            names.append(str(key))
    return ".".join(names)


def _nests_too_deeply(values: Mapping[str, Any], parts: Iterable[str]) -> bool:
    level = [
        value
        for part in parts
        for key, value in values[part].items()
        if type(value) in _HOLDERS and key not in _SHALLOW[part]
    ]
    for _ in range(MOST_LEVELS):
        if not level:
            return False
        # Level by level: a file of 10,000 records has some million containers, and calls would show.
        level = [
            inner
            for holder in level
            for inner in (holder.values() if type(holder) is dict else holder)
            if type(inner) in _HOLDERS
        ]
    return True
