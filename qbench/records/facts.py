"""What a result stands on: the code, files, cards, machine and settings that its numbers depend on.

A stored result still counts where all of it is as it was (`Facts.standing`). Two results may be compared
where `Facts.comparable` is equal: code and libraries may be why a number moved.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qbench.errors import QbenchError
from qbench.files import content_digest

if TYPE_CHECKING:
    from qbench.catalog.gpus import GpuSpec
    from qbench.records.calibration import Calibration
    from qbench.records.parts import Detail, Environment
    from qbench.records.record import Kind, Record
    from qbench.scenario.schema import Device, Point

Named = Mapping[str, object]
"""Facts under the names that a person knows; one that is not known is None."""

Machine = tuple[tuple[str, str], ...]
"""Fingerprint of where a measurement was made: device name and library versions."""

FileDigests = tuple[tuple[str, str], ...]
"""Digests of files, by name."""

OF_THE_MACHINE = frozenset(("machine", "driver", "number of CPUs", "calibrations"))
"""Names of the facts that are another on another machine."""

_READ = ("compute_capability", "allocator", "protocol")
"""Parts of the detail that what is comparable is read from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What one result stands on. A plan has no machine, settings and protocol, a measurement no cards."""

    device: str | None
    """Whose kernels ran, or null."""
    code: Named
    """Code, library versions, and what of a library is not as released."""
    files: Named
    """Content of the files that the point names."""
    cards: Named = field(default_factory=dict)
    """Cards that a plan was checked against, the allocator's variable, and what was known of speed."""
    kernels: Named = field(default_factory=dict)
    """Compute capability and allocator that a plan is of."""
    machine: Named = field(default_factory=dict)
    """Device, driver or number of CPUs."""
    settings: Named | None = field(default_factory=dict)
    """Variables of the process; None where they are not known."""
    protocol: Named = field(default_factory=dict)
    """How many steps were taken."""

    @property
    def standing(self) -> dict[str, object]:
        """All that must be as it was for a stored result to count; the device apart."""
        return {
            **self.code,
            **self.files,
            **self.cards,
            **self.machine,
            **(self.settings or {}),
            **self.protocol,
        }

    @property
    def comparable(self) -> dict[str, str]:
        """All that must be equal before numbers may be compared, as text; what is unknown is left out."""
        settings = self.settings
        known: dict[str, object] = {"device": self.device, **self.files, **self.kernels}
        if settings is not None and self.machine:
            named = (f"{name}={settings[name]}" for name in sorted(settings))
            known["settings"] = ", ".join(named) or "none"
        known |= {**self.machine, **self.protocol}
        return {name: str(value) for name, value in known.items() if value is not None}


def facts_of(record: Record) -> Facts:
    """Return what a record stands on."""
    return facts(record.kind, record.environment, record.detail)


def facts(kind: Kind, env: Environment, detail: Detail) -> Facts:
    """Return what a result of these parts stands on."""
    versions = {f"version of {name}": version for name, version in (env.get("versions") or {}).items()}
    edits = {
        f"source of {name}": digest for name, digest in (env.get("fingerprints") or {}).items() if digest
    }
    code = {"code": env.get("code_id"), **versions, **edits}
    files = file_facts(env.get("inputs") or {})
    if kind == "plan":
        capability = detail.get("compute_capability")
        return Facts(
            device=env.get("device"),
            code=code,
            files=files,
            cards={
                "GPUs": [fit["gpu"] for fit in detail.get("fits") or ()],
                "PYTORCH_ALLOC_CONF": detail.get("alloc_conf") or "",
                "calibrations": list(detail.get("calibrations") or ()),
            },
            kernels={
                "compute capability": ".".join(map(str, capability)) if capability else None,
                "allocator": _allocator_text(detail),
            },
        )
    is_cpu = env.get("device") == "cpu"
    of_device = {"number of CPUs": env.get("cpu_count")} if is_cpu else {"driver": env.get("driver")}
    return Facts(
        device=env.get("device"),
        code=code,
        files=files,
        machine={"machine": env.get("device_name"), **of_device},
        settings=env.get("settings"),
        protocol=detail.get("protocol") or {},
    )


def input_digests(point: Point) -> dict[str, str]:
    """Return the digest of each file that a point names and that is not part of its identity.

    These are `config.json` of a model's folder or the one file of a GGUF, and the text that is trained on;
    the weights of a folder are not read.
    """
    # Not Path.expanduser, which raises for the home of a user that does not exist.
    model = os.path.expanduser(point.model)
    files = {"config.json": Path(model, "config.json")}
    if model.endswith(".gguf"):
        files["gguf"] = Path(model)
    files = {name: file for name, file in files.items() if os.path.isfile(file)}
    if point.data != "random":
        files["data"] = Path(point.data)
    return {name: content_digest(file) for name, file in files.items()}


def file_facts(digests: Mapping[str, str]) -> Named:
    """Return the content of files as facts, from their digests by name."""
    return {f"content of {name}": digest for name, digest in digests.items()}


def named_content(record: Record) -> FileDigests:
    """Return the digests of files of which the record's point holds the name alone: a GGUF, a text.

    That of config.json is part of the model's name.
    """
    digests = record.environment.get("inputs") or {}
    return tuple(sorted((name, digest) for name, digest in digests.items() if name != "config.json"))


def _allocator_text(detail: Detail) -> str | None:
    allocator = detail.get("allocator")
    if allocator is None:
        return None
    return ", ".join(f"{name}={value}" for name, value in allocator.items() if value) or "defaults"


def seem_alike(before: Record, now: Record) -> bool:
    """Say whether all that `Facts.comparable` is read from is equal, which is cheap to see."""
    ours, theirs = before.detail, now.detail
    return before.environment == now.environment and all(ours.get(n) == theirs.get(n) for n in _READ)


def machine_of(record: Record) -> Machine:
    """Return the fingerprint of a measurement's environment; of a plan its card, if it is for one."""
    if record.kind == "plan":
        return (("device_name", record.card),) if record.card else ()
    return _machine(str(record.device_name), tuple(record.versions.items()))


@functools.lru_cache
def _machine(device_name: str, versions: tuple[tuple[str, str | None], ...]) -> Machine:
    named = sorted((package, str(version)) for package, version in versions)
    return (("device_name", device_name), *named)


def environment_facts(environment: Mapping[str, object]) -> dict[str, str | bool]:
    """Return the texts and flags of an environment under dotted names; numbers are readings, not facts."""
    found: dict[str, str | bool] = {}
    for name, value in environment.items():
        if isinstance(value, Mapping):
            found |= {f"{name}.{inner}": fact for inner, fact in environment_facts(value).items()}
        elif isinstance(value, str | bool):
            found[name] = value
    return found


def plan_facts(
    point: Point,
    digests: Mapping[str, str],
    device: Device,
    gpus: Sequence[GpuSpec],
    alloc_conf: str,
    calibrations: Sequence[Calibration],
) -> dict[str, Any] | None:
    """Return all that a plan depends on beside the code, as JSON values.

    None where some of it is not in sight, as on the hub or inside a GGUF. `digests` are those of the files
    that the point names.
    """
    from qbench.catalog.models import resolve_model  # Whoever compares records needs neither.
    from qbench.records.calibration import describe

    try:
        if resolve_model(point.model).kind in ("hub", "gguf"):
            return None
    except QbenchError:
        return None
    return {
        "point": point.model_dump(mode="json"),
        "inputs": digests,
        "device": device,
        "gpus": [repr(gpu) for gpu in gpus],
        "alloc_conf": alloc_conf,
        "calibrations": [describe(found) for found in calibrations],
    }
