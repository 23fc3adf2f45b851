"""Writes models without weights: files of safetensors with a true header over a hole, which takes no disk.

Run by the Python of a command, as `hollow.py SPEC.json`, whose transformers decides on the tensors. The spec
is a list of {"folder", "config", "is_4bit", "needs_tokenizer"}; for each, the files go into the folder.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

SHARD_BYTES = 5 * 10**9
NAMES = {
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.int64: "I64",
    torch.uint8: "U8",
    torch.int32: "I32",
    torch.bool: "BOOL",
    torch.float64: "F64",
    torch.int8: "I8",
}
# The values of NF4 (QLoRA, appendix E), which bitsandbytes stores beside each weight.
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
QUANTIZED = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "_load_in_4bit": True,
    "load_in_8bit": False,
    "_load_in_8bit": False,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "bfloat16",
    "bnb_4bit_quant_storage": "uint8",
    "llm_int8_threshold": 6.0,
    "llm_int8_skip_modules": None,
    "llm_int8_enable_fp32_cpu_offload": False,
    "llm_int8_has_fp16_weight": False,
}


class Stored(NamedTuple):
    """A tensor of a file."""

    name: str
    dtype: str
    shape: list[int]
    num_bytes: int
    content: bytes = b""
    """Empty for a hole, which reads as zeros."""


def model_of(config: dict[str, Any]) -> tuple[Any, Any]:
    """Return the configuration and the model on meta that transformers builds of it."""
    import transformers

    values = dict(config)
    wanted = values.get("dtype") or values.get("torch_dtype") or "bfloat16"
    made = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    named = getattr(transformers, (config.get("architectures") or [""])[0], None)
    dtype = getattr(torch, str(wanted), torch.bfloat16)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            if named is not None:
                return made, named(made)
            return made, transformers.AutoModelForCausalLM.from_config(made)
    finally:
        torch.set_default_dtype(before)


def stored_tensors(model: Any, is_4bit: bool) -> Iterator[Stored]:
    """Yield what the checkpoint of a model holds; each tied tensor once."""
    linear = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name
    }
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        if is_4bit and name in linear:
            yield from _in_4bit(name, tensor)
        else:
            yield hole(name, tensor)


def is_storable(tensor: Any) -> bool:
    """Say whether a tensor is on a card, and of a dtype that files of safetensors have here."""
    return bool(tensor.is_cuda) and tensor.dtype in NAMES


def hole(name: str, tensor: torch.Tensor) -> Stored:
    """Return a tensor's place in a file, without its values."""
    return _hole(name, NAMES[tensor.dtype], list(tensor.shape), tensor.element_size())


def _hole(name: str, dtype: str, shape: list[int], size: int) -> Stored:
    return Stored(name, dtype, shape, torch.Size(shape).numel() * size)


def _in_4bit(name: str, weight: torch.Tensor) -> Iterator[Stored]:
    """Yield a weight as bitsandbytes stores it under double quantization (functional.py, QuantState)."""
    blocks = -(-weight.numel() // 64)
    state = {
        "quant_type": "nf4",
        "blocksize": 64,
        "dtype": "bfloat16",
        "shape": list(weight.shape),
        "nested_blocksize": 256,
        "nested_dtype": "float32",
        "nested_offset": 0.01,
    }
    text = json.dumps(state).encode()
    yield _hole(name, "U8", [(weight.numel() + 1) // 2, 1], 1)
    yield _hole(f"{name}.absmax", "U8", [blocks], 1)
    yield Stored(f"{name}.quant_map", "F32", [16], 64, struct.pack("<16f", *NF4))
    yield _hole(f"{name}.nested_absmax", "F32", [-(-blocks // 256)], 4)
    yield _hole(f"{name}.nested_quant_map", "F32", [256], 4)
    yield Stored(f"{name}.quant_state.bitsandbytes__nf4", "U8", [len(text)], len(text), text)


def write_weights(folder: str, tensors: Iterator[Stored]) -> None:
    """Write the files of weights, in shards of at most 5 GB, and their index."""
    shards: list[list[Stored]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + tensor.num_bytes > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.num_bytes
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = "model.safetensors"
        if len(shards) > 1:
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_shard(os.path.join(folder, name), shard)
        index.update({tensor.name: name for tensor in shard})
    if len(shards) > 1:
        total = sum(tensor.num_bytes for shard in shards for tensor in shard)
        _write_json(
            folder, "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index}
        )


def write_shard(file: str, tensors: list[Stored], metadata: dict[str, str] | None = None) -> None:
    """Write one file of safetensors, in which tensors without content are a hole."""
    header: dict[str, Any] = {"__metadata__": metadata or {"format": "pt"}}
    written: list[tuple[int, bytes]] = []
    at = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": [at, at + tensor.num_bytes],
        }
        if tensor.content:
            written.append((at, tensor.content))
        at += tensor.num_bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        begin = stream.tell()
        stream.truncate(begin + at)
        for offset, content in written:
            stream.seek(begin + offset)
            stream.write(content)


def write_tokenizer(folder: str) -> None:
    """Write a tokenizer of bytes, for which ' a' is one token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    specials = ["<pad>", "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    words = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet()), "\u0120a"]
    vocabulary = {word: number for number, word in enumerate(words)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[("\u0120", "a")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(specials)
    made.save(os.path.join(folder, "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}{% if m['role'] == 'assistant' %}"
        "{% generation %}{{ m['content'] + '<|im_end|>\\n' }}{% endgeneration %}{% else %}"
        "{{ m['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    of_class = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 1 << 20}
    _write_json(folder, "tokenizer_config.json", {**names, **of_class, "chat_template": template})
    _write_json(folder, "special_tokens_map.json", names)


def write_model(spec: dict[str, Any]) -> None:
    """Write the files of one model."""
    config, model = model_of(spec["config"])
    folder = spec["folder"]
    write_weights(folder, stored_tensors(model, spec["is_4bit"]))
    if not os.path.exists(os.path.join(folder, "config.json")):
        values = config.to_dict()
        values["architectures"] = [type(model).__name__]
        if spec["is_4bit"]:
            values["quantization_config"] = QUANTIZED
        _write_json(folder, "config.json", {name: value for name, value in values.items() if name[0] != "_"})
    if spec["needs_tokenizer"]:
        write_tokenizer(folder)


def _write_json(folder: str, name: str, values: Any) -> None:
    with open(os.path.join(folder, name), "w", encoding="utf-8") as stream:
        json.dump(values, stream, indent=1, default=str)


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as stream:
        for each in json.load(stream):
            write_model(each)
