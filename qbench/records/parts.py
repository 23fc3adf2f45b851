"""What a record's metrics, detail and environment hold: the types of their keys, as they are stored.

pydantic checks them once, where a line is read (`records.shape`); mypy checks every later read. Each key may
be absent, and what is unknown is None. A detail or an environment may hold other keys, which nothing reads.
"""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict
from typing_extensions import NotRequired, TypedDict  # pydantic cannot read that of Python before 3.12.

from qbench.records.ranks import Collective, RankMemory
from qbench.records.stored import Amount, Count, Flag, Pair, Real, Whole, Words

Bytes = Count | list[Count | None] | None
"""One number, or the raw values of a measurement."""
Number = Amount | list[Amount | None] | None
Loss = Real | list[Real | None] | None

FitVerdict = Literal["fits", "tight", "does not fit", "unknown"]
"""Whether a card holds a plan; see `records.fits.Fit.verdict`."""

_WITH_OTHERS = ConfigDict(extra="allow")


class PeakAt(TypedDict, total=False):
    """The allocation that made the peak."""

    phase: Words | None
    op: Words | None
    module: Words | None


class Metrics(TypedDict, total=False):
    """Values by metric name; `records.metrics` has the unit and the meaning of each."""

    trainable_params: Bytes
    total_params: Bytes
    static_bytes: Bytes
    peak_allocated_bytes: Bytes
    peak_reserved_bytes: Bytes
    device_bytes: Bytes
    breakdown_bytes: dict[str, Count] | None
    peak_at: PeakAt | None
    flops: Number
    step_time_s: Number
    host_time_s: Number
    tokens_per_s: Number
    cost_usd_per_mtok: Number
    loss: Loss
    text_loss: Loss
    weight_error: Number


class Skipped(TypedDict):
    """A group of weights that quantization or LoRA left out, and why."""

    module: Words
    reason: Words
    params: Whole
    share: NotRequired[Real | None]
    """Of the base weights, where quantization left them out."""


class TimeParts(TypedDict):
    """Where the time of a planned step goes."""

    parts_s: dict[str, Real]
    bound: Words
    """What most of the time waits for: memory, arithmetic, host."""
    mfu: NotRequired[Real | None]
    rates: Words
    """Where the rates come from: a datasheet, a calibration."""
    range_s: NotRequired[list[Real]]
    """Least and most seconds by the spread of published rates; absent where rates were measured."""


class FitShortage(TypedDict):
    """The allocation of a plan that a card has no room for."""

    phase: Words
    op: Words
    """Operator that requests it; empty if it is not an operator."""
    module: Words
    requested_bytes: Whole
    free_bytes: Whole


class FitValues(TypedDict):
    """A card that a plan was checked against, as stored; `records.fits.Fit` explains each key."""

    gpu: Words
    fits: Flag
    verdict: NotRequired[FitVerdict]
    memory_bytes: NotRequired[Whole | None]
    headroom_bytes: NotRequired[Whole | None]
    num_alloc_retries: NotRequired[Whole | None]
    context_bytes: NotRequired[Pair | None]
    shortage: NotRequired[FitShortage | None]
    error: NotRequired[Words | None]
    peak_allocated_bytes: NotRequired[Whole | None]
    peak_reserved_bytes: NotRequired[Whole | None]
    unmodelled: NotRequired[list[Words] | None]
    usd_per_hour: NotRequired[Real | None]
    price_from: NotRequired[Words | None]
    step_time_s: NotRequired[Real | None]
    tokens_per_s: NotRequired[Real | None]
    cost_usd_per_mtok: NotRequired[Real | None]
    time: NotRequired[TimeParts | None]


class BaseWeights(TypedDict):
    """What the base model weighs in 16 bit and as built."""

    sixteen_bit_bytes: Whole
    quantized_bytes: Whole
    quant_state_bytes: Whole
    unquantized_bytes: Whole
    quantized_params: Whole
    unquantized_params: Whole


class Built(TypedDict, total=False):
    """What was built: counts, sizes and dtypes."""

    trainable_params: Whole | None
    total_params: Whole | None
    base_params: Whole | None
    quantized_modules: Whole | None
    quantized_types: dict[str, Whole] | None
    quantized_params: Whole | None
    quantized_bytes: Whole | None
    adapted_modules: Whole | None
    dtypes: dict[str, Words] | None


class StepCounts(TypedDict, total=False):
    """How many steps a measurement took."""

    warmup_steps: Whole
    steps: Whole


class AllocatorSettings(TypedDict, total=False):
    """Settings of CUDA's caching allocator that a plan was made with."""

    expandable_segments: Flag
    max_split_size_bytes: Whole | None
    garbage_collection_threshold: Real | None


class ValidityFinding(TypedDict):
    """One thing that speaks for or against a measurement."""

    name: Words
    verdict: Literal["ok", "warn", "invalid"]
    why: Words
    value: Flag | Real | Words | None
    voids: NotRequired[list[Words] | None]
    """Metrics that must not be used."""


class Sampled(TypedDict, total=False):
    """What a process at the side saw of a card: for each reading, its least, median, most and so on."""

    readings: dict[str, dict[str, Real | None] | None] | None


