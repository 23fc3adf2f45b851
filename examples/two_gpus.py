"""What do two GPUs save? A replica on each (DDP), or a share of the weights on each (FSDP2), against one."""

import sys

import qbench

GIB = 2**30
model = sys.argv[1] if len(sys.argv) > 1 else "meta-llama/Llama-3.1-8B"
seq = int(sys.argv[2]) if len(sys.argv) > 2 else 2048
step = {"precision": "bf16", "recipe": "trl", "seq": seq, "gpu": "RTX 4090"}

for name, several in {
    "1 GPU": {},
    "2 GPUs, ddp": {"strategy": "ddp", "gpus": 2},
    "2 GPUs, fsdp2": {"strategy": "fsdp2", "gpus": 2},
}.items():
    record = qbench.plan(model, **step, **several)[0]
    print(f"{name:14} {record.peak_reserved_bytes / GIB:6.2f} GiB each: {record.fits[0].verdict}")
