"""Size a project, QLoRA with TRL on 10 million tokens: does it fit, how long may a row be, at what cost?"""

import sys

import qbench

GIB = 2**30
model = sys.argv[1] if len(sys.argv) > 1 else "Qwen/Qwen2.5-7B"
seq = int(sys.argv[2]) if len(sys.argv) > 2 else 2048
step = {"precision": "nf4-dq", "recipe": "trl", "r": 16}

record = qbench.plan(model, gpu="RTX 4090", seq=seq, **step)[0]
fit = record.fits[0]
print(f"{model}: {record.peak_reserved_bytes / GIB:.1f} GiB for {seq:,} tokens {fit.verdict} on {fit.gpu}")

longest = qbench.fit(model, "RTX 4090", step=seq // 2, **step)[0]
print(f"The longest sequence on it: {longest.value:,} tokens, limited by {longest.limited_by}")

cards = qbench.rank(model, "10M", epochs=3, seq=seq, gpu=["L4", "RTX 4090", "A100-SXM4-80GB"], **step)
print(cards.frame[["gpu", "hours", "cost_usd", "energy_kwh"]].round(2).to_string(index=False))
