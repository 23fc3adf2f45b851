"""How a model comes into a GPU's memory: the allocations of loading, preparing and adapting it, in order.

What these phases free stays in the caching allocator as room for later tensors. So they decide what is
reserved and, through blocks that are too small to be split, what counts as allocated; and their own peak
may be the largest. The libraries followed are transformers 5, bitsandbytes 0.50 and peft 0.21: a quantized
model goes to the GPU weight by weight (`device_map`), any other one is moved there as a whole.

Left out: conversions of checkpoints that merge several tensors into one, as those of experts; what DoRA
computes from the weights to initialise its magnitudes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.lora.layer import ParamWrapper
from transformers.core_model_loading import dot_natural_key

from qbench.memory.history.ledger import Ledger
from qbench.memory.kernels.choices import Card
from qbench.memory.kernels.scratch import reduction_bytes
from qbench.scenario.schema import QUANTIZED_PRECISIONS, Point
from qbench.step.dtypes import base_dtype
from qbench.step.quantize import is_quantized_weight
from qbench.step.recipe import empties_cache, prepares_for_kbit, returns_to_base_dtype

_STAGED = "temporaries"
_CAST = "aten._to_copy.default"


def loads_on_gpu(point: Point) -> bool:
    """Say whether a model is loaded onto the GPU whole.

    accelerate loads for FSDP2 on the host, and DeepSpeed's stage 3 partitions what is loaded.
    """
    return point.distributed is None or point.distributed.strategy not in ("fsdp2", "zero3")


def record_loading(ledger: Ledger, model: Any, point: Point, card: Card) -> None:
    """Tell a ledger all allocations that bring a built model into memory, its own tensors among them."""
    base, adapters = _parameters(model)
    saved = {name: base.pop(name) for name in list(base) if ".modules_to_save." in name}
    itemsize = base_dtype(point.precision).itemsize
    ledger.begin_phase("load")
    returning = _returning(model, point, base, itemsize)
    staged = _load(ledger, base, point, card, returning)
    for name, buffer in model.named_buffers():
        ledger.name_place(name)
        ledger.register(buffer, "weights")
    ledger.begin_phase("prepare")
    away = {name: _in_fp32(ledger, name, base[name], staged.pop(name)) for name in returning}
    _upcast_all(ledger, base, staged, "weights")
    if prepares_for_kbit(point):
        ledger.empty_cache()  # peft/utils/other.py, `prepare_model_for_kbit_training`, `auto_clear_cache`
    _upcast_all(ledger, {name: base[name] for name in returning}, away, "weights")
    ledger.begin_phase("adapters")
    # Of parameters that stay unquantized, as experts', the upcast has been before.
    wrappers = {
        name: module.get_param().element_size()
        for name, module in model.named_modules()
        if isinstance(module, ParamWrapper)
    }
    _adapt(ledger, base, adapters, wrappers, itemsize)
    for name, parameter in saved.items():  # Copies of modules, which peft makes last.
        ledger.name_place(name)
        ledger.register(parameter, "weights")
    if empties_cache(point):
        ledger.empty_cache()


def _returning(model: Any, point: Point, base: dict[str, torch.Tensor], itemsize: int) -> list[str]:
    """Return the weights that go to fp32 and come back, in the order of the model's modules."""
    modules = {name.removeprefix("base_model.model.") for name in returns_to_base_dtype(model, point)}
    return [name for name in base if itemsize < 4 and name.rpartition(".")[0] in modules]


def _in_fp32(ledger: Ledger, name: str, parameter: torch.Tensor, handle: int | None) -> int:
    """Replace a staged weight by one in fp32; return its handle."""
    ledger.name_place(name)
    found = ledger.allocate(parameter.numel() * 4, _CAST, _STAGED)
    if handle is not None:
        ledger.free(handle)
    return found


