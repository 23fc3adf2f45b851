"""How few layers of a model tell the memory of all: the shallow config to trace, and what to repeat."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_STRIDES = ("decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_freq", "full_attention_interval")
"""Keys of configs that give every how many layers another kind of layer comes."""
_LEADS = ("first_k_dense_replace",)
"""Keys of configs that give how many layers at the start are of another kind."""


_ALIKE = frozenset(
    [
        "bloom",
        "deepseek_v2",
        "deepseek_v3",
        "falcon",
        "gemma",
        "gemma2",
        "gemma3",
        "gemma3_text",
        "gpt2",
        "gpt_neox",
        "gpt_oss",
        "gptj",
        "llama",
        "mistral",
        "mixtral",
        "olmo",
        "olmo2",
        "olmo3",
        "opt",
        "phi",
        "phi3",
        "qwen2",
        "qwen3",
        "qwen3_5",
        "qwen3_5_moe",
        "qwen3_moe",
        "qwen3_next",
        "smollm3",
    ]
)
"""Model types whose layers differ only by the keys above and by lists of one entry a layer.

The history of their few layers was compared with that of all. Other types may name layers by number, which
few layers would hide.
"""

_BY_NUMBER = ("mlp_only_layers", "moe_layers")
"""Keys that name single layers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shallow:
    """A config with few layers, and which of them stand for those left out."""

    config: Any
    depth: int
    """Number of its layers."""
    first: int
    period: int
    copies: int


def shallow(config: PretrainedConfig) -> Shallow | None:
    """Return a config with as few layers as tell all of a model; None where it has hardly more."""
    text: Any = config.get_text_config()
    depth = getattr(text, "num_hidden_layers", None)
    if not isinstance(depth, int) or config.model_type not in _ALIKE:
        return None
    if any(getattr(text, key, None) for key in _BY_NUMBER):
        return None
    lists = {
        key: value for key, value in vars(text).items() if isinstance(value, list) and len(value) == depth
    }
    if getattr(text, "num_kv_shared_layers", None):
        return None  # Its later layers use keys and values of earlier ones, by their number.
    lead = max([0, *_numbers(text, _LEADS)])
    period = _period(list(lists.values()), math.lcm(*_numbers(text, _STRIDES)), lead, depth)
    # The first layer of each kind is the last one that needs what all of them share (a mask), and its input
    # may need no gradient; the last one of each kind is followed by something else. So neither is repeated.
    first = lead + period
    copies = (depth - first - 3 * period) // period
    if copies < 1:
        return None
    reduced = copy.deepcopy(config)
    inner: Any = reduced.get_text_config()
    inner.num_hidden_layers = depth - copies * period
    for key, values in lists.items():
        setattr(inner, key, values[: first + period] + values[first + (copies + 1) * period :])
    return Shallow(config=reduced, depth=inner.num_hidden_layers, first=first, period=period, copies=copies)


def _numbers(text: Any, keys: tuple[str, ...]) -> list[int]:
    values = (getattr(text, key, None) for key in keys)
    return [value for value in values if isinstance(value, int) and value > 0]


def _period(lists: list[list[Any]], stride: int, lead: int, depth: int) -> int:
    """Return the smallest multiple of `stride` after which all lists repeat, up to the last such period."""
    for period in range(stride, depth, stride):
        inside = range(lead, depth - 2 * period)
        if all(values[i] == values[i + period] for values in lists for i in inside):
            return period
    return depth
