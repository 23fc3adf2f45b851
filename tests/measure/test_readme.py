"""The table of rules names code and tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MEASURE = ROOT / "qbench" / "measure"
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (MEASURE / "README.md").read_text(encoding="utf-8").splitlines()
    if re.match(r"\| \d", line)
]


def names(file: Path) -> set[str]:
    """Return the functions and classes that a file defines at its top level."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {node.name for node in ast.parse(file.read_text()).body if isinstance(node, kinds)}


def found(reference: str, files: list[Path]) -> bool:
    """Say whether a reference FILE or FILE::NAME exists among files of that name."""
    _, _, name = reference.partition("::")
    return any(file.is_file() and (not name or name in names(file)) for file in files)


def references(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_each_rule_is_where_the_table_says(row: list[str]):
    _, rule, where, tested = row
    assert rule
    for reference in references(where):
        assert found(reference, [(MEASURE / reference.partition("::")[0]).resolve()]), reference
    for reference in references(tested):
        files = sorted((ROOT / "tests").rglob(reference.partition("::")[0]))
        assert found(reference, files), reference
    assert references(where)
    assert references(tested)


def test_the_table_is_read():
    assert len(ROWS) > 15
    assert [int(re.match(r"\d+", row[0])[0]) for row in ROWS] == sorted(  # type: ignore[index]
        int(re.match(r"\d+", row[0])[0])  # type: ignore[index]
        for row in ROWS
    )


def test_a_name_that_does_not_exist_is_seen():
    assert found("cpu.py::measure_cpu", [MEASURE / "cpu.py"])
    assert not found("cpu.py::measure_gpu", [MEASURE / "cpu.py"])
    assert not found("gone.py", [MEASURE / "gone.py"])
