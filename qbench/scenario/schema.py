"""What a scenario may say. `Point` holds everything that can change a number, and nothing else."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from pathlib import PurePath
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from qbench.scenario.distributed import Distributed, DistributedSettings, QuantizationSettings
from qbench.scenario.portable import portable_model
from qbench.scenario.program import Program
from qbench.scenario.recipes import RECIPES, Choices
from qbench.scenario.strict import Strict
from qbench.scenario.training import LATER, MOST_STEPS, Name, Number, Steps, Text
from qbench.scenario.training import LoraSettings as LoraSettings
from qbench.scenario.training import TrainSettings as TrainSettings
from qbench.scenario.vision import VisionSettings as VisionSettings

Precision = Literal["fp32", "bf16", "fp16", "nf4", "nf4-dq", "fp4", "fp4-dq", "int8"]
Weights = Literal["random", "pretrained"]
Method = Literal["lora", "qlora", "full"]
Device = Literal["cuda", "cpu"]
"""Whose kernels a step runs, or is planned for."""
RunDevice = Literal["cuda", "cpu", "null"]
"""Where a point is measured; null is a card that is not there, with CUDA's kernels (see qbench.nullgpu)."""

PRECISIONS: tuple[str, ...] = get_args(Precision)
FOUR_BIT = ("nf4", "nf4-dq", "fp4", "fp4-dq")
QUANTIZED_PRECISIONS = (*FOUR_BIT, "int8")


MOST_TOKENS = 2**26
"""Tokens of one forward pass. The largest tensors, scores of attention and logits, still have fewer elements
than 2^63, above which torch cannot count them."""


