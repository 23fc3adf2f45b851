"""The flags of commands that take a training step: one for each row of the table of settings that has one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from qbench.scenario.settings import FLAGS, Setting, from_text, plain_default

Command = TypeVar("Command", bound=Callable[..., int])


def with_setting_flags(**defaults: str) -> Callable[[Command], Command]:
    """Return a decorator that puts a flag for each setting before --gpu; `**settings` receives their values.

    `defaults` say by flag what the command takes where the flag is absent, if not the schema's default.
    """

    def decorated(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
        at = [each.name for each in own].index("gpu")
        flags = [_parameter(flag, row, defaults.get(flag)) for flag, row in FLAGS.items()]
        whole = signature.replace(parameters=[*own[:at], *flags, _LAUNCH, *own[at:]])
        command.__signature__ = whole  # type: ignore[attr-defined]
        return command

    return decorated


_LAUNCH = inspect.Parameter(
    "accelerate",
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    default=None,
    annotation=Annotated[
        Path | None,
        typer.Option(help="Config of accelerate (YAML) or DeepSpeed (JSON): strategy, GPUs, their settings."),
    ],
)


def _parameter(flag: str, row: Setting, default: str | None) -> inspect.Parameter:
    spelt = flag.replace("_", "-")
    taken = plain_default(row) if default is None else default
    text = f"{row.help} [default: {taken}]"
    if row.is_switch:
        option: Any = Annotated[bool | None, typer.Option(f"--{spelt}/--no-{spelt}", help=text)]
    else:
        listed = typer.Option(
            f"--{spelt}", metavar=row.kind.upper(), help=text, autocompletion=lambda: row.choices
        )
        option = Annotated[list[str] | None, listed]
    return inspect.Parameter(flag, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=option)


def values_of(flags: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the values given for each setting by the name of its field, out of the flags of a command.

    Flags take precedence over the file of --accelerate.
    """
    own = {name: value for name, value in flags.items() if name != _LAUNCH.name}
    given = {FLAGS[flag]: values for flag, values in own.items() if values is not None and values != []}
    return _of_launch(flags.get(_LAUNCH.name)) | {
        row.name: [values] if isinstance(values, bool) else [from_text(row, text) for text in values]
        for row, values in given.items()
    }


def _of_launch(file: Path | None) -> dict[str, list[Any]]:
    if file is None:
        return {}
    from qbench.scenario.importers.launch import launch_settings  # YAML, which a plan by flags never needs.

    return {name: [value] for name, value in launch_settings(file).items()}
