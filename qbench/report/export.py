"""Reports as files: HTML, Markdown and CSV, each written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from qbench.compare.methods import MethodPair, pair_results
from qbench.errors import RecordError
from qbench.records.frame import records_frame
from qbench.records.record import Record
from qbench.report.content import Content, gather_content
from qbench.report.html import html_page
from qbench.report.markdown import markdown_text


def csv_text(records: Sequence[Record]) -> str:
    """Return one line for each record: settings, scalar metrics and breakdown, bytes as bytes."""
    return str(records_frame(records).to_csv(index=False, lineterminator="\n"))


def summary_document(content: Content) -> dict[str, Any]:
    """Return what a report says first as plain JSON values: sentences, and each pair with bytes as bytes."""
    return {
        "scope": content.scope,
        "headline": list(content.headline),
        "accuracy": content.accuracy,
        "warnings": list(content.warnings),
        "comparison": [_pair_values(pair) for pair in pair_results(content.results)],
    }


def _pair_values(pair: MethodPair) -> dict[str, Any]:
    """Return one comparison; `saved` maps each memory metric to what both sides need and the difference."""
    candidate = pair.candidate
    return {
        "kind": candidate.kind,
        "device": candidate.device,
        "settings": {name: value for name, value in candidate.settings.items() if name != "precision"},
        "baseline": pair.baseline.point.precision,
        "candidate": candidate.point.precision,
        "saved": {
            name: {
                "baseline": saving.baseline,
                "candidate": saving.candidate,
                "saved": saving.bytes,
                "percent": saving.percent,
            }
            for name, saving in pair.savings.items()
        },
        "throughput_ratio": pair.throughput_ratio,
        "differs": list(pair.differs),
    }


def write_csv(records: Sequence[Record], path: Path) -> None:
    """Write the records as CSV. Raises RecordError when `path` cannot be written."""
    _write_whole(path, csv_text(records))


def write_report(
    records: Sequence[Record], folder: Path, title: str, content: Content | None = None
) -> dict[str, Path]:
    """Write report.html, report.md and report.csv into `folder`; return their paths by suffix.

    `content` is that of `records` where it is gathered already. Raises RecordError when there are no
    records, or the folder or a file cannot be written; a file that was there before is then as it was.
    """
    if not records:
        raise RecordError("no records to report on; run a scenario, or name a folder that holds results")
    content = content or gather_content(records)
    texts = {"html": html_page(content, title), "md": markdown_text(content, title), "csv": csv_text(records)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecordError(
            f"{folder}: cannot make the folder: {error.strerror}; name another with --out"
        ) from error
    paths = {suffix: folder / f"report.{suffix}" for suffix in texts}
    for suffix, path in paths.items():
        _write_whole(path, texts[suffix])
    return paths


def _write_whole(path: Path, text: str) -> None:
    """Replace `path` in one step, so that neither a reader nor a full disk ever leaves half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", errors="replace", newline="\n")
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise RecordError(
            f"{path}: cannot be written: {error.strerror}; name another folder with --out"
        ) from error
