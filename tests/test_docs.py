"""README and docs: figures as the records have them, links that lead somewhere, tables that are not empty.

`make docs` runs their code blocks and builds the site.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

import qbench
from qbench.cli.main import _COMMANDS
from qbench.records.metrics import METRICS
from qbench.scenario.recipes import RECIPES
from qbench.scenario.settings import SETTINGS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


def built(name: str) -> ModuleType:
    """Return a module of docs/_build, which no package holds."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / "_build" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # Its dataclasses look for their module there.
    spec.loader.exec_module(module)
    return module


generated, blocks = built("generated"), built("blocks")


def test_figures_of_readme_are_those_of_the_records():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert generated.with_accuracy(readme) == readme, "run: python docs/_build/generated.py"
    assert generated.accuracy() in readme


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "reports/README.md"])
def test_links_of_a_page_lead_to_files(page: str):
    path = ROOT / page
    targets = re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8"))
    gone = [name for name in targets if "://" not in name and not (path.parent / name).exists()]
    assert targets
    assert not gone


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_a_page_names_files_of_the_repository_and_known_tables_only(page: Path):
    text = page.read_text(encoding="utf-8")
    files = re.findall(r"\]\(repo:([^)#]+)", text)
    tables = re.findall(r"<!-- generated: ([\w-]+)(?: (\S+))? -->", text)
    assert [name for name in files if not (ROOT / name).exists()] == []
    assert [name for name, _ in tables if name not in generated.GENERATED] == []
    assert [name for kind, name in tables if kind == "report" and not (ROOT / name).exists()] == []


@pytest.mark.parametrize(
    ("table", "names"), [("settings", SETTINGS), ("metrics", METRICS), ("recipes", RECIPES)]
)
def test_a_table_has_every_row(table: str, names: dict[str, object]):
    rows = [line for line in generated.GENERATED[table]().splitlines() if line.startswith("| `")]
    assert len(rows) == len(names)
    assert all(any(f"{name}`" in row for row in rows) for name in names)


def test_every_public_name_is_on_the_page_of_the_api():
    named = re.findall(r"^::: qbench\.([\w.]+)", (DOCS / "api.md").read_text(encoding="utf-8"), re.M)
    assert {name.rpartition(".")[2] for name in named} >= set(qbench.__all__) - {"__version__"}


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES], ids=lambda page: page.name
)
def test_a_block_that_is_not_run_says_why(page: Path):
    text = page.read_text(encoding="utf-8")
    shown = list(blocks.blocks_of(text))
    assert len(shown) == len(re.findall(r"^```\w", text, re.M)), "a block that the builder does not see"
    assert {block.why_not for block in shown} <= {None, *blocks.REASONS}
    assert {block.language for block in shown if block.runs} <= {"python", "console", "yaml", "json", "text"}


@pytest.mark.parametrize("name", sorted(set(qbench.__all__) - {"__version__"}))
def test_a_public_name_says_its_units_and_errors(name: str):
    documented = inspect.getdoc(getattr(qbench, name)) or ""
    assert re.search(r"\b(bytes|seconds|USD|settings?)\b", documented, re.I)
    if inspect.isfunction(getattr(qbench, name)):
        assert "Raises " in documented


def test_the_picture_of_the_architecture_is_that_of_the_imports():
    drawn = (DOCS / "pictures" / "architecture.svg").read_text(encoding="utf-8")
    assert built("architecture").svg() == drawn, "run: python docs/_build/architecture.py"


def test_the_walk_through_a_plan_names_files_and_what_is_in_them():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    walk = text.partition("## Follow one plan")[2].partition("\n## ")[0]
    steps = re.findall(r"`(qbench/[\w/]+\.py)`(?:, `(\w+)`)?", walk)
    assert len(steps) > 15
    for file, name in steps:
        source = (ROOT / file).read_text(encoding="utf-8")
        assert not name or re.search(rf"^(?:def|class) {name}\b", source, re.M), f"{file} has no {name}"


def test_the_page_on_plans_explains_every_recipe():
    text = (DOCS / "plan.md").read_text(encoding="utf-8")
    assert [name for name in RECIPES if f"| `{name}` |" not in text] == []


def test_every_command_with_an_exit_code_of_its_own_is_a_command():
    text = (DOCS / "reference" / "commands.md").read_text(encoding="utf-8")
    named = {
        name for row in re.findall(r"^\| (`.*?) \|", text, re.M) for name in re.findall(r"`([\w-]+)`", row)
    }
    assert named
    assert named <= set(_COMMANDS)
    assert "<!-- generated: commands -->" in text
