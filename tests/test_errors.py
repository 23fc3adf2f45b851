"""One line of a library's error, and names that look alike."""

from __future__ import annotations

import pytest

from qbench.errors import first_line, nearest


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("no such thing"), "no such thing"),
        (ValueError("\n  no such thing \nand much more"), "no such thing"),
        (ValueError("Validation error:\n   expected int\nsee there"), "Validation error: expected int"),
        (ValueError("it ends here:"), "it ends here:"),
        (KeyError("foo"), "KeyError 'foo'"),
        (ValueError(), "ValueError"),
    ],
)
def test_first_line(error: Exception, text: str) -> None:
    assert first_line(error) == text


def test_nearest_ignores_case_and_drops_what_is_unlike() -> None:
    assert nearest("Q_PORJ", ["k_proj", "q_proj", "embed_tokens"])[0] == "q_proj"
    assert nearest("xyz", ["k_proj", "q_proj"]) == []
