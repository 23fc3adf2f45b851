"""The rules of the house: who may import whom, who may do what, how long things may be."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "qbench"

TORCH_STACK = {"torch", "transformers", "peft", "bitsandbytes"}
TORCH_FREE = ("catalog", "scenario", "records", "comparison", "words", "report", "nullgpu")
# Runs in processes of programs that need not have qbench, and follows torch there.
AGENT = "dryrun/agent/"
MAX_MODULE_LINES = 350
MAX_FUNCTION_LINES = 60

# What each package or top-level module may import besides itself: these, and what they may.
LAYERS = {
    "errors": set(),
    "units": set(),
    "files": {"units"},
    "version": set(),
    "quiet": set(),
    "quick_imports": set(),
    "catalog": {"errors", "files"},
    "scenario": {"errors", "files"},
    "records": {"catalog", "scenario"},
    "step": {"records"},
    "memory": {"records"},
    "distributed": {"step", "memory"},
    "planner": {"distributed"},
    "nullgpu": {"records"},
    "measure": {"distributed", "nullgpu", "quiet", "quick_imports"},
    "dryrun": {"measure", "planner"},
    "comparison": {"records"},
    "words": {"comparison"},
    "report": {"words"},
    "runs": {"planner", "measure", "dryrun", "comparison", "quick_imports"},
    "callback": {"measure"},
    "notebook_results": {"report"},
    "notebook": {"notebook_results", "runs"},
    "web": {"report", "runs"},
    "pytest_baseline": {"comparison", "records"},
    "pytest_null_gpu": {"dryrun"},
    "pytest_plugin": {"report", "runs", "pytest_baseline"},
    "mcp": {"report", "runs"},
    "cli": {"web", "mcp"},
    "__main__": {"cli"},
}


def below(layer: str) -> set[str]:
    """Return all that a layer may import besides itself."""
    return LAYERS[layer].union(*map(below, LAYERS[layer]))


MAY_IMPORT = {layer: below(layer) for layer in LAYERS}
# Name outside qbench -> the only places, files or packages, that import it.
OWNERS: dict[str, str | tuple[str, ...]] = {
    "yaml": "scenario/load.py",
    "ray": "measure/",
    "subprocess": ("measure/", "nullgpu/", "dryrun/"),
    "multiprocessing": "measure/",
    "torch.multiprocessing": "measure/",
    "concurrent.futures.ProcessPoolExecutor": "measure/",
    "signal": ("measure/", "dryrun/"),
}


def imported(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """Yield line and dotted name of everything imported at any depth; `from a import b` yields a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            start = package.rsplit(".", node.level - 1)[0] if node.level else ""
            for alias in node.names:
                yield node.lineno, ".".join(filter(None, (start, node.module, alias.name)))


def layer_of(dotted: str) -> str:
    """Return the package or top-level module of a dotted name inside qbench; qbench itself is ''."""
    return dotted.split(".")[1].removeprefix("__init__") if "." in dotted else ""


def import_problems(path: str, line: int, layer: str, target: str) -> Iterator[str]:
    """Yield what is wrong with a file of a layer importing a target."""
    top = target.split(".")[0]
    if top == "qbench" and layer_of(target) not in {layer, "version"} | MAY_IMPORT.get(layer, set()):
        yield f"{path}:{line}: {layer} must not import {target}"
    if top in TORCH_STACK and layer in TORCH_FREE:
        yield f"{path}:{line}: {layer} must not import {top}"
    if path.startswith(AGENT) and top == "qbench" and not target.startswith("qbench.dryrun.agent"):
        yield f"{path}:{line}: the agent must not import {target}"
    for name, owner in OWNERS.items():
        if f"{target}.".startswith(f"{name}.") and not path.startswith(owner):
            places = owner if isinstance(owner, str) else " and ".join(owner)
            yield f"{path}:{line}: only {places} imports {name}"


def ends_or_prints(node: ast.AST) -> str | None:
    """Return how a node prints or ends the program, or None."""
    if isinstance(node, ast.Name) and node.id in {"print", "SystemExit", "exit", "quit"}:
        return node.id
    if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.exit":
        return "sys.exit"
    return None


