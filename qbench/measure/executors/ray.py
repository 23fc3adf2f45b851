"""Run work on a Ray cluster, or on a Ray that is started here: several pieces at a time where it has room.

A Ray task reserves what a point needs and does the point as on a single machine, in a fresh process that
knows nothing of Ray: so time limits, crashes and lack of memory end there as they end here.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from types import TracebackType
from typing import Any

from qbench.errors import MeasureError, QbenchError, first_line
from qbench.measure import nvml
from qbench.measure.environment import environment, process_settings
from qbench.measure.executors.local import LocalExecutor
from qbench.measure.failures import oom_facts
from qbench.measure.runner import Key
from qbench.measure.settings import take_settings
from qbench.measure.task import Attempt, Measurement
from qbench.records.software import software
from qbench.scenario.schema import RunDevice

CONNECT_TIMEOUT_S = 10.0
OBJECT_STORE_BYTES = 80 << 20
"""Nothing but results goes through Ray's store; it takes no less."""


class RayExecutor:
    """Runs work on the nodes of a Ray cluster; use it in `with`, which leaves the cluster at the end.

    Without an address a Ray is started on this machine and ended with it. On CUDA each point reserves
    `gpus` GPUs, of which it uses the first. On the CPU it reserves a whole node, so that no two are timed
    beside each other; where nodes differ, only those with most CPUs get work. Raises QbenchError when ray is
    not installed, no cluster answers, or no node has what a point reserves.
    """

    def __init__(self, device: RunDevice, address: str | None = None, gpus: int = 1) -> None:
        self._ray = _imported()
        self._device = device
        self._gpus = gpus
        self._here = LocalExecutor()
        self._address = address
        _connect(self._ray, address, device)
        if slots(self._reserved(), self._nodes()) == 0:
            self.close()
            raise QbenchError(
                f"no node of the Ray cluster has {gpus} GPU{'s' * (gpus > 1)}; "
                "lower --gpus-per-point, start nodes that have them, or use --device cpu"
            )

    def run(self, work: Attempt, timeout_s: float, device: RunDevice) -> Measurement:
        """Return the measurement of one piece of work, done on this machine and not on the cluster."""
        return self._here.run(work, timeout_s, device)

    def stream(
        self, works: Iterable[tuple[Key, Attempt]], timeout_s: float, device: RunDevice
    ) -> Iterator[tuple[Key, Measurement]]:
        """Yield the key and the measurement of each piece of work as it ends; closing it ends what runs.

        Nothing is tried twice. Raises MeasureError when the cluster is lost.
        """
        task = self._task()
        waiting = iter(works)
        running: dict[Any, Key] = {}
        try:
            while True:
                # A cluster that has lost all its nodes may get new ones: one piece of work waits for that.
                room = max(1, slots(self._reserved(), self._nodes())) - len(running)
                for key, work in islice(waiting, max(0, room)):
                    running[task.remote(work, timeout_s, device, _surroundings())] = key
                if not running:
                    return
                (done, *_), _ = self._ray.wait(list(running), num_returns=1)
                yield running.pop(done), self._measurement(done)
        except self._ray.exceptions.RaySystemError as error:
            raise MeasureError(
                f"the Ray cluster is lost: {first_line(error)}; finished results are kept; run it again"
            ) from error
        finally:
            for unfinished in running:
                with contextlib.suppress(self._ray.exceptions.RayError):
                    self._ray.cancel(unfinished, force=True)

    def close(self) -> None:
        """Leave the cluster, which ends it if it was started here."""
        self._ray.shutdown()

    def __enter__(self) -> RayExecutor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _task(self) -> Any:
        # Ray's own process and the fork server below it may serve many tasks, as neither starts CUDA.
        remote = self._ray.remote(max_calls=0, max_retries=0, retry_exceptions=False)(run_on_node)
        needed = self._reserved()
        return remote.options(num_cpus=needed["CPU"], num_gpus=needed.get("GPU", 0))

    def _nodes(self) -> list[dict[str, float]]:
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def _reserved(self) -> dict[str, float]:
        return reserved(self._device, self._gpus, self._nodes())

    def _measurement(self, done: Any) -> Measurement:
        """Return what came of a task; where its process or node is lost, that is the outcome."""
        failed = partial(Measurement, environment={"device": self._device, **software()})
        errors = self._ray.exceptions
        try:
            measurement: Measurement = self._ray.get(done)
        except errors.OutOfMemoryError as error:
            text = f"Ray ended the worker because its node ran out of memory: {first_line(error)}"
            return failed(outcome="oom", detail={"error": text, "oom": oom_facts("", None)})
        except (errors.RayTaskError, errors.RuntimeEnvSetupError) as error:
            text = f"the node could not run the point: {str(error).strip().splitlines()[-1]}"
            return failed(outcome="error", detail={"error": text, "traceback": str(error)})
        except errors.RayError as error:
            text = f"the Ray worker or its node was lost: {first_line(error)}"
            return failed(outcome="crashed", detail={"error": text, "ray": str(error)})
        return measurement


