"""Your own training beside its plan: QbenchCallback on transformers' Trainer. Runs on the CPU in seconds."""

import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments

from qbench.callback import QbenchCallback

folder = sys.argv[1] if len(sys.argv) > 1 else "runs/mine"

# A tiny model from nothing; yours comes from AutoModelForCausalLM.from_pretrained.
sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
config = AutoConfig.for_model("llama", vocab_size=512, num_key_value_heads=2, **sizes)
model = get_peft_model(
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16),
    LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
)
rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(0, 512, (8, 64)).tolist()]

callback = QbenchCallback(folder, ledger=True)  # ledger: count memory on the CPU, too
trainer = Trainer(
    model,
    TrainingArguments(
        output_dir=f"{folder}/out", max_steps=4, use_cpu=True, report_to=[], save_strategy="no"
    ),
    train_dataset=rows,
    callbacks=[callback],
)
with callback:  # keeps what was measured if the training fails
    trainer.train()

measured, planned = callback.record.peak_allocated_bytes, callback.plan_record.peak_allocated_bytes
print(f"measured {measured:,} bytes, planned {planned:,}")
