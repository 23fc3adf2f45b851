"""Quality as stored: whose comparison of weights counts."""

from __future__ import annotations

from typing import Any

from qbench.comparison.quality import module_errors, quality_of
from qbench.comparison.results import gather
from qbench.records.record import Record
from tests.comparison.hand_made import make_record

BY_MODULE = {"model.layers.0.mlp.up_proj": 0.08, "model.layers.1.self_attn.q_proj": 0.12, "score": 0.1}


def measured(precision: str, repeat: int = 0, **quality: Any) -> Record:
    detail = {"repeat": repeat, "quality": {"steps": 7, **quality}}
    return make_record(precision=precision, kind="measurement", detail=detail)


def test_the_process_that_compared_weights_speaks_for_all():
    first = measured("nf4", 0, by_module=BY_MODULE, weight_error=0.1)
    (result,) = gather([first, measured("nf4", 1), measured("nf4", 2)])
    assert quality_of(result)["weight_error"] == 0.1
    assert [error.block for error in module_errors(result)] == [0, 1, None]
