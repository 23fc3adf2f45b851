"""Real trainings of a tiny model by Trainer and by SFTTrainer of TRL, with the callback on them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_config
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from qbench.callback import QbenchCallback
from qbench.catalog.gpus import find_gpu
from qbench.nullgpu.environment import card_environment
from qbench.nullgpu.launcher import preload_environment
from qbench.records.store import read_records
from qbench.step.observe import observed_point

STEPS = 5
NEAR_BYTES = 4096
"""A real trainer holds the next batch and a scalar or two that the plan does not know: some 512 B each."""

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep trl from the network."""
    monkeypatch.setenv("CI", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def arguments(folder: Path, **changes: Any) -> dict[str, Any]:
    settings = {
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": 2,
        "max_steps": STEPS,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "optim": "adamw_torch",
        "bf16": False,
    }
    return settings | changes


def base_model() -> Any:
    torch.manual_seed(0)
    values = tiny_config("HuggingFaceTB/SmolLM2-135M")
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**values), dtype=torch.bfloat16)


def lora(**changes: Any) -> LoraConfig:
    settings = {"r": 4, "lora_dropout": 0.0, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    return LoraConfig(**settings | changes)


def rows(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(1, 500, (length,), generator=generator).tolist() for length in lengths]


def trained(
    folder: Path, callback: QbenchCallback, lengths: tuple[int, ...] = (32,), **changes: Any
) -> Trainer:
    data = [{"input_ids": ids, "labels": ids} for length in lengths for ids in rows(length, length)] * STEPS
    trainer = Trainer(
        model=get_peft_model(base_model(), lora()),
        args=TrainingArguments(**arguments(folder, train_sampling_strategy="sequential", **changes)),
        train_dataset=data,
        callbacks=[callback],
    )
    with contextlib.redirect_stdout(None):
        trainer.train()
    return trainer


def assert_plan_is_near(callback: QbenchCallback) -> None:
    assert callback.problem is None
    record, plan = callback.record, callback.plan_record
    assert record is not None
    assert plan is not None
    for name in ("trainable_params", "total_params"):
        assert record.metrics[name] == plan.metrics[name] > 0
    for name in ("static_bytes", "peak_allocated_bytes"):
        assert 0 <= record.metrics[name] - plan.metrics[name] <= NEAR_BYTES
    assert record.metrics["peak_at"] == plan.metrics["peak_at"]


def test_trainer_is_measured_and_its_plan_stands_beside_it(tmp_path: Path):
    callback = QbenchCallback(tmp_path / "run", ledger=True, warmup_steps=1)
    trained(tmp_path, callback)
    assert_plan_is_near(callback)
    plan, record = read_records(tmp_path / "run")
    assert (plan.kind, record.kind, record.outcome) == ("plan", "measurement", "ok")
    assert plan.point_id == record.point_id
    # Two steps under the ledger and one more are not counted.
    assert len(record.metrics["step_time_s"]) == STEPS - 3
    assert len(record.detail["warmup_step_time_s"]) == 3
    for seconds, rate in zip(record.metrics["step_time_s"], record.metrics["tokens_per_s"], strict=True):
        assert seconds * rate == pytest.approx(2 * 32)
    assert len(record.metrics["loss"]) == STEPS
    assert record.detail["unmapped"] == []
    train = record.point.train
    assert (train.seq_len, train.per_device_train_batch_size, train.recipe) == (32, 2, "trainer")
    assert record.point.lora is not None
    assert (record.point.precision, record.point.lora.r) == ("bf16", 4)


def sft_trained(folder: Path, callback: QbenchCallback, **changes: Any) -> None:
    trl = pytest.importorskip("trl", minversion="1.16")
    datasets = pytest.importorskip("datasets")
    from tokenizers import Tokenizer, models

    datasets.disable_progress_bars()
    words = Tokenizer(models.WordLevel({str(index): index for index in range(500)}, "0"))
    settings = arguments(folder, **changes)
    trainer = trl.SFTTrainer(
        model=base_model(),
        args=trl.SFTConfig(max_length=None, gradient_checkpointing=True, **settings),
        train_dataset=datasets.Dataset.from_dict({"input_ids": rows(*[32] * 2 * STEPS)}),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=words, eos_token="0", pad_token="0"),
        peft_config=lora(),
        callbacks=[callback],
    )
    with contextlib.redirect_stdout(None):
        trainer.train()


def test_sft_trainer_is_measured_and_its_plan_stands_beside_it(tmp_path: Path):
    callback = QbenchCallback(tmp_path / "run", ledger=True)
    sft_trained(tmp_path, callback)
    assert_plan_is_near(callback)
    assert callback.record is not None
    train = callback.record.point.train
    assert (train.recipe, train.gradient_checkpointing, train.autocast) == ("trl", True, "none")


def test_without_the_ledger_a_cpu_has_no_memory_figures(tmp_path: Path):
    callback = QbenchCallback(tmp_path / "run", plan=False)
    trainer = trained(tmp_path, callback, lengths=(16, 32, 24))
    (record,) = read_records(tmp_path / "run")
    assert "peak_allocated_bytes" not in record.metrics
    assert len(record.metrics["step_time_s"]) == STEPS - 2
    # Steps of 16, 32, 24, 16, 32 tokens; two sequences each.
    assert record.detail["batch_shapes"] == [[2, 16, 2], [2, 24, 1], [2, 32, 2]]
    assert record.point.train.seq_len == 32
    assert record.detail["caveats"] == ["batches had 3 shapes; the point is the largest, 2 x 32"]
    seconds, rates = record.metrics["step_time_s"], record.metrics["tokens_per_s"]
    tokens = [seconds * rate for seconds, rate in zip(seconds, rates, strict=True)]
    assert tokens == pytest.approx([2 * 24, 2 * 16, 2 * 32])
    assert not trainer.model._forward_pre_hooks


