"""Trains with one of TRL's trainers or transformers' Trainer: train_trl.py KIND MODEL [--4bit] [--full]."""

import argparse

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
)

KINDS = ("sft", "liger", "cce", "dpo", "kto", "reward", "grpo", "trainer")
ROWS = 64
LENGTH = 1024

parser = argparse.ArgumentParser()
parser.add_argument("kind", choices=KINDS)
parser.add_argument("model")
parser.add_argument("--4bit", dest="four", action="store_true")
given = parser.parse_args()


def text(tokens):
    """Return text of about so many tokens."""
    return " a" * tokens


def rows(**columns):
    return Dataset.from_list([columns] * ROWS)


quantization = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_compute_dtype=torch.bfloat16,
    bnb_4bit_use_double_quant=True,
)
kwargs = {"dtype": torch.bfloat16}
if given.four:
    kwargs |= {"quantization_config": quantization, "device_map": {"": 0}}
common = {
    "output_dir": "out",
    "per_device_train_batch_size": 4 if given.kind == "grpo" else 2,
    "gradient_accumulation_steps": 2,
    "max_steps": 8,
    "logging_steps": 1,
    "bf16": True,
    "gradient_checkpointing": True,
    "report_to": [],
    "save_strategy": "no",
    "learning_rate": 1e-4,
}
tokenizer = AutoTokenizer.from_pretrained(given.model)
task = "SEQ_CLS" if given.kind == "reward" else "CAUSAL_LM"
lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type=task)
if given.kind == "reward":
    model = AutoModelForSequenceClassification.from_pretrained(given.model, num_labels=1, **kwargs)
else:
    model = AutoModelForCausalLM.from_pretrained(given.model, **kwargs)

if given.kind in ("trainer", "cce"):
    from transformers import Trainer, TrainingArguments

    ids = [5] * LENGTH
    model = get_peft_model(model, lora)
    model.enable_input_require_grads()
    if given.kind == "cce":
        from cut_cross_entropy import linear_cross_entropy

        class Trainer(Trainer):
            """Computes the loss without logits, as cut-cross-entropy's README shows."""

            def compute_loss(self, model, inputs, **kwargs):
                labels = inputs.pop("labels")
                inner = model.get_base_model()
                hidden = inner.model(**inputs).last_hidden_state
                return linear_cross_entropy(hidden, inner.lm_head.weight, labels, shift=True)

    trainer = Trainer(
        model=model,
        args=TrainingArguments(**common),
        train_dataset=rows(input_ids=ids, labels=ids, attention_mask=[1] * LENGTH),
    )
else:
    import trl

    shared = {"model": model, "processing_class": tokenizer, "peft_config": lora}
    if given.kind in ("sft", "liger"):
        args = trl.SFTConfig(max_length=LENGTH, use_liger_kernel=given.kind == "liger", **common)
        trainer = trl.SFTTrainer(args=args, train_dataset=rows(text=text(LENGTH)), **shared)
    elif given.kind == "dpo":
        pairs = rows(prompt=text(200), chosen=text(500), rejected=text(400))
        args = trl.DPOConfig(max_length=LENGTH, **common)
        trainer = trl.DPOTrainer(args=args, train_dataset=pairs, **shared)
    elif given.kind == "kto":
        from trl.experimental.kto import KTOConfig, KTOTrainer

        marked = Dataset.from_list(
            [{"prompt": text(200), "completion": text(500), "label": n % 2 == 0} for n in range(ROWS)]
        )
        trainer = KTOTrainer(args=KTOConfig(max_length=LENGTH, **common), train_dataset=marked, **shared)
    elif given.kind == "reward":
        args = trl.RewardConfig(max_length=LENGTH, **common)
        trainer = trl.RewardTrainer(
            args=args, train_dataset=rows(chosen=text(500), rejected=text(400)), **shared
        )
    else:
        trainer = trl.GRPOTrainer(
            args=trl.GRPOConfig(num_generations=4, max_completion_length=64, **common),
            reward_funcs=lambda completions, **kwargs: [float(len(each)) for each in completions],
            train_dataset=rows(prompt=text(100)),
            **shared,
        )
trainer.train()