def reserved(device: RunDevice, gpus: int, nodes: list[dict[str, float]]) -> dict[str, float]:
    """Return what one point reserves, by Ray's names, on nodes with these resources."""
    if device == "cuda":
        return {"CPU": 1, "GPU": gpus}
    return {"CPU": max((node.get("CPU", 0) for node in nodes), default=0) or 1}


def slots(needed: dict[str, float], nodes: list[dict[str, float]]) -> int:
    """Return how many points that reserve so much all nodes together can do at the same time."""
    return sum(min(int(node.get(name, 0) // amount) for name, amount in needed.items()) for node in nodes)


def run_on_node(
    work: Attempt, timeout_s: float, device: RunDevice, surroundings: tuple[str, dict[str, str]]
) -> Measurement:
    """Return the measurement of work done in a fresh process on the node that this is called on.

    `surroundings` are working folder and settings of the machine that asks; its paths must be valid here.
    """
    folder, settings = surroundings
    with contextlib.suppress(OSError):  # The point itself says so when it misses a file.
        os.chdir(folder)
    take_settings(settings)
    # A new process imports the main module's file again, which here is Ray's own.
    vars(sys.modules["__main__"]).pop("__file__", None)
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    done = LocalExecutor().run(partial(_on_gpus, gpus, work) if device == "cuda" else work, timeout_s, device)
    return replace(done, environment={**(done.environment or environment(device)), "node": _node_id()})


def _node_id() -> str | None:
    """Return what tells the nodes of a cluster apart without naming a computer; None outside of Ray."""
    context = _imported().get_runtime_context()
    return None if context.get_task_id() is None else str(context.get_node_id())[:8]


def _on_gpus(visible: str, work: Attempt) -> Measurement:
    # The fork server, and what the worker pinned, knows the GPUs of the task that it was started in.
    nvml.pin_device_of(visible)
    return work()


def _surroundings() -> tuple[str, dict[str, str]]:
    return os.getcwd(), process_settings()


def _imported() -> Any:
    # Without it Ray reports the use of it over the network, and warns of what it will do with GPUs one day.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray ends whom it takes for the cause when a machine's memory is nearly full; the kernel knows better.
    os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")
    try:
        import ray
    except ImportError as error:
        raise QbenchError("--executor ray needs the package ray: pip install 'qbench[ray]'") from error
    return ray


def _answers(address: str) -> None:
    """Raise OSError or ValueError unless something listens at an address; Ray would ask for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError("write HOST:PORT, or auto for the cluster that this machine belongs to")
    socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()


def _connect(ray: Any, address: str | None, device: RunDevice) -> None:
    quiet = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    if device == "cpu":
        quiet["num_cpus"] = 1  # One point at a time, and one idle process of Ray's.
    try:
        if address is not None:
            _answers(address)
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level="ERROR",
            **({} if address else quiet),
        )
    except (OSError, OverflowError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        where = f"--address {address}: no Ray cluster answers" if address else "Ray does not start here"
        raise QbenchError(f"{where}: {first_line(error)}") from error
