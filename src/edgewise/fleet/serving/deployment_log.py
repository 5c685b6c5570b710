"""What was in force, in the coordinator's log: read after a restart, and short however often a fleet is deployed to."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from edgewise.core.ids import Revision, RunId
from edgewise.fleet.serving.deployment import Deployment, ModelDeployments
from edgewise.fleet.store.events import EventLog

LOG = RunId("deployments")
HISTORY = 8
"""Deployments of a model that one can go back to, once older ones are forgotten."""
MOST_ENTRIES = 64
"""Entries from which on one takes the place of all: plans, and the example a model is measured with, are not small."""
_SNAPSHOT = "snapshot"


class _Withdrawn(msgspec.Struct, frozen=True):
    """The last deployment of a model is no longer in its history."""

    model: str


class _Beginning(msgspec.Struct, frozen=True):
    """What the log begins with once entries before it are gone: the last revision, and each model's history."""

    last_revision: int
    models: dict[str, tuple[Deployment, ...]]


class DeploymentLog:
    """Deployments in a coordinator's log.

    Args:
        events: The log.
    """

    def __init__(self, events: EventLog) -> None:
        self._events = events
        self._num_entries = 0

    def read(self, damaged: list[str] | None = None) -> tuple[int, dict[str, list[Deployment]]]:
        """The last revision that was given, and by model what was in force, newest last.

        Args:
            damaged: As of `EventLog.read`.
        """
        last, models = 0, dict[str, list[Deployment]]()
        entries = self._events.read(LOG, damaged=damaged)
        self._num_entries = len(entries)
        for entry in entries:
            if entry.kind == _SNAPSHOT:
                known = msgspec.msgpack.decode(entry.payload, type=_Beginning)
                last, models = known.last_revision, {name: list(history) for name, history in known.models.items()}
            elif entry.kind == "begun":
                last = max(last, msgspec.msgpack.decode(entry.payload, type=int))
            elif entry.kind == "deployed":
                deployment = msgspec.msgpack.decode(entry.payload, type=Deployment)
                models.setdefault(deployment.model, []).append(deployment)
            elif entry.kind == "withdrawn":
                del models.setdefault(msgspec.msgpack.decode(entry.payload, type=_Withdrawn).model, [])[-1:]
        return last, models

    def begin(self, revision: int) -> Revision:
        """Notes that a revision is given, for good: it is never given twice."""
        self._append(("begun", msgspec.msgpack.encode(revision)))
        return Revision(revision)

    def deployed(self, now: Deployment) -> None:
        """Notes what is in force."""
        self._append(("deployed", msgspec.msgpack.encode(now)))

    def restored(self, now: Deployment) -> None:
        """Notes that the last two deployments of a model are one: the older one, in force again."""
        withdrawn = ("withdrawn", msgspec.msgpack.encode(_Withdrawn(now.model)))
        self._append(withdrawn, withdrawn, ("deployed", msgspec.msgpack.encode(now)))

    def forget_old(self, last_revision: int, models: Mapping[str, ModelDeployments]) -> None:
        """Puts one entry in the place of many, once there are; of each model the last `HISTORY` deployments stay.

        Args:
            last_revision: That was given.
            models: By name; their histories become shorter.
        """
        if self._num_entries < MOST_ENTRIES:
            return
        known = _Beginning(last_revision, {name: tuple(of.history[-HISTORY:]) for name, of in models.items()})
        self._events.compact(LOG, _SNAPSHOT, msgspec.msgpack.encode(known), num_events=0)
        self._num_entries = 1
        for of in models.values():
            del of.history[:-HISTORY]

    def _append(self, *entries: tuple[str, bytes]) -> None:
        self._events.append_many(LOG, entries)
        self._num_entries += len(entries)
