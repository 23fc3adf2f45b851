"""Quantize a model through transformers' own quantizer and bitsandbytes' own weight classes.

transformers replaces the linear layers (`HfQuantizer.preprocess_model`); bitsandbytes packs each weight.
The same calls serve meta, CPU and CUDA, so that a plan has exactly the bytes of a real model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import bitsandbytes as bnb
import torch
from transformers import BitsAndBytesConfig
from transformers.quantizers import AutoHfQuantizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.quantizers import HfQuantizer


def quantization_config(precision: str) -> BitsAndBytesConfig | None:
    """Return what `from_pretrained` would be given for a precision; None for 16 and 32 bit."""
    if precision == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    kind, _, double = precision.partition("-")
    if kind not in ("nf4", "fp4"):
        return None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=double == "dq",
    )


def make_quantizer(precision: str) -> HfQuantizer | None:
    """Return transformers' quantizer for a precision, or None."""
    config = quantization_config(precision)
    return None if config is None else AutoHfQuantizer.from_config(config, pre_quantized=False)


def is_quantized_weight(parameter: object) -> bool:
    """Say whether bitsandbytes keeps this parameter packed in 4 or 8 bit."""
    return isinstance(parameter, (bnb.nn.Params4bit, bnb.nn.Int8Params))


def materialize_random(model: PreTrainedModel, device: torch.device, quantizer: HfQuantizer | None) -> None:
    """Move a model from meta to `device` with random weights, quantizing one layer after the other.

    On meta only the packed shapes change. Elsewhere transformers initialises what is not quantized, so
    buffers such as rotary frequencies are right; quantized weights are normal with the config's range.
    """
    if device.type != "meta":
        _allocate(model, device)
    if quantizer is not None:
        # bitsandbytes keeps this code book for the process, on the device that asks first: not on meta.
        bnb.functional.name2qmap.setdefault("dynamic", bnb.functional.create_dynamic_map())
        std = getattr(model.config.get_text_config(), "initializer_range", None) or 0.02
        for module in model.modules():
            if is_quantized_weight(getattr(module, "weight", None)):
                _quantize_layer(module, device, std)
    if device.type != "meta":
        model.tie_weights()
        model.initialize_weights()


def _allocate(model: PreTrainedModel, device: torch.device) -> None:
    # A head that is tied to the embeddings is the same parameter, and comes into memory once.
    made: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and not is_quantized_weight(parameter):
                if id(parameter) not in made:
                    empty = torch.empty_like(parameter, device=device)
                    made[id(parameter)] = torch.nn.Parameter(empty, parameter.requires_grad)
                module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device=device)


def _quantize_layer(module: Any, device: torch.device, std: float) -> None:
    """Replace the weight by its packed form, as transformers' Bnb4bitQuantize does on loading.

    Source: transformers/integrations/bitsandbytes.py, `Bnb4bitQuantize.convert`. The weight has the
    orientation [out_features, in_features] also where the model used Conv1D.
    """
    old: Any = module.weight
    dtype = module.compute_dtype if isinstance(module, bnb.nn.Linear4bit) else torch.float16
    value = torch.empty(module.out_features, module.in_features, dtype=dtype or old.dtype, device=device)
    if device.type != "meta":
        value.normal_(0.0, std)
    settings = {key: item for key, item in old.__dict__.items() if key != "SCB"}
    packed: Any = type(old)(value, requires_grad=False, **settings)._quantize(device)
    packed._is_hf_initialized = True
    module.weight = packed
