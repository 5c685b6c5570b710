"""What a node serves: its orders by model, on disk, and the room that is left for another."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec

from edgewise.core.files import storing, write_atomic
from edgewise.core.ids import NodeId, Tier
from edgewise.core.private_files import PRIVATE
from edgewise.core.units import format_bytes
from edgewise.fleet.messages import BlobRef, InForce, InstallOrder, NodesAt
from edgewise.fleet.store.retention import Hold
from edgewise.planning.plan import Site


class Installed(msgspec.Struct, frozen=True):
    """What a node serves, as it is on disk.

    Attributes:
        orders: What was installed, by model.
        coordinator: Who ordered it.
        former: Graph of each model that was installed before, which a rollout that is taken back asks for again.
    """

    orders: dict[str, InstallOrder]
    coordinator: NodeId
    former: dict[str, BlobRef] = {}


class InstalledModels:
    """The orders a node carries out.

    Attributes:
        orders: By model.
        former: As `Installed.former`.
    """

    def __init__(self, node: NodeId, file: Path, *, max_models: int, max_bytes: int = 0) -> None:
        """Makes an empty list; `read` gives what is on disk.

        Args:
            node: The node.
            file: Where it is written.
            max_models: How many models may be served at once.
            max_bytes: What they may take together; 0 for half of the machine's memory.
        """
        self.orders: dict[str, InstallOrder] = {}
        self.former: dict[str, BlobRef] = {}
        self._on_disk = Installed({}, NodeId(""))
        self._node, self._file, self._max_models = node, file, max_models
        self._max_bytes = max_bytes or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2

    @property
    def in_force(self) -> dict[str, InForce]:
        """What was ordered, by model."""
        return {n: InForce(o.version, o.revision, o.digest) for n, o in sorted(self.orders.items())}

    async def read(self) -> Installed:
        """What was written last.

        Raises:
            OSError: If there is nothing, or it cannot be read.
            MsgspecError: If it is something else.
        """
        data = await asyncio.to_thread(self._file.read_bytes)
        self._on_disk = msgspec.msgpack.decode(data, type=Installed)
        self.former = dict(self._on_disk.former)
        return self._on_disk

    async def write(self, coordinator: NodeId) -> None:
        """Writes the orders; they are on disk when this returns.

        Args:
            coordinator: Who gave the last one.

        Raises:
            StoreUnavailable: If the disk takes nothing now.
        """
        written = Installed(dict(self.orders), coordinator, dict(self.former))
        with storing(self._file):
            await asyncio.to_thread(write_atomic, self._file, msgspec.msgpack.encode(written), mode=PRIVATE)
        self._on_disk = written

    def put(self, order: InstallOrder) -> None:
        """Takes an order in the place of the model's last one, whose graph stays."""
        before = self.orders.get(order.model)
        if before is not None and before.graph.digest != order.graph.digest:
            self.former[order.model] = before.graph
        self.orders[order.model] = order

    def drop(self, model: str) -> None:
        """Takes a model back."""
        self.orders.pop(model, None)
        self.former.pop(model, None)

    def held(self) -> list[Hold]:
        """Graphs that this node serves, served before, or is to serve once it can."""
        graphs = {
            (name, order.graph.digest) for of in (self.orders, self._on_disk.orders) for name, order in of.items()
        }
        graphs |= {(name, ref.digest) for of in (self.former, self._on_disk.former) for name, ref in of.items()}
        return [Hold(f"graphs of {name}", frozenset({digest})) for name, digest in sorted(graphs)]

    def refusal_of(self, order: InstallOrder) -> str:
        """Why there is no room for a model; "" if there is.

        Args:
            order: What is to be installed; an earlier version of the same model makes room for it.

        Returns:
            The sentence, with its cure.
        """
        others = [other for name, other in self.orders.items() if name != order.model]
        if len(others) >= self._max_models:
            names = ", ".join(sorted(other.model for other in others))
            return (
                f"{self._node} serves {len(others)} models ({names}) and takes no more, so not {order.model!r}. "
                "Start it with a larger --max-models, or deploy elsewhere."
            )
        needed, taken = _bytes_of(order), sum(map(_bytes_of, others))
        if needed + taken > self._max_bytes:
            return (
                f"{order.model!r} with {len(order.plans)} plans needs about {format_bytes(needed)} on {self._node}, where "
                f"{format_bytes(taken)} of {format_bytes(self._max_bytes)} for models are taken. Deploy fewer plans or a "
                "smaller model, or start it with a larger --models-bytes."
            )
        return ""


def _bytes_of(order: InstallOrder) -> int:
    """About what a model takes here: its graph, and each plan's sessions with the weights once."""
    return order.graph.size_bytes * (1 + len(order.plans))


def edge_first(order: InstallOrder, edge: NodeId | None) -> InstallOrder:
    """The same with the edge a device is connected to now as the first that is asked.

    Args:
        order: As it was installed.
        edge: That edge; None if it is not known.

    Returns:
        The order.
    """
    if edge is None:
        return order
    first = Site(Tier.EDGE)
    nodes_at = (
        NodesAt(at.site, (edge, *(name for name in at.nodes if name != edge))) if at.site == first else at
        for at in order.nodes_at
    )
    return msgspec.structs.replace(order, nodes_at=tuple(nodes_at))
