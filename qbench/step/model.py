"""The base model of a point: built by transformers from a config or loaded from a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    PretrainedConfig,
)
from transformers.initialization import no_tie_weights
from transformers.modeling_utils import local_torch_dtype
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
)

from qbench.catalog.hub import hub_config
from qbench.catalog.models import ModelSource, resolve_model, stored_precision
from qbench.errors import StepError, first_line, shown
from qbench.scenario.schema import Point
from qbench.step.dtypes import base_dtype
from qbench.step.gguf import checkpoint_folder, gguf_file
from qbench.step.limits import bounded_modules, check_numbers
from qbench.step.quantize import make_quantizer, materialize_random, quantization_config
from qbench.step.recipe import keeps_cache
from qbench.step.unsloth_kernels import FAMILIES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SIZES = ("hidden_size", "num_hidden_layers", "vocab_size")
# fmt: off
WITH_POSITION_TABLE = frozenset({
    "bart", "bert", "bert-generation", "big_bird", "bigbird_pegasus", "biogpt", "blenderbot",
    "blenderbot-small", "codegen", "ctrl", "electra", "ernie", "git", "gpt-sw3", "gpt2", "gpt_bigcode",
    "gpt_neo", "gptj", "marian", "mbart", "megatron-bert", "mvp", "openai-gpt", "opt", "pegasus",
    "prophetnet", "rembert", "roc_bert", "roformer", "trocr", "xlm",
})
# fmt: on
"""Causal model types of transformers 5.24 that fail beyond max_position_embeddings: each was tried."""


def load_config(point: Point, source: ModelSource | None = None) -> PretrainedConfig:
    """Return the transformers config of the point's model, with the KV cache on where the recipe keeps it.

    Raises StepError when the model type is unknown to the installed transformers, when a hub id cannot
    be fetched, when the sequence is longer than a table of positions, or when pretrained weights are stored
    quantized in another way than the point says.
    """
    source = source or resolve_model(point.model)
    config: PretrainedConfig = _read_config(source)
    _check_text_config(config, source.name)
    _refuse_kernels_of_hub(config, source.name)
    config.default_sizes = _default_sizes(config, source)
    _set_quantization_aside(config, point)
    config.use_cache = bool(getattr(config, "use_cache", False)) and keeps_cache(point)
    _check_positions(config, point.train.seq_len)
    if point.train.task in ("reward", "sequence_classification"):
        config.num_labels = 1 if point.train.task == "reward" else 2
        text = config.get_text_config()
        text.pad_token_id = text.pad_token_id or 0  # Which it is moves no memory, but one there must be.
    return config


def _read_config(source: ModelSource) -> Any:
    if source.config is not None:
        check_numbers(source.config, source.name)
        model_type = source.config["model_type"]
        if model_type not in CONFIG_MAPPING:
            if source.config.get("auto_map"):
                raise StepError(
                    f"{source.name} needs code from its repository (auto_map of its config.json), which "
                    "qbench never runs; use a model whose type the installed transformers knows"
                )
            raise StepError(
                f"model type {model_type!r} of {source.name} is not in the installed transformers; upgrade it"
            )
        try:
            return CONFIG_MAPPING[model_type].from_dict(dict(source.config))
        except Exception as error:
            raise StepError(
                f"the config of {source.name} does not describe a {model_type} model: {first_line(error)}"
            ) from error
    if source.kind == "gguf":
        return AutoConfig.from_pretrained(weights_folder(source), trust_remote_code=False)
    try:
        hub_config(source.name)
        return AutoConfig.from_pretrained(source.name, trust_remote_code=False)
    except Exception as error:
        raise StepError(_hub_miss(source, error)) from error


def _hub_miss(source: ModelSource, error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return (
            f"{source.name} needs code from its repository, which qbench never runs; use a model whose type "
            "the installed transformers knows"
        )
    near = f"; nearest in the catalog: {', '.join(source.nearest)}" if source.nearest else ""
    return (
        f"{source.name} is not in the catalog and the hub did not give its config ({first_line(error)}); "
        f"use an id of `qbench models` or a folder that holds config.json{near}"
    )


def _check_text_config(config: PretrainedConfig, name: str) -> None:
    """Refuse a config whose part for text is not a config; `get_text_config` returns whatever is there."""
    try:
        text: Any = config.get_text_config()
    except Exception as error:
        raise StepError(f"the config of {name} has no one part for text: {first_line(error)}") from error
    if not isinstance(text, PretrainedConfig):
        raise StepError(
            f"the config of {name} has {shown(text)} as its part for text; text_config must be an object "
            "that the model's type has"
        )


def _default_sizes(config: PretrainedConfig, source: ModelSource) -> str:
    """Return the sizes that a folder's config leaves to transformers, as 'hidden_size 4096'; else empty."""
    if source.kind != "folder" or source.config is None:
        return ""
    text, given = config.get_text_config(), source.config.get("text_config") or source.config
    left = [name for name in _SIZES if not {name, text.attribute_map.get(name, name)} & given.keys()]
    return ", ".join(f"{name} {getattr(text, name)}" for name in left if hasattr(text, name))


