from __future__ import annotations

import time
from typing import Any

import pytest

from qbench.errors import ScenarioError
from qbench.scenario.expand import expand, point_from
from qbench.scenario.schema import Point, Scenario


def scenario(**sections: Any) -> Scenario:
    return Scenario(**{"name": "s", "question": "Which?", "base": {"model": "m"}} | sections)


def problems_of(**sections: Any) -> list[str]:
    with pytest.raises(ScenarioError) as caught:
        expand(scenario(**sections))
    return [str(problem) for problem in caught.value.problems]


def ranks_and_precisions(points: tuple[Point, ...]) -> list[tuple[str, int | None]]:
    return [(point.precision, point.lora.r if point.lora else None) for point in points]


def test_product_is_in_file_order_and_the_last_key_varies_fastest() -> None:
    points = expand(scenario(matrix={"precision": ["nf4", "bf16"], "r": [64, 8]}))
    assert ranks_and_precisions(points) == [("nf4", 64), ("nf4", 8), ("bf16", 64), ("bf16", 8)]


def test_without_a_matrix_the_base_is_the_one_point() -> None:
    assert expand(scenario()) == (Point(model="m"),)


def test_base_settings_hold_where_the_matrix_does_not_change_them() -> None:
    base = {"model": "m", "lora": {"lora_alpha": 8}, "train": {"optim": "sgd"}}
    (point,) = expand(scenario(base=base, matrix={"lora.r": [4], "train.seq_len": [64]}))
    assert point == Point.model_validate(
        {"model": "m", "lora": {"lora_alpha": 8, "r": 4}, "train": {"optim": "sgd", "seq_len": 64}}
    )


def test_a_model_may_stand_in_the_matrix_alone() -> None:
    points = expand(scenario(base={}, matrix={"model": ["a", "b"]}))
    assert [point.model for point in points] == ["a", "b"]


def test_exclude_drops_what_matches_all_of_its_keys() -> None:
    points = expand(
        scenario(
            matrix={"precision": ["fp32", "nf4"], "r": [8, 64]}, exclude=[{"precision": "fp32", "lora.r": 64}]
        )
    )
    assert ranks_and_precisions(points) == [("fp32", 8), ("nf4", 8), ("nf4", 64)]


def test_exclude_compares_values_as_a_point_holds_them() -> None:
    points = expand(
        scenario(
            matrix={"target_modules": [["q", "v"], "all-linear"], "lora_alpha": [16, 32]},
            exclude=[{"target_modules": ["q", "v"], "lora_alpha": "16"}],
        )
    )
    assert len(points) == 3


def test_include_adds_changes_to_base_and_is_not_excluded() -> None:
    points = expand(
        scenario(
            matrix={"precision": ["bf16", "nf4"]},
            exclude=[{"precision": "nf4"}],
            include=[{"precision": "nf4", "r": 8}, {"lora": None}],
        )
    )
    assert ranks_and_precisions(points) == [("bf16", 16), ("nf4", 8), ("bf16", None)]


def test_equal_points_appear_once_at_their_first_place() -> None:
    points = expand(scenario(matrix={"r": [16, 8]}, include=[{"r": 8}, {"r": 4}, {"lora.r": 16}]))
    assert [rank for _, rank in ranks_and_precisions(points)] == [16, 8, 4]


def test_a_group_varies_as_a_whole_and_null_means_no_adapter() -> None:
    points = expand(
        scenario(
            matrix={"lora": [None, {}, {"r": 8, "lora_alpha": 16}], "precision": ["bf16", "nf4"]},
            exclude=[{"lora": None, "precision": "nf4"}],
        )
    )
    assert ranks_and_precisions(points) == [
        ("bf16", None),
        ("bf16", 16),
        ("nf4", 16),
        ("bf16", 8),
        ("nf4", 8),
    ]


def test_a_change_to_an_absent_adapter_brings_it_back_with_its_defaults() -> None:
    base = {"model": "m", "lora": None}
    points = expand(scenario(base=base, include=[{"r": 4}, {"lora": {}}]))
    assert ranks_and_precisions(points) == [("bf16", None), ("bf16", 4), ("bf16", 16)]


