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
    "attention_chunk_size": 32,
    "full_attention_interval": 2,
    "sliding_window_pattern": 2,
    # experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "top_k_experts": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 96,
    "expert_intermediate_size": 96,
    "shared_expert_intermediate_size": 96,
    "intermediate_size_mlp": 160,
    # latent attention
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    # linear attention
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    # tables of Gemma 3n and 4, and their wider heads of full attention
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": 512,
    "global_head_dim": 32,
    "num_global_key_value_heads": 1,
}

SMALL_TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_heads": 2,
    "num_hidden_layers": 1,
    "depth": 1,
    "head_dim": 16,
    "global_head_dim": 16,
    "image_size": 56,
    "position_embedding_size": 64,
}
"""Sizes of what sees images or hears; texts do not pass through it."""

_SMALL_AUDIO = {
    "model_type": "gemma4_audio",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "subsampling_conv_channels": [8, 4],
    "output_proj_dims": 32,
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

OTHER_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3": ("google/gemma-3-4b-it", {"mm_tokens_per_image": 4}),
    "gemma4": ("google/gemma-4-E2B", {"audio_config": _SMALL_AUDIO}),
    "gemma4_31b": ("google/gemma-4-31B", {}),
    "qwen3_5": ("Qwen/Qwen3.5-9B", {}),
    "gemma4_moe": ("google/gemma-4-26B-A4B", {}),
    "qwen3_5_moe": ("Qwen/Qwen3.5-35B-A3B", {}),
    "qwen3_next": ("Qwen/Qwen3-Next-80B-A3B-Instruct", {}),
    "qwen3_moe": ("Qwen/Qwen3-30B-A3B", {}),
    "mixtral": ("mistralai/Mixtral-8x7B-v0.1", {}),
    "gpt_oss": ("openai/gpt-oss-20b", {}),
    "deepseek_v2": ("deepseek-ai/DeepSeek-V2-Lite", {"n_group": 1}),
    "deepseek_v3": ("deepseek-ai/DeepSeek-V3", {}),
    "llama4": ("meta-llama/Llama-4-Scout-17B-16E", {}),
    "llama4_maverick": ("meta-llama/Llama-4-Maverick-17B-128E", {}),
}
"""Models with towers for images and sound, linear attention or experts, and what else must shrink."""


ONCE_FAMILIES = {
    "apertus": "swiss-ai/Apertus-8B-Instruct-2509",
    "arcee": "arcee-ai/AFM-4.5B",
    "cohere2": "CohereLabs/tiny-aya-global",
    "ernie4_5": "baidu/ERNIE-4.5-0.3B-PT",
    "gemma4_unified": "google/gemma-4-12B-it",
    "glm4": "zai-org/GLM-4-9B-0414",
    "glm4_moe": "zai-org/GLM-4.5-Air",
    "glm4_moe_lite": "zai-org/GLM-4.7-Flash",
    "hunyuan_v1_dense": "tencent/Hunyuan-0.5B-Instruct",
    "idefics3": "HuggingFaceTB/SmolVLM-Instruct",
    "internvl": "OpenGVLab/InternVL3-8B-hf",
    "lfm2_moe": "LiquidAI/LFM2-8B-A1B",
    "llava_next": "llava-hf/llava-v1.6-mistral-7b-hf",
    "minimax_m2": "MiniMaxAI/MiniMax-M2",
    "mistral3": "mistralai/Ministral-3-3B-Instruct-2512",
    "mllama": "meta-llama/Llama-3.2-11B-Vision-Instruct",
    "qwen2_5_vl": "Qwen/Qwen2.5-VL-3B-Instruct",
    "qwen2_moe": "Qwen/Qwen1.5-MoE-A2.7B",
    "qwen2_vl": "Qwen/Qwen2-VL-2B-Instruct",
    "qwen3_vl": "Qwen/Qwen3-VL-2B-Instruct",
    "qwen3_vl_moe": "Qwen/Qwen3-VL-30B-A3B-Instruct",
    "seed_oss": "ByteDance-Seed/Seed-OSS-36B-Instruct",
    "smolvlm": "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
    "stablelm": "stabilityai/stablelm-2-1_6b",
    "starcoder2": "bigcode/starcoder2-3b",
}
"""Families that are held to the byte in one configuration."""

