"""Models whose weights are not on this machine: a view of the hub's cache in which they seem to be.

The view lies in the run's own folder; what the user's cache holds is linked into it, file by file, so that
nothing of it is changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qbench.catalog.models import models, resolve_model
from qbench.errors import CatalogError, QbenchError

MAKER = Path(__file__).parent / "agent" / "hollow.py"
MAKER_TIMEOUT_S = 900
SCANNED_BYTES = 1 << 20
SCANNED_SUFFIXES = (".py", ".sh", ".yml", ".yaml", ".json", ".toml")
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")
MOST_FILES = 200_000
_HUB_ID = re.compile(r"(?<![\w./-])[A-Za-z0-9][\w.-]{0,95}/[\w][\w.-]{0,95}(?![\w/-])")
_PRE_QUANTIZED = re.compile(r"(-unsloth)?-bnb-4bit$")


@dataclass(slots=True)
class View:
    """Variables that show a command the view, and what in it stands in for something."""

    variables: dict[str, str] = field(default_factory=dict)
    made: list[str] = field(default_factory=list)


def named_models(command: Sequence[str]) -> list[str]:
    """Return what looks like ids of the hub among a command's words, and in the files that these name."""
    texts = list(command)
    for word in command:
        for part in (word, word.partition("=")[2]):
            if part.endswith(SCANNED_SUFFIXES) and os.path.isfile(part):
                with open(part, "rb") as stream:
                    texts.append(stream.read(SCANNED_BYTES).decode(errors="replace"))
    return list(dict.fromkeys(found for text in texts for found in _HUB_ID.findall(text)))


def view_of_hub(
    names: Sequence[str], python: str, state: Path, variables: Mapping[str, str], *, synthetic: bool
) -> View:
    """Return a view of the hub's cache that has the named models, weights of those it lacks being holes.

    A name without a config in the cache or the catalog is left out. If `synthetic`, tokenizers stand in, too,
    and what is left out is listed as a dataset, whose rows come from `agent/rows.py`.
    Raises QbenchError where the command's transformers cannot build a model.
    """
    cache, view = _hub_cache(variables), state / "hub"
    specs: list[dict[str, Any]] = []
    made: list[str] = []
    datasets: list[str] = []
    for name in names:
        spec = _spec(name, cache, view, synthetic)
        if spec is None:
            datasets += [name] if synthetic and not os.path.exists(name) else []
        else:
            specs.append(spec)
            weights = "4-bit weights" if spec["is_4bit"] else "weights"
            tokenizer = " and tokenizer" if spec["needs_tokenizer"] else ""
            made.append(f"{weights}{tokenizer} of {name}")
    if not specs and not datasets:
        return View()
    _mirror(cache, view)
    if specs:
        _write_all(specs, python, state, variables)
    for name in datasets:
        _list_dataset(view / f"datasets--{name.replace('/', '--')}")
    return View({"HF_HUB_CACHE": str(view), "HUGGINGFACE_HUB_CACHE": str(view)}, made)


def _list_dataset(folder: Path) -> None:
    """Let programs find that a dataset exists, as they ask the hub before they load it."""
    if not folder.exists():
        _refer(folder, hashlib.sha1(folder.name.encode()).hexdigest())


def _refer(folder: Path, revision: str) -> None:
    """Write what makes a revision of a repository the one that is found."""
    (folder / "snapshots" / revision).mkdir(parents=True, exist_ok=True)
    reference = folder / "refs" / "main"
    if not reference.exists():
        reference.parent.mkdir(exist_ok=True)
        reference.write_text(revision)


def view_of_datasets(state: Path, variables: Mapping[str, str]) -> Path:
    """Return a view of the cache of `datasets`, into which what a run prepares goes."""
    view = state / "datasets"
    view.mkdir()
    _mirror(_cache(variables, ("HF_DATASETS_CACHE",), "datasets"), view)
    return view


def _hub_cache(variables: Mapping[str, str]) -> Path:
    return _cache(variables, ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"), "hub")


def _cache(variables: Mapping[str, str], names: Sequence[str], folder: str) -> Path:
    """Return a cache as huggingface_hub and datasets find theirs (constants.py, config.py)."""
    for name in names:
        if variables.get(name):
            return Path(variables[name]).expanduser()
    base = variables.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(variables.get("HF_HOME") or os.path.join(base, "huggingface")).expanduser() / folder


def _spec(name: str, cache: Path, view: Path, tokenizers: bool) -> dict[str, Any] | None:
    """Return what is to be written for a model, None where all is there or no config is known."""
    folder = f"models--{name.replace('/', '--')}"
    snapshot = _snapshot(cache / folder)
    files = [] if snapshot is None else [file.name for file in snapshot.iterdir() if file.exists()]
    if any(file.endswith(WEIGHTS) for file in files):
        return None
    config = _config(name, snapshot)
    if config is None:
        return None
    revision = hashlib.sha1(name.encode()).hexdigest() if snapshot is None else snapshot.name
    return {
        "folder": str(view / folder / "snapshots" / revision),
        "config": config,
        "is_4bit": _PRE_QUANTIZED.search(name) is not None or "quantization_config" in config,
        "needs_tokenizer": tokenizers and not any(file in TOKENIZERS for file in files),
    }


def _snapshot(folder: Path) -> Path | None:
    with contextlib.suppress(OSError):
        found = folder / "snapshots" / (folder / "refs" / "main").read_text().strip()
        return found if found.is_dir() else None
    return None


def _config(name: str, snapshot: Path | None) -> dict[str, Any] | None:
    if snapshot is not None:
        with contextlib.suppress(OSError, ValueError):
            stored: dict[str, Any] = json.loads((snapshot / "config.json").read_bytes())
            return stored if "model_type" in stored else None
    return _catalog_config(_PRE_QUANTIZED.sub("", name))


def _catalog_config(name: str) -> dict[str, Any] | None:
    """Return the catalog's config of a model, or of the one model of that name that unsloth has a copy of."""
    with contextlib.suppress(CatalogError):
        source = resolve_model(name)
        if source.kind == "catalog":
            return source.config
    owner, _, last = name.rpartition("/")
    alike = [spec for spec in models() if spec.hub_id.rpartition("/")[2].casefold() == last.casefold()]
    return dict(alike[0].config) if owner == "unsloth" and len(alike) == 1 else None


def _mirror(source: Path, target: Path) -> None:
    """Make a folder whose files are links to those of another."""
    for number, (folder, file) in enumerate(_files(source)):
        if number == MOST_FILES:
            break
        place = target / folder
        place.mkdir(parents=True, exist_ok=True)
        (place / file).symlink_to((source / folder / file).resolve())


def _files(source: Path) -> Iterator[tuple[str, str]]:
    for folder, _, files in os.walk(source):
        for file in files:
            yield os.path.relpath(folder, source), file


def _write_all(
    specs: Sequence[Mapping[str, Any]], python: str, state: Path, variables: Mapping[str, str]
) -> None:
    for spec in specs:
        folder = Path(spec["folder"])
        _refer(folder.parents[1], folder.name)
    file = state / "models.json"
    file.write_text(json.dumps(specs))
    hidden = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            [python, str(MAKER), str(file)],
            capture_output=True,
            timeout=MAKER_TIMEOUT_S,
            check=False,
            env={**variables, **hidden},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise QbenchError(f"stand-ins for weights cannot be made: {error}") from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise QbenchError(
            "stand-ins for weights cannot be made with the command's transformers: "
            f"{lines[-1] if lines else 'it says nothing'}"
        )
