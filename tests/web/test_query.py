from __future__ import annotations

import shlex
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest

from qbench.catalog.gpus import find_gpu
from qbench.cli.main import main
from qbench.errors import QbenchError
from qbench.scenario.expand import expand, point_from
from qbench.scenario.load import load_scenario
from qbench.web.query import DEFAULTS, MOST_PINS, command_of, read_state, scenario_of, setting_of


def same(name: str) -> str:
    return name


LINK = "precision=bf16&seq=4096&gradient_checkpointing=no&pin=" + quote(
    "r=64&seq=512&target_modules=q_proj,v_proj&gpu=A10G"
)


def test_an_empty_link_is_the_default():
    (setting,) = read_state("", same).settings
    assert setting.texts == DEFAULTS
    assert setting.query == ""
    assert setting.point.precision == "nf4-dq"
    assert setting.point.lora is not None
    assert setting.point.lora.r == 16


def test_a_link_restores_every_setting():
    state = read_state(f"?{LINK}", same)
    now, pin = state.settings
    assert (now.point.precision, now.point.train.seq_len) == ("bf16", 4096)
    assert not now.point.train.gradient_checkpointing
    assert pin.point.lora is not None
    assert pin.point.lora.target_modules == ("q_proj", "v_proj")
    assert (pin.point.lora.r, pin.gpu) == (64, "A10G")
    assert read_state(state.query, same) == state


def test_the_defaults_are_allowed_and_name_a_card():
    assert find_gpu(DEFAULTS["gpu"]).name == DEFAULTS["gpu"]


@pytest.mark.parametrize(
    ("link", "said"),
    [
        ("seq=0", "seq: given '0'; this page plans 1 to 1,048,576"),
        ("r=99999999999999999999999999", "this page plans 1 to 4,096"),
        ("batch=1025", "batch: given '1025'; this page plans 1 to 1,024"),
        ("seq=١٢", "seq: given"),
        ("batch=1024&seq=1048576", "more than 67,108,864 tokens"),
        ("precision=nf5", "precision: given 'nf5'; allowed: fp32"),
        ("optim=adam", "optim: given 'adam'"),
        ("attn=fast", "attn: given 'fast'"),
        ("gradient_checkpointing=maybe", "allowed: yes, no"),
        ("lora_dropout=nan", "lora_dropout: given nan"),
        ("lora_dropout=x", "lora_dropout: given 'x'"),
        ("gpu=RTX", "GPU 'RTX' is not in the catalog; nearest: RTX"),
        ("target_modules=" + ",".join("abcdefghijklmnopqrstu"), "21 given; this page takes at most 20"),
        ("model=%00", "model: the text is too long, or not text"),
        ("target_modules=a%0Ab", "target_modules: given ['a\\nb']"),
        ("weights=pretrained", "weights: unknown; allowed: model, precision"),
        ("data=/etc/passwd", "data: unknown"),
        ("pin=seq%3D0", "pinned setting 1: seq: given '0'"),
        ("pin=pin%3Dx", "pinned setting 1: pin: unknown"),
        ("&".join(["pin="] * (MOST_PINS + 1)), "5 settings are pinned, at most 4 can be"),
        ("model=" + "x" * 10_000, "characters, at most 8,192 are read"),
    ],
)
def test_what_is_wrong_with_a_link_is_said(link: str, said: str):
    with pytest.raises(QbenchError) as caught:
        read_state(link, same)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_all_problems_are_told_at_once():
    with pytest.raises(QbenchError) as caught:
        read_state("seq=0&r=x&lora_dropout=y", same)
    assert len(str(caught.value).splitlines()) == 3


def test_the_scenario_asks_for_the_settings_of_the_page(tmp_path: Path):
    state = read_state(LINK, same)
    file = tmp_path / "copied.yaml"
    file.write_text(scenario_of(state), encoding="utf-8")
    scenario = load_scenario(file)
    assert expand(scenario) == tuple(setting.point for setting in state.settings)
    assert scenario.plan.gpus == ("RTX 4090", "A10G")


