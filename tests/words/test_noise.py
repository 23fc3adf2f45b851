"""What is said of a machine's noise, by hand."""

from __future__ import annotations

import pytest

from qbench.comparison.check import Finding
from qbench.comparison.verdicts import Tolerance
from qbench.records.noise import Noise, Spread
from qbench.words.noise import GATE_TEXT, advice, noise_text
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
        # and 100 a side, 0.0141 and 198 degrees, that is exp((2.601 + 1.653) 0.0141) - 1 = 6.20 %, not 5 %.
        # With 62, 0.01796 and 122 degrees, exp((2.617 + 1.657) 0.01796) - 1 = 7.98 %; with 61, 8.05 %.
        (
            [0.05],
            {},
            "differ by 5.0 %. Processes a side with which check shows a change of 5 %: too many; 8 %: 64",
        ),
        ([0.01, None, 0.05], {}, "at 3 points: processes of one differ by 5.0 %."),
        ([None], {}, "at 1 point: with fewer than 3 processes a side its noise is not known"),
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
