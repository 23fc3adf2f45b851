"""`pytest --qbench-null-gpu NAME`: tests of training code against the memory of a card that is not there.

The pytest process starts itself again with the null GPU before anything else is loaded, so that
`torch.cuda.max_memory_allocated()` in a test is what that card would show. The fixture `null_gpu` has the
memory of one test, and its record.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from qbench.dryrun.in_process import OnNullGpu


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    group = parser.getgroup("qbench", "memory and speed of fine-tuning")
    group.addoption(
        "--qbench-null-gpu",
        metavar="NAME",
        help="GPU of the catalog that CUDA shows to the tests, without a GPU.",
    )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Generator[None]:
    """Start again with the null GPU where it is wanted, before output is captured and conftests are read."""
    name = early_config.known_args_namespace.qbench_null_gpu
    if name:
        _start_again(name)
    return (yield)


def _start_again(name: str) -> None:
    from qbench.catalog.gpus import find_gpu
    from qbench.dryrun.in_process import start_environment
    from qbench.errors import QbenchError
    from qbench.nullgpu import launcher
    from qbench.nullgpu.environment import card_here

    try:
        if launcher.is_loaded() and card_here() == find_gpu(name).name:
            return
        variables = start_environment(name)
    except QbenchError as error:
        raise pytest.UsageError(f"--qbench-null-gpu: {error}") from error
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], variables)


@pytest.fixture
def null_gpu(request: pytest.FixtureRequest) -> Iterator[OnNullGpu]:
    """Watch the memory of a test on the null GPU; without --qbench-null-gpu the test is skipped."""
    if not request.config.getoption("--qbench-null-gpu"):
        pytest.skip("needs --qbench-null-gpu NAME")
    from qbench.dryrun import in_process

    with in_process.null_gpu() as seen:
        yield seen
