"""What a user reads has none of the turns that a native technical writer would rewrite."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md"), *(ROOT / "examples").glob("*.md")]

TURNS = {
    r"\btold\b": "shown, printed, reported",
    r"\bnobody\b": "no one, or the passive",
    r"\b(to be|cannot be) had\b": "available",
    r"(?<!there )\b(is|are) none\b(?! of)": "is not, are missing",
    r"\bheld against\b": "compared with",
    r"\b(ever so|amid|begot|crying wolf)\b": "however, during",
    r"\bbe (it|they|the \w+) ever\b": "however",
    r"(?<!there )\bis no (program|file|folder|point|scenario|record|model|module|number)\b": "is not a",
    r"\b(line|row|file|column|step|point) (a|an) (line|row|file|column|step|point)\b": "per",
    r"(?<!same), as `[^`]+`;": "for example",
    r"\bspeaks? for\b": "describes, applies to",
}
"""A turn, and what to write in its place."""


def strings(tree: ast.AST) -> Iterator[str]:
    """Yield the texts of a module that are not documentation of its code."""
    bodies = [node.body for node in ast.walk(tree) if isinstance(getattr(node, "body", None), list)]
    documentation = {
        id(line.value) for body in bodies for line in body if isinstance(line, ast.Expr) and line.value
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node.value


def found_in(text: str) -> list[str]:
    return [f"{found[0]!r}: {better}" for turn, better in TURNS.items() if (found := re.search(turn, text))]


def test_a_turn_is_found():
    assert found_in("the file is none that this server makes") == ["'is none': is not, are missing"]
    assert found_in("the plan assumes that there are none") == []


def test_messages_and_help_have_no_such_turn():
    odd = [
        f"{file.relative_to(ROOT)}: {text[:60]!r}: {each}"
        for file in sorted((ROOT / "qbench").rglob("*.py"))
        for text in strings(ast.parse(file.read_text(encoding="utf-8")))
        if " " in text
        for each in found_in(text)
    ]
    assert odd == []


def test_pages_have_no_such_turn():
    odd = [
        f"{page.relative_to(ROOT)}: {each}"
        for page in PAGES
        for each in found_in(page.read_text(encoding="utf-8"))
    ]
    assert odd == []
