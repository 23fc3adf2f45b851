"""The catalog is cheap to read and pulls in nothing heavy."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from qbench.catalog.gpus import gpus
from qbench.catalog.models import models
from qbench.catalog.names import NameIndex

HEAVY = ("torch", "transformers", "peft", "pandas", "numpy", "plotly", "pydantic", "yaml")


def test_import_and_use_pull_in_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from qbench.catalog import gpus, models, prices\n"
        "models.resolve_model('gpt2'); models.resolve_model('org/name'); prices.cheapest_on_demand('H100')\n"
        f"print(*sorted(set({HEAVY}) & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(("load", "limit_s"), [(models.__wrapped__, 0.030), (gpus.__wrapped__, 0.005)])
def test_reading_is_fast(load: Callable[[], object], limit_s: float) -> None:
    def seconds() -> float:
        start = time.perf_counter()
        load()
        return time.perf_counter() - start

    # The best of several, since other work may hold the processor.
    assert min(seconds() for _ in range(10)) < limit_s


def test_one_name_for_two_rows_is_a_data_error() -> None:
    with pytest.raises(ValueError, match="'a100' names two rows"):
        NameIndex([("first", ("x", "A100")), ("second", ("y", "a100"))])


def test_one_row_may_repeat_a_name() -> None:
    index = NameIndex([("row", ("gpt2", "GPT2"))])
    assert index.find("Gpt2") == "row"
