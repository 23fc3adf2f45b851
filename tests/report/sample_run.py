"""A run as a page would show it: a rank sweep of one model, planned, and part of it measured."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

from qbench.records.record import Record
from qbench.report.content import gather_content
from qbench.report.html import html_page
from qbench.report.markdown import markdown_text
from tests.comparison.hand_made import ENVIRONMENT, make_point

PARAMS = 6_738_415_616
"""Of Llama-2-7B; 262,410,240 stay unquantized: embeddings and head 2 x 131,072,000, norms 65 x 4,096."""

LEFT_OUT = 262_410_240
LINEAR = PARAMS - LEFT_OUT
PARAMS_PER_RANK = 39_976_960 // 16
SKIPPED = [
    {"module": name, "reason": reason, "params": 131_072_000, "share": 131_072_000 / PARAMS}
    for name, reason in (
        ("model.embed_tokens.weight", "embeddings are a table, not a linear layer"),
        ("lm_head.weight", "transformers keeps the output head unquantized"),
    )
]
SPEED = {"fp32": 0.4, "bf16": 1.0, "nf4": 0.78, "nf4-dq": 0.74}


def weight_bytes(precision: str) -> tuple[int, int]:
    """Return bytes of weights (packed and unquantized) and of quantization state."""
    if precision in ("fp32", "bf16"):
        return PARAMS * (4 if precision == "fp32" else 2), 0
    # absmax: one fp32 for 64 weights; or 8 bit for 64 and one fp32 for 256 of those (QLoRA paper, section 3).
    state = LINEAR // 64 * 4 if precision == "nf4" else LINEAR // 64 + LINEAR // 64 // 256 * 4
    return LINEAR // 2 + LEFT_OUT * 4, state


def breakdown(precision: str, r: int) -> dict[str, int]:
    weights, state = weight_bytes(precision)
    adapters = PARAMS_PER_RANK * r * 4
    return {
        "weights": weights,
        "quant_state": state,
        "adapters": adapters,
        "gradients": adapters,
        "optimizer": 2 * adapters,
        "activations": 900 << 20,
        "logits_loss": 750 << 20,
        "temporaries": 0 if precision in ("fp32", "bf16") else 90 << 20,
        "workspace": 0,
    }


def plan(precision: str, r: int, seq_len: int = 2048) -> Record:
    by_category = breakdown(precision, r)
    peak, (weights, state) = sum(by_category.values()), weight_bytes(precision)
    at_rest = {"weights": weights, "quant_state": state, "adapters": by_category["adapters"]}
    detail: dict[str, Any] = {
        "static_breakdown_bytes": at_rest,
        "caveats": ["cuBLAS workspaces are not planned yet."],
        "phases": {"forward": int(0.8 * peak), "backward": peak},
        "timeline": [
            [i, sum(at_rest.values()) + (peak - sum(at_rest.values())) * (99 - abs(i - 99)) // 99]
            for i in range(200)
        ],
        "fits": [{"gpu": "RTX 4090", "fits": peak < 23 << 30}, {"gpu": "A100-SXM4-80GB", "fits": True}],
    }
    if state:
        detail["skipped"] = SKIPPED
        detail["model"] = {"dtypes": {"embeddings": "float32", "lm_head": "float32"}}
        detail["base_weights"] = {
            "sixteen_bit_bytes": 2 * PARAMS,
            "quantized_bytes": LINEAR // 2,
            "quant_state_bytes": state,
            "unquantized_bytes": 4 * LEFT_OUT,
            "quantized_params": LINEAR,
            "unquantized_params": LEFT_OUT,
        }
    else:
        dtype = "float32" if precision == "fp32" else "bfloat16"
        detail["model"] = {"dtypes": {"embeddings": dtype, "lm_head": dtype}}
    step_time = 2048 / (2900 * SPEED[precision]) * (1 + r / 2000)
    return Record(
        run_id="sample-plans",
        point=make_point(precision=precision, r=r, seq_len=seq_len),
        kind="plan",
        outcome="ok",
        metrics={
            "trainable_params": PARAMS_PER_RANK * r,
            "total_params": PARAMS + PARAMS_PER_RANK * r,
            "static_bytes": sum(at_rest.values()),
            "peak_allocated_bytes": peak,
            "peak_reserved_bytes": peak + (160 << 20),
            "device_bytes": peak + (660 << 20),
            "breakdown_bytes": by_category,
            "flops": 8.2e13,
            "step_time_s": step_time,
            "tokens_per_s": 2048 / step_time,
        },
        detail=detail,
        environment={name: value for name, value in ENVIRONMENT.items() if name != "device_name"},
        created_at="2026-11-24T12:00:00+00:00",
    )


def measurement(planned: Record, repeat: int, error: float = 0.004) -> Record:
    metrics = planned.metrics
    times = [metrics["step_time_s"] * (1.03 + 0.004 * ((7 * step + repeat) % 5)) for step in range(10)]
    shift = {"fp32": 0.0, "bf16": 0.01, "nf4": 0.21, "nf4-dq": 0.23}[planned.point.precision]
    return Record(
        run_id="sample",
        point=planned.point,
        kind="measurement",
        outcome="ok",
        metrics={
            **{name: metrics[name] for name in ("trainable_params", "total_params", "static_bytes")},
            "peak_allocated_bytes": int(metrics["peak_allocated_bytes"] * (1 + error)),
            "peak_reserved_bytes": int(metrics["peak_reserved_bytes"] * (1 + 3 * error)),
            "step_time_s": times,
            "loss": [3.1 + shift - 0.05 * step + 0.02 * ((step * 3) % 4) for step in range(10)],
        },
        detail={"repeat": repeat, "model": planned.detail["model"]},
        environment=ENVIRONMENT,
        created_at="2026-11-24T13:00:00+00:00",
    )


def out_of_memory(planned: Record) -> Record:
    return Record(
        run_id="sample",
        point=planned.point,
        kind="measurement",
        outcome="oom",
        metrics={},
        detail={
            "repeat": 0,
            "error": "CUDA out of memory. Tried to allocate 172.00 MiB.",
            "stderr_tail": "torch.OutOfMemoryError: CUDA out of memory.\nTried to allocate 172.00 MiB.",
        },
        environment=ENVIRONMENT,
        created_at="2026-11-24T13:00:00+00:00",
    )


def sample_run() -> list[Record]:
    """Return plans of 4 precisions and 7 ranks, and measurements of two ranks in three processes each."""
    plans = [plan(precision, r) for r, precision in product((4, 8, 16, 32, 64, 128, 256), SPEED)]
    chosen = [planned for planned in plans if planned.point.lora and planned.point.lora.r in (16, 64)]
    measured = [measurement(planned, repeat) for planned in chosen for repeat in range(3)]
    return [*plans, *measured, out_of_memory(plans[-4])]


def render_html(records: Sequence[Record], title: str) -> str:
    return html_page(gather_content(records), title)


def render_markdown(records: Sequence[Record], title: str) -> str:
    return markdown_text(gather_content(records), title)
