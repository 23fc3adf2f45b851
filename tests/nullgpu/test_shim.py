"""The real CUDA build of torch on the shim: memory, its limit, other processes, names that are missing."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from qbench.catalog.gpus import find_gpu
from qbench.nullgpu.build import LIBRARY, shim_folder
from qbench.nullgpu.environment import card_environment
from qbench.nullgpu.launcher import preload_environment

pytestmark = pytest.mark.nullgpu

MIB = 1 << 20


def run(code: str, gpu: str = "RTX 3090", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python code on a null GPU."""
    card = card_environment(find_gpu(gpu)) if gpu else {}
    env = {**os.environ, **preload_environment(), **card, **variables}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False, env=env
    )


ENDS = "\nimport os, sys; sys.stdout.flush(); os._exit(0)\n"
"""Ends a program as it stands: on a busy machine threads of torch that still start may abort its exit."""


def printed(code: str, gpu: str = "RTX 3090", **variables: str) -> list[str]:
    done = run(code + ENDS, gpu, **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


PROPERTIES = """
import torch
p = torch.cuda.get_device_properties(0)
print(p.name)
print(p.major, p.minor, p.multi_processor_count, p.total_memory, p.shared_memory_per_block_optin)
print(torch.cuda.mem_get_info())
"""


def test_torch_sees_the_card_of_the_catalog_and_its_name_says_what_it_is() -> None:
    name, facts, memory = printed(PROPERTIES, "H100 SXM")
    gpu = find_gpu("H100 SXM")
    assert name == "NVIDIA H100 SXM (null GPU)"
    assert facts == f"9 0 132 {gpu.memory_bytes} {227 * 1024}"
    # 550 MB of context, as in a plan.
    assert memory == str((gpu.memory_bytes - 550_000_000, gpu.memory_bytes))


ALLOCATIONS = """
import torch
kept = torch.empty(5 << 20, dtype=torch.uint8, device="cuda")
print(torch.cuda.memory_allocated(), torch.cuda.memory_reserved())
small = torch.empty(1000, dtype=torch.uint8, device="cuda")
print(torch.cuda.memory_allocated(), torch.cuda.memory_reserved())
"""


def test_the_caching_allocator_is_the_real_one() -> None:
    # CUDACachingAllocator: from 1 MiB to 10 MiB a block of 20 MiB, below it one of 2 MiB, sizes in 512 bytes.
    first, second = printed(ALLOCATIONS)
    assert first == f"{5 * MIB} {20 * MIB}"
    assert second == f"{5 * MIB + 1024} {22 * MIB}"


OUT_OF_MEMORY = """
import torch
held = []
try:
    while True:
        held.append(torch.empty(1 << 30, dtype=torch.uint8, device="cuda"))
except torch.OutOfMemoryError as error:
    print(len(held), torch.cuda.memory_stats()["num_ooms"], "Tried to allocate 1024.00 MiB" in str(error))
held.clear()
print(torch.empty(20 << 30, dtype=torch.uint8, device="cuda").numel() >> 30)
print(torch.cuda.memory_stats()["num_alloc_retries"])
"""


@pytest.mark.parametrize("conf", ["", "expandable_segments:True"])
def test_the_card_ends_where_its_memory_does(conf: str) -> None:
    # 23.56 GiB less 400 MB of context hold 23 tensors of 1 GiB; freed, the cache gives way to one of 20.
    counts, large, retries = printed(OUT_OF_MEMORY, PYTORCH_ALLOC_CONF=conf)
    assert counts == "23 1 True"
    assert large == "20"
    assert int(retries) == (1 if conf else 2)


KERNELS = """
import torch
import torch.nn.functional as F
for dtype, dim in ((torch.float16, 64), (torch.float32, 64)):
    q = torch.zeros(1, 4, 128, dim, device="cuda", dtype=dtype, requires_grad=True)
    out = F.scaled_dot_product_attention(q, q, q, is_causal=True)
    out.sum().backward()
    print(out.grad_fn.name())
"""


@pytest.mark.parametrize(
    ("gpu", "fp16"),
    # Flash attention needs 8.0 (ATen/native/transformers/cuda/sdp_utils.cpp, check_sm_version).
    [("T4", "Efficient"), ("L4", "Flash")],
)
def test_torch_chooses_its_kernels_by_the_card(gpu: str, fp16: str) -> None:
    expected = [f"ScaledDotProduct{name}AttentionBackward0" for name in (fp16, "Efficient")]
    assert printed(KERNELS, gpu) == expected


ADDRESSES = """
import torch
def pointer(mib): return torch.empty(mib << 20, dtype=torch.uint8, device="cuda")
a, b = pointer(32), pointer(32)
print(a.data_ptr() < b.data_ptr())
"""


@pytest.mark.parametrize(("order", "rises"), [("up", "True"), ("down", "False")])
def test_addresses_come_in_the_order_that_is_wanted(order: str, rises: str) -> None:
    assert printed(ADDRESSES, NULLGPU_VA=order) == [rises]


BRANCHES = """
import torch
mask = torch.zeros(7, device="cuda") > 1
print(bool(mask.all()), bool(mask.any()), mask.nonzero().shape[0])
print(torch.arange(3, device="cpu").to("cuda").tolist())
"""


def test_masks_hold_any_does_not_and_small_copies_are_real() -> None:
    assert printed(BRANCHES) == ["True False 7", "[0, 1, 2]"]


NVML = """
import os, subprocess, sys, pynvml, torch
torch.empty(64 << 20, dtype=torch.uint8, device="cuda")
pynvml.nvmlInit()
card = pynvml.nvmlDeviceGetHandleByIndex(0)
own, = pynvml.nvmlDeviceGetComputeRunningProcesses(card)
print(own.pid == os.getpid(), own.usedGpuMemory, pynvml.nvmlSystemGetDriverVersion())
code = "import torch; torch.ones(1, device='cuda'); print(torch.cuda.mem_get_info()[0])"
print(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip())
try:
    pynvml.nvmlDeviceGetPowerUsage(card)
except pynvml.NVMLError as error:
    print(type(error).__name__)
"""


def test_nvml_and_other_processes_see_what_a_process_holds(tmp_path: Path) -> None:
    own, other_free, power = printed(NVML, NULLGPU_STATE=str(tmp_path / "state"))
    assert own == f"True {400_000_000 + 64 * MIB} nullgpu"
    # Less two contexts and 64 MiB, and 2 MiB of its own.
    assert int(other_free) == find_gpu("RTX 3090").memory_bytes - 2 * 400_000_000 - 66 * MIB
    assert power == "NVMLError_FunctionNotFound"


FIRST_NVML = """
import ctypes, os, torch
torch.empty(64 << 20, dtype=torch.uint8, device="cuda")
class Process(ctypes.Structure):  # nvml.h, nvmlProcessInfo_v1_t
    _fields_ = [("pid", ctypes.c_uint), ("bytes", ctypes.c_ulonglong)]
shim, card = ctypes.CDLL(None), ctypes.c_void_p()
shim.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(card))
count, found = ctypes.c_uint(1), (Process * 2)()
print(shim.nvmlDeviceGetComputeRunningProcesses(card, ctypes.byref(count), found), count.value)
print(found[0].pid == os.getpid(), found[0].bytes, found[1].pid, found[1].bytes)
"""


def test_the_first_version_of_nvml_has_smaller_entries(tmp_path: Path) -> None:
    status, entries = printed(FIRST_NVML, NULLGPU_STATE=str(tmp_path / "state"))
    assert status == "0 1"
    assert entries == f"True {400_000_000 + 64 * MIB} 0 0"


def test_more_processes_than_are_counted_end_with_a_line(tmp_path: Path) -> None:
    state = tmp_path / "state"
    # Each of the 256 entries is the pid of a process that lives, a card and bytes.
    state.write_bytes(struct.pack("iiN", os.getpid(), 0, 0) * 256)
    done = run("import torch; torch.ones(1, device='cuda')", NULLGPU_STATE=str(state))
    assert done.returncode == -6
    assert "nullgpu: 256 processes are on the null GPUs, as many as are counted; end some" in done.stderr


POOL = """
import ctypes
shim, pool, value = ctypes.CDLL(None), ctypes.c_void_p(), (ctypes.c_int * 2)(7, 7)
shim.cudaDeviceGetDefaultMemPool(ctypes.byref(pool), 0)
for attribute in (1, 2, 3):
    print(shim.cudaMemPoolGetAttribute(pool, attribute, value), *value)
"""


def test_how_a_pool_reuses_memory_is_an_int() -> None:
    # driver_types.h, cudaMemPoolAttr: the first three are (value type = int), enabled by default.
    assert printed(POOL) == ["0 1 7"] * 3


SPLITS = """
import ctypes
class Id(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_char * 128)]
shim = ctypes.CDLL(None)
def joined(name):
    comm = ctypes.c_void_p()
    shim.ncclCommInitRank(ctypes.byref(comm), 1, Id(name), 0)
    return comm
def split(comm, color):
    shim.ncclCommSplit(comm, color, 0, ctypes.byref(ctypes.c_void_p()), None)
first, second = joined(b"first"), joined(b"second")
split(first, 0), split(first, -1), split(first, 0), split(second, 0)
"""


def test_ranks_count_the_splits_of_a_communicator_alike() -> None:
    # The second split of the first, with color NCCL_SPLIT_NOCOLOR, makes none on this rank and counts.
    said = run(SPLITS, NULLGPU_TRACE="1").stderr
    names = [line.split()[2] for line in said.splitlines() if "ncclCommInit" in line]
    assert names == ["first", "second", "first.1.0", "first.3.0", "second.1.0"]


def test_a_missing_function_ends_with_its_name_and_what_to_do() -> None:
    done = run("import ctypes; ctypes.CDLL(None).cusparseSpMM()")
    assert done.returncode == -6
    assert done.stderr.strip() == (
        "nullgpu: cusparseSpMM is not answered by the null GPU; add it to qbench/nullgpu/shim, "
        "or measure this program on a GPU"
    )


def test_without_a_card_it_says_so() -> None:
    done = run("import torch; torch.ones(1, device='cuda')", gpu="")
    assert done.returncode == -6
    assert "nullgpu: NULLGPU_CC is not set; start the program with the environment that qbench" in done.stderr


def test_hidden_cards_are_not_there() -> None:
    assert printed("import torch; print(torch.cuda.is_available())", CUDA_VISIBLE_DEVICES="") == ["False"]


PREFIXES = ("__cuda", "cuda", "cublas", "cusparse", "cusolver", "cudnn", "cufft", "curand", "nccl")
HOST_ONLY = {f"cudnnGet{what}" for what in ("Version", "CudartVersion", "ErrorString", "LastErrorString")}
HOST_ONLY |= {"cudnnGetProperty", "ncclGetVersion"}
"""Real functions that look at no device."""


def symbols(library: Path, which: str) -> set[str]:
    done = subprocess.run(["nm", "-D", which, str(library)], capture_output=True, text=True, check=True)
    return {line.split()[-1].partition("@")[0] for line in done.stdout.splitlines()}


def test_every_name_that_torch_takes_from_cuda_is_answered_or_ends_with_its_name() -> None:
    import torch

    folder = Path(torch.__file__).with_name("lib")
    libraries = [folder / "libc10_cuda.so", *folder.glob("lib*torch_cuda*.so")]
    wanted = {name for library in libraries for name in symbols(library, "--undefined-only")}
    names = {name for name in wanted if name.startswith(PREFIXES)} - HOST_ONLY
    missing = names - symbols(shim_folder() / LIBRARY, "--defined-only")
    assert len(names) > 300
    assert missing == set(), "append them to qbench/nullgpu/shim/unanswered.inc"
