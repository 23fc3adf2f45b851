"""Files of accelerate and DeepSpeed as settings of several GPUs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qbench.cli.setting_flags import values_of
from qbench.errors import ScenarioError
from qbench.scenario.expand import point_from
from qbench.scenario.importers.launch import launch_settings

FSDP = """compute_environment: LOCAL_MACHINE
distributed_type: FSDP
mixed_precision: bf16
num_machines: 1
num_processes: 4
fsdp_config:
  fsdp_version: 2
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_reshard_after_forward: false
  fsdp_transformer_layer_cls_to_wrap: LlamaDecoderLayer
"""
ZERO: dict[str, Any] = {
    "bf16": {"enabled": "auto"},
    "zero_optimization": {
        "stage": 3,
        "overlap_comm": False,
        "reduce_bucket_size": "auto",
        "sub_group_size": 1e8,
        "offload_optimizer": {"device": "none"},
    },
}


def written(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def test_accelerates_fsdp2(tmp_path: Path) -> None:
    settings = launch_settings(written(tmp_path, "a.yaml", FSDP))
    assert settings == {
        "strategy": "fsdp2",
        "gpus": 4,
        "autocast": "bf16",
        "reshard_after_forward": False,
        "transformer_cls_names_to_wrap": "LlamaDecoderLayer",
    }
    assert point_from({"model": "gpt2"}, settings).num_gpus == 4


def test_a_config_of_deepspeed_by_itself_and_within_accelerates(tmp_path: Path) -> None:
    file = written(tmp_path, "zero3.json", json.dumps(ZERO))
    alone = launch_settings(file)
    assert (alone["strategy"], alone["reduce_bucket_size"], alone["sub_group_size"]) == (
        "zero3",
        "auto",
        10**8,
    )
    # What the file leaves out is DeepSpeed's default, not Trainer's "auto".
    assert alone["stage3_prefetch_bucket_size"] == 50_000_000
    text = "distributed_type: DEEPSPEED\nnum_processes: 2\n"
    text += "deepspeed_config: {deepspeed_config_file: zero3.json}\n"
    within = launch_settings(written(tmp_path, "b.yaml", text))
    assert within == alone | {"gpus": 2}
    point = point_from({"model": "gpt2"}, within | {"autocast": "bf16"})
    assert point.distributed is not None
    assert not point.distributed.overlap_comm


def test_accelerates_own_zero_has_deepspeeds_buckets(tmp_path: Path) -> None:
    text = "distributed_type: DEEPSPEED\nnum_processes: 8\ndeepspeed_config: {zero_stage: 2}\n"
    settings = launch_settings(written(tmp_path, "c.yaml", text))
    assert settings["reduce_bucket_size"] == 500_000_000
    assert "sub_group_size" not in settings
    assert point_from({"model": "gpt2"}, settings).num_gpus == 8


def test_flags_take_precedence(tmp_path: Path) -> None:
    values = values_of({"accelerate": written(tmp_path, "a.yaml", FSDP), "gpus": ["2"]})
    assert (values["gpus"], values["strategy"]) == ([2], ["fsdp2"])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (FSDP.replace("fsdp_version: 2", "fsdp_version: 1"), "FSDP1 is not planned"),
        (FSDP.replace("num_machines: 1", "num_machines: 2"), "plans are for one machine"),
        (FSDP.replace("distributed_type: FSDP", "distributed_type: TPU"), "TPU is not planned"),
        (FSDP + "  fsdp_offload_params: true\n", "fsdp_offload_params"),
        ("zero_optimization: {stage: 2, offload_optimizer: {device: cpu}}\n", "offload_optimizer"),
        ("base_model: x\n", "no distributed_type"),
    ],
)
def test_what_is_not_planned_is_one_line(text: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=problem) as caught:
        launch_settings(written(tmp_path, "a.yaml", text))
    assert len(caught.value.problems) == 1
