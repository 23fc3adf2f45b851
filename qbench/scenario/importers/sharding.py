"""Keys that share a training among several GPUs by FSDP, as transformers and axolotl hand them to accelerate.

Source: transformers 5.24, training_args.py (`fsdp`, `fsdp_config`; without a version it is FSDP2), and
accelerate's utils/dataclasses.py, `FullyShardedDataParallelPlugin`. How many GPUs there are no file says.
"""

from __future__ import annotations

from typing import Any

from qbench.scenario.importers.reader import Reader
from qbench.scenario.importers.zero import partitioned

_TAKEN = """
    activation_checkpointing auto_wrap_policy backward_prefetch cpu_offload_pin_memory
    cpu_ram_efficient_loading final_state_dict_type forward_prefetch fsdp_version limit_all_gathers
    mixed_precision_policy offload_params reshard_after_forward sharding_strategy state_dict_type
    sync_module_states transformer_layer_cls_to_wrap use_orig_params version
"""
"""Settings that are planned, and those of saving, of loading through the host, and of FSDP1."""


def sharded(reader: Reader, *, unversioned: int) -> dict[str, Any]:
    """Return `distributed` of a scenario without its GPUs, and checkpointing where FSDP's own is on.

    `unversioned` is the FSDP that a file gets which names no version. Empty where nothing is sharded, and for
    FSDP1, which is left out.
    """
    switch, given = reader.get("fsdp"), dict(reader.nested("fsdp_config"))
    version, by_name = reader.get("fsdp_version"), reader.get("fsdp_transformer_layer_cls_to_wrap")
    if not switch and not given:
        return _by_deepspeed(reader)
    values = {key.removeprefix("fsdp_") if key != "fsdp_version" else key: given[key] for key in given}
    version = version or values.get("fsdp_version") or values.get("version") or unversioned
    key = "fsdp_config" if given else "fsdp"
    if str(version) != "2":
        reader.leave_out(key, "either", "FSDP1 is not planned; set fsdp_version: 2, or use qbench dryrun")
        return {}
    reader.leave_out_others("fsdp_config", values, _TAKEN.split())
    if _is_on(values.get("offload_params")) or "offload" in str(switch):
        reader.leave_out("fsdp_config.offload_params", "less", "shards are planned on the card")
    if str(values.get("auto_wrap_policy")).upper() not in ("NONE", "TRANSFORMER_BASED_WRAP"):
        reader.leave_out("fsdp_config.auto_wrap_policy", "either", "groups are planned by layers")
    strategy = values.get("reshard_after_forward", values.get("sharding_strategy", True))
    wrapped = values.get("transformer_layer_cls_to_wrap") or by_name or "auto"
    settings: dict[str, Any] = {
        "strategy": "fsdp2",
        "reshard_after_forward": str(strategy).casefold() not in ("false", "shard_grad_op"),
        "transformer_cls_names_to_wrap": ",".join(wrapped) if isinstance(wrapped, list) else str(wrapped),
    }
    checkpointed = _is_on(values.get("activation_checkpointing"))
    train = {"gradient_checkpointing": True, "checkpoint_impl": "no_reentrant"} if checkpointed else {}
    return {"distributed": settings, "train": train}


def _by_deepspeed(reader: Reader) -> dict[str, Any]:
    settings = partitioned(reader)
    if not settings:
        return {}
    optimizer = str(reader.get("optim", "optimizer", default="adamw_torch_fused"))
    if optimizer in ("adamw_torch", "sgd"):
        return {"distributed": settings, "train": {}}
    reader.leave_out("optim", "less", f"under ZeRO {optimizer} is planned as adamw_torch")
    return {"distributed": settings, "train": {"optim": "adamw_torch"}}


def _is_on(value: Any) -> bool:
    return str(value).casefold() in ("true", "yes", "1")
