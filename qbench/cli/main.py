"""The command line: parse, call one function, print. The only place that turns errors into exit codes."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Annotated, Any

import typer

from qbench.cli.console import print_error, print_note, print_text
from qbench.cli.options import OnceCommand
from qbench.errors import QbenchError
from qbench.quiet import quiet_libraries

UsageError: Any = typer.BadParameter.__bases__[0]
"""Base of all mistakes in flags and arguments; typer brings its own click, so the class is taken from it."""

USAGE = 2
INTERRUPTED = 130
"""128 and the number of SIGINT, as shells have it."""

_MODULES = {
    "plan": "plan",
    "fit": "fit",
    "rank": "rank",
    "run": "run",
    "run-point": "run_point",
    "ab": "ab",
    "report": "report",
    "check": "check",
    "gate": "gate",
    "calibrate": "calibrate",
    "baseline": "baseline",
    "trend": "trend",
    "validate": "validate",
    "serve": "serve",
    "models": "catalog",
    "gpus": "catalog",
    "scenarios": "catalog",
}
"""Each command, in the order of the help, and the module of qbench.cli that holds it."""


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


def app_of(names: Iterable[str] = _MODULES) -> typer.Typer:
    """Return the command line with these commands, whose modules are imported for it."""
    app = typer.Typer(
        name="qbench",
        add_completion=False,
        pretty_exceptions_enable=False,
        # Rich would take a fifth of a second to import for a frame around the help.
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_root)
    for name in names:
        module = import_module(f"qbench.cli.{_MODULES[name]}")
        if name == "baseline":
            app.add_typer(module.baseline_app)
        else:
            app.command(name, cls=OnceCommand)(getattr(module, f"{name.replace('-', '_')}_command"))
    return app


def _asked(argv: Sequence[str]) -> Iterable[str]:
    """Return the one command that is called, since the others would be imported for nothing; else all."""
    return argv[:1] if argv and argv[0] in _MODULES else _MODULES


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code; a known error is one line on stderr for each problem."""
    quiet_libraries()
    # A stored text may hold what the terminal's encoding lacks; that must not end a report.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app = app_of(_asked(sys.argv[1:] if argv is None else argv))
        code = app(args=argv, standalone_mode=False, prog_name="qbench")
        sys.stdout.flush()
    except QbenchError as error:
        print_error(str(error))
        return error.exit_code
    except UsageError as error:
        print_error(error.format_message())
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
    if code == INTERRUPTED:  # So typer answers Ctrl-C.
        print_error("interrupted; what was finished is kept, and the same command goes on from there")
    return code if isinstance(code, int) else 0
