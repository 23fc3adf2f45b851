"""The flags of `qbench run --device null`."""

from __future__ import annotations

import sys


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
        raise QbenchError("--device null takes no --points, --memory-snapshot or --profile; leave them out")
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
