"""QLoRA of a small model with TRL, as anyone would write it. It names nothing of qbench:

qbench dryrun --gpu "RTX 4090" --synthetic -- python examples/train_trl.py
"""

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

model = AutoModelForCausalLM.from_pretrained(
    "Qwen/Qwen2.5-0.5B",
    dtype=torch.bfloat16,
    quantization_config=BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    ),
)
trainer = SFTTrainer(
    model=model,
    args=SFTConfig(output_dir="out", per_device_train_batch_size=2, max_length=1024, bf16=True, report_to=[]),
    train_dataset=load_dataset("trl-lib/Capybara", split="train"),
    peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
)
trainer.train()
