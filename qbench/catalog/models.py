"""Language models: shapes, parameter counts and sources; and what a model name stands for."""

from __future__ import annotations

import copy
import functools
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from qbench.catalog.names import NameIndex, nearest_text
from qbench.catalog.rows import catalog_rows
from qbench.errors import CatalogError
from qbench.files import read_text
from qbench.units import MIB

Verified = Literal["exact", "explained", "rounded"]
SourceKind = Literal["folder", "gguf", "catalog", "hub"]

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)
"""How an id of the Hugging Face hub is spelt: org/name."""

LARGEST_CONFIG = 4 * MIB
"""Of a config.json; those that exist have some KiB."""

_EXPERT_KEYS = (
    "num_local_experts",
    "num_experts",
    "n_routed_experts",
    "moe_num_experts",
    "enable_moe_block",
)
"""Keys of config.json that say how many experts a layer has, or whether it has any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One model of the catalog. Counts are for the class that AutoModelForCausalLM builds, or, where there is
    none, AutoModelForImageTextToText."""

    hub_id: str
    """Name on the Hugging Face hub."""
    aliases: tuple[str, ...]
    """Other names: the part after the slash, and former hub ids."""
    family: str
    """Architecture, by the name of its package in transformers, such as llama."""
    model_class: str
    """Class of transformers that is built."""
    num_params: int
    """All parameters; tied weights count once."""
    linear_weight_params: int
    """Weights of linear layers (GPT-2's Conv1D too) but the output head: what 4-bit loading can reach."""
    expert_params: int
    """Weights of experts stored as stacked 3-D parameters, which 4-bit loading leaves in 16 bit."""
    embedding_params: int
    """Token embedding; a head tied to it is counted here, position and per-layer tables are not."""
    untied_head_params: int
    """Output head with weights of its own; 0 when it is tied."""
    published_params: int
    """The published count that num_params was compared with."""
    verified: Verified
    """exact: equal to it; explained: it counts something else, see notes; rounded: within 1.2 %."""
    license: str
    """Licence of the weights."""
    gated: bool | None
    """Whether the hub asks for consent before a download; None when that is not known."""
    source: str
    """Where the configuration comes from."""
    count_source: str
    """Where the published count comes from."""
    notes: str
    """What a user should know; empty when there is nothing."""
    config: dict[str, Any] = field(hash=False)
    """Keys of config.json that shape the model. Shared: copy it before changing it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """What a model name stands for."""

    name: str
    """The name as it was given."""
    kind: SourceKind
    """folder: has config.json; gguf: one file; catalog: a row of it; hub: an id to be looked up there."""
    path: Path | None = None
    """The folder or the .gguf file; None for catalog and hub."""
    spec: ModelSpec | None = None
    """The catalog row; None for all other kinds."""
    config: dict[str, Any] | None = field(default=None, hash=False)
    """Parsed config.json, free to be changed; None for gguf and hub."""
    nearest: tuple[str, ...] = ()
    """Catalog ids that look like a hub id, for the message when the hub does not have it."""


@functools.cache
def models() -> tuple[ModelSpec, ...]:
    """Return all models of the catalog, families together and small before large."""
    return catalog_rows("models.jsonl", ModelSpec, aliases=tuple)


def find_model(name: str) -> ModelSpec:
    """Return the model of that hub id or alias; case is ignored.

    Raises CatalogError with the nearest names when there is none.
    """
    spec = _index().find(name)
    if spec is None:
        raise _unknown(name)
    return spec


def resolve_model(name: str) -> ModelSource:
    """Return what `name` stands for: a path, a catalog model, or an id to be looked up on the hub.

    Raises CatalogError when it is none of these, or a path that holds no model.
    """
    if _spelt_as_path(name) or (name and os.path.isfile(os.path.join(name, "config.json"))):
        return _from_path(name)
    spec = _index().find(name)
    if spec is not None:
        return ModelSource(name=name, kind="catalog", spec=spec, config=copy.deepcopy(spec.config))
    if os.path.exists(name):
        return _from_path(name)
    if HUB_ID.fullmatch(name):
        return ModelSource(name=name, kind="hub", nearest=_index().nearest(name))
    raise _unknown(name)


def catalog_name(name: str) -> str:
    """Return the hub id of a catalog model that is named by an alias; any other name as it is.

    One model is one point then, however it was named.
    """
    is_folder = _spelt_as_path(name) or os.path.isfile(os.path.join(name, "config.json"))
    spec = None if is_folder else _index().find(name)
    return name if spec is None else spec.hub_id


def stored_precision(settings: Mapping[str, Any] | None) -> str | None:
    """Return a checkpoint's quantization in the words of `precision` where it has some, else its method."""
    if settings is None:
        return None
    if settings.get("load_in_8bit"):
        return "int8"
    if settings.get("load_in_4bit"):
        double = "-dq" if settings.get("bnb_4bit_use_double_quant") else ""
        return f"{settings.get('bnb_4bit_quant_type', 'fp4')}{double}"
    return str(settings.get("quant_method", "an unnamed method"))