class PointSettings(Strict, defer_build=True):
    """The settings of a training step, each for itself."""

    model: Name = Field(description="Catalog id, hub id, or a folder that holds config.json.")
    weights: Weights = Field(
        default="random", description="Random values, or the published ones if they are available locally."
    )
    precision: Precision = Field(default="bf16", description="Precision of the frozen base model.")
    data: Name = Field(default="random", description="random token ids, or a UTF-8 text file to train on.")
    lora: LoraSettings | None = Field(
        default_factory=LoraSettings, description="The adapter; null trains every weight (full fine-tuning)."
    )
    train: TrainSettings = Field(default_factory=TrainSettings, description="The training step.")
    quantization: QuantizationSettings = Field(
        default_factory=QuantizationSettings, description="How weights are quantized, beside precision."
    )
    distributed: DistributedSettings | None = Field(
        default=None, description="Several GPUs that train together; null is one GPU."
    )
    vision: VisionSettings | None = Field(
        default=None, description="Images to train on; null loads the language model where it has a class."
    )

    @model_serializer(mode="wrap")
    def _leave_out_later(self, values_of: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = values_of(self)
        if getattr(self, "program", None) is not None:  # Its other settings are not known.
            return {key: values[key] for key in ("model", "program")}
        absent: dict[str, Any] = dict.fromkeys(("distributed", "vision", "program"))
        absent["quantization"] = QuantizationSettings()
        left = {key for key, value in absent.items() if getattr(self, key, value) == value}
        return {key: value for key, value in values.items() if key not in left}


class Point(PointSettings, defer_build=False):
    """One training step, fully described: what a plan or a measurement is of. Immutable and hashable.

    Raises pydantic.ValidationError for an unknown key, a value out of range, and settings that contradict
    each other, such as a quantized base without an adapter.
    """

    distributed: Distributed = Field(
        default=None, description="Several GPUs that train together; null is one GPU."
    )
    program: Program | None = Field(default=None, description="What a dry run started.")

    @model_validator(mode="after")
    def _settings_agree(self) -> Point:
        if self.lora is None and self.precision in QUANTIZED_PRECISIONS:
            raise ValueError(
                f"precision {self.precision} cannot be trained without an adapter; give lora settings"
            )
        if self.data != "random" and self.weights == "random":
            raise ValueError(
                "data is a text file but weights are random; set weights: pretrained or data: random"
            )
        several = "" if self.distributed is None else self.distributed.problem()
        if several:
            raise ValueError(several)
        storage = self.quantization.bnb_4bit_quant_storage
        if storage != QuantizationSettings().bnb_4bit_quant_storage and self.precision not in FOUR_BIT:
            raise ValueError(
                f"bnb_4bit_quant_storage {storage} is for 4-bit precisions, not {self.precision}; "
                f"use {', '.join(FOUR_BIT)}"
            )
        if self.quantization.quantize_moe_experts and self.precision not in FOUR_BIT:
            raise ValueError(
                f"quantize_moe_experts is for 4-bit precisions, not {self.precision}; "
                f"use {', '.join(FOUR_BIT)}"
            )
        batch, seq_len = self.train.per_device_train_batch_size, self.train.seq_len
        if batch * seq_len > MOST_TOKENS:
            raise ValueError(
                f"per_device_train_batch_size {batch:,} x seq_len {seq_len:,} is more than {MOST_TOKENS:,} "
                "tokens in one forward pass; make one smaller, or use gradient_accumulation_steps"
            )
        return self

    @property
    def method(self) -> Method:
        """full without an adapter, qlora with one on a quantized base, else lora."""
        if self.lora is None:
            return "full"
        return "qlora" if self.precision in QUANTIZED_PRECISIONS else "lora"

    @property
    def _is_of_one_dtype(self) -> bool:
        """Whether products are computed in the dtype that the base's layers give and take."""
        base = "bf16" if self.precision in QUANTIZED_PRECISIONS else self.precision
        return self.train.autocast in ("none", base)

    @property
    def choices(self) -> Choices:
        """What the recipe decides where its settings say nothing, and the settings where they say it."""
        said = {name: getattr(self.train, name) for name in LATER if getattr(self.train, name) != "auto"}
        if self.train.task in ("reward", "sequence_classification"):
            said = {"loss_type": "full_logits"} | said
        if self.lora is None or self.lora.use_dora or self.precision == "int8" or not self._is_of_one_dtype:
            said = {"lora_kernels": "none"} | said
        return dataclasses.replace(RECIPES[self.train.recipe], **said)

    @property
    def runs_in_engine(self) -> bool:
        """Whether DeepSpeed's engine makes passes and updates."""
        return self.distributed is not None and self.distributed.strategy.startswith("zero")

    @property
    def num_gpus(self) -> int:
        """GPUs that train together."""
        return 1 if self.distributed is None else self.distributed.gpus

    @property
    def tokens_per_step(self) -> int:
        """Tokens in one optimizer step of one GPU: batch x sequence x accumulation."""
        train = self.train
        return train.per_device_train_batch_size * train.seq_len * train.gradient_accumulation_steps

    @functools.cached_property
    def is_stored(self) -> bool:
        """Whether the point is that of a record that was read: its names stay, whatever files are here."""
        return False  # Not a field, which would be part of the point; `stored_point` sets it.

    @property
    def point_id(self) -> str:
        """Twelve hexadecimal digits that are the same for equal points on every machine; see `portable`."""
        values = portable(self).model_dump(mode="json")
        canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    @property
    def label(self) -> str:
        """Short text for a person: model, precision, rank, batch and sequence length; or the program."""
        if self.program is not None:
            return self.program.label
        rank = "full" if self.lora is None else f"r={self.lora.r}"
        train, shared = self.train, self.distributed
        several = "" if shared is None else f" {shared.strategy} x{shared.gpus}"
        return (
            f"{self.model.rstrip('/').rsplit('/', 1)[-1]} {self.precision} {rank} "
            f"b={train.per_device_train_batch_size} s={train.seq_len}{several}"
        )


def portable(point: Point, config_digest: str | None = None) -> Point:
    """Return a point that names no folder of this machine, which differ from checkout to checkout.

    A model's folder becomes its name and the digest of its config.json, as in `tiny@0123456789ab`; of a file
    the name is left. `config_digest` is that digest, empty for a model that is no folder; None looks for it.
    A point of a record that was read is portable already.
    """
    if point.is_stored:
        return point
    model, data = portable_model(point.model, config_digest), PurePath(point.data).name
    if (model, data) == (point.model, point.data):
        return point
    return point.model_copy(update={"model": model, "data": data})


def stored_point(point: Point, config_digest: str) -> Point:
    """Return the point of a record that was read, with its digest of config.json, empty where it has none.

    In a folder that happens to hold the model it is the same point as elsewhere.
    """
    point = portable(point, config_digest)
    vars(point)["is_stored"] = True
    return point


class PlanSettings(Strict, defer_build=True):
    """What to plan for."""

    gpus: tuple[Name, ...] = Field(default=(), description="GPUs of the catalog to check the plan against.")


class MeasureSettings(Strict, defer_build=True):
    """How a point is measured."""

    warmup_steps: Annotated[int, Field(ge=0, le=MOST_STEPS, strict=True)] = Field(
        default=2, description="Steps before the timed ones."
    )
    steps: Steps = Field(default=10, description="Timed steps in each process.")
    repeats: Annotated[int, Field(ge=1, le=10_000, strict=True)] = Field(
        default=3, description="Processes for each point."
    )
    timeout_s: Number = Field(
        default=900, gt=0, le=10_000_000, description="Seconds after which one process is ended."
    )


class Scenario(Strict, defer_build=True):
    """One question, the points that answer it, and how they are planned and measured."""

    # A command that reads no scenario file never builds its validators.

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Short name, used for folders.")
    question: Text = Field(description="The one question this scenario answers.")
    base: dict[str, Any] = Field(description="Settings that all points share, as in Point.")
    matrix: dict[str, list[Any]] = Field(
        default_factory=dict, description="Settings that vary: dotted path or short name to list of values."
    )
    exclude: list[dict[str, Any]] = Field(
        default_factory=list, description="Combinations of the matrix to drop."
    )
    include: list[dict[str, Any]] = Field(default_factory=list, description="Points to add: changes to base.")
    plan: PlanSettings = Field(default_factory=PlanSettings)
    measure: MeasureSettings = Field(default_factory=MeasureSettings)