def unchecked_read(node: ast.AST) -> str | None:
    """Return a read of a record's part of which mypy cannot see that its key is misspelt, or None."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get"):
        return None
    held, keyed = node.func.value, node.args and isinstance(node.args[0], ast.Constant)
    of_record = isinstance(held, ast.Attribute) and held.attr in {"detail", "metrics", "environment"}
    return ast.unparse(node) if of_record and keyed else None


def file_problems(path: str, layer: str, tree: ast.Module) -> Iterator[str]:
    """Yield what breaks a rule in one file, imports apart."""
    if layer and layer not in MAY_IMPORT:
        yield f"{path}:1: {layer} has no place in MAY_IMPORT"
    for node in ast.walk(tree):
        if layer not in {"cli", "__main__"} and (what := ends_or_prints(node)):
            yield f"{path}:{node.lineno}: only cli prints or exits, not {what}"
        if layer != "records" and (read := unchecked_read(node)):
            yield f"{path}:{node.lineno}: {read}: read an attribute of the record, which mypy checks"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                yield f"{path}:{node.lineno}: {node.name} has {length} lines, at most {MAX_FUNCTION_LINES}"


def cycles(graph: dict[str, set[str]]) -> Iterator[str]:
    """Yield one import cycle, where there is any."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield "import cycle: " + " -> ".join(error.args[1])


def problems(package: Path) -> list[str]:
    """Return every broken rule of the package in a folder, as `file:line: what`."""
    found: list[str] = []
    imports: dict[str, set[str]] = {}
    for file in sorted(package.rglob("*.py")):
        path, text = file.relative_to(package).as_posix(), file.read_text(encoding="utf-8")
        dotted = ".".join(("qbench", *Path(path).with_suffix("").parts))
        module, layer, tree = dotted.removesuffix(".__init__"), layer_of(dotted), ast.parse(text)
        if (lines := len(text.splitlines())) > MAX_MODULE_LINES:
            found.append(f"{path}:1: {lines} lines, at most {MAX_MODULE_LINES}")
        found += file_problems(path, layer, tree)
        imports[module] = set()
        for line, target in imported(tree, dotted.rpartition(".")[0]):
            found += import_problems(path, line, layer, target)
            imports[module].add(target)
    graph = {
        module: {name if name in imports else name.rpartition(".")[0] for name in targets} & imports.keys()
        for module, targets in imports.items()
    }
    return found + list(cycles(graph))


def documented_layers() -> dict[str, set[str]]:
    """Return what may be imported by each package and module, as the table in CONTRIBUTING.md says."""
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("| package |")[2].partition("\n\n")[0]
    cells = [line.strip("|").split("|") for line in table.splitlines()[2:]]
    return {
        layer: set(re.findall(r"`(\w+)`", allowed))
        for names, _, allowed in cells
        for layer in re.findall(r"`(\w+)`", names)
    }


