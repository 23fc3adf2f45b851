"""One run of can-i-finetune-this: its own benchmark loop, as its package brings it.

python cift.py REQUEST.json ANSWER.json
"""

from pathlib import Path

import canifinetune.bench.runner as runner
import torch
from weights import model_folder

COUNTERS = ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved")


def run(settings: dict, config: dict, folder: Path) -> dict[str, int]:
    """Return the bytes of each stage that the loop names."""
    model = model_folder(config, folder / "model")
    # torch is built without flash attention on Windows, where these runs were made.
    torch.backends.cuda.enable_flash_sdp(False)
    figures: dict[str, int] = {}
    rounded = runner.snapshot

    def snapshot(stage: str):
        """Keep the bytes that the loop itself rounds."""
        for counter in COUNTERS:
            name = counter.replace("memory_", "")
            figures[f"{stage} {name}"] = getattr(torch.cuda, counter)()
        return rounded(stage)

    runner.snapshot = snapshot
    done = runner.run_bench(
        runner.BenchConfig(
            model_id=str(model),
            method=settings["method"],
            seq_len=int(settings["seq_len"]),
            micro_batch_size=int(settings["batch"]),
            steps=int(settings["steps"]),
            lora_rank=int(settings["r"]),
            lora_alpha=int(settings["lora_alpha"]),
            optimizer=settings["optim"],
            gradient_checkpointing=settings["gradient_checkpointing"] == "yes",
            record_estimate=False,
        )
    )
    if not done.success:
        raise RuntimeError("; ".join(done.notes))
    return figures
