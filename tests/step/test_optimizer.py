"""The optimizer is the one that TrainingArguments.optim names, with the state it should have."""

from __future__ import annotations

import bitsandbytes as bnb
import pytest
import torch

from qbench.step.optimizer import LEARNING_RATE, make_optimizer, managed_bytes


def parameters(device: str = "cpu") -> list[torch.nn.Parameter]:
    """Return a large, a medium and a small trainable one, and a frozen one."""
    sizes = ((400, 300), (64, 64), (64, 63))
    trainable = [torch.nn.Parameter(torch.ones(size, device=device)) for size in sizes]
    return [*trainable, torch.nn.Parameter(torch.ones(9, device=device), requires_grad=False)]


def run_one_step(name: str, device: str = "cpu", kernels: str = "cpu") -> torch.optim.Optimizer:
    given = parameters(device)
    optimizer = make_optimizer(name, given, kernels)
    for parameter in given[:3]:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def states(optimizer: torch.optim.Optimizer) -> list[dict[str, torch.Tensor]]:
    """Return the tensors of each parameter's state by name, without step counters."""
    return [
        {name: value for name, value in state.items() if isinstance(value, torch.Tensor) and name != "step"}
        for state in optimizer.state.values()
    ]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("adamw_torch", torch.optim.AdamW),
        ("sgd", torch.optim.SGD),
        ("adamw_8bit", bnb.optim.AdamW),
        ("paged_adamw_8bit", bnb.optim.AdamW),
        ("paged_adamw_32bit", bnb.optim.AdamW),
    ],
)
def test_name_gives_its_class_over_the_trainable_parameters(name: str, kind: type) -> None:
    given = parameters()
    optimizer = make_optimizer(name, given, "cpu")
    assert type(optimizer) is kind
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert [id(parameter) for parameter in held] == [id(parameter) for parameter in given[:3]]
    assert optimizer.param_groups[0]["lr"] == LEARNING_RATE


@pytest.mark.parametrize(("kernels", "foreach"), [("cuda", True), ("cpu", False)])
@pytest.mark.parametrize("name", ["adamw_torch", "sgd"])
def test_cuda_takes_all_tensors_at_once(name: str, kernels: str, foreach: bool) -> None:
    optimizer = make_optimizer(name, parameters("meta"), kernels)
    assert optimizer.param_groups[0]["foreach"] is foreach


@pytest.mark.parametrize(("name", "paged"), [("adamw_8bit", False), ("paged_adamw_8bit", True)])
def test_paged_means_paged(name: str, paged: bool) -> None:
    assert make_optimizer(name, parameters(), "cpu").is_paged is paged


def test_adamw_keeps_two_moments_in_fp32() -> None:
    for state in states(run_one_step("adamw_torch")):
        assert sorted(state) == ["exp_avg", "exp_avg_sq"]
        assert all(tensor.dtype == torch.float32 for tensor in state.values())


def test_sgd_keeps_nothing() -> None:
    assert states(run_one_step("sgd")) in ([], [{}] * 3)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_8bit_adamw_keeps_small_tensors_in_32_bit(device: str) -> None:
    large, medium, small = states(run_one_step("adamw_8bit", device))
    # From 4096 elements on: a byte for each, and one fp32 for each 256 of them (120,000 / 256 = 468.75).
    assert large["state1"].dtype == large["state2"].dtype == torch.uint8
    assert large["absmax1"].numel() == large["absmax2"].numel() == 469
    assert medium["state1"].dtype == torch.uint8
    assert medium["absmax1"].numel() == 16
    # 64 x 63 = 4032 elements are too few.
    assert small["state1"].dtype == small["state2"].dtype == torch.float32
    assert "absmax1" not in small


@pytest.mark.parametrize(("name", "bytes_each"), [("paged_adamw_8bit", 1), ("paged_adamw_32bit", 4)])
def test_large_states_are_paged_in_the_plan(name: str, bytes_each: int) -> None:
    optimizer = run_one_step(name, "meta", "cuda")
    # Only the first parameter has 100,000 elements or more; two moments.
    assert managed_bytes(optimizer) == 2 * 400 * 300 * bytes_each


@pytest.mark.parametrize("name", ["adamw_torch", "adamw_8bit"])
def test_nothing_is_paged_otherwise(name: str) -> None:
    assert managed_bytes(run_one_step(name, "meta", "cuda")) == 0


def test_what_another_training_of_the_process_asked_for_is_not_taken_over():
    manager = bnb.optim.GlobalOptimManager.get_instance()
    parameter = torch.nn.Parameter(torch.zeros(64, 128))
    manager.index2config[0, 0] = {"optim_bits": 32}
    manager.pid2config[id(parameter)] = {"optim_bits": 32}
    try:
        optimizer = make_optimizer("adamw_8bit", [parameter], "cuda")
        assert optimizer.get_config(0, 0, optimizer.param_groups[0])["optim_bits"] == 8
    finally:
        manager.initialize()


@pytest.mark.parametrize("name", ["adamw_torch_fused", "adamw_torch_8bit", "adamw_torch_4bit"])
@pytest.mark.parametrize("kernels", ["cpu", "cuda"])
def test_state_on_meta_is_that_of_a_run(name: str, kernels: str) -> None:
    here, planned = states(run_one_step(name)), states(run_one_step(name, "meta", kernels))
    sizes = [
        [{key: value.nbytes for key, value in state.items()} for state in each] for each in (here, planned)
    ]
    assert sizes[0] == sizes[1]


def test_torchaos_state_in_bytes() -> None:
    # 64 x 64 is a multiple of both blocks, 64 x 63 is too small.
    _, medium, small = states(run_one_step("adamw_torch_8bit"))
    assert medium["exp_avg.codes"].nbytes == 4096
    assert medium["exp_avg.scale"].nbytes == 4096 // 256 * 4
    assert medium["exp_avg.qmap"].nbytes == 256 * 4
    assert small["exp_avg"].nbytes == 64 * 63 * 4
    _, medium, _ = states(run_one_step("adamw_torch_4bit"))
    assert medium["exp_avg_sq.codes"].nbytes == 2048
    assert medium["exp_avg_sq.scale"].nbytes == 4096 // 128 * 4
    assert medium["exp_avg_sq.qmap"].nbytes == 16 * 4


@pytest.mark.parametrize("name", ["adamw_torch_fused", "adamw_torch_8bit", "adamw_torch_4bit"])
def test_a_first_step_goes_against_the_gradient_by_the_rate(name: str) -> None:
    given = parameters()
    optimizer = make_optimizer(name, given, "cpu")
    given[1].grad = torch.ones_like(given[1])
    optimizer.step()
    assert given[1][0, 0].item() == pytest.approx(1 - LEARNING_RATE * (1 + 0.01), abs=2e-6)
