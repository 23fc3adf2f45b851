"""The verdict of a fit as a heading, cells and lines."""

from __future__ import annotations

from qbench.records.fits import Fit
from qbench.units import GIB
from qbench.words import fit_verdict

HOLDS = Fit(gpu="L4", fits=True, verdict="fits", memory_bytes=22 * GIB, headroom_bytes=2 * GIB)
SHORT = Fit(gpu="T4", fits=False, verdict="does not fit", memory_bytes=15 * GIB, headroom_bytes=-3 * GIB)
IN_FRAGMENTS = Fit(gpu="T4", fits=False, verdict="does not fit", memory_bytes=15 * GIB, headroom_bytes=GIB)
UNKNOWN = Fit(gpu="MI300X", fits=False, verdict="unknown", memory_bytes=190 * GIB, error="no kernel: bf16")


def test_a_page_has_a_heading_and_the_memory_behind_it():
    assert fit_verdict.heading(SHORT) == "Does not fit on T4"
    assert fit_verdict.memory_sentence(SHORT, 18 * GIB) == "3.00 GiB short of 15.00 GiB, 18.00 GiB needed."
    assert fit_verdict.heading(UNKNOWN) == "Cannot be judged on MI300X"
    # What is not known has no size, 0 B least of all; the reason stands below.
    assert fit_verdict.memory_sentence(UNKNOWN, 18 * GIB) == "18.00 GiB needed without a limit."


def test_a_cell_says_what_is_left():
    cells = [fit_verdict.room_text(fit) for fit in (HOLDS, SHORT, IN_FRAGMENTS, UNKNOWN, None)]
    assert cells == [
        "2.00 GiB left",
        "no, 3.00 GiB short",
        "no, 1.00 GiB left",
        "no kernel",
        "cannot be planned",
    ]
    numbers = [fit_verdict.room_number(fit) for fit in (HOLDS, SHORT, IN_FRAGMENTS, UNKNOWN, None)]
    assert numbers == ["2.0", "-3.0", "no", "no", ""]