def test_the_table_of_layers_names_every_package_and_what_it_may_import():
    on_disk = {
        path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert documented_layers() == LAYERS
    assert on_disk - {"__init__"} == set(LAYERS)


def test_the_package_keeps_the_rules():
    assert problems(PACKAGE) == []


def function_of(lines: int) -> str:
    return "def long():\n" + "    pass\n" * (lines - 1)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"units.py": "import qbench.errors"}, "units must not import qbench.errors"),
        ({"units.py": "from qbench import errors"}, "units must not import qbench.errors"),
        (
            {"catalog/a.py": "from qbench.scenario.schema import Point"},
            "catalog must not import qbench.scenario",
        ),
        ({"scenario/a.py": "from ..catalog import models"}, "scenario must not import qbench.catalog.models"),
        (
            {"step/__init__.py": "from ..memory import ledger"},
            "step must not import qbench.memory.ledger",
        ),
        (
            {"planner/a.py": "def f():\n    import qbench.measure.cpu"},
            "a.py:2: planner must not import qbench.measure",
        ),
        (
            {"measure/a.py": "from qbench.planner import trace"},
            "measure must not import qbench.planner.trace",
        ),
        (
            {"comparison/a.py": "from qbench.step import model"},
            "comparison must not import qbench.step.model",
        ),
        ({"report/a.py": "from qbench.runs.run import run"}, "report must not import qbench.runs.run.run"),
        ({"runs/run.py": "from qbench.cli import main"}, "runs must not import qbench.cli.main"),
        ({"helpers.py": ""}, "helpers has no place in MAY_IMPORT"),
        ({"report/a.py": "def f():\n    from torch import nn"}, "a.py:2: report must not import torch"),
        ({"records/a.py": "import transformers.utils"}, "records must not import transformers"),
        ({"scenario/expand.py": "import yaml"}, "only scenario/load.py imports yaml"),
        ({"runs/run.py": "from multiprocessing import Pool"}, "only measure/ imports multiprocessing"),
        (
            {"planner/a.py": "import torch.multiprocessing as mp"},
            "only measure/ imports torch.multiprocessing",
        ),
        ({"cli/a.py": "import subprocess"}, "only measure/ and nullgpu/ and dryrun/ imports subprocess"),
        ({"planner/a.py": "from signal import SIGINT"}, "only measure/ and dryrun/ imports signal"),
        (
            {"dryrun/agent/a.py": "from qbench.dryrun import run"},
            "a.py:1: the agent must not import qbench.dryrun.run",
        ),
        ({"planner/a.py": "print(1)"}, "only cli prints or exits, not print"),
        ({"runs/run.py": "run(log=print)"}, "only cli prints or exits, not print"),
        ({"measure/a.py": "import sys\nsys.exit(1)"}, "a.py:2: only cli prints or exits, not sys.exit"),
        ({"report/a.py": "raise SystemExit"}, "only cli prints or exits, not SystemExit"),
        (
            {"report/a.py": "x = record.detail.get('fits')"},
            "a.py:1: record.detail.get('fits'): read an attribute of the record",
        ),
        ({"units.py": function_of(61)}, "units.py:1: long has 61 lines, at most 60"),
        ({"units.py": "x = 1\n" * 351}, "units.py:1: 351 lines, at most 350"),
        (
            {
                "planner/a.py": "import qbench.planner.b",
                "planner/b.py": "def f():\n    from qbench.planner.a import x",
            },
            "import cycle: qbench.planner.",
        ),
        (
            {
                "planner/__init__.py": "from qbench.planner.a import x",
                "planner/a.py": "from qbench.planner import y",
            },
            "import cycle: qbench.planner",
        ),
    ],
)
def test_each_rule_can_be_broken(tmp_path: Path, files: dict[str, str], expected: str):
    write(tmp_path, files)
    found = problems(tmp_path)
    assert len(found) == 1
    assert expected in found[0]


def write(folder: Path, files: dict[str, str]) -> None:
    for path, text in files.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


def test_what_the_rules_allow_is_not_reported(tmp_path: Path):
    write(
        tmp_path,
        {
            "__init__.py": "__version__ = '1'",
            "units.py": "x = 1\n" * (350 - 60) + function_of(60),
            "scenario/load.py": "import yaml\nfrom ..errors import ScenarioError",
            "step/model.py": "import torch\nfrom qbench.version import __version__\nimport qbench.units",
            "measure/runner.py": "import subprocess\nfrom qbench.step import model",
            "report/html.py": "import pandas\nfrom qbench.comparison import methods",
            "cli/main.py": "import sys\nfrom qbench import runs\nprint(runs)\nsys.exit(0)",
            "__main__.py": "from qbench.cli.main import main\nraise SystemExit(main())",
        },
    )
    assert problems(tmp_path) == []


def loaded_by(*modules: str) -> set[str]:
    """Return the top-level packages in a fresh interpreter that imports some modules."""
    code = f"import sys, {', '.join(modules)}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert child.returncode == 0, child.stderr
    return set(child.stdout.split())


def test_reading_results_loads_no_torch():
    files = [file for name in TORCH_FREE for file in sorted((PACKAGE / name).rglob("*.py"))]
    modules = [".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts) for file in files]
    assert loaded_by(*(module.removesuffix(".__init__") for module in modules)) & TORCH_STACK == set()


def test_start_up_loads_nothing_heavy():
    assert loaded_by("qbench.cli.main") & (TORCH_STACK | {"pandas", "plotly", "numpy", "jinja2"}) == set()


def test_the_list_of_loaded_packages_sees_torch():
    assert "torch" in loaded_by("torch")