def _adapt(
    ledger: Ledger,
    base: dict[str, torch.Tensor],
    adapters: dict[str, torch.Tensor],
    wrappers: dict[str, int],
    itemsize: int,
) -> None:
    """Make the adapters: moved in the dtype of their layers, in fp32 from then on, but bf16 under trl.

    Those of int8 layers, which have no floating-point dtype, come in fp32.

    Source: peft/tuners/tuners_utils.py, `_move_adapter_to_device_of_base_layer` and `cast_adapter_dtype`;
    what trl makes bf16 again (`recipe.finish_adapters`), peft had made fp32.
    """
    held: dict[str, int] = {}
    # `inject_adapter` there: those of parameters, as of experts, come last.
    for name in sorted(adapters, key=lambda name: _module_of(name) in wrappers):
        ledger.name_place(name)
        parameter = adapters[name]
        arrival = wrappers.get(_module_of(name)) or _itemsize_on_arrival(name, base, itemsize)
        if arrival == parameter.element_size() == 4:
            ledger.register(parameter, "adapters")
        else:
            held[name] = ledger.allocate(parameter.numel() * arrival, _CAST, _STAGED)
    for name, parameter in adapters.items():
        handle = held.get(name)
        if handle is None:
            continue
        ledger.name_place(name)
        in_fp32 = parameter.numel() * 4
        if parameter.element_size() == 4:
            ledger.register(parameter, "adapters")
            ledger.free(handle)
        elif ledger.allocations[handle].num_bytes < in_fp32:
            held[name] = ledger.allocate(in_fp32, _CAST, _STAGED)
            ledger.free(handle)
    _upcast_all(ledger, adapters, {name: held.get(name) for name in _lowered(adapters)}, "adapters")


def _lowered(adapters: dict[str, torch.Tensor]) -> list[str]:
    """Return the names of adapters that did not stay in fp32."""
    return [name for name, parameter in adapters.items() if parameter.element_size() < 4]


def _module_of(adapter: str) -> str:
    return adapter.partition(".lora_")[0]


def _itemsize_on_arrival(name: str, base: dict[str, torch.Tensor], itemsize: int) -> int:
    weight = base.get(f"{_module_of(name).removeprefix('base_model.model.')}.weight")
    return 4 if weight is not None and weight.dtype == torch.int8 else itemsize


