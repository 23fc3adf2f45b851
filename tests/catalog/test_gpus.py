"""The GPU rows are whole and plausible, and a name finds the right device."""

from __future__ import annotations

import re

import pytest

from qbench.catalog.gpus import DTYPES, GpuSpec, find_gpu, gpus, other_variants
from qbench.errors import CatalogError
from qbench.units import GIB


@pytest.mark.parametrize("spec", gpus(), ids=lambda spec: spec.name)
def test_row_is_whole_and_plausible(spec: GpuSpec) -> None:
    assert spec.source
    assert spec.memory_source
    assert spec.memory_basis
    # Sold in GB of 1e9 or 2**30 bytes; a program sees 0.88 (ECC on) to 1.08 of the former.
    assert 0.88 <= spec.memory_bytes / (spec.nominal_gb * 1e9) <= 1.08
    assert 1e11 < spec.memory_bandwidth_bytes_per_s < 1e13
    assert tuple(spec.peak_flops) == DTYPES
    assert all(flops is None or 1e12 < flops < 1e16 for flops in spec.peak_flops.values())
    assert spec.peak_flops["fp32"] is not None
    assert 50 < spec.tdp_w < 1500
    assert 2016 <= spec.release_year <= 2026
    assert (spec.compute_capability is None) == (spec.vendor == "AMD")
    assert (spec.multiprocessors is None) == (spec.vendor == "AMD")
    assert spec.multiprocessors is None or 10 <= spec.multiprocessors <= 188


@pytest.mark.parametrize("spec", gpus(), ids=lambda spec: spec.name)
def test_every_name_finds_its_gpu_and_no_other(spec: GpuSpec) -> None:
    for name in (spec.name, spec.name.upper(), *spec.aliases):
        assert find_gpu(name) is spec
        assert find_gpu(f"{spec.vendor} {name}") is spec


def test_bf16_is_unknown_where_the_hardware_lacks_it() -> None:
    # bf16 tensor cores came with Ampere, compute capability 8.0 (CUDA C++ Programming Guide).
    for spec in gpus():
        if spec.compute_capability is not None:
            assert (spec.peak_flops["bf16"] is None) == (spec.compute_capability < (8, 0))


@pytest.mark.parametrize(
    ("name", "count"),
    # multi_processor_count of torch.cuda.get_device_properties in public logs.
    [("T4", 40), ("V100-SXM2-16GB", 80), ("A10G", 80), ("A100-SXM4-80GB", 108), ("H100 SXM", 132)],
)
def test_multiprocessors_are_those_that_torch_counts(name: str, count: int) -> None:
    assert find_gpu(name).multiprocessors == count


@pytest.mark.parametrize(
    ("name", "capability", "memory_gib", "bandwidth_gb_per_s", "bf16", "fp32", "tdp_w"),
    [
        # NVIDIA Ada architecture whitepaper, table of the RTX 4090; memory: a log with driver 595.84.
        ("RTX 4090", (8, 9), 23.52, 1008, 165.2e12, 82.6e12, 450),
        # NVIDIA A100 datasheet (80GB SXM); memory: 81038 MiB read by torch.
        ("A100-SXM4-80GB", (8, 0), 79.14, 2039, 312e12, 19.5e12, 400),
        # NVIDIA H100 datasheet (SXM; its bf16 figure of 1979 is with sparsity); memory: 81082 MiB.
        ("H100 SXM", (9, 0), 79.18, 3350, 989e12, 66.9e12, 700),
    ],
)
def test_known_devices(
    name: str,
    capability: tuple[int, int],
    memory_gib: float,
    bandwidth_gb_per_s: float,
    bf16: float,
    fp32: float,
    tdp_w: float,
) -> None:
    spec = find_gpu(name)
    assert spec.compute_capability == capability
    assert spec.memory_bytes == int(memory_gib * GIB)
    assert spec.memory_bandwidth_bytes_per_s == bandwidth_gb_per_s * 1e9
    assert spec.peak_flops["bf16"] == pytest.approx(bf16)
    assert spec.peak_flops["fp32"] == pytest.approx(fp32)
    assert spec.tdp_w == tdp_w


