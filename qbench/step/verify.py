"""Check that the libraries built what the point says, and say what they did not reach."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import bitsandbytes as bnb
import torch
import transformers

from qbench.errors import StepError
from qbench.scenario.schema import QUANTIZED_PRECISIONS, Point
from qbench.step.quantize import is_quantized_weight

SHARE_WORTH_TELLING = 0.005
"""Skipped weights below this share of all parameters (norms, biases) are not listed."""


LAYER_REASON = "transformers leaves this layer unquantized"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What was built: counts, dtypes, and the weights that quantization or LoRA left out."""

    trainable_params: int
    total_params: int
    base_params: int
    quantized_modules: int
    quantized_params: int
    quantized_bytes: int
    """Bytes of the packed weights, without their quantization state."""
    adapted_modules: int
    dtypes: dict[str, str]
    skipped: tuple[dict[str, Any], ...]


def verify_model(model: torch.nn.Module, point: Point) -> ModelFacts:
    """Return the facts of a built model.

    Raises StepError when it differs from the point: a quantized precision without quantized layers, the
    wrong kind of layer or 4-bit type, double quantization missing or unasked.
    """
    # peft's wrappers answer for the weight of the layer they wrap; only the owner counts.
    quantized = [
        module for module in model.modules() if is_quantized_weight(module._parameters.get("weight"))
    ]
    adapted = [
        module for module in model.modules() if hasattr(module, "lora_A") and hasattr(module, "base_layer")
    ]
    _check_quantization(point, quantized, adapted)
    trainable, total = count_parameters(model)
    base_params = sum(count for name, _, count in _base_parameters(model))
    return ModelFacts(
        trainable_params=trainable,
        total_params=total,
        base_params=base_params,
        quantized_modules=len(quantized),
        quantized_params=sum(module.in_features * module.out_features for module in quantized),  # type: ignore[operator,misc]
        quantized_bytes=sum(_packed_bytes(module) for module in quantized),
        adapted_modules=len(adapted),
        dtypes=_dtypes(model),
        skipped=tuple(_skipped(model, point, base_params)),
    )


def has_stacked_experts(model: torch.nn.Module) -> bool:
    """Say whether a model keeps its experts as 3-D parameters, as transformers 5 does."""
    return any(parameter.ndim == 3 and "experts" in name for name, parameter in model.named_parameters())


def _packed_bytes(module: torch.nn.Module) -> int:
    weight: Any = module.weight
    return int(weight.numel() * weight.element_size())


def count_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """Return (trainable, total) parameters as peft counts them; packed 4-bit weights count unpacked."""
    counter = getattr(model, "get_nb_trainable_parameters", None)
    if counter is not None:
        trainable, total = counter()
        return int(trainable), int(total)
    total = sum(parameter.numel() for parameter in model.parameters())
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad), total


def _check_quantization(
    point: Point, quantized: list[torch.nn.Module], adapted: list[torch.nn.Module]
) -> None:
    if point.precision not in QUANTIZED_PRECISIONS:
        if quantized:
            raise StepError(
                f"precision {point.precision}, but {len(quantized)} layers of {point.model} are quantized"
            )
        return
    if not quantized:
        kinds = sorted({type(module.base_layer).__name__ for module in adapted})
        raise StepError(
            f"precision {point.precision}, but transformers {transformers.__version__} quantizes no layer of "
            f"{point.model} (its linear layers are {', '.join(kinds)}, which are passed over); use bf16"
        )
    for layer in quantized:
        _check_layer(point, layer)


def _check_layer(point: Point, layer: Any) -> None:
    wanted = bnb.nn.Linear8bitLt if point.precision == "int8" else bnb.nn.Linear4bit
    if not isinstance(layer, wanted):
        raise StepError(f"precision {point.precision}, but a layer is {type(layer).__name__}")
    if point.precision == "int8":
        return
    kind, _, double = point.precision.partition("-")
    state: Any = getattr(layer.weight, "quant_state", None)
    if state is None:
        raise StepError(f"precision {point.precision}, but a layer is not quantized yet")
    if state.quant_type != kind or state.nested != (double == "dq"):
        nested = "with" if state.nested else "without"
        raise StepError(
            f"precision {point.precision}, but a layer is {state.quant_type} {nested} double quantization"
        )


def _base_parameters(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter, int]]:
    """Yield (name, parameter, elements) of the base model; adapters are left out."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            continue
        yield name, parameter, _elements(parameter)


def _elements(parameter: Any) -> int:
    state = getattr(parameter, "quant_state", None)
    if state is not None:
        return int(state.shape.numel())
    return int(parameter.numel())


def _dtypes(model: Any) -> dict[str, str]:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    groups: dict[str, torch.Tensor | None] = {
        "embeddings": getattr(base.get_input_embeddings(), "weight", None),
        "lm_head": getattr(base.get_output_embeddings(), "weight", None),
        "norms": next((p for n, p in base.named_parameters() if "norm" in n.lower() or ".ln_" in n), None),
        "adapters": next((p for n, p in base.named_parameters() if "lora_A" in n), None),
    }
    return {
        name: str(value.dtype).removeprefix("torch.") for name, value in groups.items() if value is not None
    }


def _skipped(model: torch.nn.Module, point: Point, base_params: int) -> Iterator[dict[str, Any]]:
    """Yield groups of base weights that quantization did not reach, largest first.

    A matrix that is neither embedding nor head is listed whatever its size: nobody would expect it.
    """
    if point.precision not in QUANTIZED_PRECISIONS:
        return
    groups: dict[tuple[str, str], int] = {}
    for name, parameter, count in _base_parameters(model):
        if not is_quantized_weight(parameter):
            module = re.sub(r"\.\d+\.", ".*.", name)
            key = (re.sub(r"base_model\.model\.|base_layer\.", "", module), _reason(name, parameter))
            groups[key] = groups.get(key, 0) + count
    for (module, reason), params in sorted(groups.items(), key=lambda item: -item[1]):
        share = params / base_params
        if share >= SHARE_WORTH_TELLING or reason == LAYER_REASON:
            yield {"module": module, "reason": reason, "params": params, "share": share}


def _reason(name: str, parameter: torch.Tensor) -> str:
    if parameter.ndim == 3:
        return "stacked expert weights are not linear layers, so bitsandbytes passes them over"
    if "embed" in name or name.endswith(("wte.weight", "wpe.weight")):
        return "embeddings are a table, not a linear layer"
    if "lm_head" in name or "embed_out" in name:
        return "transformers keeps the output head unquantized"
    return LAYER_REASON if parameter.ndim == 2 else "not a linear layer"
