"""How much of public configs is planned, and published figures beside the plans of the files they are about.

    PYTHONPATH=. python -m benchmarks.imports AXOLOTL LLAMA_FACTORY ALIGNMENT_HANDBOOK TRL

Each is the folder of a git checkout; their examples are read there, and none is kept. Writes
reports/imports/counts.{md,json}, with names of files, keys and the commit, and published.{md,json} beside it.
"""

from __future__ import annotations

import argparse
import ast
import json
import shlex
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from qbench.catalog.gpus import find_gpu
from qbench.catalog.models import resolve_model
from qbench.cli.target import TargetRequest, read_asked
from qbench.errors import CatalogError
from qbench.runs.usual import language_config
from qbench.scenario.importers.survey import Surveyed, config_files, survey
from qbench.scenario.load import load_mapping
from qbench.units import GIB

OUT = Path("reports/imports")
PUBLISHED = {
    "examples/ministral/ministral-small-qlora.yaml": 8.76,
    "examples/plano/plano-4b-qlora.yaml": 5.1,
    "examples/seed-oss/seed-oss-36b-qlora.yaml": 27.7,
    "examples/gpt-oss/gpt-oss-20b-sft-lora-singlegpu.yaml": 44.0,
}
"""GiB that axolotl's README files give for these configs."""
CARD = "RTX A6000"


def main() -> None:
    """Read the examples of three checkouts, and plan what has a published figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("axolotl", "llama_factory", "alignment_handbook", "trl"):
        parser.add_argument(name, type=Path)
    asked = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    sets = [
        _counted("axolotl, adapter lora or qlora", asked.axolotl, "examples", _is_axolotl_lora),
        _counted("LLaMA-Factory, training files", asked.llama_factory, "examples", _is_llama_factory),
        _counted("alignment-handbook, recipes", asked.alignment_handbook, "recipes", _names_a_model),
        _commands("TRL, commands of its stable trainers", asked.trl, True),
        _commands("TRL, commands of experimental trainers", asked.trl, False),
    ]
    (OUT / "counts.json").write_text(json.dumps(sets, indent=1) + "\n")
    (OUT / "counts.md").write_text("\n".join(_counts_text(sets)) + "\n")
    rows = [_published(asked.axolotl, name, figure) for name, figure in PUBLISHED.items()]
    (OUT / "published.json").write_text(json.dumps(rows, indent=1) + "\n")
    (OUT / "published.md").write_text("\n".join(_published_text(rows)) + "\n")


def _is_axolotl_lora(values: dict[str, Any]) -> bool:
    return "base_model" in values and values.get("adapter") in ("lora", "qlora")


def _is_llama_factory(values: dict[str, Any]) -> bool:
    return "model_name_or_path" in values and bool(values.get("do_train"))


def _names_a_model(values: dict[str, Any]) -> bool:
    return "model_name_or_path" in values


def _counted(title: str, checkout: Path, folder: str, is_meant: Any) -> dict[str, Any]:
    files = [file for file in config_files([checkout / folder]) if is_meant(_values(file))]
    found = [survey(file, language_config) for file in files]
    return {
        "title": title,
        "commit": _commit(checkout),
        "files": [_row(each, checkout) for each in found],
    }


def _commit(checkout: Path) -> str:
    return subprocess.check_output(["git", "-C", str(checkout), "rev-parse", "HEAD"], text=True).strip()


def _commands(title: str, checkout: Path, of_stable: bool) -> dict[str, Any]:
    """Return the counts of command lines that scripts of TRL have in their docstrings, as argument files."""
    files = []
    with tempfile.TemporaryDirectory() as folder:
        for script in sorted(each for part in SCRIPTS for each in (checkout / part).glob("*.py")):
            if script.stem.startswith((*TRAINERS, "rloo")) != of_stable:
                continue
            for number, values in enumerate(commands_of(script.read_text()), start=1):
                name = f"{script.relative_to(checkout)}#{number}"
                trainer = next((task for task in TRAINERS if script.stem.startswith(task)), "")
                file = Path(folder, f"{script.stem}-{number}.json")
                file.write_text(json.dumps(values | TRAINERS.get(trainer, {})))
                row = _row(survey(file, language_config, "trl"), Path(folder)) | {"file": name}
                row["unmodelled"] += [] if trainer else [f"trainer of {script.name}"]
                files.append(row)
    return {"title": title, "commit": _commit(checkout), "files": files}


SCRIPTS = ("trl/scripts", "examples/scripts")
TRAINERS: dict[str, dict[str, Any]] = {
    "sft": {},
    "dpo": {"beta": 0.1},
    "kto": {"desirable_weight": 1.0},
    "reward": {"center_rewards_coefficient": 0.0},
    "grpo": {"num_generations": 8},
}
"""Scripts by the beginning of their names, and a default of their trainer's config that tells it."""


