"""Programs on a null GPU, from the command to the record."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from qbench.catalog.gpus import find_gpu
from qbench.dryrun.run import LOG_FILE, Request, dry_run
from qbench.records.record import Record

pytestmark = pytest.mark.nullgpu

MIB = 1 << 20
GIB = 1 << 30

TRAIN = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(1024, 4096, bias=False)
    def forward(self, x):
        return self.inner(x).square()
model = Net().cuda()
optimizer = torch.optim.AdamW(model.parameters())
model.inner.around = model  # As some libraries do: no module is above all others.
import gc
gc.freeze()
def step(rows):
    x = torch.ones(rows, 1024, device="cuda")
    loss = model(x).sum()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
"""


def ran(folder: Path, code: str, *, gpu: str = "RTX 4090", steps: int = 3, **variables: str) -> Record:
    """Run a program in a folder whose name has a space, and return its record."""
    script = folder / "a folder" / "train.py"
    script.parent.mkdir()
    script.write_text(TRAIN + code)
    command = [sys.executable, str(script)]
    asked = Request(command=command, gpu=find_gpu(gpu), steps=steps, timeout_s=300)
    return dry_run(asked, folder / "out", {**os.environ, **variables})


def test_memory_is_read_step_by_step_and_the_program_ends(tmp_path: Path) -> None:
    record = ran(tmp_path, "for i in range(9):\n    step(8)\n    print('did', i, flush=True)\n")
    assert record.outcome == "ok", record.stderr_tail
    # 1024 x 4096 fp32: 16 MiB of weights; gradients as much, Adam's state twice that.
    weights = 16 * MIB
    assert record.metrics["static_bytes"] == weights
    assert record.metrics["trainable_params"] == record.metrics["total_params"] == 1024 * 4096
    assert record.breakdown_bytes["weights"] == record.breakdown_bytes["gradients"] == weights
    assert record.breakdown_bytes["optimizer"] == 2 * weights  # The step's count is on the host.
    assert sum(record.breakdown_bytes.values()) == record.peak_allocated_bytes
    # cuBLAS has 8.125 MiB for the forward thread and as much for the backward thread.
    assert record.breakdown_bytes["workspace"] == 2 * (8 * MIB + 128 * 1024)
    output = (tmp_path / "out" / LOG_FILE).read_text().split("\n")
    assert [line for line in output if line.startswith("did")] == ["did 0", "did 1"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {LOG_FILE}


def test_out_of_memory_names_phase_bytes_and_line_also_of_the_backward_pass(tmp_path: Path) -> None:
    # 1,000,000 x 4096 fp32 are 15.26 GiB: two of them fit into an A100 of 40 GB, the third is of backward.
    record = ran(tmp_path, "step(1_000_000)\n", gpu="A100-SXM4-40GB")
    assert record.outcome == "oom", record.stderr_tail
    assert record.oom is not None
    assert record.oom["phase"] == "first_step"
    # cudaMalloc is called for multiples of 2 MiB (kRoundLarge): 16,384,000,000 B are 7812.5 of them.
    assert record.oom["requested_bytes"] == 7813 * 2 * MIB
    assert str(record.oom["place"]).startswith("train.py:8 Net")
    # The input, 4 KiB a row, and the output of the layer are kept for the backward pass; 2 x is its first.
    assert record.breakdown_bytes["activations"] == pytest.approx(20_480_000_000, rel=0.01)
    assert record.breakdown_bytes["temporaries"] == pytest.approx(16_384_000_000, rel=0.01)


def test_large_weights_are_saved_as_a_hole(tmp_path: Path) -> None:
    code = """
import os
from safetensors.torch import load_file, save_file
save_file({"x": torch.zeros(32 << 20, device="cuda")}, os.environ["SAVED"])
assert load_file(os.environ["SAVED"])["x"].numel() == 32 << 20
step(8)
"""
    saved = tmp_path / "weights.safetensors"
    record = ran(tmp_path, code, steps=1, SAVED=str(saved))
    assert record.outcome == "ok", record.stderr_tail
    assert saved.stat().st_size > 128 * MIB  # 32 Mi fp32 and the header
    assert saved.stat().st_blocks * 512 < MIB


def test_a_program_that_halves_its_batch_fits(tmp_path: Path) -> None:
    code = """
rows = 1_000_000
while True:
    try:
        for _ in range(3):
            step(rows)
        break
    except torch.OutOfMemoryError:
        optimizer.zero_grad()
        rows //= 4
"""
    record = ran(tmp_path, code)
    assert record.outcome == "ok"
    assert record.caveats == ["the program went on after memory ran out 1 time"]


@pytest.mark.parametrize(
    ("end", "outcome", "error"),
    [
        ("import os; os._exit(7)", "error", "exit code 7"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashed", "signal 11"),
        ("raise ValueError('mine')", "error", "ValueError: mine"),
    ],
)
def test_other_ends_are_failures_with_what_was_seen(
    tmp_path: Path, end: str, outcome: str, error: str
) -> None:
    record = ran(tmp_path, f"step(8)\n{end}\n")
    assert record.outcome == outcome
    assert error in record.error
    assert record.detail["steps"] == 1
    assert record.metrics["static_bytes"] == 16 * MIB


def test_data_workers_and_a_sitecustomize_of_ones_own_go_on(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "sitecustomize.py").write_text("import os; os.environ['MINE'] = 'yes'\n")
    code = """
import os
assert os.environ["MINE"] == "yes"
data = torch.utils.data.TensorDataset(torch.arange(64))
for batch, in torch.utils.data.DataLoader(data, batch_size=8, num_workers=2, persistent_workers=True):
    step(len(batch))
"""
    record = ran(tmp_path, code, PYTHONPATH=str(own))
    assert record.outcome == "ok", record.stderr_tail
    assert len(record.ranks) == 1


RANKS = """
import os
import torch
import torch.distributed as dist
dist.init_process_group("nccl")
rank, size = dist.get_rank(), dist.get_world_size()
torch.cuda.set_device(rank)
told = [None] * size
dist.all_gather_object(told, rank)
total = torch.tensor([1.5], device="cuda")
dist.all_reduce(total)
assert total.item() == 1.5 * size == 3.0 and len(told) == 2 and told[0] == 0
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1024, 4096).cuda())
optimizer = torch.optim.SGD(model.parameters())
for _ in range(4):
    model(torch.ones(8 + 8 * rank, 1024, device="cuda")).sum().backward()
    optimizer.step()
"""


@pytest.mark.parametrize("rank_only", [False, True])
def test_each_rank_is_read_and_the_first_can_run_alone(tmp_path: Path, rank_only: bool) -> None:
    script = tmp_path / "train.py"
    script.write_text(RANKS)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    asked = Request(
        command=[sys.executable, *launch, str(script)],
        gpu=find_gpu("RTX 4090"),
        gpus=2,
        rank_only=rank_only,
        timeout_s=300,
    )
    record = dry_run(asked, tmp_path / "out")
    assert record.outcome == "ok", record.stderr_tail
    peaks = [int(rank["peak_allocated_bytes"] or 0) for rank in record.ranks]
    # Weights, gradients and DDP's bucket have 16 MiB and 16 KiB each, the workspaces 16.25 MiB together.
    assert peaks[0] >= 3 * (16 * MIB + 16 * 1024) + 16.25 * MIB
    assert len(peaks) == (1 if rank_only else 2)
    assert record.peak_allocated_bytes == max(peaks)
    # Rank 1 has 8 rows more, of 16 KiB of output each.
    assert rank_only or 8 * 16 * 1024 <= peaks[1] - peaks[0] < MIB


VALUES = """
x = torch.arange(10, device="cuda")
assert (x * 2 + 1)[::2].tolist() == [1, 5, 9, 13, 17]
assert x.sum().item() == 45 and (x > 5).sum().item() == 4 and x[x > 6].tolist() == [7, 8, 9]
assert (x > 5).any().item() and not (x > 100).any().item() and not (x > 5).all().item()
assert torch.isin(x, torch.tensor([2, 3], device="cuda")).nonzero().flatten().tolist() == [2, 3]
assert torch.cat([x, x[:2]]).cumsum(0)[-1].item() == 46 and x.masked_fill(x > 4, -1)[-1].item() == -1
assert torch.nn.functional.pad(x, (1, 0)).diff().tolist() == [0] + [1] * 9
assert x.masked_select(x % 2 == 0).tolist() == [0, 2, 4, 6, 8]
assert torch.where(x > 7)[0].tolist() == [8, 9] and torch.where(x > 99)[0].shape == (0,)
mask = torch.zeros(3, 4, dtype=torch.bool, device="cuda")
mask[1] = True
assert mask.tolist()[1] == [True] * 4 and mask.sum().item() == 4
assert torch.tensor(2.5, device="cuda").item() == 2.5
floats = torch.rand(5, device="cuda")
assert floats.isfinite().all() and not floats.isnan().any() and floats[floats > 0.5].shape == (5,)
assert floats.exp2().shape == (5,)
assert floats.argmax().item() == 0
torch.tensor([3.0] * 128).cuda()  # Leaves memory that is not 0.
assert torch.full([], 0.0, device="cuda").item() == 0 and floats.sum().item() == 0
assert (torch.tensor(7, device="cuda").float() / 2).item() == 3.5
# Six tokens choose two of three experts: each is chosen four times.
chosen = torch.rand(6, 3, device="cuda").topk(2).indices
assert chosen.flatten().bincount(minlength=3).tolist() == [4, 4, 4]
assert x.repeat_interleave(x[:2].repeat(5)).tolist() == [1, 3, 5, 7, 9]
assert torch.cat([x, x]).unique().tolist() == list(range(10))
mask = torch.tensor([True, False, True, False], device="cuda")
picked = torch.zeros(4, device="cuda", requires_grad=True)[mask]
assert picked.shape == (2,)
for _ in range(3):
    step(8)
"""


def test_small_whole_numbers_are_true(tmp_path: Path) -> None:
    record = ran(tmp_path, VALUES)
    assert record.outcome == "ok", record.stderr_tail
    assert record.detail["assumed"] == {"gt": 1, "eq": 1, "ne": 1, "isnan": 1, "topk": 1}
