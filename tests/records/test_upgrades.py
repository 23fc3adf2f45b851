"""Records of older versions, read as those of the newest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qbench.errors import RecordError
from qbench.records.fits import Fit
from qbench.records.lines import parsed_record, parsed_without_bulk
from qbench.records.record import SCHEMA_VERSION, Record, record_from_dict
from qbench.records.upgrades import worded_fits
from qbench.units import GIB
from tests.comparison.hand_made import make_record

ROOT = Path(__file__).parents[2]
COMMITTED = sorted(
    file
    for folder in ("reports", "tests")
    for file in (ROOT / folder).rglob("*.jsonl")
    # Those are single times of processes, and comparisons of two histories, not records.
    if file.parent.name not in ("gate", "distributed")
)
VERDICTS = {"fits", "tight", "does not fit", "unknown"}


def of_version_1(**detail: Any) -> Record:
    values = make_record(detail=detail).to_dict() | {"schema_version": 1}
    return record_from_dict(values, "here")


def fit_of_version_1(context_bytes: list[int] | None = None, **row: Any) -> Fit:
    (fit,) = of_version_1(fits=[{"gpu": "T4", **row}], context_bytes=context_bytes).fits
    return fit


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_committed_record_loads_with_its_numbers(file: Path) -> None:
    for line in file.read_bytes().splitlines():
        stored, record = json.loads(line), parsed_record(line, str(file))
        assert parsed_without_bulk(line, str(file)).fits == record.fits
        assert record.schema_version == SCHEMA_VERSION
        assert record.to_dict()["metrics"] == stored["metrics"]
        assert record.to_dict()["environment"] == stored["environment"]
        fits = stored["detail"].pop("fits", [])
        assert {key: value for key, value in record.detail.items() if key != "fits"} == stored["detail"]
        for before, now in zip(fits, record.detail.get("fits") or [], strict=True):
            assert now["verdict"] in VERDICTS
            assert now == {**now, **before, "verdict": now["verdict"]}


def test_the_words_of_a_verdict_become_its_value_and_numbers() -> None:
    assert fit_of_version_1(fits=True, verdict="ok", num_alloc_retries=0).verdict == "fits"
    late = fit_of_version_1(fits=True, verdict="ok after allocator retries (3)", num_alloc_retries=3)
    assert (late.verdict, late.num_alloc_retries) == ("tight", 3)
    said = "flash_attention_2 needs compute capability 8.0 or more; use sdpa"
    no_kernel = fit_of_version_1(fits=False, verdict=said, headroom_bytes=None)
    assert (no_kernel.verdict, no_kernel.fits, no_kernel.error) == ("unknown", False, said)


@pytest.mark.parametrize(
    ("words", "op", "module"),
    [
        ("aten.mm.default of layers.0", "aten.mm.default", "layers.0"),
        ("a tensor of q_proj.weight", "", "q_proj.weight"),
        ("aten.mm.default", "aten.mm.default", ""),
    ],
)
def test_the_allocation_that_fails_is_read_from_the_words(words: str, op: str, module: str) -> None:
    said = f"oom in backward: {words} asks for 1.50 GiB, 512 B free"
    fit = fit_of_version_1(fits=False, verdict=said, headroom_bytes=-GIB)
    assert fit.verdict == "does not fit"
    assert fit.shortage == {
        "phase": "backward",
        "op": op,
        "module": module,
        "requested_bytes": 3 * GIB // 2,
        "free_bytes": 512,
    }


@pytest.mark.parametrize(
    ("reserved", "verdict"),
    # 15 GiB less the largest context, 400 bytes, less what is reserved: 100 short, which the least context,
    # 300 bytes, leaves. 101 short is short with either.
    [(15 * GIB - 300, "tight"), (15 * GIB - 299, "does not fit")],
)
def test_a_margin_thinner_than_the_context_is_tight(reserved: int, verdict: str) -> None:
    room = 15 * GIB - 400 - reserved
    row = {"memory_bytes": 15 * GIB, "peak_reserved_bytes": reserved, "headroom_bytes": room}
    said = "oom in forward: aten.mm asks for 1.0 MiB, 0 B free"
    assert fit_of_version_1([300, 400], fits=False, verdict=said, **row).verdict == verdict
    # The context of another card says nothing of this one.
    assert fit_of_version_1([300, 500], fits=False, verdict=said, **row).verdict == "does not fit"


def test_fits_by_name_of_the_card_become_rows() -> None:
    record = of_version_1(fits={"L4": False, "A100": {"fits": True, "memory_bytes": GIB}})
    seen = [(fit.gpu, fit.fits, fit.verdict, fit.memory_bytes) for fit in record.fits]
    assert seen == [("L4", False, "does not fit", None), ("A100", True, "fits", GIB)]


def test_a_measured_context_of_one_number_becomes_a_range() -> None:
    assert of_version_1(context_bytes=300).context_bytes == [300, 300]


@pytest.mark.parametrize("version", [{}, [], None, "1", 1.5, True])
def test_a_version_of_another_kind_is_refused(version: object) -> None:
    line = json.dumps({"schema_version": version, "metrics": {}}).encode() + b"\n"
    for read in (parsed_record, parsed_without_bulk):
        with pytest.raises(RecordError, match="this is not a qbench record"):
            read(line, "here")


def test_a_size_that_is_none_stays_a_text() -> None:
    told = "oom in forward: mm asks for 1..5 GiB, 1 GiB free"
    values = worded_fits({"detail": {"fits": [{"gpu": "x", "fits": False, "verdict": told}]}})
    assert values["detail"]["fits"][0]["verdict"] == "unknown"
