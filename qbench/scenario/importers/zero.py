"""DeepSpeed's JSON that a training config names: stage and sizes of ZeRO, as settings of a scenario."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qbench.errors import ScenarioError
from qbench.scenario.importers.launch import engine_settings
from qbench.scenario.importers.reader import Reader
from qbench.scenario.load import load_mapping

_HOST = ("offload_optimizer", "offload_param")


def with_engine_config(values: Mapping[str, Any], file: Path) -> Mapping[str, Any]:
    """Return a config with the JSON that `deepspeed` names in its place, where it is found.

    Tools start in their own folder, which is one of those above the file.
    """
    name = values.get("deepspeed")
    if not isinstance(name, str) or not name.endswith(".json"):
        return values
    found = next((each / name for each in file.absolute().parents if (each / name).is_file()), None)
    if found is None:
        return values
    try:
        return {**values, "deepspeed": load_mapping(found)}
    except ScenarioError:
        return values


def partitioned(reader: Reader) -> dict[str, Any]:
    """Return `distributed` of a scenario without its GPUs; empty where no stage of ZeRO is on."""
    given = reader.values.get("deepspeed")
    zero = given.get("zero_optimization") if isinstance(given, Mapping) else None
    if not isinstance(zero, Mapping) or zero.get("stage") not in (1, 2, 3):
        return {}
    reader.get("deepspeed")
    for key in _HOST:
        device = (zero.get(key) or {}).get("device")
        if device not in (None, "none"):
            reader.leave_out(f"deepspeed.{key}", "less", "planned on the card")
    on_card = {key: value for key, value in zero.items() if key not in _HOST}
    settings = engine_settings(Path("deepspeed"), {"zero_optimization": on_card})
    return {key: max(1, value) if type(value) is int else value for key, value in settings.items()}
