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
    }
    kind = "SEQ_CLS" if train.task == "reward" else "CAUSAL_LM"
    lora = None if point.lora is None else LoraConfig(task_type=kind, **point.lora.model_dump())
    words = Tokenizer(models.WordLevel({str(index): index for index in range(WORDS)}, "1"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="0", pad_token="0")
    count = train.per_device_train_batch_size * train.gradient_accumulation_steps * steps
    shared = {"model": model, "processing_class": tokenizer, "peft_config": lora}
    trainer, config, rows, more = _of_task(trl, point, count)
    data = Dataset.from_dict(rows)
    return trainer(args=config(**given, **more), train_dataset=data, **shared, **_rewards(train.task))


def _of_task(trl: Any, point: Point, count: int) -> tuple[Any, Any, dict[str, Any], dict[str, Any]]:
    """Return the trainer of a task, its config, rows of full length, and settings of this trainer alone."""
    train, whole = point.train, {"max_length": None}
    # The end of a text is added to answers.
    answers = [" " + " ".join(["2"] * (train.seq_len - 2))] * count
    prompts = ["3"] * count
    if train.task == "dpo":
        rows: dict[str, Any] = {"prompt": prompts, "chosen": answers, "rejected": answers}
        return trl.DPOTrainer, trl.DPOConfig, rows, whole
    if train.task == "kto":
        labels = ([True, False] * count)[:count]
        rows = {"prompt": prompts, "completion": answers, "label": labels}
        return trl.KTOTrainer, trl.KTOConfig, rows, whole
    if train.task == "reward":
        texts = [f"3{answer}" for answer in answers]
        return trl.RewardTrainer, trl.RewardConfig, {"chosen": texts, "rejected": texts}, whole
    if train.task == "grpo":
        words = " ".join(["3"] * (train.seq_len - train.max_completion_length))
        more = {
            "max_completion_length": train.max_completion_length,
            "num_generations": train.per_device_train_batch_size,
            "generation_kwargs": {"min_new_tokens": train.max_completion_length},
        }
        return trl.GRPOTrainer, trl.GRPOConfig, {"prompt": [words] * count}, more
    return trl.SFTTrainer, trl.SFTConfig, {"input_ids": [[2] * train.seq_len] * count}, whole


def _rewards(task: str) -> dict[str, Any]:
    """Return what judges generated answers: their number, so that no answer is better than another."""
    if task != "grpo":
        return {}
    return {"reward_funcs": lambda completions, **_: [float(number) for number, _ in enumerate(completions)]}


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
