"""Check that the libraries built what the point says, and say what they did not reach."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import bitsandbytes as bnb
import torch
import transformers
from transformers.pytorch_utils import Conv1D

from qbench.errors import StepError
from qbench.records.parts import Built, Skipped
from qbench.scenario.schema import QUANTIZED_PRECISIONS, Point
from qbench.step.dtypes import base_dtype
from qbench.step.quantize import is_quantized_weight, quantization_config

SHARE_WORTH_TELLING = 0.005
"""Skipped weights below this share of all parameters (norms, biases) are not listed."""


LAYER_REASON = "transformers leaves this layer unquantized"


Times = Callable[[str], int]
"""How often the module or parameter of a name stands in the model that is meant."""


def once(name: str) -> int:
    """Say of every part that it stands once, as in a model that was built in full."""
    return 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What was built: counts, dtypes, and the weights that quantization or LoRA left out."""

    trainable_params: int
    total_params: int
    base_params: int
    quantized_modules: int
    quantized_types: dict[str, int]
    """Number of quantized modules by their class and kind of weight: "Linear4bit nf4 double"."""
    quantized_params: int
    quantized_bytes: int
    """Bytes of the packed weights, without their quantization state."""
    adapted_modules: int
    dtypes: dict[str, str]
    skipped: tuple[Skipped, ...]

    def checkable(self) -> Built:
        """Return what a record of a measurement keeps: all facts but the counts it has as metrics."""
        return {
            "base_params": self.base_params,
            "quantized_modules": self.quantized_modules,
            "quantized_types": self.quantized_types,
            "quantized_params": self.quantized_params,
            "quantized_bytes": self.quantized_bytes,
            "adapted_modules": self.adapted_modules,
            "dtypes": self.dtypes,
        }


def verify_model(model: torch.nn.Module, point: Point) -> ModelFacts:
    """Return the facts of a built model.

    Raises StepError when it differs from the point: a quantized precision without quantized layers or with a
    target that was passed over, the wrong kind of layer, 4-bit type or compute dtype, double quantization
    missing or unasked, embeddings, head or adapters in another dtype than the recipe leaves them in.
    """
    layers, adapted = _quantized(model), _adapted(model)
    _check_quantization(point, layers, list(adapted.values()))
    if layers:
        _check_targets(point, adapted, _head(model))
    _check_dtypes(point, _dtypes(model))
    return model_facts(model, point)


def model_facts(model: torch.nn.Module, point: Point, times: Times = once) -> ModelFacts:
    """Return the facts of a built model, or of a deeper one in which parts stand `times` as often."""
    layers = _quantized(model)
    trainable, total = count_parameters(model, times)
    experts = [(name, one) for name, one in model.named_parameters() if _is_packed_expert(one)]
    base_params = sum(count for name, _, count in _base_parameters(model, times))
    return ModelFacts(
        trainable_params=trainable,
        total_params=total,
        base_params=base_params,
        quantized_modules=sum(times(name) for name in layers),
        quantized_types=_types(layers, times),
        quantized_params=sum(
            times(name) * layer.in_features * layer.out_features for name, layer in layers.items()
        )
        + sum(times(name) * _elements(one) for name, one in experts),
        quantized_bytes=sum(times(name) * _packed_bytes(layer) for name, layer in layers.items())
        + sum(times(name) * one.nbytes for name, one in experts),
        adapted_modules=sum(times(name) for name in _adapted(model)),
        dtypes=_dtypes(model),
        skipped=tuple(_skipped(model, point, base_params, times)),
    )


def _quantized(model: torch.nn.Module) -> dict[str, Any]:
    # peft's wrappers answer for the weight of the layer they wrap; only the owner counts.
    return {
        name: module
        for name, module in model.named_modules()
        if is_quantized_weight(module._parameters.get("weight"))
    }


def _types(layers: dict[str, Any], times: Times) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name, layer in layers.items():
        state = getattr(layer.weight, "quant_state", None)
        kind = "int8" if state is None else state.quant_type + (" double" if state.nested else "")
        key = f"{type(layer).__name__} {kind}"
        counts[key] = counts.get(key, 0) + times(name)
    return counts


def _adapted(model: torch.nn.Module) -> dict[str, Any]:
    return {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "lora_A") and hasattr(module, "base_layer")
    }


def has_stacked_experts(model: torch.nn.Module) -> bool:
    """Say whether a model keeps its experts as 3-D parameters, as transformers 5 does."""
    named = model.named_parameters()
    return any((one.ndim == 3 or _is_packed_expert(one)) and "experts" in name for name, one in named)


def _is_packed_expert(parameter: Any) -> bool:
    """Say whether a parameter is packed that belongs to no layer of bitsandbytes."""
    return hasattr(parameter, "quant_state") and not is_quantized_weight(parameter)


def _packed_bytes(module: torch.nn.Module) -> int:
    weight: Any = module.weight
    return int(weight.numel() * weight.element_size())


