"""A training command that a dry run is of, in place of a step that is described by its settings."""

from __future__ import annotations

import shlex
from typing import Annotated

from pydantic import Field

from qbench.scenario.strict import Strict


class Program(Strict):
    """A training command of somebody's own, which a dry run is of."""

    command: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        description="Program and arguments, without folders of this machine and without secrets."
    )
    gpus: Annotated[int, Field(ge=1, strict=True)] = Field(default=1, description="Cards that it sees.")

    @property
    def label(self) -> str:
        """The command as a person writes it, with the number of cards where there are several."""
        return f"{shlex.join(self.command)}{f' on {self.gpus} GPUs' if self.gpus > 1 else ''}"
