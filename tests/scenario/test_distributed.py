from __future__ import annotations

from typing import Any

import pytest

from qbench.errors import ScenarioError
from qbench.scenario.expand import expand, point_from
from qbench.scenario.schema import Point, Scenario
from qbench.scenario.settings import point_settings

BASE = {"model": "gpt2"}


def test_a_point_of_one_gpu_is_as_it_was_before_there_were_several() -> None:
    alone = Point(model="gpt2")
    assert {"distributed", "quantization"}.isdisjoint(alone.model_dump())
    # The id that the same point had in records of earlier versions.
    assert alone.point_id == "571f30ed48e9"
    assert point_from(BASE, {"strategy": "fsdp2", "gpus": 1}) == alone


def test_a_point_holds_the_settings_of_its_own_strategy() -> None:
    point = point_from(BASE, {"strategy": "ddp", "gpus": 4, "bucket_cap_mb": 50})
    assert point.model_dump()["distributed"] == {
        "strategy": "ddp",
        "gpus": 4,
        "bucket_cap_mb": 50,
        "gradient_as_bucket_view": False,
    }
    assert Point.model_validate(point.model_dump()) == point
    assert point_settings(point)["gpus"] == 4
    assert point_settings(point)["reshard_after_forward"] is None
    assert point.label == "gpt2 bf16 r=16 b=1 s=2048 ddp x4"


def test_a_matrix_may_vary_the_number_of_gpus() -> None:
    scenario = Scenario(
        name="s",
        question="?",
        base={**BASE, "distributed": {"strategy": "fsdp2"}},
        matrix={"gpus": [1, 2, 8]},
    )
    shared = [point.distributed for point in expand(scenario)]
    assert shared[0] is None
    assert [(each.strategy, each.gpus) for each in shared[1:] if each] == [("fsdp2", 2), ("fsdp2", 8)]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            {"strategy": "ddp"},
            "distributed.gpus missing; give it (--gpus): GPUs that train together, on one node.",
        ),
        ({"gpus": 2}, "distributed.strategy missing; give it (--strategy): How GPUs share the work"),
        ({"strategy": "ddp", "gpus": 9}, "gpus: given 9; allowed: a whole number from 1 to 8"),
        ({"strategy": "device_map", "gpus": 2}, "strategy device_map is not planned; use ddp, fsdp2, zero1"),
        (
            {"strategy": "zero2", "gpus": 2, "sub_group_size": 5},
            "sub_group_size is a setting of strategy zero3",
        ),
        ({"strategy": "fsdp", "gpus": 2}, "did you mean fsdp2?"),
        (
            {"strategy": "ddp", "gpus": 2, "reshard_after_forward": False},
            "reshard_after_forward is a setting of strategy fsdp2, not of ddp",
        ),
        ({"bnb_4bit_quant_storage": "bf16", "precision": "nf4"}, "did you mean bfloat16?"),
        (
            {"bnb_4bit_quant_storage": "bfloat16"},
            "bnb_4bit_quant_storage bfloat16 is for 4-bit precisions, not bf16",
        ),
        ({"strategy": "fsdp2", "gpus": 2, "lora": None, "precision": "nf4"}, "without an adapter"),
    ],
)
def test_bad_settings_are_one_line(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        point_from(BASE, settings)
    assert len(caught.value.problems) == 1
    assert problem in str(caught.value)
