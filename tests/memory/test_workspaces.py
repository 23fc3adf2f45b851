"""cuBLAS workspaces: taken once by each thread, at its first matrix product."""

from __future__ import annotations

import torch

from qbench.memory.history.ledger import Ledger


def test_workspace_is_taken_by_the_first_product_of_a_thread() -> None:
    ledger = Ledger({"meta"})
    ledger.workspaces = {"forward": 1000, "backward": 3000}
    matrix = torch.empty(16, 16, device="meta")
    with ledger:
        ledger.begin_phase("forward")
        kept = [matrix + 1, matrix @ matrix, matrix @ matrix]
        ledger.begin_phase("loss")
        kept.append(matrix @ matrix)
        ledger.begin_phase("backward")
        kept += [matrix * 2, matrix @ matrix]
        ledger.begin_phase("optimizer")
        kept.append(matrix @ matrix)
    # Each result has 1 KiB; workspaces are rounded up to 512 B.
    assert [size for _, size in ledger.events] == [1024, 1024, 1024, 1024, 1024, 1024, 1024, 3072, 1024]
    assert [a.num_bytes for a in ledger.allocations if a.category == "workspace"] == [1000, 3000]
    assert len(kept) == 7


def test_what_is_recorded_by_hand_can_be_freed() -> None:
    ledger = Ledger({"meta"})
    handle = ledger.allocate(700, "load", "temporaries")
    ledger.free(handle)
    assert ledger.events == [(handle, 1024), (handle, -1024)]
