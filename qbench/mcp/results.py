"""What the tools answer. Sizes are bytes, times seconds, prices USD; unknown values are null."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from qbench.records.parts import FitVerdict


class OnCard(BaseModel):
    """Whether one card holds a step."""

    gpu: str
    verdict: FitVerdict = Field(
        description="tight: only once the allocator has emptied its cache, or if the CUDA context is small. "
        "unknown: part of the config is not modelled, or the card has no kernel for the step."
    )
    reason: str = Field(description="Why it is tight, does not fit or is unknown; empty otherwise.")
    headroom_bytes: int | None = Field(description="Memory left on the card; negative where it is short.")
    step_time_s: float | None = Field(description="Planned seconds of one optimizer step.")
    usd_per_hour: float | None = Field(description="Cheapest on-demand price of one card.")


class Planned(BaseModel):
    """The plan of one training step."""

    point: str = Field(description="The settings that tell this step from others.")
    method: str = Field(description="lora, qlora or full.")
    peak_allocated_bytes: int | None = Field(description="Largest sum of live tensors.")
    peak_reserved_bytes: int | None = Field(description="Largest memory held by PyTorch's allocator.")
    device_bytes: int | None = Field(description="What nvidia-smi shows: reserved and the CUDA context.")
    breakdown_bytes: dict[str, int] = Field(description="What is alive at the allocated peak, by category.")
    peak_phase: str | None = Field(description="load, prepare, forward, backward or optimizer.")
    cards: list[OnCard]
    caveats: list[str] = Field(description="What the plan assumes or leaves out.")
    unmodelled: list[str] = Field(description="Keys of the config that affect memory and are not planned.")
    error: str = Field(description="Why the step cannot be planned; empty where it can.")


class Plans(BaseModel):
    """Answer of plan."""

    plans: list[Planned]
    note: str = Field(description="What the plan took for granted about the training loop; may be empty.")


class Change(BaseModel):
    """A change of settings that frees memory, planned on its own."""

    settings: str
    frees_bytes: int = Field(description="Reserved memory that it frees.")
    is_enough: bool = Field(description="Whether one step more fits with it.")
    costs: str = Field(description="What is given up for it.")


class Largest(BaseModel):
    """The largest value that fits one card."""

    point: str
    gpu: str
    setting: str
    value: int | None = Field(description="null: not even the smallest value fits.")
    limited_by: Literal["memory", "model", "range"]
    verdict: FitVerdict = Field(description="At the value, or at the smallest where none fits.")
    headroom_bytes: int | None
    peak_reserved_bytes: int | None
    fills_bytes: dict[str, int] = Field(description="What fills the card there, largest first.")
    changes: list[Change] = Field(description="What would make room for more, cheapest first.")


class Fits(BaseModel):
    """Answer of fit."""

    answers: list[Largest]
    note: str


class Card(BaseModel):
    """One card that holds the training."""

    gpu: str
    method: str
    precision: str
    hours: float | None
    cost_usd: float | None = Field(description="At the cheapest on-demand price.")
    spot_cost_usd: float | None
    energy_kwh: float | None = Field(description="At the board's power limit.")
    step_time_s: float | None


class Ranking(BaseModel):
    """Answer of rank."""

    cards: list[Card] = Field(description="Best first.")
    not_listed: int = Field(description="Number of further cards that fit.")
    note: str


class Difference(BaseModel):
    """One value that is not the same as in the baseline."""

    point: str
    metric: str
    unit: str
    baseline: float | str | None
    run: float | str | None
    verdict: str = Field(description="worse, changed, missing, not comparable, ambiguous, better or new.")
    fails: bool = Field(description="Whether it fails the check.")
    note: str


class Comparison(BaseModel):
    """Answer of compare."""

    headline: str = Field(description="No regression, Failed, Not comparable or Undecided.")
    exit_code: int = Field(description="As of `qbench check`: 0 passed, 1 regressed, 2 not comparable.")
    sentences: list[str]
    differences: list[Difference] = Field(description="The gravest first.")
    not_listed: int = Field(description="Number of further differences.")


class ReadConfig(BaseModel):
    """What of one config a plan would use."""

    path: str
    tool: str
    model: str
    method: str
    planned: list[str]
    no_effect: list[str] = Field(description="Keys that do not affect the memory of a step.")
    unmodelled: list[str] = Field(description="Keys that affect memory and are not planned.")
    unknown: list[str]
    problems: list[str] = Field(description="Why the file is refused; empty where it is read.")


class ReadConfigs(BaseModel):
    """Answer of import."""

    files: list[ReadConfig]


Result = Plans | Fits | Ranking | Comparison | ReadConfigs
