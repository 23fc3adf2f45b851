"""Weights that are not there: files that load like the real ones and take no disk, in a view of the cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import FAMILIES, write_tiny_model

from qbench.dryrun.stand_ins import named_models, view_of_hub

REVISION = "0123456789abcdef"


def snapshot_of(cache: Path, name: str) -> Path:
    """Make an entry of a cache and return its snapshot's folder."""
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(REVISION)
    made = folder / "snapshots" / REVISION
    made.mkdir(parents=True)
    return made


def test_names_are_found_in_words_and_files(tmp_path: Path) -> None:
    config = tmp_path / "my config.yml"
    config.write_text("base_model: meta-llama/Llama-3.1-8B  # or a/b\ndatasets: [{path: me/data}]\n")
    command = [
        "accelerate",
        "launch",
        "x.py",
        "--model=Qwen/Qwen2.5-7B",
        f"--config={config}",
        "/data/Qwen/y",
    ]
    assert named_models(command) == ["Qwen/Qwen2.5-7B", "meta-llama/Llama-3.1-8B", "a/b", "me/data"]


LOADS = """
import sys, json, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model, info = AutoModelForCausalLM.from_pretrained("me/tiny", output_loading_info=True)
tokens = AutoTokenizer.from_pretrained("me/tiny")(" a" * 7)["input_ids"]
print(json.dumps([sum(map(torch.numel, model.parameters())), len(info["missing_keys"]), len(tokens)]))
"""


def test_what_the_cache_lacks_loads_from_the_view_and_the_cache_stays_as_it_is(tmp_path: Path) -> None:
    cache, state = tmp_path / "hub", tmp_path / "state"
    state.mkdir()
    write_tiny_model(snapshot_of(cache, "me/tiny"), FAMILIES["llama"])
    whole = snapshot_of(cache, "me/whole")
    (whole / "config.json").write_text('{"model_type": "llama"}')
    (whole / "model.safetensors").write_text("all there")
    before = sorted(cache.rglob("*"))
    names = ["me/whole", "me/unknown", "me/tiny"]
    variables = {**os.environ, "HF_HUB_CACHE": str(cache)}
    view = view_of_hub(names, sys.executable, state, variables, synthetic=True)
    assert view.made == ["weights and tokenizer of me/tiny"]
    assert sorted(cache.rglob("*")) == before
    inside = Path(view.variables["HF_HUB_CACHE"])
    assert (inside / whole.relative_to(cache) / "model.safetensors").read_text() == "all there"
    done = subprocess.run(
        [sys.executable, "-c", LOADS],
        env={**variables, **view.variables},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    num_params, num_missing, num_tokens = json.loads(done.stdout.splitlines()[-1])
    assert (num_missing, num_tokens) == (0, 7)
    file = inside / "models--me--tiny" / "snapshots" / REVISION / "model.safetensors"
    header_bytes = int.from_bytes(file.read_bytes()[:8], "little")
    header = json.loads(file.read_bytes()[8 : 8 + header_bytes])
    size = {"BF16": 2, "F16": 2, "F32": 4}
    stored = {name: entry for name, entry in header.items() if name != "__metadata__"}
    # As many bytes as the model has parameters, and a page or two on the disk: the header.
    assert file.stat().st_size == 8 + header_bytes + num_params * size[next(iter(stored.values()))["dtype"]]
    assert file.stat().st_blocks * 512 < 64 * 1024


@pytest.mark.nullgpu
def test_a_checkpoint_in_4_bits_loads_quantized(tmp_path: Path) -> None:
    """The hub's `-bnb-4bit` checkpoints hold what bitsandbytes saved, quantization state included."""
    from qbench.catalog.gpus import find_gpu
    from qbench.dryrun.run import Request, dry_run

    script = tmp_path / "train.py"
    script.write_text(
        """
import torch
from transformers import AutoModelForCausalLM
from peft import LoraConfig, get_peft_model
name = "unsloth/SmolLM2-135M-unsloth-bnb-4bit"
model = AutoModelForCausalLM.from_pretrained(name, device_map={"": 0})
assert type(model.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
model = get_peft_model(model, LoraConfig(target_modules="all-linear"))
optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad])
ids = torch.ones(1, 64, dtype=torch.long, device="cuda")
model(input_ids=ids, labels=ids).loss.backward()
optimizer.step()
"""
    )
    asked = Request(command=[sys.executable, str(script)], gpu=find_gpu("RTX 4090"), steps=1)
    record = dry_run(asked, tmp_path / "out", {**os.environ, "HF_HUB_CACHE": str(tmp_path / "none")})
    assert record.outcome == "ok", record.stderr_tail
    assert record.stand_ins == ["4-bit weights of unsloth/SmolLM2-135M-unsloth-bnb-4bit"]
    # 106,168,320 weights of linear layers in 4 bits: a byte for two.
    assert 106_168_320 // 2 <= record.breakdown_bytes["weights"] < 130 * 2**20
