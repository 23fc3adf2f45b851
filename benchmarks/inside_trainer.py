"""One training by TRL's own trainer, on the card that CUDA shows: `benchmarks.real_trainers` starts it."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, TrainerCallback

from qbench.scenario.schema import Point
from qbench.step.model import build_base_model, load_config
from qbench.step.quantize import make_quantizer

WORDS = 500


class Peaks(TrainerCallback):
    """The peak of each step."""

    def __init__(self) -> None:
        self.allocated: list[int] = []
        self.reserved: list[int] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        torch.cuda.reset_peak_memory_stats()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.allocated.append(torch.cuda.max_memory_allocated())
        self.reserved.append(torch.cuda.max_memory_reserved())


def main(file: Path, steps: int) -> None:
    """Train, and write the peaks of the last step beside the file of the point."""
    point = Point.model_validate_json(file.read_text())
    peaks = Peaks()
    trainer = _trainer(point, steps)
    trainer.add_callback(peaks)
    trainer.train()
    result = {"allocated": peaks.allocated[-1], "reserved": peaks.reserved[-1], "steps": peaks.allocated}
    file.with_suffix(".result").write_text(json.dumps(result))


def _trainer(point: Point, steps: int) -> Any:
    import trl

    model: Any = build_base_model(point, torch.device("cuda"), load_config(point))
    if point.method == "qlora":
        model.hf_quantizer = make_quantizer(point.precision)
        model.is_loaded_in_4bit = True
    train = point.train
    given: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": train.per_device_train_batch_size,
        "gradient_accumulation_steps": train.gradient_accumulation_steps,
        "gradient_checkpointing": train.gradient_checkpointing,
        "bf16": train.autocast == "bf16",
        "optim": train.optim,
        "max_steps": steps,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "max_length": None,
    }
    lora = None if point.lora is None else LoraConfig(task_type="CAUSAL_LM", **point.lora.model_dump())
    words = Tokenizer(models.WordLevel({str(index): index for index in range(WORDS)}, "1"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="0", pad_token="0")
    count = train.per_device_train_batch_size * train.gradient_accumulation_steps * steps
    shared = {"model": model, "processing_class": tokenizer, "peft_config": lora}
    if train.task == "dpo":
        # The end of a text is added to both answers.
        answer = " ".join(["2"] * (train.seq_len - 2))
        rows = {"prompt": ["3"] * count, "chosen": [f" {answer}"] * count, "rejected": [f" {answer}"] * count}
        return trl.DPOTrainer(args=trl.DPOConfig(**given), train_dataset=Dataset.from_dict(rows), **shared)
    ids = {"input_ids": [[2] * train.seq_len] * count}
    return trl.SFTTrainer(args=trl.SFTConfig(**given), train_dataset=Dataset.from_dict(ids), **shared)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
