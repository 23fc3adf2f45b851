"""Ask other public memory predictors about the steps of published measurements that qbench plans.

    python -m benchmarks.predictors FOLDER

makes one virtual environment for each tool in the folder (about 2 GB, most of it torch), asks it about every
step whose peak was measured, and writes qbench/catalog/data/other_predictors.csv, which `qbench validate`
puts beside its plans. Needs PyPI for the installation; the predictions themselves are made offline. Run it
with Python 3.10 or 3.11: llm-analysis needs a tokenizers that has no wheels for later ones.

Each tool is asked as its documentation says, with the settings of the measured run as far as it takes them.
What it cannot be told is in the last column, and so is the reason where it cannot answer.
"""

from __future__ import annotations

import contextlib
import csv
import datetime
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

PINS = {
    "fitcheck-llm": ("fitcheck-llm==0.3.1",),
    "canifinetune": ("canifinetune==0.4.1",),
    "vramcalc": ("vramcalc==0.1.2",),
    "llm-analysis": ("llm-analysis==0.2.2", "transformers==4.31.0"),
    "hf-vram-calc": ("hf-vram-calc==1.0.9", "transformers==4.57.6", "accelerate==1.15.0", "torch==2.13.0"),
}
"""What is installed for each tool, its own version first."""

MIB, GIB = 2**20, 2**30

ALLOCATED, RESERVED = "max_allocated", "max_reserved"
PEAKS = {ALLOCATED: ALLOCATED, RESERVED: RESERVED, "max_reserved_first_step": RESERVED}
"""Figures of the catalog that a predictor can speak for, and which of the two peaks they are."""

Step = dict[str, Any]
"""One measured step: see `step_of`."""

Answer = tuple[dict[str, tuple[str, float]], str]
"""By peak, what the tool calls its figure and the figure in bytes; then how the tool was asked."""


class CannotSay(Exception):
    """The tool has no way to express this step; the message is the reason."""


def fitcheck_llm(step: Step) -> Answer:
    """Ask fitcheck-llm, which separates the tensors from the context and the allocator's slack."""
    from fitcheck import ModelConfig, TrainingConfig, estimate, get_gpu
    from fitcheck.overhead_db import DEFAULT_OVERHEAD_PROFILE

    config = step["config"]
    model = ModelConfig(
        name=step["model"],
        num_params=step["num_params"],
        hidden_size=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_attention_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        intermediate_size=config["intermediate_size"],
        vocab_size=config["vocab_size"],
        head_dim=head_dim(config),
        tie_word_embeddings=config["tie_word_embeddings"],
    )
    quantized = step["precision"] == "nf4-dq"
    settings: dict[str, Any] = {
        "precision": "bf16",
        "quantization": "nf4" if quantized else "none",
        "double_quant": quantized,
        "optimizer": {"paged_adamw_8bit": "adam8bit", "adamw_torch": "adamw"}[step["optim"]],
        "optimizer_dtype": "fp32" if step["r"] else "bf16",
        "batch_size": step["batch"],
        "seq_len": step["seq_len"],
        "lora_rank": step["r"],
        "lora_targets": step["target_modules"],
        "grad_checkpoint": step["gradient_checkpointing"],
        "flash_attn": True,
    }
    name = {"A100-SXM4-80GB": "a100-80", "L40S": "l40s"}.get(step["gpu"])
    gpu = get_gpu(name) if name else get_gpu(vram_mib=1024 * step["gpu_gb"])
    report = estimate(model, TrainingConfig(**settings), gpu)
    context = DEFAULT_OVERHEAD_PROFILE.base_context_mib
    peaks = {
        ALLOCATED: ("total without overhead", (report.total_mib - report.overhead_mib) * MIB),
        RESERVED: (f"total without the {context:.0f} MiB of the context", (report.total_mib - context) * MIB),
    }
    limit = "; the paged optimizer counts as resident" if step["optim"].startswith("paged") else ""
    if step["r"] is None:
        limit = "; 32-bit master weights cannot be left out"
    return peaks, called("TrainingConfig", settings) + limit