def precision_of_checkpoint(name: str) -> str | None:
    """Return the precision that bitsandbytes stored a checkpoint in; None for others."""
    try:
        settings = (resolve_model(name).config or {}).get("quantization_config")
    except CatalogError:
        return None
    if not isinstance(settings, dict) or settings.get("quant_method", "bitsandbytes") != "bitsandbytes":
        return None
    return stored_precision(settings)


def has_experts(name: str) -> bool:
    """Say whether a model has experts in stacked parameters, by its row of the catalog or its config."""
    try:
        source = resolve_model(name)
        config = _hub_config(name) if source.kind == "hub" else source.config or {}
    except CatalogError:
        return False
    text = text_part(config)
    return any(text.get(key) for key in _EXPERT_KEYS)


def text_part(config: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a config.json that describes the language model; all of it where no part does."""
    part = config.get("text_config")
    return part if isinstance(part, dict) else config


def _hub_config(name: str) -> dict[str, Any]:
    """Return the config of a hub model; an empty one where there is none, of which its plan says why."""
    from qbench.catalog.hub import hub_config

    try:
        return _read_config(Path(hub_config(name)).parent)
    except Exception:  # Of whatever class the hub's client and its network raise.
        return {}


@functools.cache
def _index() -> NameIndex[ModelSpec]:
    return NameIndex((spec, (spec.hub_id, *spec.aliases)) for spec in models())


def _unknown(name: str) -> CatalogError:
    close = _index().nearest(name)
    return CatalogError(
        f"model {name!r} is not in the catalog{nearest_text(close)}; give a name that `qbench models` lists, "
        "a hub id (org/name), a folder with config.json, or a .gguf file",
        close,
    )


def _spelt_as_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or os.path.isabs(name) or name.endswith(".gguf")


def _from_path(name: str) -> ModelSource:
    path = Path(os.path.expanduser(name))
    # os.path, unlike Path, answers False for names that no file can have.
    if os.path.isdir(path):
        return ModelSource(name=name, kind="folder", path=path, config=_read_config(path))
    if not os.path.exists(path):
        raise CatalogError(
            f"model path {name!r} does not exist; give a folder with config.json or a .gguf file"
        )
    if path.suffix != ".gguf":
        raise CatalogError(
            f"model path {name!r} is a file but not .gguf; give the folder that holds config.json"
        )
    if not os.path.isfile(path):
        raise CatalogError(f"model path {name!r}: it is a pipe or a device, not a file; give a .gguf file")
    return ModelSource(name=name, kind="gguf", path=path)


def _read_config(folder: Path) -> dict[str, Any]:
    where = str(folder / "config.json")
    try:
        config = json.loads(read_text(where, LARGEST_CONFIG))
    except FileNotFoundError:
        raise CatalogError(
            f"folder {str(folder)!r} has no config.json; give a folder that save_pretrained wrote"
        ) from None
    except OSError as error:
        raise CatalogError(f"{where!r} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CatalogError(f"{where!r} is not JSON: {error}; copy it again from its source") from error
    if not isinstance(config, dict):
        raise CatalogError(f"{where!r} holds a JSON {type(config).__name__}, not an object with model_type")
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise CatalogError(f"{where!r} has no model_type; add the one of its family, such as llama")
    return config
