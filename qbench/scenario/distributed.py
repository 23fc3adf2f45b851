"""How several GPUs train together: the strategy, their number, and each strategy's own settings.

Keys are those of accelerate's `FullyShardedDataParallelPlugin` and `DistributedDataParallelKwargs`, and of
`zero_optimization` in a config of DeepSpeed.
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
PLANNED = ("ddp", "fsdp2", "zero1", "zero2", "zero3")
"""Strategies whose memory is planned; others are refused."""
TIMED = ("ddp", "fsdp2")
"""Strategies whose step times are planned, messages between GPUs included."""
MOST_GPUS = 8
"""GPUs of one node. Plans hold for one node; larger machines exist, but none in the catalog."""

QuantStorage = Literal["uint8", "float16", "bfloat16", "float32"]
"""dtype that 4-bit weights are packed in, as bitsandbytes spells it; FSDP shards floating ones only."""

Flag = Annotated[bool, Field(strict=True)]
Elements = Annotated[int, Field(ge=1, le=10**13, strict=True)] | Literal["auto"]
"""A number of elements, or what Trainer fills in for it."""
_ZERO, _ZERO_1_2, _ZERO_3 = ("zero1", "zero2", "zero3"), ("zero1", "zero2"), ("zero3",)
OWN: dict[str, tuple[str, ...]] = {
    "reshard_after_forward": ("fsdp2",),
    "transformer_cls_names_to_wrap": ("fsdp2",),
    "bucket_cap_mb": ("ddp",),
    "gradient_as_bucket_view": ("ddp",),
    "reduce_bucket_size": _ZERO,
    "overlap_comm": _ZERO,
    "contiguous_gradients": _ZERO,
    "allgather_bucket_size": _ZERO_1_2,
    "stage3_prefetch_bucket_size": _ZERO_3,
    "stage3_param_persistence_threshold": _ZERO_3,
    "stage3_max_live_parameters": _ZERO_3,
    "stage3_max_reuse_distance": _ZERO_3,
    "sub_group_size": _ZERO_3,
}
"""Settings of some strategies alone."""


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

    reduce_bucket_size: Elements = Field(
        default="auto", description="zero1 to zero3: elements of gradients reduced at a time."
    )
    overlap_comm: Flag = Field(
        default=True, description="zero1 to zero3: reduce gradients while backward goes on."
    )
    contiguous_gradients: Flag = Field(
        default=True, description="zero1 to zero3: copy gradients into one buffer as they come."
    )
    allgather_bucket_size: Elements = Field(
        default=500_000_000, description="zero1, zero2: elements of updated weights gathered at a time."
    )
    stage3_prefetch_bucket_size: Elements = Field(
        default="auto", description="zero3: elements gathered ahead of the layer that runs."
    )
    stage3_param_persistence_threshold: Elements = Field(
        default="auto", description="zero3: weights with fewer elements are not partitioned."
    )
    stage3_max_live_parameters: Elements = Field(
        default=1_000_000_000, description="zero3: gathered elements that a GPU holds at most."
    )
    stage3_max_reuse_distance: Elements = Field(
        default=1_000_000_000, description="zero3: weights used again within so many elements stay gathered."
    )
    sub_group_size: Elements = Field(
        default=1_000_000_000, description="zero3: elements that the optimizer updates at a time."
    )

    def engine_settings(self) -> dict[str, Any]:
        """Return the settings of ZeRO that this strategy has, by DeepSpeed's names."""
        return {
            name: getattr(self, name)
            for name, strategies in OWN.items()
            if self.strategy in strategies and self.strategy in _ZERO
        }

    @model_serializer(mode="wrap")
    def _leave_out_others(self, values_of: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = values_of(self)
        return {
            key: value for key, value in values.items() if self.strategy in OWN.get(key, (self.strategy,))
        }

    def problem(self) -> str:
        """Return why these settings make no plan, empty where they do."""
        if self.strategy not in PLANNED:
            return f"strategy {self.strategy} is not planned; use {', '.join(PLANNED[:-1])} or {PLANNED[-1]}"
        for name, strategies in OWN.items():
            is_default = getattr(self, name) == type(self).model_fields[name].default
            if self.strategy not in strategies and not is_default:
                return f"{name} is a setting of strategy {' and '.join(strategies)}, not of {self.strategy}"
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
