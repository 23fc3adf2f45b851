from __future__ import annotations

import pytest

from qbench.errors import shown
from qbench.scenario.schema import LoraSettings, MeasureSettings, Point, Scenario
from qbench.scenario.settings import (
    GROUPS,
    LEAVES,
    SETTINGS,
    Leaf,
    flatten,
    from_text,
    nest,
    point_settings,
    resolve,
)


def test_each_leaf_has_a_short_name_of_its_own() -> None:
    assert len(SETTINGS) == len(LEAVES)
    assert not set(SETTINGS) & set(GROUPS)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("r", "lora.r"),
        ("lora.r", "lora.r"),
        ("seq_len", "train.seq_len"),
        ("per_device_train_batch_size", "train.per_device_train_batch_size"),
        ("precision", "precision"),
        ("lora", "lora"),
        ("rank", None),
        ("train.r", None),
        ("", None),
    ],
)
def test_resolve(name: str, path: str | None) -> None:
    assert resolve(name) == path


def test_flatten_and_nest_undo_each_other() -> None:
    nested = {"model": "m", "lora": {"r": 8}, "train": {"seq_len": 64, "optim": "sgd"}}
    flat = flatten(nested)
    assert flat == {"model": "m", "lora.r": 8, "train.seq_len": 64, "train.optim": "sgd"}
    assert nest(flat) == nested
    assert flatten({"lora": None}) == {"lora": None}


def test_point_settings_holds_every_short_name() -> None:
    settings = point_settings(Point(model="m", lora=LoraSettings(r=4, target_modules=("q", "v"))))
    assert list(settings) == list(SETTINGS)
    assert (settings["model"], settings["r"], settings["target_modules"], settings["seq_len"]) == (
        "m",
        4,
        ("q", "v"),
        2048,
    )
    assert point_settings(Point(model="m", lora=None))["r"] is None


@pytest.mark.parametrize(
    ("leaf", "value", "problem"),
    [
        (
            LEAVES["precision"],
            "NF4_DQ",
            "given 'NF4_DQ'; allowed: fp32, bf16, fp16, nf4, nf4-dq, fp4, fp4-dq, int8; did you mean nf4-dq?",
        ),
        (LEAVES["lora.r"], 0, "given 0; allowed: a whole number from 1 to 65,536"),
        (LEAVES["lora.r"], 8.0, "given 8.0; allowed: a whole number from 1 to 65,536"),
        (LEAVES["lora.lora_dropout"], 1, "given 1; allowed: a number of at least 0 and below 1"),
        (LEAVES["lora.lora_alpha"], float("inf"), "given inf; allowed: a number above 0"),
        (LEAVES["lora.lora_alpha"], True, "given true; allowed: a number above 0"),
        (LEAVES["lora.target_modules"], [], "given []; allowed: text or a list of at least one text"),
        (LEAVES["train.gradient_checkpointing"], "no", "given 'no'; allowed: true or false"),
        (LEAVES["model"], None, "given null; allowed: text"),
        (
            LEAVES["train.autocast"],
            False,
            "given false; allowed: none, bf16, fp16; YAML reads yes, no, on, off as booleans: quote it",
        ),
        (Leaf(MeasureSettings, "warmup_steps"), -1, "given -1; allowed: a whole number from 0 to 1,000,000"),
        (
            Leaf(Scenario, "name"),
            "a b",
            "given 'a b'; allowed: text that matches ^[A-Za-z0-9][A-Za-z0-9._-]*$",
        ),
    ],
)
def test_a_problem_says_what_was_given_and_what_is_allowed(leaf: Leaf, value: object, problem: str) -> None:
    assert str(leaf.problem(value)) == problem


@pytest.mark.parametrize("path", LEAVES)
def test_every_leaf_can_describe_what_it_allows(path: str) -> None:
    problem = LEAVES[path].problem({"no": "leaf is a mapping"})
    assert problem is not None
    assert problem.reason.startswith("given {'no': 'leaf is a mapping'}; allowed: ")


def test_normal_values_are_those_of_the_point() -> None:
    assert LEAVES["lora.target_modules"].normal(["q", "v"]) == ("q", "v")
    # PyYAML reads 5e-1 as text.
    assert LEAVES["lora.lora_dropout"].normal("5e-1") == 0.5
    assert isinstance(LEAVES["lora.lora_alpha"].normal(16), float)


def test_shown_values_are_short_and_on_one_line() -> None:
    assert shown("a\nb") == r"'a\nb'"
    assert len(shown("x" * 1000)) == 60


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("precision", "NF4", "nf4"),
        ("recipe", " TRL", "trl"),
        ("precision", "4bit", "4bit"),  # Refused later, with what is allowed.
        ("seq_len", "4K", 4096),
        ("data", "My.TXT", "My.TXT"),
    ],
)
def test_the_case_of_a_choice_does_not_matter(name: str, text: str, value: object) -> None:
    assert from_text(SETTINGS[name], text) == value


def test_kind_and_choices_are_those_of_the_json_schema() -> None:
    for setting in SETTINGS.values():
        schema = setting.leaf.json_schema()
        kind = schema.get("type", "names")
        assert setting.kind == ("names" if kind == "array" else kind)
        assert setting.choices == schema.get("enum", [])