def count_parameters(model: torch.nn.Module, times: Times = once) -> tuple[int, int]:
    """Return (trainable, total) parameters as peft counts them; packed 4-bit weights count unpacked."""
    counter = getattr(model, "get_nb_trainable_parameters", None)
    if counter is not None:
        trainable, total = counter()
    else:
        total = sum(parameter.numel() for parameter in model.parameters())
        trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    # peft counts packed experts as they are stored.
    further = [
        (
            one.requires_grad,
            times(name) * _elements(one) - (one.numel() if _is_packed_expert(one) else _elements(one)),
        )
        for name, one in model.named_parameters()
    ]
    return (
        int(trainable) + sum(count for is_trained, count in further if is_trained),
        int(total) + sum(count for _, count in further),
    )


def _check_quantization(
    point: Point, quantized: dict[str, torch.nn.Module], adapted: list[torch.nn.Module]
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
    for name, layer in quantized.items():
        what = _fault_8bit(layer) if point.precision == "int8" else _fault_4bit(layer, point.precision)
        if what is not None:
            raise StepError(f"precision {point.precision}, but a layer is {what}: {_short(name)}")


def _fault_8bit(layer: Any) -> str | None:
    """Return what a layer is that should hold 8-bit weights; None when it does."""
    if not isinstance(layer, bnb.nn.Linear8bitLt):
        return type(layer).__name__
    if layer.weight.dtype != torch.int8:
        return f"not quantized yet ({layer.weight.dtype})"
    return "made to keep 16-bit weights" if layer.state.has_fp16_weights else None


def _fault_4bit(layer: Any, precision: str) -> str | None:
    """Return what a layer is that should hold 4-bit weights of a precision; None when it does."""
    if not isinstance(layer, bnb.nn.Linear4bit):
        return type(layer).__name__
    kind, _, double = precision.partition("-")
    state: Any = getattr(layer.weight, "quant_state", None)
    if state is None:
        return "not quantized yet"
    if state.quant_type != kind or state.nested != (double == "dq"):
        return f"{state.quant_type} {'with' if state.nested else 'without'} double quantization"
    config = quantization_config(precision)
    wanted = None if config is None else config.bnb_4bit_compute_dtype
    return f"set to compute in {layer.compute_dtype}" if layer.compute_dtype != wanted else None


def _check_targets(point: Point, adapted: dict[str, torch.nn.Module], head: Any) -> None:
    """Refuse a layer with an adapter that was meant to be quantized and is not; the head never is."""
    for name, module in adapted.items():
        layer: Any = module.base_layer
        if module is head or layer is head or not isinstance(layer, (torch.nn.Linear, Conv1D)):
            continue
        if not is_quantized_weight(layer._parameters.get("weight")):
            raise StepError(
                f"precision {point.precision}, but the target {_short(name)} is a {type(layer).__name__} in "
                f"{layer.weight.dtype} that transformers {transformers.__version__} passed over; "
                "leave it out of target_modules or use bf16"
            )


def _check_dtypes(point: Point, dtypes: dict[str, str]) -> None:
    """Refuse embeddings, head or adapters in another dtype than the recipe itself gives them."""
    is_prepared = point.method == "qlora" and point.train.recipe in ("peft", "trainer")
    rest = torch.float32 if is_prepared else base_dtype(point.precision)
    expected = {"embeddings": rest, "lm_head": rest}
    if point.method == "qlora" and point.train.recipe == "trl":
        # Elsewhere the dtype of adapters is peft's to choose, and older releases chose another one.
        expected["adapters"] = torch.bfloat16
    for name, dtype in expected.items():
        found, wanted = dtypes.get(name), str(dtype).removeprefix("torch.")
        if found not in (None, wanted):
            raise StepError(
                f"recipe {point.train.recipe} leaves the {name} of a {point.precision} base in {wanted}, "
                f"but here they are in {found}"
            )


def _short(name: str) -> str:
    """Return a module's name without what peft puts around it."""
    return re.sub(r"base_model\.model\.|\.base_layer$", "", name)


def _head(model: Any) -> Any:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base.get_output_embeddings()


def _base_parameters(model: torch.nn.Module, times: Times) -> Iterator[tuple[str, torch.nn.Parameter, int]]:
    """Yield (name, parameter, elements in all) of the base model; adapters are left out."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            continue
        yield name, parameter, times(name) * _elements(parameter)


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


def _skipped(model: torch.nn.Module, point: Point, base_params: int, times: Times) -> Iterator[Skipped]:
    """Yield groups of base weights that quantization did not reach, largest first.

    A matrix that is neither embedding nor head is listed whatever its size, since it comes unexpected.
    """
    if point.precision not in QUANTIZED_PRECISIONS:
        return
    groups: dict[tuple[str, str], int] = {}
    for name, parameter, count in _base_parameters(model, times):
        if not is_quantized_weight(parameter) and not hasattr(parameter, "quant_state"):
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