NOT_HELD = {
    *("deepseek_v4", "falcon_h1", "gemma3n_text", "glm4v", "glm_moe_dsa", "granitemoehybrid", "jamba"),
    *("kimi_linear", "lfm2", "lfm2_vl", "muse_glimmer", "nemotron_h", "paddleocr_vl"),
    *("afmoe", "ernie4_5_moe", "llava"),
}
"""Families that no test holds to the byte: their tiny models do not run, are slow, or make peft warn."""


def tiny_config(hub_id: str, **changes: Any) -> dict[str, Any]:
    """Return the catalog's config of a model with small sizes; keys that it does not have stay absent.

    `changes` may name keys of the text model where that is a config of its own.
    """
    config = copy.deepcopy(dict(find_model(hub_id).config))
    text = config.get("text_config", config)
    _shrink_text(text)
    for key in ("vision_config", "audio_config"):
        if config.get(key) is not None:
            config[key] |= {name: size for name, size in SMALL_TOWER.items() if name in config[key]}
    if "out_hidden_size" in config.get("vision_config", {}):
        config["vision_config"]["out_hidden_size"] = text["hidden_size"]
    for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
        text[key] = 0
    for key, value in changes.items():
        (config if key in config or text is config else text)[key] = value
    return config


def _shrink_text(text: dict[str, Any]) -> None:
    for key, value in SMALL.items():
        if text.get(key) is not None:
            text[key] = value
    if text.get("num_key_value_heads") is not None:
        # Latent attention has as many key heads as query heads.
        text["num_key_value_heads"] = 4 if "kv_lora_rank" in text else 2
    if text.get("num_kv_heads") is not None:
        text["num_kv_heads"] = 4
    if text.get("layer_types") is not None:
        _keep_both_kinds_of_layers(text)
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if "mrope_section" in rope and rope.get("partial_rotary_factor") != 0.25:
        rope["mrope_section"] = [4, 2, 2]  # Eight frequencies of heads of 16.
    elif "mrope_section" in rope:
        # A quarter of a head of 32 rotates: four frequencies, for time, height and width.
        text["head_dim"], rope["mrope_section"] = 32, [2, 1, 1]


def _keep_both_kinds_of_layers(text: dict[str, Any]) -> None:
    """Keep one layer of each kind; twice, where the last ones take keys and values of earlier ones."""
    kinds = list(dict.fromkeys(text["layer_types"]))[: text["num_hidden_layers"]]
    if len(kinds) == 1:
        kinds *= 2
    if text.get("num_kv_shared_layers"):
        text["num_kv_shared_layers"] = len(kinds)
        kinds *= 2
    text["layer_types"], text["num_hidden_layers"] = kinds, len(kinds)


def write_tiny_model(folder: Path, hub_id: str, **changes: Any) -> str:
    """Write config.json of a tiny model into a folder; return the folder as a model name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(tiny_config(hub_id, **changes)))
    return str(folder)


IMAGE_FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "qwen2_5_vl": (
        "Qwen/Qwen2.5-VL-3B-Instruct",
        {"image_token_id": 5},
        {"depth": 2, "fullatt_block_indexes": [1]},
    ),
    "qwen3_vl": ("Qwen/Qwen3-VL-2B-Instruct", {"image_token_id": 5}, {"deepstack_visual_indexes": [0]}),
    "gemma3": ("google/gemma-3-4b-it", {"mm_tokens_per_image": 4}, {}),
    "mistral3": ("mistralai/Ministral-3-3B-Instruct-2512", {}, {}),
    "mllama": (
        "meta-llama/Llama-3.2-11B-Vision-Instruct",
        {"image_token_index": 512},
        {
            "intermediate_layers_indices": [0],
            "num_global_layers": 1,
            "vision_output_dim": 64,
            "attention_heads": 2,
        },
    ),
    "smolvlm": ("HuggingFaceTB/SmolVLM2-2.2B-Instruct", {"image_token_id": 5}, {"image_size": 84}),
}
"""Models that are held to the byte with images: what else must shrink of config and tower."""


def write_tiny_vision_model(folder: Path, family: str) -> str:
    """Write config.json of a tiny model that takes images into a folder; return the folder."""
    hub_id, changes, of_tower = IMAGE_FAMILIES[family]
    config = tiny_config(hub_id) | changes
    config["vision_config"] |= of_tower
    if family == "mllama":
        config["text_config"]["cross_attention_layers"] = [1]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
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
