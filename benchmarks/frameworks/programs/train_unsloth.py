"""Fine-tunes as Unsloth's notebooks do: train_unsloth.py MODEL [options]; settings come from their rows."""

import argparse

from unsloth import FastLanguageModel, FastModel, FastVisionModel  # isort: skip

import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

ROWS = 64
DENSE = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"
LOADERS = {"language": FastLanguageModel, "model": FastModel, "vision": FastVisionModel}

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--loader", choices=LOADERS, default="language")
parser.add_argument("--4bit", dest="is_4bit", action="store_true")
parser.add_argument("--full", action="store_true")
parser.add_argument("--length", type=int, default=2048)
parser.add_argument("--r", type=int, default=16)
parser.add_argument("--targets", default=DENSE)
parser.add_argument("--batch", type=int, default=2)
parser.add_argument("--accumulate", type=int, default=4)
parser.add_argument("--optim", default="adamw_8bit")
parser.add_argument("--checkpointing", default="unsloth")
given = parser.parse_args()

loader = LOADERS[given.loader]
kwargs = {"full_finetuning": True} if given.full else {}
model, tokenizer = loader.from_pretrained(
    given.model, max_seq_length=given.length, dtype=None, load_in_4bit=given.is_4bit, **kwargs
)
if given.loader == "vision":
    targets = {"finetune_vision_layers": True, "finetune_language_layers": True}
    targets |= {"finetune_attention_modules": True, "finetune_mlp_modules": True}
elif given.loader == "model" and given.targets == DENSE:
    targets = {"finetune_vision_layers": False, "finetune_language_layers": True}
    targets |= {"finetune_attention_modules": True, "finetune_mlp_modules": True}
else:
    targets = {"target_modules": given.targets.split(",")}
    targets |= {"use_gradient_checkpointing": given.checkpointing}
if not given.full:
    model = loader.get_peft_model(
        model, r=given.r, lora_alpha=given.r, lora_dropout=0, bias="none", random_state=3407, **targets
    )
text = " a" * given.length
settings = {
    "per_device_train_batch_size": given.batch,
    "gradient_accumulation_steps": given.accumulate,
    "warmup_steps": 5,
    "max_steps": 8,
    "learning_rate": 2e-4,
    "logging_steps": 1,
    "optim": given.optim,
    "weight_decay": 0.01,
    "seed": 3407,
    "output_dir": "outputs",
    "report_to": "none",
}
if given.loader == "vision":
    from PIL import Image
    from unsloth.trainer import UnslothVisionDataCollator

    FastVisionModel.for_training(model)
    asked = [
        {"type": "text", "text": "Write the LaTeX"},
        {"type": "image", "image": Image.new("RGB", (320, 50))},
    ]
    answer = [{"type": "text", "text": " a" * 64}]
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    unchanged = {"remove_unused_columns": False, "dataset_text_field": "", "max_length": given.length}
    trainer = SFTTrainer(
        model=model,
        tokenizer=tokenizer,
        data_collator=UnslothVisionDataCollator(model, tokenizer),
        train_dataset=[{"messages": turns}] * ROWS,
        args=SFTConfig(dataset_kwargs={"skip_prepare_dataset": True}, **unchanged, **settings),
    )
else:
    trainer = SFTTrainer(
        model=model,
        tokenizer=tokenizer,
        train_dataset=Dataset.from_list([{"text": text}] * ROWS),
        args=SFTConfig(
            dataset_text_field="text", max_length=given.length, dataset_num_proc=1, packing=False, **settings
        ),
    )
print("reserved after load", torch.cuda.max_memory_reserved(), flush=True)
trainer.train()
