"""The command line: parse, call one function, print. The only place that turns errors into exit codes."""

from __future__ import annotations

import sys
from typing import Any

import typer

from qbench.cli import catalog, plan, report, run
from qbench.cli.console import print_error
from qbench.errors import QbenchError
from qbench.quiet import quiet_libraries

UsageError: Any = typer.BadParameter.__bases__[0]
"""Base of all mistakes in flags and arguments; typer brings its own click, so the class is taken from it."""

app = typer.Typer(
    name="qbench",
    help="Plan, measure and compare the memory and speed of LoRA and QLoRA fine-tuning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("plan")(plan.plan_command)
app.command("run")(run.run_command)
app.command("report")(report.report_command)
app.command("models")(catalog.models_command)
app.command("gpus")(catalog.gpus_command)
app.command("scenarios")(catalog.scenarios_command)


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code; a known error is one line on stderr for each problem."""
    quiet_libraries()
    try:
        code = app(args=argv, standalone_mode=False, prog_name="qbench")
    except QbenchError as error:
        print_error(str(error))
        return error.exit_code
    except UsageError as error:
        if message := error.format_message():  # Empty after help was printed for want of a command.
            print_error(message)
        return 2
    except (KeyboardInterrupt, typer.Abort):
        print_error("interrupted; what was finished is kept, and the same command goes on from there")
        return 130
    except BrokenPipeError:
        # The reader of a pipe has seen enough; there is nobody left to tell.
        sys.stderr.close()
        return 0
    return code if isinstance(code, int) else 0