def _refuse_kernels_of_hub(config: PretrainedConfig, name: str) -> None:
    """Refuse a config whose attention is a repository: transformers would fetch its code and run it."""
    for part in (config, config.get_text_config()):
        attention = part._attn_implementation
        if attention is not None and "/" in str(attention):
            raise StepError(
                f"the config of {name} takes its attention from {attention}, code that qbench never runs; "
                "remove attn_implementation from the config"
            )


def _check_positions(config: PretrainedConfig, seq_len: int) -> None:
    """Refuse a sequence longer than a table of positions; rotary and ALiBi models have none of fixed size."""
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    if text.model_type in WITH_POSITION_TABLE and limit is not None and seq_len > limit:
        raise StepError(
            f"seq_len {seq_len} is longer than the model's table of {limit} positions; use {limit} or less"
        )


def position_caveat(config: PretrainedConfig, seq_len: int) -> str | None:
    """Return a warning where a rotary model is trained beyond the positions it was trained on, else None."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is None or seq_len <= limit:
        return None
    return f"seq_len {seq_len} is beyond the model's {limit} positions; memory is right, quality may not be"


def _set_quantization_aside(config: PretrainedConfig, point: Point) -> None:
    """Take a checkpoint's own quantization out of its config: the point says how the base is kept.

    Raises StepError when the point wants these weights in another form.
    """
    settings: Any = getattr(config, "quantization_config", None)
    stored = stored_precision(settings.to_dict() if hasattr(settings, "to_dict") else settings)
    if stored is None:
        return
    if point.weights == "pretrained" and stored != point.precision:
        raise StepError(
            f"the weights of {point.model} are stored as {stored}, but the point says precision "
            f"{point.precision}; use a checkpoint that is not quantized, or weights: random"
        )
    del config.quantization_config
    config.stored_precision = stored


def model_caveats(config: PretrainedConfig, point: Point) -> Iterator[str]:
    """Yield what a reader should know about the plan of this model before trusting it."""
    if _is_image_text(config) and point.vision is None:
        yield (
            "the model takes images: planned on text alone, with the weights of the tower but no pixels; "
            "give --num-images for images"
        )
    if getattr(config, "default_sizes", ""):
        yield (
            f"the config of {point.model} leaves out sizes; planned with the defaults of transformers: "
            f"{config.default_sizes}"
        )
    stored = getattr(config, "stored_precision", None)
    if stored is not None and stored != point.precision:
        yield f"the checkpoint of {point.model} is stored in {stored}; the plan uses {point.precision}"
    beyond = position_caveat(config, point.train.seq_len)
    if beyond is not None:
        yield beyond
    if "linear_attention" in (getattr(config.get_text_config(), "layer_types", None) or ()):
        yield (
            "linear attention is planned with the torch operators of transformers; the packages fla and "
            "causal-conv1d, where installed, run kernels that keep other tensors"
        )
    if point.choices.loss_type == "unsloth":
        yield "Unsloth's loss has smaller chunks where less than 8 GiB are free at the first step"
    if point.choices.lora_kernels == "unsloth" and config.get_text_config().model_type not in FAMILIES:
        yield f"Unsloth compiles the layers of {config.get_text_config().model_type}; planned without that"
    if point.precision == "int8":
        yield "int8 splits off outlier columns, which depend on the data; the plan assumes there are none"
        if point.train.gradient_checkpointing:
            # bitsandbytes/autograd/_functions.py, MatMul8bitLt.forward: ctx.tensors, not save_for_backward.
            yield (
                "int8 keeps the inputs of all quantized layers until backward despite checkpointing, whose "
                "hooks bitsandbytes bypasses; it may take more memory than bf16"
            )


def build_base_model(point: Point, device: torch.device, config: PretrainedConfig) -> PreTrainedModel:
    """Return the (quantized) base model on `device`; on meta nothing is allocated.

    Raises StepError when transformers cannot build the model or refuses the attention implementation, or
    pretrained weights are not to be had.
    """
    if point.weights == "pretrained" and device.type != "meta":
        return _load_pretrained(point, device, config)
    dtype = base_dtype(point.precision)
    quantizer = make_quantizer(point.precision, point.quantization.bnb_4bit_quant_storage)
    # As in `from_pretrained`: weights are tied once layers are replaced, since which layers stay in 16 bit
    # depends on it, and new layers get biases of the model's dtype.
    with torch.device("meta"), no_tie_weights(), local_torch_dtype(dtype), bounded_modules(point.model):
        model: PreTrainedModel = _from_config(point, config)
        if quantizer is not None:
            quantizer.preprocess_model(model=model, dtype=dtype, device_map=None)
    model.tie_weights()
    materialize_random(model, device, quantizer, point.quantization.quantize_moe_experts)
    if quantizer is not None:
        quantizer.postprocess_model(model)
    return model


def _from_config(point: Point, config: PretrainedConfig) -> Any:
    own_flash = _attention(point) == "flash_attention_2" and _has_own_flash(config)
    try:
        model = _built(config, point, "eager" if own_flash else _attention(point))
        if own_flash:
            # What transformers would fetch keeps what flash attention keeps.
            model.config.get_text_config()._attn_implementation = "flash_attention_2"
        return model
    except StepError:
        raise
    except Exception as error:
        # What a config holds decides where the model's code fails, and with which error.
        attention = point.train.attn_implementation
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not _is_image_text(config):
            raise StepError(
                f"{point.model} is not a text model for transformers ({type(config).__name__}); audio models "
                "are planned only where transformers has a text model for them"
            ) from error
        hint = "" if attention == "auto" else "; choose another with --attn, for example sdpa or auto"
        raise StepError(
            f"transformers cannot build {point.model} with attn_implementation {attention}: "
            f"{first_line(error)}{hint}"
        ) from error


def _built(config: PretrainedConfig, point: Point, attention: str | None) -> Any:
    build = partial(
        _auto_class(config, point).from_config, dtype=base_dtype(point.precision), trust_remote_code=False
    )
    try:
        return build(config, attn_implementation=attention)
    except ValueError:
        if attention != "sdpa" or type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            raise
        # A part without sdpa, such as Gemma 4's for sound, refuses it for all; left out, the others take it.
        return build(config, attn_implementation=None)


def _is_image_text(config: PretrainedConfig) -> bool:
    """Say whether transformers has no class for text alone, but one that takes images, too."""
    found = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return found and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING


def _has_own_flash(config: PretrainedConfig) -> bool:
    """Say whether the model takes kernels of the hub alone for flash attention, as gpt-oss for its sinks."""
    known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)] if known else None
    return bool(getattr(model, "_compatible_flash_implementations", None))


def _auto_class(config: PretrainedConfig, point: Point) -> Any:
    if point.train.task in ("reward", "sequence_classification"):
        return AutoModelForSequenceClassification
    if point.vision is not None and type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise StepError(
            f"{point.model} takes no images ({config.model_type}); leave out the settings of vision"
        )
    takes_images = point.vision is not None or _is_image_text(config)
    return AutoModelForImageTextToText if takes_images else AutoModelForCausalLM


def _attention(point: Point) -> str | None:
    chosen = point.train.attn_implementation
    return None if chosen == "auto" else chosen


def _load_pretrained(point: Point, device: torch.device, config: PretrainedConfig) -> PreTrainedModel:
    source = resolve_model(point.model)
    arguments: dict[str, Any] = {
        "dtype": base_dtype(point.precision),
        "attn_implementation": _attention(point),
        "trust_remote_code": False,
    }
    quantization = quantization_config(point.precision, point.quantization.bnb_4bit_quant_storage)
    if quantization is not None:
        # Weights are quantized on the device, one after the other; any other model is moved there as a whole.
        arguments |= {"quantization_config": quantization, "device_map": {"": str(device)}}
    try:
        model: Any = _auto_class(config, point).from_pretrained(weights_folder(source), **arguments)
    except (OSError, ValueError, ImportError) as error:
        raise StepError(
            f"weights: pretrained, but those of {point.model} could not be loaded ({first_line(error)}); "
            "give a folder with the checkpoint, or set weights: random"
        ) from error
    model.config.use_cache = config.use_cache
    if quantization is None:
        model.to(device)
    loaded: PreTrainedModel = model
    return loaded


def weights_folder(source: ModelSource) -> Path | str:
    """Return where transformers loads real weights and tokenizer from: a folder, or the name of a hub model.

    Raises StepError when they come with a Python package that is not installed.
    """
    gguf = gguf_file(source)
    if gguf is not None:
        return checkpoint_folder(gguf)
    if source.path is not None:
        return source.path
    return source.name if source.spec is None else source.spec.hub_id
