"""Compile the shim with the system's compiler, once for each compiler, source and CUDA header."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from qbench.errors import QbenchError
from qbench.records.files import cache_folder

SOURCES = Path(__file__).with_name("shim")
LIBRARY = "libnullgpu.so"
LINKS = ("libcuda.so.1", "libcuda.so", "libnvidia-ml.so.1")
"""Names under which programs open the driver and NVML, and Triton before 3.1 links the former."""
COMPILE_TIMEOUT_S = 120
CUDA_FOLDERS = ("nvidia/cu13/include", "nvidia/cuda_runtime/include")
"""Headers of the wheels that a CUDA build of torch depends on, newest first."""
CRT_FOLDER = "triton/backends/nvidia/include"
"""The headers include crt/, which comes with Triton."""


def shim_folder(site: Path | None = None) -> Path:
    """Return the folder that holds the compiled shim and its links; compile it where it is not there yet.

    Headers are those of the site-packages that the shim is for; of this Python's where none are given.

    Raises QbenchError, in one line that says what to do, where this is not Linux, torch is no CUDA build, or
    there is no compiler.
    """
    if sys.platform != "linux":
        raise QbenchError("the null GPU needs Linux; `qbench plan` works everywhere")
    headers, compiler = _headers(site or _own_site()), _compiler()
    folder = cache_folder() / "nullgpu" / _key(headers, compiler)
    if not (folder / LIBRARY).exists():
        _build(folder, headers, compiler)
    return folder


def _own_site() -> Path:
    spec = importlib.util.find_spec("torch")
    return Path(spec.origin).parents[1] if spec is not None and spec.origin is not None else Path()


def _headers(site: Path) -> tuple[Path, ...]:
    found = [site / name for name in CUDA_FOLDERS if (site / name / "cuda_runtime_api.h").is_file()]
    if not found:
        raise QbenchError(
            "the null GPU needs a CUDA build of torch with its wheels of CUDA; "
            "run `make .venv-cuda`, or name a Python that has one with --python"
        )
    return found[0], site / CRT_FOLDER


def _compiler() -> str:
    for name in filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")):
        path = shutil.which(name)
        if path is not None:
            return path
    raise QbenchError(
        "the null GPU is compiled on first use, and there is no C compiler; install gcc or set CC"
    )


def _sources() -> list[Path]:
    return sorted(SOURCES.glob("*.c"))


def _key(headers: tuple[Path, ...], compiler: str) -> str:
    """Return a digest of all that the library depends on."""
    digest = hashlib.sha256()
    for file in (*sorted(SOURCES.iterdir()), headers[0] / "cuda.h"):
        digest.update(file.read_bytes())
    digest.update(_output([compiler, "--version"]))
    return digest.hexdigest()[:16]


def _build(folder: Path, headers: tuple[Path, ...], compiler: str) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    flags = ["-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread"]
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        library = Path(made, LIBRARY)
        includes = [f"-I{header}" for header in headers]
        _output([compiler, *flags, *includes, "-o", str(library), *map(str, _sources()), "-ldl"])
        for link in LINKS:
            Path(made, link).symlink_to(LIBRARY)
        # Another process may have been faster; then its folder is as good.
        shutil.copytree(made, folder, symlinks=True, dirs_exist_ok=True)


def _output(command: list[str]) -> bytes:
    try:
        done = subprocess.run(command, capture_output=True, timeout=COMPILE_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise QbenchError(f"the null GPU cannot be compiled: {error}; set CC to a C compiler") from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        said = next((line for line in lines if "error" in line), "no error named")
        raise QbenchError(
            f"the null GPU cannot be compiled by {command[0]}: {said}; set CC to another compiler"
        )
    return done.stdout
