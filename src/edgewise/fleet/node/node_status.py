"""What a node is doing and what it waits for: in its log, in a file of its state folder, and among its metrics.

A node that has no link to its fleet can be asked by nobody in it; whoever stands at the machine reads `status.json`
(`edgewise status`).
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Literal

import msgspec

from edgewise.core.files import write_atomic
from edgewise.core.ids import NodeId
from edgewise.ledger.metric import Labels, Metric, metric

log = logging.getLogger("edgewise.fleet")
STATUS_FILE = "status.json"
SAY_AGAIN_S = 300.0
"""How often it is logged again that something is still waited for, for the same cause."""
Phase = Literal["starting", "serving", "displaced", "stopped"]


class Wait(msgspec.Struct):
    """What is waited for.

    Attributes:
        cause: Why it is not there, with the cure.
        since_s: Wall clock when the wait began.
        attempts: How often it was tried.
    """

    cause: str
    since_s: float
    attempts: int = 1


class StatusRecord(msgspec.Struct, kw_only=True):
    """What `status.json` holds.

    Attributes:
        node, tier, process: Who.
        phase: What it is doing.
        since_s: Wall clock when that began.
        cause: Why it is displaced or was stopped; "" otherwise.
        waits_for: What it waits for, by endpoint or name.
        endpoint: Where it listens; "" if it does not.
        http_port: Port of its inference endpoint; 0 if none.
        models: What it serves, version by model.
    """

    node: str
    tier: str
    process: int
    phase: Phase = "starting"
    since_s: float = 0.0
    cause: str = ""
    waits_for: dict[str, Wait] = msgspec.field(default_factory=dict)
    endpoint: str = ""
    http_port: int = 0
    models: dict[str, int] = msgspec.field(default_factory=dict)


class NodeStatus:
    """Keeps a node's status and writes it whenever it changes.

    Attributes:
        record: As it is now.
    """

    def __init__(self, state: Path, node: NodeId | str, tier: str) -> None:
        """Begins with `starting`.

        Args:
            state: The node's state folder.
            node: Its name.
            tier: Where it stands.
        """
        self.record = StatusRecord(node=str(node), tier=str(tier), process=os.getpid(), since_s=time.time())
        self._file = state / STATUS_FILE
        self._said_s: dict[str, float] = {}
        self._written = b""

    def becomes(self, phase: Phase, cause: str = "", **fields: object) -> None:
        """Notes another phase.

        Args:
            phase: Which.
            cause: Why, where it is not what was asked for.
            **fields: Others of `StatusRecord` to set.
        """
        record = self.record
        if phase != record.phase:
            record.phase, record.since_s = phase, time.time()
        record.cause = cause
        for name, value in fields.items():
            setattr(record, name, value)
        self._write()

    def waits_for(self, what: str, cause: str) -> None:
        """Notes that something is waited for; it is logged at first, with every new cause, and every five minutes.

        Args:
            what: An endpoint or a node.
            cause: Why it is not there, with the cure.
        """
        wait = self.record.waits_for.get(what)
        is_new = wait is None or wait.cause != cause
        if wait is None:
            wait = self.record.waits_for[what] = Wait(cause, time.time())
        else:
            wait.cause, wait.attempts = cause, wait.attempts + 1
        if is_new or time.monotonic() - self._said_s.get(what, 0.0) >= SAY_AGAIN_S:
            waited_s = time.time() - wait.since_s
            since = f", for {waited_s:.0f} s" if waited_s >= 1 else ""
            log.warning("%s waits for %s%s: %s", self.record.node, what, since, cause)
            self._said_s[what] = time.monotonic()
        self._write()

    def came(self, what: str) -> None:
        """Notes that something is there; it may not have been waited for."""
        wait = self.record.waits_for.pop(what, None)
        self._said_s.pop(what, None)
        if wait is not None:
            log.warning("%s: %s is there after %.0f s", self.record.node, what, time.time() - wait.since_s)
            self._write()

    def metrics(self) -> list[Metric]:
        """Seconds it has waited, by what is waited for."""
        node, now_s = ("node", self.record.node), time.time()
        samples: dict[Labels, float] = {
            (node, ("for", what)): now_s - wait.since_s for what, wait in self.record.waits_for.items()
        }
        return [metric("node_waiting_seconds", "gauge", "Time this node has waited for what is not there.", samples)]

    def _write(self) -> None:
        data = msgspec.json.format(msgspec.json.encode(self.record))
        if data == self._written:
            return
        try:
            write_atomic(self._file, data, durable=False)
            self._written = data
        except OSError as error:  # a full disk keeps nobody from serving
            log.warning("%s cannot write its status: %s", self.record.node, error)


def read_status(state: Path) -> StatusRecord | None:
    """What a node wrote of itself last.

    Args:
        state: Its state folder.

    Returns:
        The record; None if there is none that can be read.
    """
    try:
        return msgspec.json.decode((state / STATUS_FILE).read_bytes(), type=StatusRecord)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
