"""Each recipe is one row of choices, and settings of their own lie over it."""

from __future__ import annotations

from typing import get_args

import pytest

from qbench.scenario.expand import point_from
from qbench.scenario.recipes import RECIPES, Recipe
from qbench.scenario.schema import Point
from qbench.scenario.training import LATER


def test_every_recipe_has_a_row_and_every_row_a_recipe() -> None:
    assert set(RECIPES) == set(get_args(Recipe))
    assert all(row.source for row in RECIPES.values())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("loss_type", "liger"),
        ("upcast", "none"),
        ("adapter_dtype", "bf16"),
        ("checkpoint_impl", "reentrant"),
    ],
)
def test_a_setting_lies_over_its_recipe_and_makes_another_point(name: str, value: str) -> None:
    plain = point_from({"model": "gpt2", "train": {"recipe": "peft"}}, {})
    changed = point_from({"model": "gpt2", "train": {"recipe": "peft", name: value}}, {})
    assert getattr(plain.choices, name) == getattr(RECIPES["peft"], name) != value
    assert getattr(changed.choices, name) == value
    assert changed.point_id != plain.point_id


def test_what_is_left_to_the_recipe_is_not_written() -> None:
    point = Point(model="gpt2")
    assert not set(LATER) & point.model_dump()["train"].keys()
    assert Point.model_validate(point.model_dump()) == point
    # The id of this point in records that are older than these settings.
    assert point.point_id == "571f30ed48e9"
