"""Where the memory of a card has gone: context, torch's allocator, what else the process holds, the rest."""

from __future__ import annotations

from dataclasses import dataclass

from qbench.catalog.capabilities import smallest_context
from qbench.measure.nvml import CardState


@dataclass(frozen=True, slots=True, kw_only=True)
class CardUse:
    """The card before CUDA started in this process, and at one instant afterwards."""

    before: CardState
    now: CardState
    reserved_bytes: int
    """What torch's caching allocator holds at that instant."""
    context_bytes: int | None = None
    """What opening CUDA took, where that is known."""

    @property
    def grown_bytes(self) -> int | None:
        """Bytes in use on the card now, beyond those before, by whomever."""
        if self.before.used_bytes is None or self.now.used_bytes is None:
            return None
        return self.now.used_bytes - self.before.used_bytes

    @property
    def own_bytes(self) -> int | None:
        """Bytes that this process has on the card; None where nothing says so for certain.

        The driver's own figure counts where it lists this process. Else it is what the card's use grew by,
        if nobody else computed on it: no process was listed before, and one, under whatever id, is now. In a
        container that is shown no process at all, use says so: less than a context was in use before, and
        what is beside the allocator has not grown by another one's since.
        """
        if self.now.own_bytes is not None:
            return self._at_least_reserved(self.now.own_bytes)
        alone = self.now.is_taken_since(self.before) or self._is_alone_unlisted
        return self._at_least_reserved(self.grown_bytes) if alone else None

    @property
    def _is_alone_unlisted(self) -> bool:
        grown, used = self.grown_bytes, self.before.used_bytes
        if self.before.pids != () or self.now.pids != () or grown is None or used is None:
            return False
        another = smallest_context()
        opened = grown - self.reserved_bytes if self.context_bytes is None else self.context_bytes
        return used < another and grown - self.reserved_bytes < opened + another

    def _at_least_reserved(self, own: int | None) -> int | None:
        # Less than the allocator holds cannot be this process: its id is another's in the driver's list.
        return own if own is not None and own >= self.reserved_bytes else None

    @property
    def outside_bytes(self) -> int | None:
        """Bytes that this process has on the card outside torch's allocator: context, modules, libraries."""
        own = self.own_bytes
        return None if own is None else own - self.reserved_bytes


def reconcile(use: CardUse, context_bytes: int | None) -> dict[str, int | None]:
    """Return device_bytes and its parts; None for each that is unknown.

    device_bytes        what the card's use grew by since before CUDA started here
    context_bytes       what opening CUDA took
    reserved_bytes      torch's allocator
    non_torch_bytes     what else this process holds: modules loaded later, cuBLASLt, managed memory
    unexplained_bytes   the rest: what other processes and the driver took meanwhile
    """
    device, outside, reserved = use.grown_bytes, use.outside_bytes, use.reserved_bytes
    non_torch = None if outside is None or context_bytes is None else outside - context_bytes
    known = (context_bytes or 0) + reserved if outside is None else outside + reserved
    is_known = device is not None and (outside is not None or context_bytes is not None)
    return {
        "device_bytes": device,
        "context_bytes": context_bytes,
        "reserved_bytes": reserved,
        "non_torch_bytes": non_torch,
        "unexplained_bytes": device - known if is_known and device is not None else None,
    }
