"""Runs the code blocks of README and docs, so that what they show is what happens.

Lines of a `console` block that begin with `$ qbench` are commands. `python` blocks share one namespace a page.
`yaml` must parse, and load as a scenario if it has a `base`. Words after the language change that: `norun=REASON` checks
arguments or syntax only, for one of REASONS; `quiet` hides the output and `hidden` the code, `exit=1` expects that exit code.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import shlex
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^```(\w+)((?: [\w=]+)*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINKED = ("scenarios", "reports", "examples")
WIDTH = "100"
REASONS = {
    "cluster": "needs a cluster or a queue",
    "cuda": "needs the CUDA build of torch; tests marked nullgpu run such commands",
    "installs": "installs packages or builds an image",
    "minutes": "measures for minutes",
    "serves": "serves until it is ended",
    "yours": "names files or objects of yours",
}
"""Why a block is only checked."""


class BlockError(Exception):
    """A block that does not do what it shows."""


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    language: str
    marks: frozenset[str]
    code: str

    @property
    def runs(self) -> bool:
        """Whether it is run, where `norun=REASON` only checks it."""
        return self.why_not is None

    @property
    def why_not(self) -> str | None:
        """Why it is only checked; None where it is run."""
        return next((mark.removeprefix("norun=") for mark in self.marks if mark.startswith("norun")), None)

    @property
    def exit_code(self) -> int:
        """The exit code that its commands end with."""
        return next((int(mark[5:]) for mark in self.marks if mark.startswith("exit=")), 0)


@dataclass
class Page:
    """Runs the blocks of one page in a scratch folder; Python blocks share a namespace."""

    folder: Path
    namespace: dict[str, Any] = field(default_factory=lambda: {"__name__": "page"})

    def output(self, block: Block) -> str:
        """Return what a block prints, empty where it is only checked. Raises BlockError where it fails."""
        with _inside(self.folder):
            if block.language == "python":
                return self._python(block)
            if block.language == "console":
                return "".join(_command(line, block) for line in commands(block.code))
            if block.language == "yaml":
                _check_yaml(block.code)
        return ""

    def _python(self, block: Block) -> str:
        shown = io.StringIO()
        try:
            code = compile(block.code, "block", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            if block.runs:
                with contextlib.redirect_stdout(shown):
                    exec(code, self.namespace)
        except Exception as error:
            raise BlockError(f"{type(error).__name__}: {error}\n{block.code}") from error
        return shown.getvalue()


def blocks_of(markdown: str) -> Iterator[Block]:
    """Yield the fenced blocks of a text."""
    for match in FENCE.finditer(markdown):
        yield block_of(match)


def block_of(match: re.Match[str]) -> Block:
    """Return the block of a match of FENCE."""
    return Block(match[1], frozenset(match[2].split()), match[3])


def commands(code: str) -> list[str]:
    """Return the `$ qbench` commands of a console block, each on one line."""
    lines = code.replace("\\\n", " ").splitlines()
    return [line[2:] for line in lines if line.startswith("$ qbench")]


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Give a folder in which the paths of the repository that pages name lead to it."""
    with tempfile.TemporaryDirectory(prefix="qbench-docs-") as name:
        folder = Path(name)
        for linked in LINKED:
            (folder / linked).symlink_to(ROOT / linked)
        yield folder


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before, columns = Path.cwd(), os.environ.get("COLUMNS")
    os.chdir(folder)
    os.environ["COLUMNS"] = WIDTH
    try:
        yield
    finally:
        os.chdir(before)
        os.environ.pop("COLUMNS")
        if columns is not None:
            os.environ["COLUMNS"] = columns


def _command(line: str, block: Block) -> str:
    """Run a command in this process, which has the libraries loaded; return what it prints."""
    from qbench.cli.main import main

    words = shlex.split(line, comments=True)[1:]
    target = None
    if ">" in words:
        target = Path(words[words.index(">") + 1])
        words = words[: words.index(">")]
    if not block.runs:
        _check_arguments(words)
        return ""
    shown, notes = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(notes):
        code = main(words)
    if code != block.exit_code:
        raise BlockError(f"{line}\nexit code {code}\n{shown.getvalue()[-500:]}{notes.getvalue()[-2000:]}")
    if target is None:
        return shown.getvalue()
    target.write_text(shown.getvalue(), encoding="utf-8")
    return ""


def _check_arguments(words: list[str]) -> None:
    """Raise BlockError where the command line does not take these words."""
    import typer

    from qbench.cli.main import UsageError, app_of

    group: Any = typer.main.get_command(app_of([words[0]]))
    try:
        with group.make_context("qbench", words[:1], resilient_parsing=True) as outer:
            command, rest = group.get_command(outer, words[0]), words[1:]
            while hasattr(command, "commands"):
                command, rest = command.commands[rest[0]], rest[1:]
            command.make_context(words[0], rest, parent=outer)
    except UsageError as error:
        raise BlockError(f"qbench {' '.join(words)}\n{error.format_message()}") from error


def _check_yaml(code: str) -> None:
    """Raise where the text is no YAML, or names a base and is no scenario."""
    import yaml

    from qbench.scenario.load import read_scenario

    if "base:" in code and "matrix:" in code:
        path = Path("shown.yaml")
        path.write_text(code, encoding="utf-8")
        read_scenario(path)
    else:
        yaml.safe_load(code)
