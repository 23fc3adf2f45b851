"""Where memory was requested: the line of the code that called torch, and that of the user's program.

PyTorch's history of allocations holds the Python stack of each. Nodes of the backward pass run in a thread
without one, so each node keeps the lines of the forward operation that made it (torch's anomaly mode calls
`format_stack` for every new node, which is replaced by a quick one), and the backward operation is called
through a function whose file, line and name are those: they stand in the history then.
"""

from __future__ import annotations

import ast
import functools
import os
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from types import CodeType, FrameType, FunctionType
from typing import Any, NamedTuple

BACKWARD = "backward of "
_AGENT = os.path.dirname(os.path.abspath(__file__))
_STANDARD = tuple({sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")})
_MADE_IN_RUN = os.environ.get("QBENCH_DRYRUN_DIR", _AGENT)
"""Code that libraries write as they run goes there."""
_STACK = "traceback_"
"""Key of a node's metadata (torch/csrc/autograd/anomaly_mode.h, ANOMALY_TRACE_KEY)."""
_MAKES_ITSELF = "<"
"""How the name of code begins that has no file, such as <string> and <frozen runpy>."""


class Place(NamedTuple):
    """A line of code."""

    file: str
    line: int
    name: str
    """Of the function."""


class Origin(NamedTuple):
    """Where an allocation comes from."""

    place: Place | None
    """Innermost line outside of torch."""
    user: Place | None
    """Innermost line outside of all that is installed."""
    is_backward: bool
    in_optimizer: bool


@functools.cache
def owner(file: str) -> str:
    """Return whose code a file is: agent, torch, standard, library or user."""
    if file.startswith(_AGENT):
        return "agent"
    if "-packages" in file:
        parts = file.replace("\\", "/").split("/")
        return "torch" if "torch" in parts else "library"
    if file.startswith((*_STANDARD, _MAKES_ITSELF)) or "importlib" in file:
        return "standard"
    return "library" if "torchinductor" in file or file.startswith(_MADE_IN_RUN) else "user"


def origin(frames: Sequence[Mapping[str, Any]]) -> Origin:
    """Return the origin of an entry of PyTorch's history, whose innermost frame comes first."""
    place: Place | None = None
    is_backward = in_optimizer = False
    for frame in frames:
        file, whose = frame["filename"], owner(frame["filename"])
        in_optimizer = in_optimizer or "/optim" in file
        is_backward = is_backward or frame["name"].startswith(BACKWARD)
        if whose not in ("user", "library"):
            continue
        found = Place(file, frame["line"], frame["name"])
        if whose == "user":
            return Origin(place or found, found, is_backward, in_optimizer)
        place = place or found
    return Origin(place, None, is_backward, in_optimizer)


def calling(frame: FrameType | None) -> Place | None:
    """Return the innermost line outside of torch on the stack of a frame."""
    while frame is not None:
        if owner(frame.f_code.co_filename) in ("user", "library"):
            return Place(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)
        frame = frame.f_back
    return None


def users_line(frame: FrameType | None) -> Place | None:
    """Return the innermost line of the user's program on the stack of a frame."""
    while frame is not None:
        if owner(frame.f_code.co_filename) == "user":
            return Place(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)
        frame = frame.f_back
    return None


def keep_lines_of_forward(torch: Any) -> None:
    """Let each node of autograd's graph keep the line of the operation that made it."""
    import torch.fx.traceback as traces

    plain = traces.format_stack

    def format_stack() -> list[str]:
        if traces.has_preserved_node_meta():
            return plain()
        found = calling(sys._getframe().f_back)  # None in a thread of the backward pass.
        return [] if found is None else [_text(found)]

    traces.format_stack = format_stack
    torch.set_anomaly_enabled(True, False)


@functools.lru_cache(maxsize=1 << 16)
def _text(place: Place) -> str:
    text = f'  File "{place.file}", line {place.line}, in {place.name}\n'
    _callers.setdefault(text, _caller(place))
    return text


Call = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
_callers: dict[str, Call] = {}
_plain: Call = lambda function, args, kwargs: function(*args, **kwargs)  # noqa: E731 - on one line


def _caller(place: Place) -> Call:
    """Return a function that calls another, and stands in a stack as the backward of a line."""
    plain: CodeType = _plain.__code__
    code = plain.replace(
        co_filename=place.file, co_name=BACKWARD + place.name, co_firstlineno=max(1, place.line)
    )
    return FunctionType(code, {})


def caller_of_node(node: Any) -> Call:
    """Return what to call an operation of a node of the backward pass through."""
    lines = node.metadata.get(_STACK) or ()
    return _callers.get(lines[0], _plain) if lines else _plain


@functools.cache
def _classes(file: str) -> list[tuple[int, int, str]]:
    """Return first line, last line and name of each class of a file, outer ones first."""
    try:
        with open(file, encoding="utf-8") as stream:
            tree = ast.parse(stream.read())
    except (OSError, SyntaxError, ValueError):
        return []
    return [
        (node.lineno, node.end_lineno or node.lineno, node.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    ]


@functools.cache
def module_of(place: Place) -> str:
    """Return class and function of a line, as LlamaMLP.forward; the function alone outside of classes."""
    name = place.name.removeprefix(BACKWARD)
    around = [found for first, last, found in _classes(place.file) if first <= place.line <= last]
    return f"{around[-1]}.{name}" if around else name