def test_a_plan_that_fails_is_a_caveat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("qbench.callback.sys.executable", str(tmp_path / "no-python"))
    callback = QbenchCallback(tmp_path / "run")
    trained(tmp_path, callback)
    assert callback.problem is None
    (record,) = read_records(tmp_path / "run")
    (caveat,) = record.detail["caveats"]
    assert caveat.startswith("no plan: ")
    assert "cannot be started" in caveat


def test_a_folder_that_cannot_be_written_does_not_end_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "run").write_text("a file")
    callback = QbenchCallback(tmp_path / "run", plan=False)
    trainer = trained(tmp_path, callback)
    assert trainer.state.global_step == STEPS
    assert callback.problem is not None
    assert "the training continues" in caplog.text


class Exploding(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 4:
            raise MemoryError("the training is too large")


def test_a_training_that_fails_leaves_its_record(tmp_path: Path):
    callback = QbenchCallback(tmp_path / "run", plan=False)
    data = [{"input_ids": ids, "labels": ids} for ids in rows(*[32] * 2 * STEPS)]
    trainer = Trainer(
        model=get_peft_model(base_model(), lora()),
        args=TrainingArguments(**arguments(tmp_path)),
        train_dataset=data,
        callbacks=[callback, Exploding()],
    )
    with pytest.raises(MemoryError), callback, contextlib.redirect_stdout(None):
        trainer.train()
    (record,) = read_records(tmp_path / "run")
    assert (record.outcome, record.detail["oom"]["kind"]) == ("oom", "host")
    assert len(record.metrics["step_time_s"]) == 4 - 2  # Two of the four are the warm-up.
    assert not trainer.model._forward_pre_hooks


def test_what_a_point_cannot_say_is_listed(tmp_path: Path):
    model = get_peft_model(base_model(), lora(bias="all", modules_to_save=["norm"]))
    settings = arguments(tmp_path, optim="adafactor", label_smoothing_factor=0.1, neftune_noise_alpha=5)
    observed = observed_point(model, TrainingArguments(**settings), (2, 32), tmp_path, world_size=4)
    assert observed.unmapped == (
        "LoraConfig.bias all",
        "LoraConfig.modules_to_save ['norm']",
        "optim adafactor; the point has adamw_torch",
        "label_smoothing_factor 0.1",
        "neftune_noise_alpha 5",
        "4 processes trained together; this record describes one of them",
    )
    config = Path(observed.point.model) / "config.json"
    assert json.loads(config.read_text())["num_hidden_layers"] == 2


def test_weights_of_two_dtypes_are_listed(tmp_path: Path):
    model = base_model()
    model.get_input_embeddings().float()
    settings = TrainingArguments(**arguments(tmp_path))
    observed = observed_point(get_peft_model(model, lora()), settings, (2, 32), tmp_path)
    # The embedding, which is the head, too, has 512 x 64 weights. Two layers have 2 x 64 x 64 and 2 x 64 x 32
    # of attention, 3 x 64 x 160 of the MLP and two norms of 64; a last norm is 64: 32,768 of 119,104.
    assert observed.unmapped == ("27.5 % of the base weights are not torch.bfloat16",)


def test_full_fine_tuning_in_fp32_under_autocast(tmp_path: Path):
    model = base_model().float()
    settings = TrainingArguments(**arguments(tmp_path, bf16=True, optim="adamw_bnb_8bit"))
    observed = observed_point(model, settings, (1, 8), tmp_path)
    assert observed.unmapped == ()
    point = observed.point
    assert (point.method, point.precision, point.weights) == ("full", "fp32", "random")
    assert (point.train.autocast, point.train.optim) == ("bf16", "adamw_8bit")


ON_A_NULL_GPU = """
import sys
from pathlib import Path
from qbench.callback import QbenchCallback
from tests import test_callback
folder = Path(sys.argv[2])
callback = QbenchCallback(folder / "run", warmup_steps=1)
getattr(test_callback, sys.argv[1])(folder, callback, use_cpu=False)
assert callback.problem is None, callback.problem
"""


@pytest.mark.nullgpu
@pytest.mark.parametrize("training", ["trained", "sft_trained"])
def test_a_training_on_a_null_gpu_is_recorded_as_one(tmp_path: Path, training: str):
    card = find_gpu("RTX 4090")
    env = {**os.environ, **preload_environment(), **card_environment(card)}
    env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parent)])
    command = [sys.executable, "-c", ON_A_NULL_GPU, training, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=env)
    assert done.returncode == 0, done.stderr
    plan, record = read_records(tmp_path / "run")
    assert (plan.device, record.device) == ("cuda", "null")
    assert plan.card == record.card == card.name
    assert len(record.metrics["host_time_s"]) == STEPS - 1
    assert not {"step_time_s", "tokens_per_s", "loss"} & set(record.metrics)
    assert record.metrics["static_bytes"] > 0
    assert record.metrics["peak_reserved_bytes"] >= record.metrics["peak_allocated_bytes"]
