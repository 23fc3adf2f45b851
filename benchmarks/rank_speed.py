"""How long ranking all cards takes: Llama-3.1-8B, 10 million tokens, 3 epochs. Run it on a quiet machine.

python -m benchmarks.rank_speed
"""

from __future__ import annotations

import time

from qbench.catalog.gpus import gpus
from qbench.catalog.hourly_prices import catalog_hourly_prices
from qbench.planner.ranking import Terms, ranked
from qbench.planner.workload import of_tokens
from qbench.quiet import quiet_libraries
from qbench.scenario.expand import point_from


def main() -> None:
    """Print the seconds of three rankings, the first with cold caches."""
    quiet_libraries()
    points = [
        point_from({"model": "meta-llama/Llama-3.1-8B"}, {"precision": name}) for name in ("bf16", "nf4")
    ]
    workloads = {point: of_tokens(10_000_000, 3, point) for point in points}
    for _ in range(3):
        start = time.perf_counter()
        rows = ranked(
            points,
            gpus(),
            workloads,
            Terms(hourly_prices=catalog_hourly_prices([gpu.name for gpu in gpus()])),
        )
        fitting = len({row.gpu.name for row in rows if row.fits})
        print(f"{len(gpus())} cards, {fitting} hold it: {time.perf_counter() - start:.2f} s", flush=True)


if __name__ == "__main__":
    main()
