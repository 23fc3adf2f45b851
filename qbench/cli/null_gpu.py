"""Where `qbench run` measures, and the flags of `--device null`."""

from __future__ import annotations

import sys
from enum import Enum
from typing import Annotated

import typer


class RunDeviceChoice(str, Enum):
    """Where to run a scenario."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    null = "null"


Where = Annotated[
    RunDeviceChoice,
    typer.Option(
        help="auto takes CUDA where there is a GPU; null is a card that is not there, under the CUDA build "
        "of torch: its memory, and no speed."
    ),
]
NullGpus = Annotated[list[str] | None, typer.Option(help="GPU of the catalog for --device null.")]
CudaPython = Annotated[
    str | None,
    typer.Option(help="Python with a CUDA build of torch for --device null, if this one has none."),
]


def null_cards(
    is_null: bool, gpus: list[str] | None, python: str | None, has_no_null: bool
) -> tuple[str, ...]:
    """Return the cards of --device null, in a Python that has the CUDA build of torch: else this ends here.

    Raises QbenchError where flags do not go together, or the null GPU cannot be there.
    """
    from qbench.catalog.gpus import find_gpu
    from qbench.errors import QbenchError

    if not is_null:
        if gpus or python:
            raise QbenchError("--gpu and --python are for --device null; plan.gpus names cards to plan for")
        return ()
    if not gpus:
        raise QbenchError("--device null needs a card; give --gpu NAME, as `qbench gpus` lists them")
    if has_no_null:
        raise QbenchError("--device null conflicts with --points, --memory-snapshot and --profile; omit them")
    from qbench.measure.cuda_python import cuda_python, run_there
    from qbench.nullgpu.environment import card_environment
    from qbench.nullgpu.launcher import preload_environment

    for gpu in gpus:
        card_environment(find_gpu(gpu))
    other = cuda_python(python)
    if other is not None:
        run_there(other, sys.argv[1:])
    preload_environment()
    return tuple(dict.fromkeys(find_gpu(gpu).name for gpu in gpus))
