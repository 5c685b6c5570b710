"""What every server of a round does: append the event to the log, step, act; take updates in durably.

The coordinator and an edge share it: `RunDriver` folds events under a lock, `Inbox` turns a report into a stored payload.
Durable before acknowledged: an update's payload is in the blob store and its event in the log before its sender hears yes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any

import numpy as np

from edgewise.codecs.wire import payload_from_tensors, payload_to_bytes
from edgewise.core.errors import FrameRefused, IdentityRefused, RemoteError, StoreError
from edgewise.core.ids import ClientId, Digest, Epoch, NodeId
from edgewise.fleet.messages import (
    INLINE_BYTES,
    Ack,
    BlobRef,
    HardExamples,
    NodeInfo,
    TrainFailed,
    TrainOrder,
    UpdateReport,
)
from edgewise.fleet.node.node import Node
from edgewise.fleet.store.events import EventLog
from edgewise.training.protocols.event_log import decode_event, encode_event
from edgewise.training.protocols.messages import (
    AcceptUpdate,
    Event,
    Refusal,
    RefuseUpdate,
    RequestUpdate,
    UpdateInvalid,
    UpdateReceived,
    examples,
)
from edgewise.transport.bulk.blobs import FolderBlobs
from edgewise.transport.frame import Frame

log = logging.getLogger("edgewise.fleet")
PAYLOAD_BYTES_PER_ENTRY = 16
"""Bound of an encoded update per entry of the model: an index and a value of eight bytes each."""
SUM_BYTES_PER_ENTRY = 64
"""Bound of a folded sum per entry of the model."""
SPARE_BYTES = 2**20
"""What headers of a blob may need beside its entries."""


class BlobMapping(MutableMapping[Digest, bytes]):
    """The blob folder as the mapping that protocols read by digest."""

    def __init__(self, blobs: FolderBlobs) -> None:
        self._blobs = blobs

    def __getitem__(self, digest: Digest) -> bytes:
        if not self._blobs.has(digest):
            raise KeyError(digest)
        return self._blobs.read(digest)

    def __setitem__(self, digest: Digest, data: bytes) -> None:
        if not self._blobs.has(digest):
            self._blobs.put(data)

    def __delitem__(self, digest: Digest) -> None:
        raise TypeError("a protocol never deletes a blob")

    def __iter__(self) -> Iterator[Digest]:
        raise TypeError("a blob folder is read by digest")

    def __len__(self) -> int:
        raise TypeError("a blob folder is read by digest")


class RunDriver:
    """Folds the events of one run, or of one edge.

    Attributes:
        name: Its name in the log.
        state: As folded.
    """

    def __init__(
        self,
        name: str,
        step: Callable[[Any, Any], tuple[Any, tuple[Any, ...]]],
        events: EventLog,
        blobs: FolderBlobs,
        perform: Callable[[Any], Awaitable[None]],
        state: Any = None,
    ) -> None:
        self.name = name
        self.state = state
        self._step = step
        self._events = events
        self._blobs = BlobMapping(blobs)
        self._perform = perform
        self._lock = asyncio.Lock()

    async def dispatch(self, event: Event) -> tuple[Any, ...]:
        """Takes one event: log, fold, act.

        Args:
            event: What happened.

        Returns:
            The actions; they have been carried out, or are on their way.
        """
        async with self._lock:
            data = encode_event(event)
            await asyncio.to_thread(self._events.append, self.name, type(event).__name__, data)
            actions = await asyncio.to_thread(self._fold, event)
        for action in actions:
            await self._perform(action)
        return actions

    def replay(self) -> int:
        """Folds what the log has; returns how many events."""
        entries = self._events.read(self.name)
        for entry in entries:
            self._fold(decode_event(entry.payload))
        return len(entries)

    def _fold(self, event: Event) -> tuple[Any, ...]:
        self.state, actions = self._step(self.state, event)
        for action in actions:
            self._blobs.update(getattr(action, "blobs", {}))
        return actions


async def update_event(node: Node, report: UpdateReport, frame: Frame, sender: NodeInfo, num_entries: int) -> Event:
    """Stores an update's payload and makes its event.

    Args:
        node: The server's node.
        report: What came; its sender is checked by `check_client`.
        frame: With the payload's arrays, unless `report.payload` says where it is.
        sender: Who signed it.
        num_entries: d, which bounds what is fetched.

    Returns:
        `UpdateReceived`, or `UpdateInvalid` if it cannot even be read.

    Raises:
        Unreachable: If its blob cannot be fetched now; the sender tries again.
    """
    try:
        if report.payload is not None:
            data = await fetch_from(node, report.payload, sender.node, PAYLOAD_BYTES_PER_ENTRY * num_entries)
        else:
            data = payload_to_bytes(payload_from_tensors(report.shape, {t.name: t.array for t in frame.tensors}))
    except (FrameRefused, RemoteError) as error:
        return UpdateInvalid(report.run, report.round, report.client, frame.epoch, error.message)
    digest = await asyncio.to_thread(node.blobs.put, data)
    weight = examples(report.weight)
    return UpdateReceived(report.run, report.round, report.client, frame.epoch, weight, digest, report.metrics)


async def fetch_from(node: Node, ref: BlobRef, holder: NodeId, most_bytes: int) -> bytes:
    """Pulls a blob that a node announced as its own.

    Args:
        node: Who pulls.
        ref: What was announced.
        holder: Who announced it.
        most_bytes: Bound of what it may be, beside `SPARE_BYTES`.

    Returns:
        The bytes.

    Raises:
        FrameRefused: If it is not the announcer's, larger than it can be, or not what its digest says.
        Unreachable, RemoteError: As `Node.fetch`.
    """
    if ref.holder != holder or not 0 <= ref.size_bytes <= most_bytes + SPARE_BYTES:
        raise FrameRefused(
            f"{holder!r} announces a blob of {ref.size_bytes:,} bytes at {ref.holder!r}; it was to announce its own, "
            f"of at most {most_bytes + SPARE_BYTES:,} bytes."
        )
    try:
        return await node.fetch(ref)
    except StoreError as error:
        raise FrameRefused(error.message) from error


async def check_client(
    node: Node, driver: RunDriver, sender: NodeInfo, epoch: Epoch, report: UpdateReport | TrainFailed
) -> None:
    """A node speaks for its own client only; one that signed for another is quarantined in that run.

    Args:
        node: The server's node; counts and logs the attempt with both names.
        driver: Of the run.
        sender: Who signed the report.
        epoch: Its incarnation.
        report: What it says.

    Raises:
        IdentityRefused: If it speaks for another.
    """
    if sender.client == report.client:
        return
    whom = f"client {sender.client!r}" if sender.client else "no client"
    reason = (
        f"{sender.node!r} holds the data of {whom}, its report is in the name of {report.client!r}. "
        "A node reports for its own client only."
    )
    log.warning("%s refuses a report: %s", node.name, reason)
    node.count_refusal(f"a report of {sender.node} in the name of client {report.client}")
    if sender.client:
        await driver.dispatch(UpdateInvalid(report.run, report.round, sender.client, epoch, reason))
    raise IdentityRefused(reason, node=sender.node)


def answer_to(actions: tuple[Any, ...], client: ClientId) -> Ack:
    """What the sender of an update hears.

    Args:
        actions: As dispatched.
        client: Who sent it.

    Returns:
        Yes, or why not; a duplicate counts already, so that is a yes.
    """
    for action in actions:
        if isinstance(action, AcceptUpdate) and action.client == client:
            return Ack()
        if isinstance(action, RefuseUpdate) and action.client == client:
            return Ack(action.reason is Refusal.DUPLICATE, action.text, {"reason": str(action.reason)})
    return Ack(False, "the run does not ask this node for updates; this one does not count", {"reason": "not_asked"})


def asked(actions: tuple[Any, ...], client: ClientId) -> bool:
    """Whether a client is asked by one of these actions."""
    return any(isinstance(action, RequestUpdate) and client in action.clients for action in actions)


def train_order(
    node: Node,
    request: RequestUpdate,
    *,
    algorithm: dict[str, Any],
    seed: int,
    layout: Digest,
    num_entries: int,
    hard_examples: HardExamples | None,
) -> tuple[TrainOrder, dict[str, np.ndarray[Any, Any]]]:
    """The order for a client's part of a round; a small model travels with it, a large one is named.

    Args:
        node: The server's node, which holds the model, or, if it is large, is fetching it.
        request: As the protocol asks.
        algorithm: Words.
        seed: The job's seed.
        layout: Digest of the layout.
        num_entries: d.
        hard_examples: What joins the client's data.

    Returns:
        The order and the tensors beside it.
    """
    size = 4 * num_entries
    inline = size <= INLINE_BYTES
    order = TrainOrder(
        request.run, request.round, algorithm, seed, layout, node.name,
        None if inline else BlobRef(request.model, size, node.name), hard_examples,
    )  # fmt: skip
    return order, {"model": np.frombuffer(node.blobs.read(request.model), np.float32)} if inline else {}
