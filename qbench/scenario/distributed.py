"""How several GPUs train together: the strategy, their number, and each strategy's own settings.

Keys are those of accelerate's `FullyShardedDataParallelPlugin` and `DistributedDataParallelKwargs`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from qbench.scenario.strict import Strict

Strategy = Literal["ddp", "fsdp2", "zero1", "zero2", "zero3", "device_map"]
PLANNED = ("ddp", "fsdp2")
"""Strategies whose memory is planned; others are refused."""
MOST_GPUS = 8
"""GPUs of one node. Plans hold for one node; larger machines exist, but none in the catalog."""

QuantStorage = Literal["uint8", "float16", "bfloat16", "float32"]
"""dtype that 4-bit weights are packed in, as bitsandbytes spells it; FSDP shards floating ones only."""

Flag = Annotated[bool, Field(strict=True)]
OWN = {
    "reshard_after_forward": "fsdp2",
    "transformer_cls_names_to_wrap": "fsdp2",
    "bucket_cap_mb": "ddp",
    "gradient_as_bucket_view": "ddp",
}
"""Settings of one strategy alone."""


class DistributedSettings(Strict):
    """Processes on several GPUs that train one model, one process a GPU."""

    strategy: Strategy = Field(description="How GPUs share the work: replicas, or shards of weights.")
    gpus: Annotated[int, Field(ge=1, le=MOST_GPUS, strict=True)] = Field(
        description="GPUs that train together, on one node."
    )
    reshard_after_forward: Flag = Field(
        default=True, description="fsdp2: free gathered weights between forward and backward."
    )
    transformer_cls_names_to_wrap: str = Field(
        default="auto",
        min_length=1,
        description="fsdp2: classes that are groups of their own, separated by commas; auto is the model's "
        "_no_split_modules.",
    )
    bucket_cap_mb: Annotated[int, Field(ge=1, le=2**20, strict=True)] = Field(
        default=25, description="ddp: largest bucket of gradients, in MiB."
    )
    gradient_as_bucket_view: Flag = Field(
        default=False, description="ddp: keep gradients in the buckets instead of beside them."
    )

    @model_serializer(mode="wrap")
    def _leave_out_others(self, values_of: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = values_of(self)
        return {key: value for key, value in values.items() if OWN.get(key, self.strategy) == self.strategy}

    def problem(self) -> str:
        """Return why these settings make no plan, empty where they do."""
        if self.strategy not in PLANNED:
            return f"strategy {self.strategy} is not planned; use {' or '.join(PLANNED)}"
        for name, strategy in OWN.items():
            if strategy != self.strategy and getattr(self, name) != type(self).model_fields[name].default:
                return f"{name} is a setting of strategy {strategy}, not of {self.strategy}"
        return ""


def _none_for_one(settings: DistributedSettings | None) -> DistributedSettings | None:
    return None if settings is None or settings.gpus == 1 else settings


Distributed = Annotated[DistributedSettings | None, AfterValidator(_none_for_one)]
"""None where one GPU trains alone, whatever strategy was named."""


class QuantizationSettings(Strict):
    """How weights are quantized, beside `precision`, in the words of `transformers.BitsAndBytesConfig`."""

    bnb_4bit_quant_storage: QuantStorage = Field(
        default="uint8",
        description="dtype that 4-bit weights are packed in; FSDP shards those of a floating dtype only.",
    )
    quantize_moe_experts: Flag = Field(
        default=False,
        description="Pack stacked experts in 4 bit, too; axolotl does so, transformers leaves them in 16.",
    )

    @model_serializer(mode="wrap")
    def _leave_out_later(self, values_of: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = values_of(self)
        return {key: value for key, value in values.items() if key != "quantize_moe_experts" or value}
