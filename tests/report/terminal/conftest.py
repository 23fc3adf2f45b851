"""Fixtures of what is printed."""

from __future__ import annotations

import pytest

from qbench.report.terminal.table import WIDTH


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Print as to a pipe, whatever an earlier test has left in the environment."""
    monkeypatch.setenv("COLUMNS", str(WIDTH))