def _parameters(model: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the base model's parameters by their name in the checkpoint, and those of the adapters."""
    base: dict[str, torch.Tensor] = {}
    adapters: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            adapters[name] = parameter
        else:
            plain = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
            base[plain.replace(".original_module.", ".")] = parameter
    return base, adapters


def _load(
    ledger: Ledger, base: dict[str, torch.Tensor], point: Point, card: Card, returning: list[str]
) -> dict[str, int | None]:
    """Load each weight; return the handles of those that a later upcast will replace.

    Source: transformers/core_model_loading.py, `convert_and_load_state_dict_in_model`: in the natural order
    of names, and one after the other when weights are quantized on the way.
    """
    names, itemsize = list(base), base_dtype(point.precision).itemsize
    if point.precision in QUANTIZED_PRECISIONS:
        _warm_up(ledger, base, itemsize)
        names.sort(key=dot_natural_key)
    staged: dict[str, int | None] = {}
    nested = next((base[name] for name in names if _is_nested(base[name])), None)
    for name in names:
        ledger.name_place(name)
        parameter = base[name]
        if is_quantized_weight(parameter):
            _quantize(ledger, parameter, itemsize, card, makes_code_book=parameter is nested)
        else:
            staged[name] = _stage(ledger, parameter, itemsize, "weights", stays=name not in returning)
    return staged


def _warm_up(ledger: Ledger, base: dict[str, torch.Tensor], itemsize: int) -> None:
    """Take and free one block of the size of all weights, so that they come out of one segment.

    Source: transformers/modeling_utils.py, `caching_allocator_warmup` and `get_total_byte_count`; a packed
    weight counts as packed, what is kept beside it does not count.
    """
    sizes = {
        name: parameter.nbytes if is_quantized_weight(parameter) else parameter.numel() * itemsize
        for name, parameter in base.items()
    }
    ledger.free(ledger.allocate(sum(sizes.values()), "caching_allocator_warmup", _STAGED, sizes))


def _stage(
    ledger: Ledger, parameter: torch.Tensor, itemsize: int, category: str, *, stays: bool
) -> int | None:
    """Bring a tensor in with so many bytes an element; return its handle when another will replace it."""
    if stays and parameter.element_size() <= itemsize:
        ledger.register(parameter, category)
        return None
    return ledger.allocate(parameter.numel() * itemsize, _CAST, _STAGED)


def _upcast_all(
    ledger: Ledger, parameters: dict[str, torch.Tensor], staged: Mapping[str, int | None], category: str
) -> None:
    """Replace staged tensors by the final ones; both are alive for a moment (peft/utils/other.py)."""
    for name, parameter in parameters.items():
        handle = staged.get(name)
        if handle is not None:
            ledger.name_place(name)
            ledger.register(parameter, category)
            ledger.free(handle)


def _is_nested(weight: Any) -> bool:
    state = getattr(weight, "quant_state", None)
    return state is not None and bool(state.nested)


def _quantize(ledger: Ledger, weight: Any, itemsize: int, card: Card, *, makes_code_book: bool) -> None:
    """Load a weight, pack it, and free it (transformers/integrations/bitsandbytes.py, `convert`).

    With the first nested weight bitsandbytes makes a code book, which it keeps for the process
    (functional.py, `quantize_blockwise`, `name2qmap`).
    """
    state = getattr(weight, "quant_state", None)
    if state is None:
        _quantize_8bit(ledger, weight, itemsize)
        return
    loaded = ledger.allocate(state.shape.numel() * itemsize, _CAST, _STAGED)
    if state.nested:
        _pack_nested(ledger, weight, state, card, makes_code_book=makes_code_book)
    else:
        ledger.register(state.absmax, "quant_state")
        ledger.register(weight, "weights")
        _register_code(ledger, state)
    ledger.free(loaded)


def _register_code(ledger: Ledger, state: Any) -> None:
    """Make the 16 values of a 4-bit type, and divide them by the largest (functional.py, `get_4bit_type`)."""
    ledger.register(state.code, "quant_state")
    magnitudes = ledger.allocate(state.code.nbytes, "aten.abs.default", _STAGED)
    largest = ledger.allocate(4, "aten.max.default", _STAGED)
    ledger.free(magnitudes)
    ledger.free(largest)


def _pack_nested(ledger: Ledger, weight: Any, state: Any, card: Card, *, makes_code_book: bool) -> None:
    """Allocate in the order of bitsandbytes/functional.py, `quantize_4bit` with `compress_statistics`."""
    scale_bytes = state.absmax.numel() * 4
    absmax = ledger.allocate(scale_bytes, "bitsandbytes.quantize_4bit.default", _STAGED)
    ledger.register(weight, "weights")
    _register_code(ledger, state)
    ledger.register(state.offset, "quant_state")
    # The mean of many scales is taken by several blocks of threads.
    sizes = reduction_bytes(state.absmax.numel(), 4, card)
    for handle in [ledger.allocate(size, "aten.mean.default", _STAGED) for size in sizes]:
        ledger.free(handle)
    centred = ledger.allocate(scale_bytes, "aten.sub.Tensor", _STAGED)
    if makes_code_book:
        ledger.allocate(state.state2.code.nbytes, "bitsandbytes.functional.create_dynamic_map", "quant_state")
    for tensor in (state.state2.absmax, state.absmax, state.state2.code):
        ledger.register(tensor, "quant_state")
    ledger.free(centred)
    ledger.free(absmax)


def _quantize_8bit(ledger: Ledger, weight: Any, itemsize: int) -> None:
    """The weight comes in, goes back to the host, and returns in fp16 to be packed (`Bnb8bitQuantize`)."""
    loaded = ledger.allocate(weight.numel() * itemsize, _CAST, _STAGED)
    half = ledger.allocate(weight.numel() * 2, _CAST, _STAGED)
    if isinstance(weight.SCB, torch.Tensor):
        ledger.register(weight.SCB, "quant_state")
    ledger.register(weight, "weights")
    ledger.free(half)
    ledger.free(loaded)
