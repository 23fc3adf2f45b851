"""Where the null GPU is not to be had, one line says what to do; where it is, it comes first."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from qbench.errors import QbenchError
from qbench.nullgpu import build, launcher


def test_another_system_is_told_to_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(QbenchError, match="needs Linux"):
        build.shim_folder()


def test_a_torch_without_cuda_is_told_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "CUDA_FOLDERS", ())
    with pytest.raises(QbenchError, match=r"needs a CUDA build of torch .* `make .venv-cuda`"):
        build.shim_folder()


def test_without_a_compiler_gcc_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "_headers", lambda site: (tmp_path,))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(QbenchError, match="no C compiler; install gcc or set CC"):
        build.shim_folder()


def test_what_the_compiler_says_is_passed_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "x.c:1: error: no luck" >&2; exit 1\n'
    )
    compiler.chmod(0o755)
    (tmp_path / "cuda.h").touch()
    monkeypatch.setattr(build, "_headers", lambda site: (tmp_path,))
    monkeypatch.setenv("QBENCH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CC", str(compiler))
    with pytest.raises(QbenchError, match=r"compiled by .*/cc: x.c:1: error: no luck"):
        build.shim_folder()
    assert list((tmp_path / "cache/nullgpu").iterdir()) == []


def test_beside_a_driver_it_loads_only_when_wanted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(launcher, "DRIVER_FILE", tmp_path)
    monkeypatch.setattr(launcher, "shim_folder", lambda site: tmp_path / "shim")
    with pytest.raises(QbenchError, match=r"has an NVIDIA driver; .* set NULLGPU_BESIDE_DRIVER=1"):
        launcher.preload_environment({})
    assert launcher.preload_environment({"NULLGPU_BESIDE_DRIVER": "1"})


def test_the_shim_comes_before_what_is_preloaded_already(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(launcher, "DRIVER_FILE", tmp_path / "none")
    monkeypatch.setattr(launcher, "shim_folder", lambda site: tmp_path)
    before = {"LD_PRELOAD": "libjemalloc.so", "LD_LIBRARY_PATH": "/opt/lib"}
    found = launcher.preload_environment(before)
    assert found == {
        "LD_PRELOAD": "libnullgpu.so:libjemalloc.so",
        "LD_LIBRARY_PATH": f"{tmp_path}:/opt/lib",
    }
    assert launcher.preload_environment(found) == found


def test_this_process_has_no_null_gpu() -> None:
    assert not launcher.is_loaded()