class OomFacts(TypedDict, total=False):
    """How a measurement ran out of memory."""

    kind: Words | None
    phase: Words | None
    requested_bytes: Whole | None
    free_bytes: Whole | None
    total_bytes: Whole | None
    reserved_bytes: Whole | None
    place: Words | None
    """Line and module that requested it in a dry run; `user` is the line of the program on the way to it."""
    user: Words | None


class Alive(TypedDict):
    """Memory alive at the peak of a dry run, from one line of code."""

    bytes: Whole
    blocks: Whole
    category: Words
    module: Words | None
    """Class and function that called PyTorch; `place` is its file and line, `user` that of the program."""
    place: Words | None
    user: Words | None
    is_backward: Flag
    """Whether the backward pass of that line requested it."""


class Quality(TypedDict, total=False):
    """What a run with trained weights did to them and to the loss."""

    loss_before: Real | None
    loss_after: Real | None
    steps: Whole | None
    seed: Whole | None
    tokens: Whole | None
    data: Words | None
    weight_error: Real | None
    by_module: dict[Words, Real | None] | None
    weights_error: Words | None
    """Why weights were not compared."""


class Detail(TypedDict, total=False):
    """What explains the metrics of a plan or a measurement."""

    __pydantic_config__ = _WITH_OTHERS  # type: ignore[misc]

    # Of both.
    caveats: list[Words] | None
    unmodelled: list[Words] | None
    """Settings of the source that affect memory and are not in the number."""
    error: Words | None
    accepted: Words | None
    """Why a baseline file holds the record."""
    model: Built | None
    phases: dict[str, Whole] | None
    static_breakdown_bytes: dict[str, Whole] | None
    timeline: list[Pair] | None
    context_bytes: list[Whole] | None
    """Least and most of a plan; both the same number in a measurement."""
    managed_bytes: Whole | None
    ranks: list[RankMemory] | None  # The metrics are the largest's; a plan has the first and the last.

    # Of a plan.
    collectives: list[Collective] | None
    skipped: list[Skipped] | None
    base_weights: BaseWeights | None
    compute_capability: Pair | None
    attention: list[Words] | None
    context_source: Words | None
    allocator: AllocatorSettings | None
    alloc_conf: Words | None
    calibrations: list[Words] | None
    """Device and date of each calibration that was there for the times."""
    fits: list[FitValues] | None
    time: TimeParts | None

    # Of a measurement.
    repeat: Whole | None
    protocol: StepCounts | None
    validity: list[ValidityFinding] | None
    stderr_tail: Words | None
    traceback: Words | None
    phase: Words | None
    ray: Words | None
    oom: OomFacts | None
    quality: Quality | None
    loss_before: Real | None
    loss_after: Real | None
    load_time_s: Real | None
    load_average_before: Real | None
    load_reserved_bytes: Whole | None
    reserved_range_bytes: Pair | None
    """Of a null GPU: least and most reserved at the peak over two orders of free addresses."""
    warmup_step_time_s: list[Real] | None
    rehearsal_time_s: list[Real] | None
    warmup_steady: Flag | None
    window_s: Real | None
    enqueue_s: Real | None
    counters: dict[str, Real | None] | None
    energy_j_per_step: Real | None
    reconciliation_bytes: dict[str, Whole | None] | None
    device_used_bytes: Whole | None
    foreign_processes: dict[str, list[Whole] | None] | None
    sampled: Sampled | None
    num_alloc_retries: Whole | None
    num_ooms: Whole | None
    requested_bytes: Whole | None
    active_bytes: Whole | None
    inactive_split_bytes: Whole | None

    # Of a training that the callback saw.
    arguments: Words | None
    unmapped: list[Words] | None
    loss_steps: list[Whole] | None
    batch_shapes: list[list[Whole]] | None
    step_peak_bytes: list[Whole] | None

    # Of a dry run.
    alive: list[Alive] | None
    """Largest places of what was alive at the peak, or when memory ran out."""
    reserved_phases: dict[str, Whole] | None
    steps: Whole | None
    """Updates that were seen."""
    assumed: dict[str, Whole] | None
    """How often an operation's answer was assumed, because it depends on values."""
    stand_ins: list[Words] | None
    host_peak_bytes: Whole | None

    files: list[Words] | None
    """Of a diagnosis."""


class Environment(TypedDict, total=False):
    """Device, machine, library versions and code that a record speaks for."""

    __pydantic_config__ = _WITH_OTHERS  # type: ignore[misc]

    device: Words | None
    device_name: Words | None
    card: Words | None
    """Card of the catalog that a null GPU was, or that a plan beside one is for."""
    device_id: Words | None
    """Digest of a GPU's UUID."""
    device_memory_bytes: Whole | None
    driver: Words | None
    platform: Words | None
    cpu_name: Words | None
    cpu_count: Whole | None
    host_memory_bytes: Whole | None
    node: Words | None
    """Of a cluster, by the random id that Ray gave it when it started."""
    qbench: Words | None
    code_id: Words | None
    versions: dict[str, Words | None] | None
    fingerprints: dict[str, Words | None] | None
    """Digest of what of a library is not as released; None where all of it is."""
    python: Words | None
    git_commit: Words | None
    git_dirty: Flag | None
    settings: dict[str, Words | None] | None
    inputs: dict[str, Words] | None
