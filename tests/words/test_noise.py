"""What is said of a machine's noise, by hand."""

from __future__ import annotations

import pytest

from qbench.comparison.check import Check, Finding
from qbench.comparison.intervals import LogRatio
from qbench.comparison.verdicts import Measured, Tolerance, Wanted
from qbench.records.noise import Noise, Spread
from qbench.words.noise import GATE_TEXT, advice, deciding_budget, noise_text
from tests.comparison.hand_made import make_point


def make_noise(deviation: float) -> Noise:
    spread = Spread(process=deviation, pair=deviation * 2**0.5)
    return Noise(device="cuda", machine="NVIDIA L4", label="p", processes=48, spreads={"step_time_s": spread})


def speed(deviation: float | None, **changes: object) -> Finding:
    values: dict[str, object] = {"metric": "step_time_s", "verdict": "ambiguous", "run": 1.0}
    found = Finding(make_point(), "measurement", "cuda", "", "same", deviation=deviation)
    return found._replace(**values | changes)  # type: ignore[arg-type]


def test_noise_through_which_nothing_is_seen() -> None:
    assert "too many by check" in noise_text(make_noise(0.2))


@pytest.mark.parametrize(
    ("deviations", "tolerances", "said"),
    [
        # An interval's error is 2 d (2 / n)^0.5, and it sees exp((t_0.995 + t_0.95) error) - 1. With d = 0.05
        # and 100 a side, 0.0141 and 99 degrees, that is exp((2.626 + 1.660) 0.0141) - 1 = 6.25 %, not 5 %.
        # With 64, 0.01768 and 63 degrees, exp((2.656 + 1.669) 0.01768) - 1 = 7.94 %; with 63, 8.01 %.
        (
            [0.05],
            {},
            "differ by 5.0 %. Processes per side that check needs to show a change of 5 %: too many; 8 %: 64",
        ),
        ([0.01, None, 0.05], {}, "at 3 points: processes of one differ by 5.0 %."),
        ([None], {}, "at 1 point: with fewer than 3 processes per side its noise is unknown"),
        # One and a half times the tolerance, 7.5 %, and 8 %, which rounding must not make one.
        ([0.01], {"tokens_per_s": Tolerance(relative=0.05)}, "change of 7.5 %: "),
        ([0.01], {"tokens_per_s": Tolerance(relative=0.05)}, "; 8 %: "),
        (
            [1.0],
            {"step_time_s": Tolerance(relative=0.05)},
            "No affordable number of processes shows 7.5 % or 8 %",
        ),
    ],
)
def test_advice_without_a_known_noise(
    deviations: list[float | None], tolerances: dict[str, Tolerance], said: str
) -> None:
    wish, way = advice([speed(deviation) for deviation in deviations], [], tolerances)
    assert wish.startswith("step_time_s is ambiguous at ")
    assert said in wish
    assert way == f"{GATE_TEXT}; `qbench calibrate --noise` says how many processes that takes here."


def test_advice_with_a_known_noise_tells_that_instead() -> None:
    noise = make_noise(0.02)
    assert advice([speed(0.05)], [noise], {}) == [noise_text(noise), f"{GATE_TEXT}."]


def undecided(needed: int | None) -> Finding:
    ratio = LogRatio(estimate=0, low=-0.1, high=0.1, error=0.03, deviation=0.1, freedom=5)
    return speed(0.1, reason=Measured(ratio, pairs=6, wanted=Wanted(0.05, needed, 0.03, 6)))


@pytest.mark.parametrize(
    ("findings", "said"),
    [
        ([], []),
        ([speed(0.1, verdict="same")], []),
        # 40 pairs of 10 s each, and a fifth for what is not measuring: 480 s.
        ([undecided(40)], ["1 step time takes 40 pairs of processes: --budget 8m --max-processes 40."]),
        # The one that was not measured begins with four pairs: 44 x 10 s x 1.2 = 528 s.
        (
            [undecided(40), speed(None, metric="point", run=None, reason="few pairs")],
            ["2 step times takes at least 40 pairs of processes: --budget 9m --max-processes 40."],
        ),
        ([undecided(40), undecided(None)], ["No affordable budget decides every step time here"]),
    ],
)
def test_the_budget_that_would_decide(findings: list[Finding], said: list[str]) -> None:
    lines = deciding_budget(Check(findings=tuple(findings)), pair_s=10)
    assert len(lines) == len(said)
    assert all(part in line for part, line in zip(said, lines, strict=True))