@pytest.mark.parametrize(
    ("reported", "name"),
    [
        # torch.cuda.get_device_name() on such cards.
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA A100-SXM4-40GB", "A100-SXM4-40GB"),
        ("NVIDIA A100 80GB PCIe", "A100 80GB PCIe"),
        ("Tesla T4", "T4"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("AMD Instinct MI300X", "MI300X"),
    ],
)
def test_names_that_drivers_report(reported: str, name: str) -> None:
    assert find_gpu(reported).name == name


@pytest.mark.parametrize(("given", "right"), [("A4", "A40"), ("409", "RTX 4090"), ("RTX 4091", "RTX 4090")])
def test_part_of_a_name_is_refused_with_the_nearest(given: str, right: str) -> None:
    with pytest.raises(CatalogError, match="is not in the catalog; nearest: ") as caught:
        find_gpu(given)
    assert right in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "first"),
    [
        ("RTX 4060", "RTX 4060 Ti 16GB"),  # no 4060 is listed; one of its numbers is nearer than a 4090
        ("4060", "RTX 4060 Ti 16GB"),
        ("RTX 3050", "RTX 3090"),  # no such number: the spelling alone decides
    ],
)
def test_the_nearest_name_has_the_same_number(given: str, first: str) -> None:
    with pytest.raises(CatalogError, match=f"nearest: {re.escape(first)}[,;]"):
        find_gpu(given)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("4090", "RTX 4090"),
        ("rtx-4090", "RTX 4090"),
        ("3060", "RTX 3060 12GB"),
        ("geforce 4080", "RTX 4080"),
        ("4060 ti", "RTX 4060 Ti 16GB"),
        ("4070 super ti", None),
        ("h100 pcie 80gb", "H100 PCIe"),
        ("A100 40", "A100-SXM4-40GB"),
        ("a100_sxm4_80gb", "A100-SXM4-80GB"),
        ("7900 XTX", "RX 7900 XTX"),
    ],
)
def test_case_separators_and_brands_are_ignored(given: str, name: str | None) -> None:
    if name is None:
        with pytest.raises(CatalogError):
            find_gpu(given)
    else:
        assert find_gpu(given).name == name


def test_a_name_of_several_cards_lists_them() -> None:
    with pytest.raises(CatalogError, match="could be A100-SXM4-40GB, A100-SXM4-80GB; give one of these"):
        find_gpu("A100-SXM4")


def test_a_memory_size_lists_the_cards_that_have_it() -> None:
    with pytest.raises(CatalogError) as caught:
        find_gpu("24GB")
    assert "RTX 3090, RTX 3090 Ti, RTX 4090, L4" in str(caught.value)
    assert "--gpu-memory 24GiB" in str(caught.value)
    with pytest.raises(CatalogError, match="cards with 7 GB: none in the catalog"):
        find_gpu("7 gib")


def test_similar_names_are_different_devices() -> None:
    assert find_gpu("L4").memory_bytes < find_gpu("L40").memory_bytes < find_gpu("L40S").memory_bytes
    assert find_gpu("A40").name == "A40"
    assert find_gpu("A4000").name == "RTX A4000"


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("A100", ["A100-PCIE-40GB", "A100-SXM4-80GB", "A100 80GB PCIe"]),
        ("nvidia h100", ["H100 PCIe", "H100 NVL"]),
        ("GH200", []),
        # A name of its own is no short one.
        ("RTX 4090", []),
        ("4090", []),
        ("L40", []),
    ],
)
def test_a_short_name_that_several_cards_could_have(name: str, others: list[str]) -> None:
    assert [spec.name for spec in other_variants(name)] == others


def test_several_cards_are_pointed_to_the_flag_for_them():
    with pytest.raises(CatalogError, match=r"name one card \(RTX 4090\); .* add --gpus 2 --strategy fsdp2"):
        find_gpu("2x RTX 4090")