def commands_of(source: str) -> list[dict[str, Any]]:
    """Return the arguments of each command line of a script's docstring, by name."""
    text = (ast.get_docstring(ast.parse(source)) or "").replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines()]
    started = [line for line in lines if line.startswith(("python ", "accelerate launch", "uv run"))]
    found = []
    for line in started:
        words = shlex.split(line)
        script = next((index for index, word in enumerate(words) if word.endswith(".py")), len(words))
        found.append(_arguments(words[script + 1 :]))
    return [values for values in found if "model_name_or_path" in values]


def _arguments(words: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name, _, value = word.removeprefix("--").partition("=")
            values[name] = yaml.safe_load(value) if value else True
        elif name:
            given = yaml.safe_load(word)
            before = values[name]
            values[name] = given if before is True else [*_listed(before), given]
    return values


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _values(file: Path) -> dict[str, Any]:
    try:
        return dict(load_mapping(file))
    except Exception:
        return {}


def _row(found: Surveyed, checkout: Path) -> dict[str, Any]:
    return {
        "file": str(found.path.relative_to(checkout)),
        "is_read": found.is_read,
        "in_catalog": _is_known(found.model),
        "unmodelled": list(found.unmodelled),
        "unknown": list(found.unknown),
    }


def _is_known(model: str) -> bool:
    try:
        return bool(model) and resolve_model(model).config is not None
    except CatalogError:
        return False


def _counts_text(sets: list[dict[str, Any]]) -> list[str]:
    lines = [
        "# Public configs: what of them is planned",
        "",
        "Written by `python -m benchmarks.imports` over checkouts; counts.json has every file.",
        "",
        "| examples | commit | files | read | nothing unmodelled | nor unknown | model in the catalog |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in sets:
        files = each["files"]
        read = [row for row in files if row["is_read"]]
        clean = [row for row in read if not row["unmodelled"]]
        whole = [row for row in clean if not row["unknown"]]
        known = sum(row["in_catalog"] for row in files)
        shares = [f"{len(rows)} ({100 * len(rows) / len(files):.0f} %)" for rows in (clean, whole)]
        lines.append(
            f"| {each['title']} | {each['commit'][:7]} | {len(files)} | {len(read)} | {' | '.join(shares)} | "
            f"{known} ({100 * known / len(files):.0f} %) |"
        )
    for each in sets:
        keys = Counter(key for row in each["files"] for key in (*row["unmodelled"], *row["unknown"]))
        listed = ", ".join(f"{key} ({count})" for key, count in keys.most_common(30))
        lines += ["", f"Left out in {each['title'].partition(',')[0]}, by files: {listed or 'nothing'}."]
    return lines


def _published(checkout: Path, name: str, figure: float) -> dict[str, Any]:
    from qbench.catalog.capabilities import context_size
    from qbench.memory.allocator.caching import AllocatorConfig, replay
    from qbench.memory.history.ledger import emptied_at
    from qbench.planner.hardware import card_of
    from qbench.planner.trace import trace

    asked = read_asked(TargetRequest(name=None, config=checkout / name))
    traced = trace(asked.points[0], "cuda", card_of(find_gpu(CARD)))
    held = replay(traced.ledger.events, AllocatorConfig(), None, emptied_at(traced.ledger.marks)).stats
    return {
        "file": name,
        "published_gib": figure,
        "peak_allocated_bytes": held.peak_allocated_bytes,
        "peak_reserved_bytes": held.peak_reserved_bytes,
        "reserved_in_steps_bytes": held.reserved_bytes,
        "context_bytes": context_size(card_of(find_gpu(CARD)).capability).most,
        "unmodelled": sorted(asked.unmodelled),
    }


def _published_text(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "# Figures of axolotl's README files beside the plans of the same files",
        "",
        "Written by `python -m benchmarks.imports`, without a flag. Reserved in steps is what",
        f"the allocator holds once training runs, as axolotl empties its cache after loading; a {CARD}, with",
        "its CUDA context, as nvidia-smi shows it.",
        "",
        "| file | published, GiB | in steps, GiB | difference | peak with loading, GiB | not planned |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        held = (row["reserved_in_steps_bytes"], row["peak_reserved_bytes"])
        steps, peak = ((size + row["context_bytes"]) / GIB for size in held)
        difference = 100 * (steps / row["published_gib"] - 1)
        left = ", ".join(row["unmodelled"]) or "-"
        cells = (
            row["file"],
            row["published_gib"],
            f"{steps:.2f}",
            f"{difference:+.1f} %",
            f"{peak:.2f}",
            left,
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


if __name__ == "__main__":
    main()
