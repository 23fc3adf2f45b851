"""Calibrations in the user's settings: whole, of this machine and these libraries, or refused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from qbench.catalog.gpus import find_gpu
from qbench.errors import RecordError
from qbench.records.calibration import (
    Calibration,
    KernelTime,
    calibration_file,
    export_calibration,
    find_calibration,
    gpu_calibrations,
    has_calibration,
    profiles,
    read_calibration,
    write_calibration,
)
from qbench.records.software import library_versions

CPU = Calibration(
    device="cpu",
    device_name="Some CPU (R) 9",
    num_threads=2,
    versions=library_versions(),
    dispatch_s={"forward": 1e-6},
    kernels=[KernelTime("mm", "matmul", "fp32", 2e3, 1e3, (1, 10, 10, 10), "nt", 1e-6)],
)


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QBENCH_CONFIG_DIR", str(tmp_path / "settings"))


def test_what_was_written_is_read() -> None:
    file = write_calibration(CPU)
    assert file.name == "calibration-cpu-some-cpu-r-9-2-threads.json"
    found = find_calibration("cpu", "Some CPU (R) 9", 2)
    assert found is not None
    assert found.kernels[0] == CPU.kernels[0]
    assert found == replace(CPU, kernels=list(CPU.kernels))


def test_every_profile_of_the_catalog_is_whole_and_of_a_known_card() -> None:
    for profile in profiles():
        assert profile.device in ("cpu", "cuda")
        assert (profile.num_threads is None) == (profile.device == "cuda")
        assert profile.device == "cpu" or find_gpu(profile.device_name)
        assert profile.versions["torch"]
        assert {"forward", "backward", "optimizer"} <= set(profile.dispatch_s)
        assert {"mm", "add", "clone", "dequantize_4bit"} <= {kernel.op for kernel in profile.kernels}
        assert all(0 < kernel.seconds < 60 for kernel in profile.kernels)


def test_an_exported_calibration_says_nothing_of_what_else_ran(tmp_path: Path) -> None:
    file = tmp_path / "a-cpu.json"
    export_calibration(replace(CPU, others_busy_cpus=0.5), file)
    assert "others_busy_cpus" not in json.loads(file.read_text())
    assert read_calibration(file) == replace(CPU, kernels=list(CPU.kernels))
    with pytest.raises(RecordError, match="choose another file for --export"):
        export_calibration(CPU, file / "a-cpu.json")


def test_it_speaks_for_its_device_and_threads_only() -> None:
    write_calibration(CPU)
    assert has_calibration("cpu", CPU.device_name)
    assert find_calibration("cpu", CPU.device_name, 1) is None
    assert find_calibration("cpu", "Another", 2) is None
    assert gpu_calibrations() == ()
    write_calibration(replace(CPU, device="cuda", num_threads=None))
    assert [found.device for found in gpu_calibrations()] == ["cuda"]


def test_it_speaks_for_its_libraries_only() -> None:
    assert CPU.is_current
    assert not replace(CPU, versions=library_versions() | {"torch": "1.0"}).is_current
    assert replace(CPU, versions=library_versions() | {"peft": "0.1"}).is_current


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not JSON"),
        ("[]", "run `qbench calibrate` again"),
        ("{}", "Field required"),
        (json.dumps(asdict(CPU) | {"kernels": []}), "the calibration is empty"),
        (json.dumps(asdict(CPU) | {"version": 99}), "update qbench"),
        (json.dumps(asdict(CPU) | {"dispatch_s": {"forward": "fast"}}), "dispatch_s.forward"),
    ],
)
def test_a_damaged_file_is_refused(text: str, said: str) -> None:
    file = calibration_file("cpu", "x", 1)
    file.parent.mkdir(parents=True)
    file.write_text(text)
    with pytest.raises(RecordError) as refusal:
        read_calibration(file)
    assert said in str(refusal.value)
    assert str(file) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "settings").write_text("a file")
    with pytest.raises(RecordError, match="QBENCH_CONFIG_DIR"):
        write_calibration(CPU)


@pytest.mark.parametrize("number", ["-1.0", "NaN", "Infinity", "1e999"])
@pytest.mark.parametrize("place", ['"forward": 1e-06', '"seconds": 1e-06'])
def test_a_time_that_is_none_is_refused(place: str, number: str) -> None:
    file = write_calibration(CPU)
    text = file.read_text()
    assert place in text
    file.write_text(text.replace(place, f"{place.partition(':')[0]}: {number}"))
    with pytest.raises(RecordError, match="run `qbench calibrate` again"):
        read_calibration(file)
