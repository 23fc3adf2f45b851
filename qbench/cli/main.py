"""The command line: parse, call one function, print. The only place that turns errors into exit codes."""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated, Any

import typer

from qbench.cli import (
    ab,
    baseline,
    calibrate,
    catalog,
    check,
    fit,
    gate,
    plan,
    rank,
    report,
    run,
    run_point,
    serve,
    trend,
    validate,
)
from qbench.cli.console import print_error, print_note, print_text
from qbench.errors import QbenchError
from qbench.quiet import quiet_libraries

UsageError: Any = typer.BadParameter.__bases__[0]
"""Base of all mistakes in flags and arguments; typer brings its own click, so the class is taken from it."""

USAGE = 2
INTERRUPTED = 130
"""128 and the number of SIGINT, as shells have it."""

app = typer.Typer(
    name="qbench",
    add_completion=False,
    pretty_exceptions_enable=False,
    # Rich would take a fifth of a second to import for a frame around the help.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("plan")(plan.plan_command)
app.command("fit")(fit.fit_command)
app.command("rank")(rank.rank_command)
app.command("run")(run.run_command)
app.command("run-point")(run_point.run_point_command)
app.command("ab")(ab.ab_command)
app.command("report")(report.report_command)
app.command("check")(check.check_command)
app.command("gate")(gate.gate_command)
app.command("calibrate")(calibrate.calibrate_command)
app.add_typer(baseline.baseline_app)
app.command("trend")(trend.trend_command)
app.command("validate")(validate.validate_command)
app.command("serve")(serve.serve_command)
app.command("models")(catalog.models_command)
app.command("gpus")(catalog.gpus_command)
app.command("scenarios")(catalog.scenarios_command)


def _print_version(asked: bool) -> None:
    if asked:
        from qbench import __version__

        print_text(f"qbench {__version__}")
        raise typer.Exit()


@app.callback(invoke_without_command=True)
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


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code; a known error is one line on stderr for each problem."""
    quiet_libraries()
    # A stored text may hold what the terminal's encoding lacks; that must not end a report.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
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
