"""Trains on several ranks by hand: train_ranks.py ddp|fsdp2|fsdp2-lora MODEL, under torchrun."""

import os
import sys

import torch
import torch.distributed as dist
from transformers import AutoConfig, AutoModelForCausalLM

kind, name = sys.argv[1:]
dist.init_process_group("nccl")
torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
told = [None] * dist.get_world_size()
dist.all_gather_object(told, {"rank": dist.get_rank()})
assert told[0] == {"rank": 0}
if kind == "fsdp2-lora":  # As large models are begun: no rank ever holds all of the weights.
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(name), dtype=torch.bfloat16)
else:
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.bfloat16)
if kind == "ddp":
    model = torch.nn.parallel.DistributedDataParallel(model.cuda(), device_ids=[torch.cuda.current_device()])
else:
    from torch.distributed.fsdp import fully_shard

    if kind == "fsdp2-lora":
        from peft import LoraConfig, get_peft_model

        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
        lora = LoraConfig(r=16, target_modules="all-linear")
        with torch.device("meta"):
            model = get_peft_model(model, lora, autocast_adapter_dtype=False)
    for layer in model.get_submodule("model.model" if kind == "fsdp2-lora" else "model").layers:
        fully_shard(layer)
    fully_shard(model)
    model.to_empty(device="cuda") if kind == "fsdp2-lora" else model.cuda()
optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-4)
ids = torch.randint(0, 1000, (2, 512)).cuda()
for _ in range(8):
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
dist.destroy_process_group()
