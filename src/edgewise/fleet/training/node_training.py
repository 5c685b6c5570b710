"""What an edge and a device do in training: their log, an edge's eyes on devices, their roles in runs."""

from __future__ import annotations

from pathlib import Path

from edgewise.core.errors import StoreError
from edgewise.core.ids import NodeId, Tier
from edgewise.fleet.membership.watch import Watch
from edgewise.fleet.messages import NodeInfo
from edgewise.fleet.node.node import Node
from edgewise.fleet.store.events import EventLog
from edgewise.fleet.training.local_worker import LocalWorker
from edgewise.fleet.training.run_roles import RunRoles

EVENTS = "events.db"


class NodeTraining:
    """Training on a node that is not the coordinator.

    Args:
        node: The node.
        state: Folder of its log.
        worker: Where a task is installed.
        is_edge: Whether it gathers its devices' updates.
        crash_after: For tests, see `EventLog`.

    Raises:
        StoreError: If the folder is of 0.1.0, or another process writes there.
    """

    def __init__(
        self,
        node: Node,
        state: Path,
        *,
        worker: LocalWorker | None = None,
        is_edge: bool = False,
        crash_after: int | None = None,
    ) -> None:
        if (state / "edge.db").exists():
            raise StoreError(
                f"the state folder {str(state)!r} is of Edgewise 0.1.0, which this one does not read. "
                "Give this node a new state folder; an edge has nothing in it that the fleet does not send again."
            )
        self._node = node
        self.events = EventLog.open(state / EVENTS, crash_after=crash_after)
        self.watch = Watch(node, ready=self._ready, lost=self._lost, tiers=(Tier.DEVICE,)) if is_edge else None
        self.roles = RunRoles(node, self.events, watch=self.watch, worker=worker, is_edge=is_edge)
        node.holders[EVENTS] = self.roles.held

    async def start(self) -> None:
        """Replays the log, begins to watch devices, goes on with what was interrupted."""
        self.roles.replay()
        if self.watch is not None:
            await self.watch.start()
        self.roles.resume()

    async def close(self) -> None:
        """Closes the log."""
        await self.roles.close()
        self.events.close()

    def _ready(self, info: NodeInfo) -> None:
        self.roles.node_ready(info)

    def _lost(self, node: NodeId, cause: str) -> None:
        assert self.watch is not None
        info = self.watch.members.members[node].info
        if info is not None:
            self.roles.node_lost(info, cause)
