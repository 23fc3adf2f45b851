"""Settings that follow from those that were given."""

from __future__ import annotations

import pytest

from qbench.cli.target import TargetRequest, read_asked
from qbench.notebook import _points
from qbench.runs.usual import with_usual

DENSE, EXPERTS = "meta-llama/Llama-3.1-8B", "mistralai/Mixtral-8x7B-v0.1"


@pytest.mark.parametrize(
    ("model", "given", "follows"),
    [
        (DENSE, {}, {}),
        (DENSE, {"recipe": "trainer"}, {}),
        (DENSE, {"recipe": "trl"}, {"autocast": "bf16"}),
        (EXPERTS, {}, {"lora_dropout": 0}),
        (EXPERTS, {"target_modules": ["q_proj"]}, {}),
        ("no/such-model", {}, {}),
    ],
)
def test_what_follows(model: str, given: dict[str, object], follows: dict[str, object]) -> None:
    assert with_usual(model, given) == given | follows


def test_what_was_given_stays() -> None:
    given = {"recipe": "trl", "autocast": "none", "lora_dropout": 0.1}
    assert with_usual(EXPERTS, given) == given


def test_each_recipe_of_a_command_has_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    asked = read_asked(TargetRequest(name=DENSE, settings={"recipe": ["peft", "trl"]}))
    assert [point.train.autocast for point in asked.points] == ["none", "bf16"]
    assert [point.train.autocast for point in _points(DENSE, {"recipe": ["peft", "trl"]})] == ["none", "bf16"]
    assert capsys.readouterr().err == ""


def test_a_model_with_experts_is_planned_without_dropout_and_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (point,) = read_asked(TargetRequest(name=EXPERTS)).points
    assert point.lora is not None
    assert point.lora.lora_dropout == 0
    assert "planned with --lora-dropout 0" in capsys.readouterr().err


def test_a_card_of_which_only_the_memory_is_known_says_what_it_is_taken_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (card,) = read_asked(TargetRequest(name=DENSE, gpu_memory="24GiB")).cards()
    assert card.compute_capability == (8, 9)
    assert "24.00 GiB card: assuming compute capability 8.9" in capsys.readouterr().err
