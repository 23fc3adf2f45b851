"""What a process of its own costs a measured point: by the fork server, and by a new interpreter.

    python -m benchmarks.isolation

Both kinds do the same work, which is to import what a measurement on the CPU needs, in one run, so that the
ratio holds on any machine.
"""

from __future__ import annotations

import statistics
import time

from qbench.measure.executors.local import LocalExecutor
from qbench.measure.task import Measurement

FORKED_POINTS = 40
SPAWNED_POINTS = 4


def work() -> Measurement:
    """Import what a measurement needs, and measure nothing."""
    import qbench.measure.cpu  # noqa: F401

    return Measurement(outcome="ok")


def seconds_of(executor: LocalExecutor, points: int) -> list[float]:
    """Return how long each of some points takes. Raises RuntimeError when one does not end ok."""
    seconds = []
    for _ in range(points):
        start = time.perf_counter()
        done = executor.run(work, 120, "cpu")
        seconds.append(time.perf_counter() - start)
        if done.outcome != "ok":
            raise RuntimeError(str(done.detail))
    return seconds


def main() -> None:
    """Print median and worst seconds of both kinds, and their ratio."""
    forking = LocalExecutor()
    (start_s,) = seconds_of(forking, 1)
    forked = seconds_of(forking, FORKED_POINTS)
    spawned = seconds_of(LocalExecutor(start_method="spawn"), SPAWNED_POINTS)
    print(f"first point, which starts the fork server: {start_s:.2f} s")
    for name, seconds in (("fork server", forked), ("spawn", spawned)):
        print(f"{name}: median {statistics.median(seconds):.3f} s, worst {max(seconds):.3f} s a point")
    print(f"ratio of the medians: {statistics.median(spawned) / statistics.median(forked):.0f}")


if __name__ == "__main__":
    main()
