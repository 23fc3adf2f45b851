"""The command line: parse, call one function, print. The only place that turns errors into exit codes."""

from __future__ import annotations

import atexit
import gc
import io
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer

from qbench.cli.console import print_error, print_note, print_text
from qbench.cli.options import OnceCommand
from qbench.errors import QbenchError
from qbench.quick_imports import without_collections
from qbench.quiet import quiet_libraries

UsageError: Any = typer.BadParameter.__bases__[0]
"""Base of all mistakes in flags and arguments; typer brings its own click, so the class is taken from it."""

USAGE = 2
BUG = 70
"""EX_SOFTWARE of sysexits.h."""

INTERRUPTED = 130
"""128 and the number of SIGINT, as shells have it."""


class _Command(NamedTuple):
    """A command of the overview, which imports none."""

    module: str
    """Its module in qbench.cli."""
    summary: str
    """The first sentence of its help."""
    example: str
    """What stands behind its name in the example of its help."""


_COMMANDS = {
    "plan": _Command(
        "plan",
        "Plan the memory of a training step without a GPU.",
        "Qwen/Qwen2.5-7B --precision nf4-dq --seq 4k --gpu 4090",
    ),
    "fit": _Command(
        "fit",
        "Find the largest sequence, batch or rank that fits on a GPU.",
        "Qwen/Qwen2.5-7B --gpu 4090 --precision nf4-dq",
    ),
    "rank": _Command(
        "rank",
        "Rank the GPUs of the catalog for a training run by cost, time or energy.",
        "Qwen/Qwen2.5-7B --tokens 10M --epochs 3",
    ),
    "import": _Command(
        "import_files",
        "Show which tool each training config is for and which of its keys a plan uses.",
        "axolotl/examples",
    ),
    "run": _Command("run", "Plan and measure each point of a scenario.", "demo.yaml --device cpu"),
    "run-point": _Command(
        "run_point",
        "Measure one point in a fresh process and write its record to a file.",
        "points/a.point.json points/a.result.json",
    ),
    "ab": _Command(
        "ab",
        "Compare two environments, for example before and after an upgrade of torch or peft.",
        "ci.yaml --a .venv-old/bin/python --b .venv-new/bin/python --plan-only",
    ),
    "dryrun": _Command(
        "dryrun",
        "Run any training command for a few steps on a GPU that you do not have, and read its memory.",
        '--gpu "RTX 4090" -- python train.py --config my.yaml',
    ),
    "report": _Command(
        "report",
        "Report on runs: HTML, Markdown, CSV, and Parquet where pyarrow is installed.",
        "runs/demo --out report",
    ),
    "check": _Command(
        "check",
        "Compare a run with a baseline: exit 1 if it regressed, 2 if they are not comparable.",
        "plan.json --baseline baselines/plan.jsonl",
    ),
    "gate": _Command(
        "gate",
        "Measure this code and a baseline in turn until each point is decided or the budget is used up.",
        "ci.yaml --baseline main --device cpu",
    ),
    "calibrate": _Command(
        "calibrate",
        "Measure the rates of this machine and store them in the settings folder (QBENCH_CONFIG_DIR).",
        "--device cpu",
    ),
    "baseline": _Command(
        "baseline",
        "Manage the baselines that `qbench check` compares runs with.",
        'accept plan.json --to baselines/plan.jsonl --reason "first baseline"',
    ),
    "trend": _Command(
        "trend", "Show how points changed over runs, and which runs started a new level.", "runs/"
    ),
    "validate": _Command(
        "validate", "Compare plans with published measurements, and with your own on a GPU.", "--out accuracy"
    ),
    "serve": _Command("serve", "Serve the planner page on 127.0.0.1 until Ctrl-C.", "runs/demo"),
    "mcp": _Command(
        "mcp", "Serve plan, fit, rank, compare and import as tools for coding agents (MCP on stdio).", ""
    ),
    "models": _Command("catalog", "List the models of the catalog.", "llama"),
    "gpus": _Command("catalog", "List the GPUs of the catalog.", "RTX"),
    "scenarios": _Command("catalog", "List the shipped scenarios and their questions.", ""),
}
"""Each command, in the order of the help."""


