"""Files that say how several GPUs train together: accelerate's config (YAML) and DeepSpeed's (JSON).

Source: accelerate 1.15, commands/config and utils/dataclasses.py (`FullyShardedDataParallelPlugin`,
`DeepSpeedPlugin`); deepspeed 0.19, runtime/zero/config.py, for what a key that is absent means.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qbench.errors import Problem, ScenarioError
from qbench.scenario.load import load_mapping

_ABSENT: dict[str, Any] = {
    "reduce_bucket_size": 500_000_000,
    "allgather_bucket_size": 500_000_000,
    "contiguous_gradients": True,
    "stage3_prefetch_bucket_size": 50_000_000,
    "stage3_param_persistence_threshold": 100_000,
    "stage3_max_live_parameters": 1_000_000_000,
    "stage3_max_reuse_distance": 1_000_000_000,
    "sub_group_size": 1_000_000_000,
}
"""Defaults of DeepSpeed, which are not those of Trainer."""
_OFFLOADED = ("offload_optimizer", "offload_param")


def launch_settings(file: Path) -> dict[str, Any]:
    """Return the settings that a file of accelerate or DeepSpeed makes, by the names of a scenario's.

    Raises ScenarioError for what is not planned, and for a file of another kind.
    """
    values = load_mapping(file)
    if "zero_optimization" in values:
        return engine_settings(file, values)
    if "distributed_type" not in values:
        raise ScenarioError(
            f"{file}: no distributed_type, as accelerate has, nor DeepSpeed's zero_optimization"
        )
    if int(values.get("num_machines") or 1) > 1:
        raise _problem(file, "num_machines", "plans are for one machine")
    kind = str(values["distributed_type"]).upper()
    kinds = {"NO": dict, "MULTI_GPU": lambda: {"strategy": "ddp"}}
    if kind == "FSDP":
        settings = _of_fsdp(file, values.get("fsdp_config") or {})
    elif kind == "DEEPSPEED":
        settings = _of_plugin(file, values.get("deepspeed_config") or {})
    elif kind in kinds:
        settings = kinds[kind]()
    else:
        raise _problem(file, "distributed_type", f"{kind} is not planned; use MULTI_GPU, FSDP or DEEPSPEED")
    if settings and values.get("num_processes"):
        settings["gpus"] = values["num_processes"]
    if values.get("mixed_precision") in ("bf16", "fp16"):
        settings["autocast"] = values["mixed_precision"]
    return settings


def _of_fsdp(file: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    values = {key.removeprefix("fsdp_"): value for key, value in given.items()}
    if str(values.get("version", 1)) != "2":
        raise _problem(
            file, "fsdp_version", "FSDP1 is not planned; set fsdp_version: 2, or use qbench dryrun"
        )
    if _is_on(values.get("offload_params")):
        raise _problem(file, "fsdp_offload_params", "shards are planned on the GPU")
    policy = str(values.get("auto_wrap_policy", "TRANSFORMER_BASED_WRAP")).upper()
    if policy != "TRANSFORMER_BASED_WRAP":
        raise _problem(
            file, "fsdp_auto_wrap_policy", f"{policy} is not planned; groups are planned by layers"
        )
    settings: dict[str, Any] = {
        "strategy": "fsdp2",
        "reshard_after_forward": _is_on(values.get("reshard_after_forward", True)),
    }
    if values.get("transformer_layer_cls_to_wrap"):
        settings["transformer_cls_names_to_wrap"] = values["transformer_layer_cls_to_wrap"]
    if _is_on(values.get("activation_checkpointing")):
        settings["gradient_checkpointing"] = True
    return settings


def _of_plugin(file: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    other = given.get("deepspeed_config_file")
    if other:
        inner = Path(other) if Path(other).is_absolute() else file.parent / other
        return engine_settings(inner, load_mapping(inner))
    names = [f"{name}_device" for name in _OFFLOADED]
    zero = {name.removesuffix("_device"): {"device": given[name]} for name in names if name in given}
    return engine_settings(file, {"zero_optimization": {"stage": given.get("zero_stage", 2), **zero}})


def engine_settings(file: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a config of DeepSpeed makes. Raises ScenarioError for what is not planned."""
    zero = values.get("zero_optimization") or {}
    stage = zero.get("stage", 0)
    if stage not in (1, 2, 3):
        raise _problem(file, "zero_optimization.stage", f"given {stage}; planned are 1, 2 and 3")
    for name in _OFFLOADED:
        if str((zero.get(name) or {}).get("device", "none")) != "none":
            raise _problem(file, f"zero_optimization.{name}", "what is on the host is not planned")
    settings: dict[str, Any] = {"strategy": f"zero{stage}", "overlap_comm": stage == 3}
    if isinstance(zero.get("overlap_comm"), bool):
        settings["overlap_comm"] = zero["overlap_comm"]
    for name, absent in _ABSENT.items():
        is_of_other_stage = name.startswith(("stage3", "sub_group")) != (stage == 3)
        if is_of_other_stage and name not in ("reduce_bucket_size", "contiguous_gradients"):
            continue
        value = zero.get(name, absent)
        settings[name] = int(value) if isinstance(value, float) else value
    for dtype in ("bf16", "fp16"):
        if (values.get(dtype) or {}).get("enabled") is True:
            settings["autocast"] = dtype
    return settings


def _is_on(value: Any) -> bool:
    return str(value).casefold() in ("true", "yes", "1", "full_shard")


def _problem(file: Path, key: str, text: str) -> ScenarioError:
    return ScenarioError([Problem((key,), text, file=str(file))])