def canifinetune(step: Step) -> Answer:
    """Ask canifinetune, whose target is the reserved peak; its overhead is a share of the card."""
    from canifinetune.estimator.memory import EstimateRequest, estimate

    config = step["config"]
    names = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "intermediate_size",
        "vocab_size",
        "tie_word_embeddings",
    )
    shape = {name: config[name] for name in names}
    settings = {
        "method": "full" if step["r"] is None else "qlora" if step["precision"] == "nf4-dq" else "lora",
        "gpu_vram_gb": step["gpu_gb"],
        "seq_len": step["seq_len"],
        "micro_batch_size": step["batch"],
        "lora_rank": step["r"] or 16,
        "lora_target_scope": "attention" if len(step["target_modules"]) != 2 else "conservative",
        "optimizer": step["optim"],
        "gradient_checkpointing": step["gradient_checkpointing"],
        "attention_implementation": "flash_attention_2" if step["flash_attn"] else "sdpa",
    }
    override = shape | {"family": config["model_type"], "total_params": step["num_params"]}
    found = estimate(
        EstimateRequest(model_id=step["model"], override=override, use_network=False, **settings)
    ).memory
    reserved = found.total_estimated_gb - found.safety_margin_gb
    peaks = {
        ALLOCATED: (
            "total without CUDA overhead and safety margin",
            (reserved - found.cuda_overhead_gb) * GIB,
        ),
        RESERVED: ("total without safety margin", reserved * GIB),
    }
    return peaks, called("EstimateRequest", settings)


def vramcalc(step: Step) -> Answer:
    """Ask vramcalc, which predicts allocated memory of unquantized models."""
    from vramcalc import estimate

    if step["precision"] != "bf16":
        raise CannotSay("no quantized models")
    settings = {
        "mode": "train",
        "dtype": "bf16",
        "precision": "pure",
        "batch": step["batch"],
        "seq_len": step["seq_len"],
        "lora_rank": step["r"],
        "grad_checkpoint": step["gradient_checkpointing"],
        "optimizer": "adamw",
        "attn_impl": "flash" if step["flash_attn"] else "sdpa",
    }
    peaks: dict[str, tuple[str, float]] = {ALLOCATED: ("total", estimate(step["config"], **settings).total)}
    return peaks, f"{called('estimate', settings)}; adapted modules and paged optimizers cannot be named"


def llm_analysis(step: Step) -> Answer:
    """Ask llm-analysis, which trains all weights.

    As in its own loader and its files for Llama, two feed-forward matrices four times as wide as the model
    stand for the three of a gated layer: with the real width it would count fewer parameters still.
    """
    from llm_analysis.analysis import ActivationRecomputation, LLMAnalysis
    from llm_analysis.config import ModelConfig, get_dtype_config_by_name, get_gpu_config_by_name

    if step["r"] is not None:
        raise CannotSay("no adapters: all weights are trained")
    config = step["config"]
    model = ModelConfig(
        name=step["model"],
        num_layers=config["num_hidden_layers"],
        n_head=config["num_attention_heads"],
        hidden_dim=config["hidden_size"],
        vocab_size=config["vocab_size"],
        max_seq_len=config["max_position_embeddings"],
        num_key_value_heads=config["num_key_value_heads"],
        model_type=config["model_type"],
    )
    recomputation = "FULL" if step["gradient_checkpointing"] else "NONE"
    settings = {
        "batch_size_per_gpu": step["batch"],
        "gradient_accumulation_steps": 1,
        "seq_len": step["seq_len"],
        "master_weights_dtype_bytes": 2,
        "other_op_bytes": 4,
        "flash_attn": True,
        "mlp_gated_linear_units": True,
    }
    analysis = LLMAnalysis(
        model, get_gpu_config_by_name("a100-sxm-80gb"), get_dtype_config_by_name("w16a16e16")
    )
    found = analysis.training(activation_recomputation=ActivationRecomputation[recomputation], **settings)
    figure = "(weight+op_state+grad+act)_memory_per_gpu"
    how = called("training", settings | {"activation_recomputation": recomputation})
    return {
        ALLOCATED: (figure, found[figure])
    }, f"{how}; master weights cannot be left out, its model has two MLP matrices"


def hf_vram_calc(step: Step) -> Answer:
    """Ask hf-vram-calc, whose requirement is a multiple of the weights, whatever batch and length."""
    from hf_vram_calc.calculator import LlmodelMemoryResult, ParameterCalculator, VRAMCalculator
    from hf_vram_calc.config import ConfigManager
    from hf_vram_calc.parser import ConfigParser

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(step["config"]))
        config = ConfigParser.load_and_parse_config(step["model"], folder)
    settings = {
        "dtype": "int4" if step["precision"] == "nf4-dq" else "bf16",
        "batch_size": step["batch"],
        "sequence_length": step["seq_len"],
        "lora_rank": step["r"] or 64,
    }
    found = LlmodelMemoryResult(**settings)
    parameters = ParameterCalculator.calculate_transformer_params(config)
    found.calculate_all(config, parameters, VRAMCalculator(ConfigManager()))
    name = "training_memory" if step["r"] is None else "lora_memory"
    peaks = dict.fromkeys((ALLOCATED, RESERVED), (name, getattr(found, name) * GIB))
    how = called("LlmodelMemoryResult", settings)
    return peaks, f"{how}; adapted modules, optimizer and checkpointing cannot be named, nor nf4"