def test_the_limit_is_checked_before_anything_is_built() -> None:
    many = scenario(matrix={"r": list(range(1, 1001)), "seq_len": list(range(1, 1001))}, include=[{"r": 1}])
    start = time.process_time()
    with pytest.raises(ScenarioError, match="matrix: 1,000,001 points are more than the limit of 10,000"):
        expand(many)
    assert time.process_time() - start < 20


def test_a_caller_may_raise_the_limit() -> None:
    sections = scenario(matrix={"r": [1, 2, 3]})
    assert len(expand(sections, max_points=3)) == 3
    with pytest.raises(ScenarioError, match="3 points are more than the limit of 2"):
        expand(sections, max_points=2)


def test_ten_thousand_points_take_little_time() -> None:
    grid = scenario(matrix={"r": list(range(1, 101)), "seq_len": list(range(1, 101))})
    start = time.process_time()
    assert len(expand(grid)) == 10_000
    assert time.process_time() - start < 30  # 0.2 s where nothing else runs


def test_an_exclude_without_a_match_is_named() -> None:
    assert problems_of(
        matrix={"r": [8]}, exclude=[{"r": 8, "precision": "fp32"}, {"r": 64}], include=[{"r": 1}]
    ) == [
        "exclude[0]: matches no point of the matrix: lora.r=8, precision='fp32'; correct or remove it",
        "exclude[1]: matches no point of the matrix: lora.r=64; correct or remove it",
    ]


def test_dropping_every_point_is_an_error() -> None:
    assert problems_of(matrix={"r": [8, 16]}, exclude=[{"precision": "bf16"}]) == [
        "exclude: drops every point; remove an entry or narrow it"
    ]


def test_combinations_that_make_no_sense_are_told_once_with_an_example() -> None:
    assert problems_of(matrix={"lora": [None, {}], "precision": ["bf16", "nf4"], "seq_len": [64, 128]}) == [
        "matrix: precision nf4 cannot be trained without an adapter; give lora settings "
        "(at lora=null, precision='nf4', train.seq_len=64 and 1 more); correct or exclude it"
    ]
    assert problems_of(base={"model": "m", "data": "a.txt"}) == [
        "base: data is a text file but weights are random; set weights: pretrained or data: random"
    ]
    (problem,) = problems_of(include=[{"r": 8}, {"precision": "nf4", "lora": None}])
    assert problem.startswith("include[1]: precision nf4 cannot be trained without an adapter")


def test_a_scenario_made_in_code_is_checked_like_a_file() -> None:
    assert problems_of(base={"modle": "m"}, matrix={"r": []}, exclude=[{}])[0].startswith(
        "base.modle: unknown key; allowed: model, weights, precision, data, lora, train, quantization, "
        "distributed, vision; did you mean model?"
    )


def test_point_from_takes_paths_and_short_names() -> None:
    base = {"model": "m", "train": {"seq_len": 512, "optim": "sgd"}}
    point = point_from(base, {"precision": "nf4", "lora.r": 8, "seq_len": 64})
    assert point == Point.model_validate(
        {"model": "m", "precision": "nf4", "lora": {"r": 8}, "train": {"seq_len": 64, "optim": "sgd"}}
    )
    assert point_from({}, {"model": "m"}) == point_from({"model": "m"}, {}) == Point(model="m")
    assert base == {"model": "m", "train": {"seq_len": 512, "optim": "sgd"}}


def test_point_from_reports_every_problem() -> None:
    with pytest.raises(ScenarioError) as caught:
        point_from({"precision": "nf5"}, {"rank": 8, "seq_len": 0, "r": 4, "lora.r": 8})
    assert [str(problem).partition(";")[0] for problem in caught.value.problems] == [
        "precision: given 'nf5'",
        "rank: unknown setting",
        "lora.r: sets the same as r",
        "seq_len: given 0",
        "model: missing",
    ]


def test_point_from_refuses_settings_that_do_not_agree() -> None:
    with pytest.raises(ScenarioError, match="int8 cannot be trained without an adapter"):
        point_from({"model": "m"}, {"lora": None, "precision": "int8"})
