"""A model's folder without its weights: safetensors files with a true header over a hole.

Nothing is downloaded, and nothing is read from the disk, since the null GPU makes no large copies.
"""

import json
import struct
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

SHARD_BYTES = 5_000_000_000
"""What transformers itself writes into one file at most."""


def model_folder(config: dict, folder: Path) -> Path:
    """Write a config.json and bf16 weights that are holes into a folder, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    parsed = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(parsed, torch_dtype=torch.bfloat16)
    tied = {"lm_head.weight"} if parsed.tie_word_embeddings else set()
    shapes = {name: list(t.shape) for name, t in sorted(model.state_dict().items()) if name not in tied}
    shards = _shards(shapes)
    index = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_hole(folder / name, shard)
        index |= dict.fromkeys(shard, name)
    total = sum(_bytes(shape) for shape in shapes.values())
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)
    return folder


def _bytes(shape: list[int]) -> int:
    return 2 * torch.Size(shape).numel()


def _shards(shapes: dict[str, list[int]]) -> list[dict[str, list[int]]]:
    shards: list[dict[str, list[int]]] = [{}]
    size = 0
    for name, shape in shapes.items():
        if shards[-1] and size + _bytes(shape) > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += _bytes(shape)
    return shards


def _write_hole(file: Path, shapes: dict[str, list[int]]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + _bytes(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        out.truncate(8 + len(text) + end)