TOOLS: dict[str, Callable[[Step], Answer]] = {
    "fitcheck-llm": fitcheck_llm,
    "canifinetune": canifinetune,
    "vramcalc": vramcalc,
    "llm-analysis": llm_analysis,
    "hf-vram-calc": hf_vram_calc,
}


def head_dim(config: dict[str, Any]) -> int:
    """Return the width of one attention head."""
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def called(name: str, settings: dict[str, Any]) -> str:
    """Return a call as it would be written."""
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in settings.items())})"


def answer_all(tool: str) -> None:
    """Answer the steps on standard input; runs in the tool's own environment."""
    answers = []
    # Some tools print as they work.
    with contextlib.redirect_stdout(sys.stderr):
        for step in json.load(sys.stdin):
            try:
                answers.append(TOOLS[tool](step))
            except CannotSay as reason:
                answers.append(({}, str(reason)))
    json.dump(answers, sys.stdout)


def steps() -> list[tuple[str, str, Step]]:
    """Return id, peak and step of each published peak; a step measured again comes once."""
    from qbench.catalog.gpus import find_gpu
    from qbench.catalog.models import find_model
    from qbench.catalog.published import published_rows

    found: dict[str, tuple[str, str, Step]] = {}
    for row in published_rows():
        if row.figure not in PEAKS:
            continue
        names = ("model", "precision", "r", "batch", "seq_len", "gradient_checkpointing", "optim", "gpu")
        spec = find_model(row.model)
        step = {name: getattr(row, name) for name in names} | {
            "target_modules": list(row.target_modules),
            "config": spec.config,
            "num_params": spec.num_params,
            "gpu_gb": find_gpu(row.gpu).nominal_gb,
        }
        key = json.dumps([row.figure, step])
        flash_attn = "flash-attn" in row.stack
        found.setdefault(key, (row.id, PEAKS[row.figure], step | {"flash_attn": flash_attn}))
    return list(found.values())


def ask(tool: str, asked: list[Step], folder: Path) -> list[Answer]:
    """Return a tool's answers from its own environment, which is made where it is not there yet."""
    python = folder / tool / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder / tool], check=True)
    installed = subprocess.run([python, "-m", "pip", "install", "--quiet", *PINS[tool]], check=False)
    if installed.returncode:
        return [({}, f"could not be installed with Python {sys.version.split()[0]}")] * len(asked)
    child = subprocess.run(
        [python, __file__, "--answer", tool],
        input=json.dumps(asked),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={"HF_HUB_OFFLINE": "1", "PATH": "", "HOME": str(folder)},
    )
    answers: list[Answer] = json.loads(child.stdout)
    return answers


def rows_of(tool: str, folder: Path, today: str) -> list[tuple[str, ...]]:
    """Return a tool's lines of the CSV file."""
    wanted = steps()
    rows = []
    answers = ask(tool, [step for _, _, step in wanted], folder)
    for (row_id, peak, _), (peaks, how) in zip(wanted, answers, strict=True):
        name, size = peaks.get(peak, ("", None))
        if peaks and size is None:
            how = "predicts allocated memory; reserved was measured"
        version = PINS[tool][0].partition("==")[2]
        rows.append((tool, version, today, row_id, name, "" if size is None else str(round(size)), how))
    return rows


def main(folder: Path) -> None:
    """Write what every tool predicts, with how it was asked or why it has no answer."""
    from qbench.catalog.rows import DATA

    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    header = ("tool", "version", "asked_on", "id", "quantity", "predicted_bytes", "how")
    rows = [row for tool in TOOLS for row in rows_of(tool, folder, today)]
    with (DATA / "other_predictors.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([header, *rows])
    print(f"{len(rows)} rows; {sum(1 for row in rows if row[5])} with a prediction")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--answer"]:
        answer_all(sys.argv[2])
    else:
        main(Path(sys.argv[1]).resolve())
