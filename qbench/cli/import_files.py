"""`qbench import`: what configs of training tools are, and which of their keys a plan takes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qbench.cli import options
from qbench.cli.console import print_json, print_sentence, print_table
from qbench.errors import QbenchError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qbench.scenario.importers.survey import Surveyed

Paths = Annotated[list[Path], typer.Argument(help="Config files of training tools, or folders of them.")]

MOST_KEYS = 20
"""Keys that are listed by how many files set them."""


def import_command(paths: Paths, as_json: options.AsJson = False) -> int:
    """Show which tool each training config is for and which of its keys a plan uses.

    For a file, lists the keys that are planned, those without effect on memory and those that are not
    modelled; for a folder, prints a table. Nothing is planned.
    """
    from qbench.runs.usual import language_config
    from qbench.scenario.importers.survey import config_files, survey

    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise QbenchError(f"{missing[0]}: no such file or folder")
    found = [survey(file, language_config) for file in config_files(paths)]
    if not found:
        raise QbenchError(f"{', '.join(map(str, paths))}: no .yaml, .yml or .json file in it")
    if as_json:
        print_json({"files": [_document(each) for each in found]})
    elif len(found) == 1:
        _print_one(found[0])
    else:
        _print_table(found)
    return 0 if any(each.is_read for each in found) else QbenchError.exit_code


def _document(found: Surveyed) -> dict[str, Any]:
    return {
        "path": str(found.path),
        "tool": found.tool,
        "model": found.model,
        "in_catalog": _is_in_catalog(found.model),
        "method": found.method,
        "planned": list(found.planned),
        "no_effect": list(found.no_effect),
        "unmodelled": list(found.unmodelled),
        "unknown": list(found.unknown),
        "problems": [str(problem) for problem in found.problems],
    }


def _is_in_catalog(model: str) -> bool:
    from qbench.catalog.models import resolve_model
    from qbench.errors import CatalogError

    try:
        return bool(model) and resolve_model(model).config is not None
    except CatalogError:
        return False


def _print_one(found: Surveyed) -> None:
    print_sentence(f"{found.path}: {found.tool or 'tool not known'}, {found.model or 'no model'}")
    for problem in found.problems:
        print_sentence(str(problem))
    lists = {
        "planned": found.planned,
        "do not affect memory": found.no_effect,
        "not modelled": found.unmodelled,
        "unknown": found.unknown,
    }
    for title, keys in lists.items():
        if keys:
            print_sentence(f"{title}: {', '.join(keys)}")


def _print_table(found: Sequence[Surveyed]) -> None:
    from qbench.report.table import Column, Table

    columns = tuple(map(Column, ("File", "Tool", "Model", "Planned", "Not modelled")))
    rows = tuple(
        (
            str(each.path),
            each.tool,
            each.model,
            len(each.planned) if each.is_read else None,
            ", ".join((*each.unmodelled, *each.unknown)) if each.is_read else each.problems[0].reason,
        )
        for each in found
    )
    print_table(Table(columns=columns, rows=rows, notes=tuple(_notes(found))))


def _notes(found: Sequence[Surveyed]) -> list[str]:
    read = [each for each in found if each.is_read]
    whole = sum(not each.unmodelled and not each.unknown for each in read)
    known = sum(_is_in_catalog(each.model) for each in read)
    keys = Counter(key for each in read for key in (*each.unmodelled, *each.unknown))
    notes = [
        f"{len(read)} of {len(found)} files are read; {whole} have no key that is left out; "
        f"the models of {known} are in the catalog.",
    ]
    if keys:
        listed = ", ".join(f"{key} ({count})" for key, count in keys.most_common(MOST_KEYS))
        notes.append(f"Left out, by number of files: {listed}.")
    return notes
