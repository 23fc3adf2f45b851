"""Quantize a model through transformers' own quantizer and bitsandbytes' own weight classes.

transformers replaces the linear layers (`HfQuantizer.preprocess_model`); bitsandbytes packs each weight.
The same calls serve meta, CPU and CUDA, so that a plan has exactly the bytes of a real model.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import bitsandbytes as bnb
import torch
from bitsandbytes.nn.parametrize import replace_parameter_4bit
from transformers import BitsAndBytesConfig
from transformers.core_model_loading import dot_natural_key
from transformers.modeling_utils import caching_allocator_warmup
from transformers.pytorch_utils import Conv1D
from transformers.quantizers import AutoHfQuantizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.quantizers import HfQuantizer


def quantization_config(precision: str, storage: str = "uint8") -> BitsAndBytesConfig | None:
    """Return what `from_pretrained` would be given for a precision; None for 16 and 32 bit.

    `storage` is the dtype that 4-bit weights are packed in (`bnb_4bit_quant_storage`).
    """
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
        bnb_4bit_quant_storage=storage,
    )


def make_quantizer(precision: str, storage: str = "uint8") -> HfQuantizer | None:
    """Return transformers' quantizer for a precision, or None."""
    config = quantization_config(precision, storage)
    return None if config is None else AutoHfQuantizer.from_config(config, pre_quantized=False)


def is_quantized_weight(parameter: object) -> bool:
    """Say whether bitsandbytes keeps this parameter packed in 4 or 8 bit."""
    return isinstance(parameter, (bnb.nn.Params4bit, bnb.nn.Int8Params))


def materialize_random(
    model: PreTrainedModel, device: torch.device, quantizer: HfQuantizer | None, packs_experts: bool = False
) -> None:
    """Move a model from meta to `device` with random weights, quantizing one layer after the other.

    On meta only the packed shapes change. Elsewhere transformers initialises what is not quantized, so
    buffers such as rotary frequencies are right; quantized weights are normal with the config's range. On a
    GPU memory is taken in the order of a checkpoint's loading, which decides where blocks lie.
    `packs_experts` quantizes stacked experts, each as it comes.
    """
    std = getattr(model.config.get_text_config(), "initializer_range", None) or 0.02
    if device.type == "cuda":
        _allocate_as_loaded(model, device, quantizer, std, packs_experts)
    elif device.type != "meta":
        _allocate_weights(model, dict(model.named_parameters()), device)
        _allocate_buffers(model, device)
    if quantizer is not None and device.type != "cuda":
        # bitsandbytes keeps this code book for the process, on the device that asks first: not on meta.
        bnb.functional.name2qmap.setdefault("dynamic", bnb.functional.create_dynamic_map())
        for module in model.modules():
            if is_quantized_weight(getattr(module, "weight", None)):
                _quantize_layer(module, device, std)
        if packs_experts:
            for name in _stacked_experts(model):
                if device.type != "meta":
                    model.get_parameter(name).data.normal_(0.0, std)
                _pack_expert(model, name, quantizer)
    if device.type != "meta":
        model.tie_weights()
        model.initialize_weights()


def _allocate_weights(model: PreTrainedModel, names: Iterable[str], device: torch.device) -> None:
    for name in names:
        parent, _, leaf = name.rpartition(".")
        parameter = model.get_parameter(name)
        if not is_quantized_weight(parameter):
            empty = torch.empty_like(parameter, device=device)
            made = torch.nn.Parameter(empty, requires_grad=parameter.requires_grad)
            model.get_submodule(parent)._parameters[leaf] = made


def _allocate_buffers(model: PreTrainedModel, device: torch.device) -> None:
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device=device)


def _allocate_as_loaded(
    model: PreTrainedModel,
    device: torch.device,
    quantizer: HfQuantizer | None,
    std: float,
    packs_experts: bool,
) -> None:
    """Take memory on a GPU as a checkpoint would: moved as a whole, or quantized weight by weight.

    Source of the latter: transformers/modeling_utils.py, `_load_pretrained_model`, and core_model_loading.py,
    `convert_and_load_state_dict_in_model`.
    """
    names = [name for name, _ in model.named_parameters()]
    experts = set(_stacked_experts(model))
    if quantizer is None:
        _allocate_weights(model, names, device)
    else:
        # The code book is made with the first layer (bitsandbytes/functional.py, `quantize_blockwise`).
        bnb.functional.name2qmap.pop("dynamic", None)
        caching_allocator_warmup(model, dict.fromkeys(names, device), quantizer)
        for name in sorted(names, key=dot_natural_key):
            if is_quantized_weight(model.get_parameter(name)):
                _load_quantized(model, name, device, quantizer, std)
                continue
            _allocate_weights(model, [name], device)
            if packs_experts and name in experts:
                _pack_expert(model, name, quantizer)
                torch.cuda.empty_cache()
    _allocate_buffers(model, device)


def _stacked_experts(model: PreTrainedModel) -> list[str]:
    """Return the names of experts' weights that are no linear layers."""
    named = model.named_parameters()
    return [name for name, parameter in named if parameter.ndim >= 3 and "expert" in name.lower()]


def _pack_expert(model: PreTrainedModel, name: str, quantizer: HfQuantizer) -> None:
    """Pack stacked experts in 4 bit; whoever reads them unpacks all of them.

    Source: axolotl 067b021, monkeypatch/moe_quant.py, `patch_moe_quantization_on_load`.
    """
    parent, _, leaf = name.rpartition(".")
    settings: Any = quantizer.quantization_config
    module: Any = model.get_submodule(parent)
    replace_parameter_4bit(
        module,
        leaf,
        compress_statistics=settings.bnb_4bit_use_double_quant,
        quant_type=settings.bnb_4bit_quant_type,
    )
    of_parameter = module.parametrizations[leaf]
    of_parameter.original.quant_state = of_parameter[0].quant_state  # As on the weight of a layer.


def _load_quantized(
    model: PreTrainedModel, name: str, device: torch.device, quantizer: HfQuantizer, std: float
) -> None:
    """Replace a weight by a random one that transformers quantizes, as it does with one of a checkpoint."""
    module: Any = model.get_submodule(name.rpartition(".")[0])
    shape = (module.out_features, module.in_features)
    if issubclass(module.source_cls, Conv1D):
        shape = shape[::-1]
    value = torch.empty(shape, dtype=model.dtype, device=device).normal_(0.0, std)
    packed: Any = quantizer.get_quantize_ops().convert({name: value}, full_layer_name=name, model=model)[name]
    packed._is_hf_initialized = True
    module.weight = packed


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
