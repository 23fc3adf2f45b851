from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from pydantic import ValidationError

from qbench.scenario.schema import LoraSettings, Point, TrainSettings, portable


def test_point_id_is_the_same_for_equal_points_however_they_were_written() -> None:
    written_out = Point(model="m", lora=LoraSettings(lora_alpha=32.0), train=TrainSettings(seq_len=2048))
    assert Point(model="m").point_id == written_out.point_id


def test_point_id_changes_with_every_kind_of_setting() -> None:
    points = [
        Point(model="m"),
        Point(model="n"),
        Point(model="m", precision="nf4"),
        Point(model="m", lora=None),
        Point(model="m", lora=LoraSettings(r=8)),
        Point(model="m", train=TrainSettings(seq_len=512)),
    ]
    assert len({point.point_id for point in points}) == len(points)


@pytest.mark.parametrize(
    ("precision", "lora", "method"),
    [("bf16", {}, "lora"), ("int8", {}, "qlora"), ("nf4-dq", {}, "qlora"), ("fp32", None, "full")],
)
def test_method_follows_from_precision_and_adapter(precision: str, lora: object, method: str) -> None:
    assert Point.model_validate({"model": "m", "precision": precision, "lora": lora}).method == method


def test_tokens_per_step_counts_every_accumulated_batch() -> None:
    train = TrainSettings(per_device_train_batch_size=2, seq_len=512, gradient_accumulation_steps=4)
    assert Point(model="m", train=train).tokens_per_step == 4096  # 2 x 512 x 4


def test_a_boolean_is_not_a_number() -> None:
    with pytest.raises(ValidationError, match="a boolean is not a number"):
        LoraSettings.model_validate({"lora_alpha": True})


@pytest.mark.parametrize("targets", ["", [], ["q_proj", ""]])
def test_target_modules_are_not_empty(targets: object) -> None:
    with pytest.raises(ValidationError):
        LoraSettings.model_validate({"target_modules": targets})


def test_a_quantized_base_needs_an_adapter_and_text_needs_real_weights() -> None:
    with pytest.raises(ValidationError, match="nf4 cannot be trained without an adapter"):
        Point(model="m", precision="nf4", lora=None)
    with pytest.raises(ValidationError, match="set weights: pretrained or data: random"):
        Point(model="m", data="notes.txt")


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31mb", "a\u202eb", "a\0b"])
def test_a_name_is_one_line_without_control_characters(name: str) -> None:
    for values in ({"model": name}, {"model": "m", "lora": {"target_modules": ["q_proj", name]}}):
        with pytest.raises(ValidationError, match="a name has no line break and no other control character"):
            Point.model_validate(values)


def test_a_models_folder_is_known_by_its_name_and_its_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate(("a/m", "b/m", "c/m")):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text(f'{{"layers": {number // 2}}}')
    monkeypatch.chdir(tmp_path / "a")
    first = Point(model="./m")
    same = Point(model=str(tmp_path / "b" / "m"))
    other = Point(model="../c/m")
    assert portable(first) == portable(same) == portable(portable(first))
    assert first.point_id == same.point_id == Point(model="m").point_id != other.point_id
    digest = hashlib.sha256(b'{"layers": 0}').hexdigest()
    assert portable(first).model == f"m@{digest[:12]}"


@pytest.mark.parametrize(
    ("model", "digest", "stored"),
    [
        ("/home/one/models/m", "0123456789ab", "m@0123456789ab"),
        ("C:\\models\\m\\", "0123456789ab", "m@0123456789ab"),
        ("/home/one/gone", "", "./gone"),
        ("/home/one/m.gguf", "", "./m.gguf"),
        ("org/name", "", "org/name"),
        ("m@0123456789ab", None, "m@0123456789ab"),
    ],
)
def test_no_folder_of_a_machine_is_stored(model: str, digest: str | None, stored: str) -> None:
    assert portable(Point(model=model), digest).model == stored


def test_of_a_text_file_the_name_is_stored() -> None:
    point = Point(model="org/name", weights="pretrained", data="/home/one/texts/a.txt")
    assert portable(point).data == "a.txt"
