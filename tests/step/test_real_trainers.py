"""Recipes trainer and trl against the real thing: transformers' Trainer and TRL's SFTTrainer on the CPU.

The real trainer runs two steps under the same ledger as the plan. Peaks of forward, backward and optimizer
in each step are equal to the byte, but for one thing: during the first step accelerate's data loader holds
the batch of the next one, on the host, which here is the same memory (accelerate/data_loader.py,
`DataLoaderShard.__iter__`). The optimizer is made and the data is held outside the ledger.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from tiny import FAMILIES, OTHER_FAMILIES, tiny_point, write_tiny_model
from transformers import PreTrainedTokenizerFast, Trainer, TrainerCallback, TrainingArguments

from qbench.errors import StepError
from qbench.memory.history.ledger import Ledger
from qbench.memory.history.recording import record_steps
from qbench.memory.kernels.replacements import decompositions
from qbench.planner.trace import trace
from qbench.scenario.schema import Point
from qbench.step.adapters import add_adapters
from qbench.step.model import build_base_model, load_config
from qbench.step.quantize import make_quantizer
from qbench.step.recipe import prepare_base
from qbench.step.tensors import quantization_state
from qbench.step.training_step import build_step

# Theirs, not ours: deprecations between trl and transformers, hints about dtypes and tied weights.
pytestmark = pytest.mark.filterwarnings("ignore")

MIXTRAL = ("mistralai/Mixtral-8x7B-v0.1", {"num_local_experts": 4})
GPT_OSS = ("openai/gpt-oss-20b", {"num_local_experts": 4, "num_experts_per_tok": 2})


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep trl from the network, and both trainers from looking for a GPU of their own."""
    monkeypatch.setenv("CI", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def rows(point: Point) -> list[list[int]]:
    """Return the token ids of two updates, one list for each sequence."""
    train = point.train
    count = 2 * train.per_device_train_batch_size * train.gradient_accumulation_steps
    ids = torch.randint(0, 500, (count, train.seq_len), generator=torch.Generator().manual_seed(0))
    return [list(map(int, row)) for row in ids]


def arguments(point: Point, folder: Path) -> dict[str, Any]:
    train = point.train
    return {
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": train.per_device_train_batch_size,
        "gradient_accumulation_steps": train.gradient_accumulation_steps,
        "activation_checkpointing": train.gradient_checkpointing,
        "gradient_checkpointing": None,
        "bf16": train.autocast == "bf16",
        "optim": train.optim,
        "max_steps": 2,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }


def base_model(point: Point) -> Any:
    base = build_base_model(point, torch.device("cpu"), load_config(point))
    if point.method == "qlora":
        base.hf_quantizer = make_quantizer(point.precision)
    return base


def real_trainer(point: Point, folder: Path) -> Trainer:
    """Return a Trainer as a user of peft sets it up; Trainer itself switches checkpointing on."""
    off = point.train.model_copy(update={"gradient_checkpointing": False})
    model: Any = prepare_base(base_model(point), point.model_copy(update={"train": off}))
    if point.lora is not None:
        model = add_adapters(model, point.lora)
    data = [{"input_ids": ids, "labels": ids} for ids in rows(point)]
    return Trainer(model=model, args=TrainingArguments(**arguments(point, folder)), train_dataset=data)


def real_sft_trainer(point: Point, folder: Path) -> Trainer:
    trl = pytest.importorskip("trl", minversion="1.16")
    datasets = pytest.importorskip("datasets")
    from tokenizers import Tokenizer, models

    datasets.disable_progress_bars()
    words = Tokenizer(models.WordLevel({str(index): index for index in range(500)}, "0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="0", pad_token="0")
    lora = None
    if point.lora is not None:
        settings = point.lora.model_dump()
        lora = LoraConfig(task_type="CAUSAL_LM", **settings)
    given = arguments(point, folder) | {"gradient_checkpointing": point.train.gradient_checkpointing}
    given.pop("activation_checkpointing")
    return trl.SFTTrainer(
        model=base_model(point),
        args=trl.SFTConfig(max_length=None, **given),
        train_dataset=datasets.Dataset.from_dict({"input_ids": rows(point)}),
        processing_class=tokenizer,
        peft_config=lora,
    )


REAL: dict[str, Callable[[Point, Path], Trainer]] = {"trainer": real_trainer, "trl": real_sft_trainer}


class AfterStep(TrainerCallback):
    """Counts what the optimizer keeps, as a plan does: bitsandbytes' code books come out of no operator."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def on_step_end(self, *args: Any, optimizer: Any, **kwargs: Any) -> None:
        self.ledger.begin_phase("between")
        for state in optimizer.state.values():
            for tensor in (value for value in state.values() if isinstance(value, torch.Tensor)):
                self.ledger.register(tensor, "optimizer")


def marked(function: Callable[..., Any], ledger: Ledger, phase: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        ledger.begin_phase(phase)
        return function(*args, **kwargs)

    return call


def ledger_of_real_run(trainer: Trainer) -> Ledger:
    ledger = Ledger({"cpu"}, decompositions("cpu", on_meta=False))
    trainer.add_callback(AfterStep(ledger))
    trainer.create_optimizer()
    trainer.training_step = marked(trainer.training_step, ledger, "forward")
    trainer.accelerator.backward = marked(trainer.accelerator.backward, ledger, "backward")
    trainer._clip_grad_norm = marked(trainer._clip_grad_norm, ledger, "optimizer")
    model: Any = trainer.model
    for tensor in (*model.parameters(), *model.buffers()):
        ledger.register(tensor, "weights")
    for module in model.modules():
        for tensor in quantization_state(module._parameters.get("weight")):
            ledger.register(tensor, "quant_state")
    with ledger:
        trainer.train()
    return ledger


PHASES = {"forward": "forward", "loss": "forward", "backward": "backward", "optimizer": "optimizer"}


def phase_peaks(ledger: Ledger) -> list[dict[str, int]]:
    """Return for each of the two steps the largest live bytes of each phase."""
    peaks: list[dict[str, int]] = [{}]
    live = 0
    for handle, size in ledger.events:
        live += size
        phase = PHASES.get(ledger.allocations[handle].phase)
        if size < 0 or phase is None:
            continue
        if phase == "forward" and "optimizer" in peaks[-1]:
            peaks.append({})
        peaks[-1][phase] = max(peaks[-1].get(phase, 0), live)
    return peaks


def assert_recipe_is_real(point: Point, folder: Path) -> None:
    planned = phase_peaks(trace(point, "cpu").ledger)
    # SFTTrainer prints its metrics at the end.
    with contextlib.redirect_stdout(None):
        real = phase_peaks(ledger_of_real_run(REAL[point.train.recipe](point, folder)))
    # Ids, labels and trl's mask of two sequences of 32 tokens: 512 bytes each.
    waiting = 512 * (3 if point.train.recipe == "trl" else 2)
    planned[0] = {phase: size + waiting for phase, size in planned[0].items()}
    if point.train.optim == "adamw_8bit":
        # Two code books of 256 fp32, which a plan copies to its device and a CPU run has from the start.
        planned[0]["optimizer"] -= 2 * 1024
    assert planned == real


@pytest.mark.parametrize("recipe", REAL)
@pytest.mark.parametrize(
    ("family", "precision", "lora", "train"),
    [
        ("llama", "bf16", {}, {}),
        ("llama", "bf16", {}, {"autocast": "bf16", "gradient_checkpointing": True}),
        ("llama", "fp32", {}, {"autocast": "bf16"}),
        ("llama", "nf4-dq", {}, {"gradient_checkpointing": True}),
        ("llama", "int8", {}, {}),
        ("llama", "nf4", {"use_dora": True}, {}),
        ("llama", "bf16", {}, {"gradient_accumulation_steps": 2, "autocast": "bf16"}),
        ("llama", "nf4", {"r": 64}, {"optim": "adamw_8bit"}),
        # A head with a bias, and logits that are capped.
        ("phi", "nf4", {}, {"autocast": "bf16"}),
        ("gemma2", "nf4", {}, {"autocast": "bf16"}),
    ],
    ids=str,
)
def test_adapters(
    tmp_path: Path, recipe: str, family: str, precision: str, lora: dict[str, Any], train: dict[str, Any]
) -> None:
    model = write_tiny_model(tmp_path / family, FAMILIES[family])
    assert_recipe_is_real(tiny_point(model, precision, lora, recipe=recipe, **train), tmp_path)


@pytest.mark.parametrize("recipe", REAL)
@pytest.mark.parametrize(
    ("precision", "train"), [("bf16", {}), ("fp32", {"autocast": "bf16"}), ("bf16", {"optim": "adamw_8bit"})]
)
def test_full_fine_tuning(tmp_path: Path, recipe: str, precision: str, train: dict[str, Any]) -> None:
    # An embedding of 512 x 64, whose state Trainer keeps in 32 bit.
    model = write_tiny_model(tmp_path / "llama", FAMILIES["llama"])
    point = tiny_point(model, precision, recipe=recipe, **train).model_copy(update={"lora": None})
    assert_recipe_is_real(point, tmp_path)


@pytest.mark.parametrize("recipe", REAL)
@pytest.mark.parametrize("experts", [MIXTRAL, GPT_OSS], ids=["mixtral", "gpt_oss"])
def test_experts(tmp_path: Path, recipe: str, experts: tuple[str, dict[str, Any]]) -> None:
    # SFTTrainer adds the loss that balances experts where the config has a coefficient for it.
    model = write_tiny_model(tmp_path / "experts", experts[0], **experts[1])
    point = tiny_point(model, "bf16", {"lora_dropout": 0.0}, recipe=recipe, autocast="bf16")
    assert_recipe_is_real(point, tmp_path)


def test_more_than_one_tile_of_words(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "llama", FAMILIES["llama"], vocab_size=40_000)
    assert_recipe_is_real(tiny_point(model, "nf4", recipe="trl"), tmp_path)


@pytest.mark.parametrize("recipe", REAL)
@pytest.mark.parametrize("family", ["llama", "gemma2", "phi"])
def test_first_loss_is_that_of_a_hand_written_loop(tmp_path: Path, recipe: str, family: str) -> None:
    model = write_tiny_model(tmp_path / family, FAMILIES[family])
    lora = {"lora_dropout": 0.0}
    plain, other = (
        build_step(tiny_point(model, "fp32", lora, recipe=name), "cpu") for name in ("plain", recipe)
    )
    assert other.run().item() == pytest.approx(plain.run().item(), rel=1e-6)


def test_gradients_of_the_fused_loss_are_those_of_the_logits(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "gemma2", FAMILIES["gemma2"])
    grads: list[dict[str, torch.Tensor]] = []
    for recipe in ("plain", "trl"):
        step = build_step(tiny_point(model, "fp32", {"lora_dropout": 0.0}, recipe=recipe), "cpu")
        step.on_phase = lambda phase, step=step: (
            phase == "optimizer"
            and grads.append(
                {name: p.grad.clone() for name, p in step.model.named_parameters() if p.grad is not None}
            )
        )
        record_steps(step, {"cpu"}, "cpu", num_steps=1)
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        assert torch.allclose(grad, grads[1][name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("recipe", REAL)
def test_checkpointing_is_that_of_the_real_trainer(tmp_path: Path, recipe: str) -> None:
    model = write_tiny_model(tmp_path / "llama", FAMILIES["llama"])
    point = tiny_point(model, recipe=recipe, gradient_checkpointing=True)
    trainer = REAL[recipe](point, tmp_path)
    with contextlib.redirect_stdout(None):
        trainer.train()
    ours, theirs = (
        found.get_base_model().model.layers[0]._gradient_checkpointing_func
        for found in (build_step(point, "meta").model, trainer.model)
    )
    assert (ours.func, ours.keywords) == (theirs.func, theirs.keywords)


def test_model_that_trl_cannot_train_is_refused(tmp_path: Path) -> None:
    # `Llama4ForCausalLM.base_model` is the model itself, since its prefix is that of the model that sees.
    hub_id, changes = OTHER_FAMILIES["llama4"]
    model = write_tiny_model(tmp_path / "llama4", hub_id, **changes)
    point = tiny_point(model, lora={"target_modules": ("q_proj",)}, recipe="trl")
    with pytest.raises(StepError, match=r"no backbone apart from the head in Llama4"):
        build_step(point, "meta")
    with pytest.raises(AttributeError, match="last_hidden_state"):
        real_sft_trainer(point, tmp_path).train()


def test_adapter_on_the_head_is_refused(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "llama", FAMILIES["llama"])
    point = tiny_point(model, lora={"target_modules": ("q_proj", "lm_head")}, recipe="trl")
    with pytest.raises(StepError, match="loss_type chunked takes no adapter on the output head"):
        build_step(point, "meta")
