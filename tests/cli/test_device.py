"""Where a run is measured, by what driver and torch say; neither is here, so both are put in."""

from __future__ import annotations

import pytest

from qbench.cli.run import DeviceChoice, chosen_device
from qbench.errors import QbenchError
from qbench.measure import environment, nvml
from qbench.measure.nvml import PinnedDevice


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    def put(has_gpu: bool, has_cuda: bool, note: str | None = None) -> None:
        monkeypatch.setattr(nvml, "cuda_present", lambda: has_gpu)
        monkeypatch.setattr(environment, "torch_has_cuda", lambda: has_cuda)
        monkeypatch.setattr(environment, "torch_has_rocm", lambda: False)
        monkeypatch.setattr(nvml, "why_absent", lambda: "CUDA_VISIBLE_DEVICES=-1 shows no GPU")
        monkeypatch.setattr(nvml, "choose_device", lambda: PinnedDevice(uuid="GPU-a", note=note))

    return put


@pytest.mark.parametrize(
    ("has_gpu", "has_cuda", "device", "told"),
    [
        (True, True, "cuda", ""),
        (
            False,
            True,
            "cpu",
            "torch is built for CUDA, but CUDA_VISIBLE_DEVICES=-1 shows no GPU: measuring on",
        ),
        (False, False, "cpu", ""),
        (True, False, "cpu", "there is a GPU, but the installed torch is built without CUDA"),
    ],
)
def test_auto_takes_a_gpu_that_torch_can_use(
    machine, capsys: pytest.CaptureFixture[str], has_gpu: bool, has_cuda: bool, device: str, told: str
):
    machine(has_gpu, has_cuda)
    assert chosen_device(DeviceChoice.auto) == device
    captured = capsys.readouterr()
    assert captured.out == ""
    assert told in captured.err
    assert bool(captured.err) == bool(told)


@pytest.mark.parametrize(
    ("has_gpu", "has_cuda", "message"),
    [
        (False, True, "--device cuda: CUDA_VISIBLE_DEVICES=-1 shows no GPU; use --device"),
        (True, False, "built without CUDA; install a CUDA build of torch"),
    ],
)
def test_cuda_that_cannot_be_had_is_an_error(machine, has_gpu: bool, has_cuda: bool, message: str):
    machine(has_gpu, has_cuda)
    with pytest.raises(QbenchError, match=message):
        chosen_device(DeviceChoice.cuda)


def test_the_cpu_is_always_to_be_had(machine, capsys: pytest.CaptureFixture[str]):
    machine(True, True)
    assert chosen_device(DeviceChoice.cpu) == "cpu"
    assert capsys.readouterr().err == ""


def test_a_doubt_about_the_card_is_told_before_the_run(machine, capsys: pytest.CaptureFixture[str]):
    machine(True, True, note="CUDA_VISIBLE_DEVICES=1 is counted by PCI bus")
    assert chosen_device(DeviceChoice.auto) == "cuda"
    assert capsys.readouterr().err == "qbench: CUDA_VISIBLE_DEVICES=1 is counted by PCI bus\n"


def test_a_build_for_rocm_is_told_before_it_measures_on_the_cpu(
    machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    machine(False, False)
    monkeypatch.setattr(environment, "torch_has_rocm", lambda: True)
    assert chosen_device(DeviceChoice.auto) == "cpu"
    assert "torch is built for ROCm, on which qbench does not measure" in capsys.readouterr().err
