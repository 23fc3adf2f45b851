"""Published counts of trainable and total parameters: exact for every plain LoRA of a catalog model.

`published_trainable.csv` holds the counts with their sources; `total` is empty where the source prints
another quantity (packed 4-bit elements, FP8 scales, a vision tower, a guess from the model's name).

The list it was chosen from has 111 rows. Of the 76 left out, 38 are methods other than LoRA (LoRA-FA,
BD-LoRA and full fine-tuning among them); the others are
- no causal language model (17): BERT twice, SpeciesLM, ViT, T5 twice, Whisper, LayoutLM, nucleotide
  transformer, BLIP-2, Qwen2.5-VL, RoBERTa three times, DeBERTa, Qwen3-Embedding, Llama 2 as a classifier;
- not in the catalog (13): phi-1.5, Qwen-7B twice, GPT-3 twice, ERNIE 4.5, Falcon-H1, Granite 4, LFM2 and
  LFM2.5, Ministral 3, Nemotron 3, an unnamed Qwen3 MoE;
- of other modules than the catalog's class has (4): LitGPT's Falcon-40B shares one A over q and v;
  Unsloth's Phi-3 medium and Phi-4 have split what is fused here; its Qwen3.5-35B-A3B adapts experts;
- without names of target modules (2): Unsloth's flags for Gemma 3 4B and Gemma 4 26B-A4B;
- rounded (2): GPT-2 large in the LoRA paper, adapted and in full.
"""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from qbench.scenario.schema import LoraSettings, Point
from qbench.step.adapters import add_adapters
from qbench.step.model import build_base_model, load_config
from qbench.step.recipe import prepare_base
from qbench.step.verify import count_parameters

with Path(__file__).with_name("published_trainable.csv").open(encoding="utf-8") as file:
    ROWS = list(csv.DictReader(file))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['id']}-{row['model']}-r{row['r']}")
def test_count_is_the_published_one(row: dict[str, str]) -> None:
    lora = LoraSettings(
        r=int(row["r"]),
        target_modules=tuple(row["target_modules"].split(",")),
        use_dora=row["use_dora"] == "yes",
    )
    point = Point(model=row["model"], lora=lora)
    meta = torch.device("meta")
    # Not the whole step: it refuses mixtures of experts, whose adapters can be counted all the same.
    base = prepare_base(build_base_model(point, meta, load_config(point)), point)
    with meta:
        trainable, total = count_parameters(add_adapters(base, lora))
    assert trainable == int(row["trainable"])
    if row["total"]:
        assert total == int(row["total"])
