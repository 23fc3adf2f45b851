"""`qbench mcp`: the tools, called by the SDK's own client over stdio."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from tiny import write_tiny_model

import qbench
from qbench.cli.main import main
from qbench.mcp.answers import MOST_FILE_BYTES, Refused, answer
from qbench.records.record import Record
from qbench.records.store import write_records
from qbench.scenario.settings import SETTINGS
from tests.report.sample_run import sample_run

mcp = pytest.importorskip("mcp")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_model(tmp_path_factory.mktemp("model"), "meta-llama/Llama-3.1-8B")


async def talk(calls: list[tuple[str, dict[str, Any]]]) -> tuple[list[Any], list[Any]]:
    """Return the tools that the server lists, and its answers."""
    server = mcp.StdioServerParameters(command=sys.executable, args=["-m", "qbench", "mcp"])
    async with mcp.Client(server) as client:
        tools = (await client.list_tools()).tools
        return tools, [await client.call_tool(name, arguments) for name, arguments in calls]


def test_the_tools_answer_as_python_does(model: str, tmp_path: Path):
    config = tmp_path / "axolotl.yml"
    config.write_text(
        f"base_model: {model}\nadapter: qlora\nload_in_4bit: true\nsequence_len: 64\nmicro_batch_size: 1\n"
        "lora_target_linear: true\ncpu_offload: 3\n"
    )
    records = sample_run()[:2]
    for name, found in (("old", records), ("new", [grown(record) for record in records])):
        (tmp_path / name).mkdir()
        write_records(tmp_path / name / "records.jsonl", found)
    step = {"seq_len": 64, "precision": "nf4", "recipe": "trl", "autocast": "bf16"}
    tools, answers = anyio.run(
        talk,
        [
            ("plan", {"model": model, "gpus": ["4090"], "settings": step | {"r": [4, 8]}}),
            ("plan", {"config": str(config), "gpus": ["RTX 4090"]}),
            ("fit", {"model": model, "gpus": ["4090"], "settings": {"precision": "bf16"}}),
            ("rank", {"model": model, "gpus": ["L4", "RTX 4090"], "tokens": "1M", "settings": step}),
            ("compare", {"run": str(tmp_path / "new"), "baseline": str(tmp_path / "old")}),
            ("import", {"path": str(config)}),
        ],
    )
    assert [tool.name for tool in tools] == ["plan", "fit", "rank", "compare", "import"]
    assert all(tool.annotations.read_only_hint and tool.output_schema for tool in tools)
    assert set(tools[0].input_schema["properties"]["settings"]["properties"]) == set(SETTINGS) - {"model"}
    assert not [answer.content for answer in answers if answer.is_error]
    several, of_config, fit, rank, compare, imported = (answer.structured_content for answer in answers)

    planned = qbench.plan(model, gpu="RTX 4090", **(step | {"r": [4, 8]}))
    assert [one["peak_allocated_bytes"] for one in several["plans"]] == list(
        planned.frame["peak_allocated_bytes"]
    )
    assert several["plans"][0]["cards"][0]["headroom_bytes"] == planned[0].fits[0].headroom_bytes
    assert several["note"] == ""
    (read,) = of_config["plans"]
    assert read["method"] == "qlora"
    assert any("cpu_offload" in caveat for caveat in read["caveats"])
    # The tiny model has 256 positions.
    assert [one["value"] for one in fit["answers"]] == [256]
    assert "recipe peft" in fit["note"]
    assert {card["gpu"] for card in rank["cards"]} == {"L4", "RTX 4090"}
    assert (compare["headline"], compare["exit_code"]) == ("Failed", 1)
    assert compare["differences"][0]["metric"] == "peak_allocated_bytes"
    assert imported["files"][0]["tool"] == "axolotl"
    assert imported["files"][0]["unknown"] == ["cpu_offload"]


def grown(record: Record) -> Record:
    twice = 2 * (record.peak_allocated_bytes or 0)
    return replace(record, metrics={**record.metrics, "peak_allocated_bytes": twice})


@pytest.mark.parametrize(
    ("tool", "arguments", "said"),
    [
        ("plan", {"settings": {"precision": "4bit"}}, "did you mean nf4?"),
        ("plan", {"settings": {"r": list(range(1, 18))}}, "settings: more than 16 combinations"),
        ("fit", {"gpus": [], "settings": {}, "vary": "seq", "step": None}, "gpus: name at least one card"),
        ("fit", {"gpus": ["L4"], "settings": {}, "vary": "optim", "step": None}, "--vary: given 'optim'"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_what_to_do(
    model: str, tool: str, arguments: dict[str, Any], said: str
):
    refused = answer((tool, {"model": model, "config": "", "gpus": ()} | arguments))
    assert isinstance(refused, Refused)
    assert said in refused.text


def test_what_is_too_large_for_a_tool_is_refused(tmp_path: Path):
    large = tmp_path / "records.jsonl"
    with large.open("wb") as file:
        file.truncate(MOST_FILE_BYTES + 1)  # A hole, which takes no disk.
    refused = answer(("compare", {"run": str(large), "baseline": str(large), "tolerances": {}}))
    assert isinstance(refused, Refused)
    assert "allowed: 64.0 MiB" in refused.text
    assert isinstance(answer(("plan", {"model": "", "config": "", "gpus": (), "settings": {}})), Refused)


def test_without_the_sdk_the_command_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "mcp.server.mcpserver", None)
    assert main(["mcp"]) == 2
    assert "pip install 'qbench[mcp]'" in capsys.readouterr().err
