"""The published measurements: whole, with sources, and about models and GPUs that the catalog knows."""

from __future__ import annotations

import pytest

from qbench.catalog.gpus import find_gpu
from qbench.catalog.models import find_model
from qbench.catalog.published import COUNTS, FIGURES, PublishedRow, not_compared, published_rows
from qbench.units import GIB

BY_ID = {row.id: row for row in published_rows()}


def test_ids_are_unique() -> None:
    assert len(BY_ID) == len(published_rows()) == 49


@pytest.mark.parametrize("row", published_rows(), ids=lambda row: row.id)
def test_row_says_what_was_measured_where_and_by_whom(row: PublishedRow) -> None:
    assert row.figure in FIGURES
    assert row.value > 0
    assert "/" in row.source
    assert "torch" in row.stack
    assert row.conditions
    assert find_model(row.model).hub_id == row.model
    assert find_gpu(row.gpu).name == row.gpu
    assert (row.r is None) == (row.lora_alpha is None) == (not row.target_modules)


def test_values_are_bytes_or_counts() -> None:
    # Printed with four decimals of a GiB.
    assert BY_ID["cift-001"].value == round(3.0324 * GIB)
    # Printed in bytes.
    assert BY_ID["fms-066"].value == 14_664_493_056
    # r=32 on q and v of 28 layers of 3072, with 8 of 24 heads for v: 32 x ((3072 + 3072) + (3072 + 1024)).
    assert BY_ID["peft-mm-057-trainable"].value == 28 * 32 * (6144 + 4096) == 9_175_040
    assert [row.id for row in published_rows() if row.figure in COUNTS] == [
        "peft-mm-057-trainable",
        "peft-mm-057-total",
    ]


def test_every_run_on_the_rtx_4080_has_all_its_figures() -> None:
    figures: dict[str, set[str]] = {}
    for row in published_rows():
        if row.group == "cift":
            figures.setdefault(row.source, set()).add(row.figure)
    assert len(figures) == 5
    assert all(len(names) == 6 for names in figures.values())


def test_what_is_left_out_has_a_reason() -> None:
    parts = not_compared()
    assert all(part.reason.endswith(".") and part.source and part.rows > 0 for part in parts)
    assert len({(part.group, part.part) for part in parts}) == len(parts)
    # The list they were chosen from has 982 figures, 47 of which are compared; two counts of parameters
    # stand in columns there.
    assert sum(part.rows for part in parts) + len(published_rows()) - 2 == 982
