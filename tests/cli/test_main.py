"""The command line as a whole: help, version, exit codes, pipes, and what start-up must not load."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

import qbench
from qbench.cli.main import _COMMANDS, app_of, main
from qbench.cli.options import OnceCommand
from qbench.scenario.load import load_scenario, shipped_scenarios

ROOT = Path(__file__).parents[2]
COMMANDS = ("plan", "run", "report", "models", "gpus", "scenarios")


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in COMMANDS)


def test_every_command_and_each_of_its_options_says_what_it_is():
    group: Any = typer.main.get_command(app_of())
    assert set(group.commands) >= set(COMMANDS)
    for command in group.commands.values():
        assert command.help
        assert [option.name for option in command.params if not option.help] == []


def test_the_overview_has_the_first_sentence_of_each_commands_help():
    group: Any = typer.main.get_command(app_of())
    firsts = {name: " ".join(one.help.split("\n\n")[0].split()) for name, one in group.commands.items()}
    assert {name: command.summary for name, command in _COMMANDS.items()} == firsts


def test_the_help_of_every_command_ends_with_an_example_that_it_can_parse():
    group: Any = typer.main.get_command(app_of())
    context = group.make_context("qbench", ["models"])
    for name, one in group.commands.items():
        words = shlex.split(_COMMANDS[name].example)
        assert one.get_help(context).splitlines()[-2:] == [
            "  Example:",
            f"    qbench {name} {_COMMANDS[name].example}".rstrip(),
        ]
        one.make_context(name, words, parent=context)  # Raises what it raises for a flag that is none.


@pytest.mark.parametrize(
    ("line", "offered", "never"),
    [
        ("qbench mod", {"models"}, "plan"),
        ("qbench plan --precision nf", {"nf4", "nf4-dq"}, "bf16"),
        ("qbench fit meta-llama/Llama-3.1-8", {"meta-llama/Llama-3.1-8B"}, "Qwen/Qwen2.5-7B"),
        ("qbench rank --tok", {"--tokens"}, "--epochs"),
        ("qbench baseline acc", {"accept"}, "plan"),
    ],
)
def test_a_shell_completes_commands_flags_and_values(
    line: str,
    offered: set[str],
    never: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("_QBENCH_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 0
    found = set(capsys.readouterr().out.split())
    assert found >= offered
    assert never not in found


def test_the_script_for_a_shell_names_qbench(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("shellingham.detect_shell", lambda: ("bash", "/bin/bash"))
    with pytest.raises(SystemExit) as end:
        main(["--show-completion"])
    assert end.value.code == 0
    assert "_QBENCH_COMPLETE=complete_bash" in capsys.readouterr().out


def commands_of(group: Any) -> list[Any]:
    """Return every command, those of groups within too."""
    inner = [command for command in group.commands.values() if hasattr(command, "commands")]
    return [
        *(command for command in group.commands.values() if command not in inner),
        *(command for one in inner for command in commands_of(one)),
    ]


def test_every_command_refuses_a_single_value_that_is_given_twice():
    commands = commands_of(typer.main.get_command(app_of()))
    assert {"check", "gate", "accept", "run", "report"} <= {command.name for command in commands}
    assert [command.name for command in commands if not isinstance(command, OnceCommand)] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["check", "RUN", "--baseline", "A", "--baseline", "B"], "--baseline: given 2 times"),
        (["check", "RUN", "--baseline=A", "--junit=a", "--junit=b", "--junit=c"], "--junit: given 3 times"),
        (["gate", "nowhere.yaml", "--baseline", "main", "--baseline", "dev"], "--baseline: given 2 times"),
        (
            ["baseline", "accept", "RUN", "--to", "a.jsonl", "--to", "b.jsonl", "--reason", "x"],
            "--to: given 2 times",
        ),
        (["run", "nowhere.yaml", "--out", "A", "--out", "B"], "--out: given 2 times"),
        (["report", "RUN", "--out", "A", "--out", "B"], "--out: given 2 times"),
    ],
)
def test_a_single_value_given_twice_is_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert said in line
    assert line.endswith("; allowed: once")


def test_a_switch_given_both_ways_is_refused_and_twice_is_not(capsys: pytest.CaptureFixture[str]):
    assert main(["plan", "gpt2", "--gradient-checkpointing", "--no-gradient-checkpointing"]) == 2
    assert "--no-gradient-checkpointing: given both ways; omit one" in capsys.readouterr().err
    assert main(["models", "bloom-560", "--json", "--json"]) == 0


def test_what_may_be_repeated_is_and_help_comes_first(capsys: pytest.CaptureFixture[str]):
    assert main(["models", "--json", "bloom-560"]) == 0
    assert main(["plan", "gpt2", "--r", "8", "--r", "16", "--gpu", "no such", "--gpu", "other"]) == 2
    assert "given 2 times" not in capsys.readouterr().err
    assert main(["check", "RUN", "--baseline", "A", "--baseline", "B", "--help"]) == 0


def test_without_a_command_the_help_goes_to_stderr(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Commands:" in captured.err


def test_the_version(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"qbench {qbench.__version__}\n"


def test_models_are_filtered_by_part_of_their_name(capsys: pytest.CaptureFixture[str]):
    assert main(["models", "bloom-560"]) == 0
    lines = capsys.readouterr().out.splitlines()
    # 559,214,592 is the count that the model's card on the hub gives.
    assert lines[0].split() == ["bigscience/bloom-560m", "559,214,592", "bloom"]
    assert lines[1].startswith("1 models;")


@pytest.mark.parametrize(
    ("arguments", "key"), [(["models"], "models"), (["gpus", "4090"], "gpus"), (["scenarios"], "scenarios")]
)
def test_json_is_one_document_and_nothing_else(
    arguments: list[str], key: str, capsys: pytest.CaptureFixture[str]
):
    assert main([*arguments, "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)[key]
    assert captured.err == ""


def test_a_gpu_has_memory_and_source(capsys: pytest.CaptureFixture[str]):
    main(["gpus", "RTX 4090", "--json"])
    gpu, *_ = json.loads(capsys.readouterr().out)["gpus"]
    assert gpu["name"] == "RTX 4090"
    assert 22 << 30 < gpu["memory_bytes"] < 24 << 30
    assert gpu["source"]


def test_scenarios_are_listed_with_their_question(capsys: pytest.CaptureFixture[str]):
    main(["scenarios", "--json"])
    listed = json.loads(capsys.readouterr().out)["scenarios"]
    loaded = [load_scenario(path) for path in shipped_scenarios()]
    assert [(row["name"], row["question"]) for row in listed] == [(s.name, s.question) for s in loaded]
    main(["scenarios"])
    out = capsys.readouterr().out
    assert all(scenario.question in out for scenario in loaded)


def test_a_reader_that_stops_reading_is_no_error():
    command = f"{sys.executable} -m qbench models | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize("code", [1, 15, "the end"])
def test_an_exit_from_within_keeps_its_code(code: int | str, monkeypatch: pytest.MonkeyPatch):
    def ends(*arguments: Any, **flags: Any) -> None:
        raise SystemExit(code)

    monkeypatch.setattr("qbench.scenario.load.shipped_scenarios", ends)
    with pytest.raises(SystemExit) as caught:
        main(["scenarios"])
    assert caught.value.code == code


def loaded_for(*arguments: str) -> set[str]:
    """Return the modules in a process that has run a command."""
    code = (
        "import sys\nfrom qbench.cli.main import main\n"
        f"code = main({list(arguments)!r})\nprint(*sys.modules, file=sys.stderr)\nraise SystemExit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return set(done.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "light"),
    [
        (("--help",), {"pydantic", "yaml", "rich", "pynvml"}),
        (("models",), {"yaml", "rich", "pynvml", "qbench.scenario.schema"}),
        (("gpus",), {"yaml", "rich", "pynvml", "qbench.scenario.schema"}),
        (("scenarios",), {"rich", "pynvml"}),
    ],
)
def test_commands_that_must_be_quick_load_little(arguments: tuple[str, ...], light: set[str]):
    heavy = {"torch", "transformers", "peft", "bitsandbytes", "numpy", "pandas", "plotly", "jinja2"}
    assert loaded_for(*arguments) & (heavy | light) == set()


def test_an_import_without_a_plan_loads_little(tmp_path: Path):
    (tmp_path / "a.yml").write_text("base_model: gpt2\nadapter: lora\nlora_target_linear: true\n")
    assert loaded_for("import", str(tmp_path), "--json") & {"torch", "transformers", "rich"} == set()


def test_a_plan_from_the_cache_loads_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("QBENCH_CACHE_DIR", str(tmp_path))
    asked = ("plan", "gpt2", "--precision", "nf4-dq", "--seq", "64")
    assert main(list(asked)) == 0
    loaded = loaded_for(*asked)
    heavy = {"torch", "transformers", "peft", "bitsandbytes", "numpy", "pandas", "plotly", "jinja2"}
    heavy |= {"yaml", "rich", "pynvml", "multiprocessing"}
    # What takes some hundredths of a second, and what several plans or a fresh one need.
    own = {
        f"qbench.{name}"
        for name in ("records.shape", "memory.allocator", "planner.shared", "report.tables", "words.headline")
    }
    assert loaded & (heavy | own) == set()
    # Packages count as well, of which the subjects of memory and the rooms of reports are many.
    assert len({name for name in loaded if name.startswith("qbench.")}) <= 75


def test_a_command_loads_no_other():
    assert not {f"qbench.cli.{name}" for name in ("run", "fit", "rank", "check")} & loaded_for("models")