@pytest.mark.parametrize("name", ['a"b: [c] - d', "# no comment", "<b>\U0001f600", "null", "it's"])
def test_hostile_names_stay_text_in_scenario_and_command(tmp_path: Path, name: str):
    state = read_state(urlencode({"target_modules": name}), same)
    file = tmp_path / "copied.yaml"
    file.write_text(scenario_of(state), encoding="utf-8")
    assert expand(load_scenario(file)) == (state.settings[0].point,)
    assert name in shlex.split(command_of(state.settings[0]))


def test_the_command_is_one_of_the_command_line(capsys: pytest.CaptureFixture[str]):
    now, pin = read_state(LINK, same).settings
    assert command_of(pin) == (
        "qbench plan meta-llama/Llama-3.1-8B --precision nf4-dq --r 64 --target-modules q_proj,v_proj "
        "--batch 1 --seq 512 --gpu A10G"
    )
    assert "--no-gradient-checkpointing" in command_of(now)
    every = read_state("recipe=trl&optim=sgd&autocast=bf16&attn=eager&lora_dropout=0.1", same).settings[0]
    # The command line knows every flag: what it complains of is the model, which is not there.
    words = [*shlex.split(command_of(every))[1:], "--no-cache"]
    words[1] = "./nowhere"
    assert main(words) == 2
    assert "nowhere" in capsys.readouterr().err


def test_a_stored_point_opens_in_the_form_with_what_the_form_lacks():
    base = {"model": "Qwen/Qwen2.5-0.5B"}
    point = point_from(base, {"r": 8, "lora_dropout": 0.0, "seq_len": 100})
    found = setting_of(point, "RTX 4090", same)
    assert found is not None
    setting, lacking = found
    assert lacking == ()
    assert read_state(setting.query, same).settings[0].point == point
    for other, names in (
        ({"use_dora": True}, ("use_dora",)),
        ({"gradient_accumulation_steps": 4, "lora_alpha": 7}, ("lora_alpha", "gradient_accumulation_steps")),
    ):
        found = setting_of(point_from(base, other), "RTX 4090", same)
        assert found is not None
        assert found[1] == names
    for other in ({"lora": None}, {"seq_len": 2**22}):
        assert setting_of(point_from(base, other), "RTX 4090", same) is None


def test_what_follows_from_other_fields_is_set_as_the_commands_set_it():
    trl = read_state("recipe=trl", same).settings[0]
    assert trl.point.train.autocast == "bf16"
    assert "--autocast" not in command_of(trl)
    assert read_state("recipe=trl&autocast=none", same).settings[0].point.train.autocast == "none"
    experts = read_state("model=mistralai/Mixtral-8x7B-v0.1", same).settings[0]
    assert experts.point.lora is not None
    assert experts.point.lora.lora_dropout == 0
    found = setting_of(trl.point, "RTX 4090", same)
    assert found is not None
    assert found[0].query == "recipe=trl"


@pytest.mark.parametrize("tokens", ["many", "0", "-1", "1" * 21])
def test_a_number_of_tokens_that_is_none_is_said(tokens: str):
    with pytest.raises(QbenchError, match="tokens: given"):
        read_state(f"tokens={tokens}", same)
    assert read_state("tokens=2.5M", same).settings[0].tokens == 2_500_000


def test_a_link_may_ask_for_several_gpus():
    (setting,) = read_state("gpus=4&precision=bf16", same).settings
    assert setting.point.num_gpus == 4
    assert setting.point.distributed is not None
    assert setting.point.distributed.strategy == "fsdp2"
    assert "--strategy fsdp2 --gpus 4" in command_of(setting)
    (alone,) = read_state("gpus=1&strategy=ddp", same).settings
    assert alone.point.distributed is None
    assert "--gpus" not in command_of(alone)
    found = setting_of(setting.point, setting.gpu, same)
    assert found is not None
    assert found[0].point == setting.point
