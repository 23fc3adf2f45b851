"""Tiny models of every family of the catalog: its own config, with small sizes put in."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from qbench.catalog.models import find_model
from qbench.scenario.schema import LoraSettings, Point, TrainSettings

SMALL: dict[str, Any] = {
    # sizes
    "hidden_size": 64,
    "n_embd": 64,
    "d_model": 64,
    "word_embed_proj_dim": 64,
    "intermediate_size": 160,
    "ffn_dim": 160,
    "n_inner": 160,
    "vocab_size": 512,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "rotary_dim": 8,
    # depth and heads
    "num_hidden_layers": 2,
    "n_layer": 2,
    "num_attention_heads": 4,
    "n_head": 4,
    "max_position_embeddings": 256,
    "n_positions": 256,
    "sliding_window": 32,
}

FAMILIES = {
    "llama": "HuggingFaceTB/SmolLM2-135M",
    "qwen2": "Qwen/Qwen2.5-0.5B",
    "qwen3": "Qwen/Qwen3-0.6B",
    "mistral": "mistralai/Mistral-7B-Instruct-v0.1",
    "gemma": "google/gemma-2b",
    "gemma2": "google/gemma-2-2b",
    "gemma3_text": "google/gemma-3-270m",
    "phi": "microsoft/phi-2",
    "phi3": "microsoft/Phi-3-mini-128k-instruct",
    "gpt2": "openai-community/gpt2",
    "gptj": "EleutherAI/gpt-j-6b",
    "gpt_neox": "EleutherAI/pythia-14m",
    "bloom": "bigscience/bloom-560m",
    "opt": "facebook/opt-125m",
    "falcon": "tiiuae/falcon-7b",
    "olmo": "allenai/OLMo-1B-hf",
    "olmo2": "allenai/OLMo-2-0425-1B",
    "olmo3": "allenai/Olmo-3-1025-7B",
    "smollm3": "HuggingFaceTB/SmolLM3-3B",
}
"""A dense model of each text family in the catalog."""


def tiny_config(hub_id: str, **changes: Any) -> dict[str, Any]:
    """Return the catalog's config of a model with small sizes; keys that it does not have stay absent."""
    config = copy.deepcopy(dict(find_model(hub_id).config))
    for key, value in SMALL.items():
        if config.get(key) is not None:
            config[key] = value
    if config.get("num_key_value_heads") is not None:
        config["num_key_value_heads"] = 2
    if config.get("num_kv_heads") is not None:
        config["num_kv_heads"] = 4
    if config.get("layer_types") is not None:
        config["layer_types"] = config["layer_types"][: config["num_hidden_layers"]]
    for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
        config[key] = 0
    return config | changes


def write_tiny_model(folder: Path, hub_id: str, **changes: Any) -> str:
    """Write config.json of a tiny model into a folder; return the folder as a model name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(tiny_config(hub_id, **changes)))
    return str(folder)


def tiny_point(
    model: str, precision: str = "bf16", lora: dict[str, Any] | None = None, **train: Any
) -> Point:
    """Return a point of rank 4 on two sequences of 32 tokens, without checkpointing; `train` changes it."""
    sizes = {"seq_len": 32, "per_device_train_batch_size": 2, "gradient_checkpointing": False}
    return Point(
        model=model,
        precision=precision,
        lora=LoraSettings(**{"r": 4} | (lora or {})),
        train=TrainSettings(**sizes | train),
    )