_OTHERWISE = {
    "compare": "check RUN --baseline RUN",
    "diff": "check RUN --baseline RUN",
    "estimate": "plan MODEL",
    "measure": "run SCENARIO",
    "bench": "run SCENARIO",
    "dry-run": "dryrun -- COMMAND",
    "size": "fit MODEL --gpu NAME",
}
"""Commands that people try, with the one that does it."""


def _print_version(asked: bool) -> None:
    if asked:
        from qbench.version import __version__

        print_text(f"qbench {__version__}")
        raise typer.Exit()


def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Plan, measure and compare the memory and speed of LoRA and QLoRA fine-tuning."""
    if context.invoked_subcommand is None:
        print_note(context.get_help())
        raise typer.Exit(USAGE)


def app_of(names: Iterable[str] = tuple(_COMMANDS)) -> typer.Typer:
    """Return the command line with these commands, whose modules are imported for it."""
    app = _empty_app()
    for name in names:
        command = _COMMANDS[name]
        module = import_module(f"qbench.cli.{command.module}")
        example = f"\b\nExample:\n  qbench {name} {command.example}".rstrip()  # \b: kept on one line.
        if name == "baseline":
            app.add_typer(module.baseline_app, epilog=example)
        else:
            function = getattr(module, f"{name.replace('-', '_')}_command")
            app.command(name, cls=OnceCommand, epilog=example)(function)
    return app


def _overview() -> typer.Typer:
    """Return the command line with the names of all commands, which cannot be called."""
    app = _empty_app()
    for name, command in _COMMANDS.items():
        app.command(name, help=command.summary)(lambda: None)
    return app


def _empty_app() -> typer.Typer:
    app = typer.Typer(
        name="qbench",
        pretty_exceptions_enable=False,
        # Rich would take a fifth of a second to import for a frame around the help.
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_root)
    return app


def _app_for(argv: Sequence[str]) -> typer.Typer:
    """Return the command line with the one command that is called, else with the names of all."""
    called = next((word for word in [*argv, *_words_to_complete()] if not word.startswith("-")), "")
    return app_of([called]) if called in _COMMANDS else _overview()


def _words_to_complete() -> list[str]:
    """Return the words after qbench on a line that a shell completes, as typer's scripts pass it."""
    line = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS") or ""
    return line.split()[1:] if "_QBENCH_COMPLETE" in os.environ else []


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code; a known error is one line on stderr for each problem."""
    quiet_libraries()
    # pydantic would look through all that is installed for plugins.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    # The interpreter ends with a collection, which would go over all that the libraries have left.
    atexit.register(gc.freeze)
    # A stored text may hold what the terminal's encoding lacks; that must not end a report.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with without_collections():
            app = _app_for(sys.argv[1:] if argv is None else argv)
        code = app(args=argv, standalone_mode=False, prog_name="qbench")
        sys.stdout.flush()
    except QbenchError as error:
        print_error(str(error))
        return error.exit_code
    except UsageError as error:
        print_error(_usage(error))
        return USAGE
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except (BrokenPipeError, SystemExit) as end:
        if not isinstance(end, BrokenPipeError) and not isinstance(end.__context__, BrokenPipeError):
            raise
        # The reader of a pipe has seen enough, of which typer makes a SystemExit. What is still in the
        # buffer has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _unexpected(error)
    if code == INTERRUPTED:  # So typer answers Ctrl-C.
        print_error("interrupted; finished results are kept, and the same command continues from there")
    return code if isinstance(code, int) else 0


def _usage(error: Any) -> str:
    """Return what is wrong with a command line and where to look next; typer has no classes for these."""
    message: str = error.format_message()
    if message.startswith("No such command"):
        meant = next((known for name, known in _OTHERWISE.items() if f"'{name}'" in message), None)
        hint = f"Use `qbench {meant}`" if meant else "`qbench plan MODEL` plans a step"
        return f"{message} {hint}; `qbench --help` lists all."
    if message.startswith("Missing argument") and error.ctx is not None:
        return f"{message} `{error.ctx.command_path} --help` has an example."
    return message


def _unexpected(error: Exception) -> int:
    """Print what no command expects; return an exit code, never 1, which says that something got worse."""
    if isinstance(error, OSError) and error.filename is not None:
        # What a disk refuses of a name, be it too long: each look at a file would have to say so.
        print_error(f"{error.filename}: {error.strerror}")
        return USAGE
    traceback.print_exception(error)
    print_error("this is a bug in qbench; please report it with the lines above")
    return BUG
