"""A verdict claims no more than was planned: what is left out may turn it over."""

from __future__ import annotations

import pytest

from qbench.records.fits import Fit, with_unmodelled
from qbench.records.parts import FitVerdict
from qbench.scenario.importers.keys import EITHER, HARMLESS, LESS, MORE, Effect
from qbench.words.fit_verdict import verdict_line


@pytest.mark.parametrize(
    ("verdict", "effect", "then"),
    [
        # A step that needs more than planned may fail where the plan fits, and fails where it does not.
        ("fits", "more", "unknown"),
        ("tight", "more", "unknown"),
        ("does not fit", "more", "does not fit"),
        # One that needs less may fit where the plan does not.
        ("fits", "less", "fits"),
        ("does not fit", "less", "unknown"),
        ("fits", "either", "unknown"),
        ("does not fit", "either", "unknown"),
        ("unknown", "more", "unknown"),
    ],
)
def test_what_is_left_out_may_turn_a_verdict_over(
    verdict: FitVerdict, effect: Effect, then: FitVerdict
) -> None:
    fit = Fit(gpu="T4", fits=verdict == "fits", verdict=verdict)
    found = with_unmodelled(fit, {"rl": effect})
    assert found.verdict == then
    assert found.unmodelled == (["rl"] if then == "unknown" != verdict else None)
    assert found.fits == (then == "fits")


def test_the_verdict_names_what_is_left_out() -> None:
    fit = with_unmodelled(Fit(gpu="T4", fits=True, verdict="fits"), {"rl": "more", "plugins": "less"})
    assert verdict_line(fit, None) == "unknown (not in the plan, and they affect memory: rl)"


def test_a_key_has_one_effect() -> None:
    assert not MORE & LESS
    assert not (MORE | LESS) & EITHER
    assert not (MORE | LESS | EITHER) & HARMLESS
