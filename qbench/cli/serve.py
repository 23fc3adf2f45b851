"""`qbench serve`: the planner as a page in the browser of this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from qbench.cli.console import print_note, print_text
from qbench.errors import QbenchError


def serve_command(
    runs: Annotated[list[Path] | None, typer.Argument(help="Run folders to explore on the page.")] = None,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 for any free port.")] = 8050,
    browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = True,
) -> int:
    """Serve the planner page on 127.0.0.1 until Ctrl-C.

    The page needs the extra: pip install 'qbench[web]'.
    """
    if not 0 <= port <= 65535:
        raise QbenchError(f"--port: given {port}; allowed: a whole number from 0 to 65,535")
    try:
        import dash  # noqa: F401
    except ModuleNotFoundError as error:
        raise QbenchError("the planner page needs dash; install it: pip install 'qbench[web]'") from error
    from qbench.web.runs import open_runs
    from qbench.web.server import PlannerPage, bind

    page = PlannerPage(open_runs(runs or []))
    server = bind(page, port)
    address = f"http://{server.host}:{server.port}/"
    try:
        print_text(address)
        sys.stdout.flush()  # Whoever started this through a pipe waits for the address.
        print_note("Press Ctrl-C to stop it.")
        if browser:
            import webbrowser

            webbrowser.open(address)
        server.serve_forever()
    except KeyboardInterrupt:
        page.close()
        # At once: a thread that answers may be within a library, and must not outlive the interpreter.
        os._exit(0)
    finally:
        page.close()
    return 0
