"""The server of the tools: the SDK speaks the protocol, a process of its own plans."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal, TypeVar

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations
from pydantic import Field, WithJsonSchema

from qbench.errors import QbenchError
from qbench.mcp.answers import MOST_FILES, MOST_POINTS, Refused, answer
from qbench.mcp.results import Comparison, Fits, Plans, Ranking, ReadConfigs
from qbench.measure.answering import AnsweringProcess, ProcessEnded, TooLong
from qbench.scenario.settings import SETTINGS
from qbench.version import __version__

MOST_S = 60.0
"""What one call may take of a processor."""

INSTRUCTIONS = (
    "qbench plans the GPU memory, time and cost of LoRA and QLoRA fine-tuning by running the real training "
    "step on tensors without data. It needs no GPU and no weights, and writes nothing but a cache of plans. "
    "Sizes are bytes, times seconds, prices USD."
)

DEFAULTS: dict[str, Any] = {}

T = TypeVar("T")


def settings_schema() -> dict[str, Any]:
    """Return the JSON Schema of the settings of a step, by the names of the fields of a scenario."""
    rows = (row for row in SETTINGS.values() if row.name != "model")
    properties = {row.name: row.leaf.json_schema() | {"description": row.help} for row in rows}
    return {"type": "object", "additionalProperties": False, "properties": {**properties}}


Model = Annotated[
    str, Field(description="Catalog or hub id, such as Qwen/Qwen2.5-7B, or a folder with config.json.")
]
Config = Annotated[
    str,
    Field(
        description="Path of a config of axolotl, LLaMA-Factory, ms-swift, TRL or Trainer, instead of model."
    ),
]
Gpus = Annotated[
    Sequence[str], Field(description="Names of cards, such as RTX 4090 or A100-SXM4-80GB.", max_length=16)
]
Settings = Annotated[
    dict[str, Any],
    WithJsonSchema(settings_schema()),
    Field(
        description="Settings of the training step that differ from the defaults or the config. A list of "
        f"values plans each; at most {MOST_POINTS} combinations."
    ),
]
Vary = Annotated[Literal["seq", "batch", "r"], Field(description="What to make as large as fits.")]
Step = Annotated[
    int | None, Field(description="Only try multiples of this; default 64 for seq, 1 for batch and r.")
]
Tokens = Annotated[str, Field(description="Tokens of the dataset, such as 10M.", max_length=32)]
Epochs = Annotated[float, Field(description="Passes over the dataset.")]
Sort = Annotated[Literal["cost", "spot", "time", "energy"], Field(description="Least first.")]
Records = Annotated[str, Field(description="Run folder, .jsonl file, or JSON file of `qbench plan --json`.")]
Tolerances = Annotated[
    dict[str, str], Field(description="Metric to what it may grow by, such as 1% or 8MiB.")
]
Path = Annotated[str, Field(description=f"Config file, or a folder with at most {MOST_FILES} of them.")]


class Tools:
    """The tools of one server, which share the process that plans: one call at a time."""

    def __init__(self, most_s: float = MOST_S) -> None:
        self._process = AnsweringProcess(answer, "qbench.runs.plan_preload", most_s)
        self._turn = threading.Lock()

    @asynccontextmanager
    async def lifespan(self, _: MCPServer) -> AsyncIterator[None]:
        """Start what plans once stdout carries the protocol no more, and end it with the server."""
        self._process.prepare()
        try:
            yield None
        finally:
            self._process.close()

    def plan(
        self,
        model: Model = "",
        config: Config = "",
        gpus: Gpus = (),
        settings: Settings = DEFAULTS,
    ) -> Plans:
        """Plan the memory of a LoRA or QLoRA training step: peak, what is alive at it, and whether each
        card holds it, with step time and price. Use it before a training is started or changed."""
        return self._ask(Plans, "plan", model=model, config=config, gpus=gpus, settings=settings)

    def fit(
        self,
        gpus: Gpus,
        model: Model = "",
        config: Config = "",
        settings: Settings = DEFAULTS,
        vary: Vary = "seq",
        step: Step = None,
    ) -> Fits:
        """Find the longest sequence, largest batch or largest rank that fits each card, what fills the card
        there, and which changes free memory. Without a precision, bf16, nf4 and nf4-dq are tried."""
        return self._ask(
            Fits, "fit", model=model, config=config, gpus=gpus, settings=settings, vary=vary, step=step
        )

    def rank(
        self,
        tokens: Tokens,
        model: Model = "",
        config: Config = "",
        gpus: Gpus = (),
        settings: Settings = DEFAULTS,
        epochs: Epochs = 1.0,
        sort: Sort = "cost",
    ) -> Ranking:
        """Rank the cards that hold a training by cost, time or energy of all its tokens; all cards of the
        catalog without gpus. Without a precision, bf16 where it fits, else nf4."""
        return self._ask(
            Ranking,
            "rank",
            model=model,
            config=config,
            gpus=gpus,
            settings=settings,
            tokens=tokens,
            epochs=epochs,
            sort=sort,
        )

    def compare(self, run: Records, baseline: Records, tolerances: Tolerances = DEFAULTS) -> Comparison:
        """Compare a run or plan with a baseline: which values got worse, by rules that treat exact and
        noisy numbers differently. The same as `qbench check`."""
        return self._ask(Comparison, "compare", run=run, baseline=baseline, tolerances=tolerances)

    def read_configs(self, path: Path) -> ReadConfigs:
        """Show for which tool training configs are, which of their keys a plan uses, and which affect memory
        but are not planned."""
        return self._ask(ReadConfigs, "import", path=path)

    def _ask(self, kind: type[T], tool: str, **arguments: Any) -> T:
        try:
            with self._turn:
                found = self._process.ask((tool, arguments), lambda: True)
        except TooLong as most:
            raise ToolError(
                f"no answer within {most}; ask for less, or use the command in a terminal"
            ) from None
        except ProcessEnded:
            raise ToolError(
                "the planning process ended, perhaps because memory ran out; ask for less"
            ) from None
        except QbenchError as error:
            raise ToolError(f"failed unexpectedly: {error}") from error
        if isinstance(found, Refused):
            raise ToolError(found.text)
        assert isinstance(found, kind)
        return found


def server() -> MCPServer:
    """Return the server, which `run()` serves on stdin and stdout until they close."""
    tools = Tools()
    made = MCPServer(
        "qbench", instructions=INSTRUCTIONS, version=__version__, lifespan=tools.lifespan, log_level="WARNING"
    )
    reads = ToolAnnotations(
        read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False
    )
    for name, function in (
        ("plan", tools.plan),
        ("fit", tools.fit),
        ("rank", tools.rank),
        ("compare", tools.compare),
        ("import", tools.read_configs),
    ):
        made.add_tool(function, name=name, annotations=reads)
    return made
