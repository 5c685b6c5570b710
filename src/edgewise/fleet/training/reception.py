"""Taking a letter in: who signed it, what it may weigh, its blobs; then it is logged, and the step's answer is the Ack.

Durable before acknowledged: a letter's blobs are in the store and its event in the log before its sender hears yes. A
device speaks for its own client only, an edge for itself only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from math import prod
from typing import Any

import msgspec
import numpy as np

from edgewise.core.errors import (
    EdgewiseError,
    FrameRefused,
    IdentityRefused,
    RemoteError,
    StoreDamaged,
    StoreError,
    StoreUnavailable,
    Unreachable,
)
from edgewise.core.files import storing
from edgewise.core.ids import ClientId, RoundNumber, RunId, Tier, digest_of
from edgewise.fleet.messages import LetterAck, NodeInfo, RunLetter
from edgewise.fleet.node.delivery import is_passing
from edgewise.fleet.node.node import Node
from edgewise.fleet.training.blob_fetches import BlobFetches
from edgewise.fleet.training.role_driver import RoleDriver
from edgewise.training.algorithm import FederatedAlgorithm
from edgewise.training.protocols.letters import Address, AnyLetter, BlobName, Order, UpdateReport, WorkFailed
from edgewise.training.protocols.messages import (
    Accept,
    Action,
    LetterInvalid,
    Received,
    Refusal,
    Refuse,
    SeenClient,
)
from edgewise.training.protocols.protocol import CLIENT, COORDINATOR, EDGE
from edgewise.training.protocols.run_spec import RunSpec
from edgewise.transport.frame import Frame

log = logging.getLogger("edgewise.fleet")
CODED_BYTES_PER_ENTRY = 16
"""Bound of a coded section per entry: an index and a value of eight bytes each."""
SUM_BYTES_PER_ENTRY = 64
"""Bound of a folded sum, or of a section of a server's state, per entry of the model."""
SPARE_BYTES = 2**20
"""What headers of a blob, and sections of a size of their own, may need beside that."""

LETTER_BYTES = 2**16
"""Bound of what a client writes itself: counts, metrics, a cause."""

Find = Callable[[RunId, Address, AnyLetter], Awaitable["RoleDriver | LetterAck"]]


class Reception:
    """Takes letters in: checks their author and size, stores their blobs, and has a role fold them.

    Args:
        node: Who takes them.
        fetches: Fetches their blobs.
        find: The driver of a run's role here; begins the role where a letter may, else says why not.
        present: On an edge: clients that are here.
        taken: Told after a letter was dispatched.
    """

    def __init__(
        self,
        node: Node,
        fetches: BlobFetches,
        find: Find,
        present: Callable[[], dict[ClientId, SeenClient]],
        taken: Callable[[RoleDriver, AnyLetter], Awaitable[None]],
    ) -> None:
        self._node = node
        self._fetches = fetches
        self._find = find
        self._present = present
        self._taken = taken

    async def take(self, message: RunLetter, frame: Frame, sender: NodeInfo) -> LetterAck:
        """Takes a letter.

        Args:
            message: The letter, and which role it is for.
            frame: With its small blobs.
            sender: Who signed it.

        Returns:
            Whether it counts, and why not.

        Raises:
            IdentityRefused: If its signer may not have written it.
            Unreachable: If a blob cannot be fetched now; the sender tries again.
            StoreUnavailable: If the store takes nothing now; the sender keeps the letter and tries again.
            FrameRefused: If a blob is not what its name says, of an edge or a server.
        """
        letter, run = message.letter, run_of(message.letter)
        self._check_server(letter, sender)  # first: nobody else may begin a role here
        driver = await self._find(run, message.to, letter)
        await self._check_client(driver, letter, frame, sender)
        if isinstance(driver, LetterAck):
            return driver
        letter = with_spec(letter, driver.spec)
        digests = [blob.digest for blob in letter.blobs]
        driver.incoming.add(*digests)
        try:
            with storing(self._node.blobs.folder):
                try:
                    return await self._take(driver, letter, frame, sender)
                except StoreDamaged as error:  # the disk has changed what came: it is fetched once more
                    if (
                        error.fields.get("digest") not in digests
                    ):  # another's, which is sought: this one is not to blame
                        raise StoreUnavailable(error.message, **error.fields) from error
                    return await self._take(driver, letter, frame, sender)
        except StoreUnavailable as error:  # not now: its sender keeps it
            if letter.author.role in ("server", COORDINATOR):
                driver.server = driver.server or sender.node  # who is told why, also of a run that has not begun here
            driver.met(driver, error)
            raise
        except EdgewiseError as error:
            # A third node's refusal is not for the sender to judge; what a server has lost it sees to itself.
            has_lost = isinstance(letter, Order) and error.fields.get("remote_code") == StoreError.code
            if isinstance(error, RemoteError) and (is_passing(error) or has_lost):
                raise Unreachable(error.message) from error
            if is_passing(error) or not isinstance(letter, UpdateReport):
                raise
            cause = error.message
        except Exception as error:
            if not isinstance(letter, UpdateReport):
                raise
            cause = f"{type(error).__name__}: {error}"
        finally:
            driver.incoming.release(*digests)
        # A server that cannot take an update goes on without it: nobody must wait for what never counts.
        log.error("%s cannot take %s of %s: %s", self._node.name, letter.key, run, cause)
        failed = WorkFailed(
            run=run,
            round=letter.round,
            client=letter.client,
            exchange=letter.exchange,
            cause=f"{self._node.name} cannot take its update: {cause}",
        )
        await driver.dispatch(Received(letter=failed, sender=sender.node, generation=frame.generation))
        return LetterAck(False, None, cause)

    async def _take(self, driver: RoleDriver, letter: AnyLetter, frame: Frame, sender: NodeInfo) -> LetterAck:
        try:
            await self._fetch(driver, letter, frame, sender)
        except (FrameRefused, RemoteError) as error:
            if is_passing(error) or not isinstance(letter, UpdateReport):
                raise
            event: Any = LetterInvalid(
                run=driver.run,
                client=letter.client,
                round=letter.round,
                generation=frame.generation,
                reason=error.message,
            )
        else:
            present = self._present() if driver.role_name == EDGE and isinstance(letter, Order) else {}
            event = Received(letter=letter, sender=sender.node, generation=frame.generation, present=present)
        actions = await driver.dispatch(event)
        await self._taken(driver, letter)
        answer = answer_in(actions)
        if isinstance(event, LetterInvalid) and answer.accepted:  # a role that does not mind it has not taken it
            return LetterAck(False, Refusal.INVALID, event.reason)
        return answer

    def _check_server(self, letter: AnyLetter, sender: NodeInfo) -> None:
        author = letter.author
        if author.role == EDGE and sender.node != author.name:
            reason = f"{sender.node!r} forwards a sum in the name of {author.name!r}. Each edge forwards its own."
            self._refuse(f"a sum of {sender.node} in the name of {author.name}", reason)
            raise IdentityRefused(reason, node=sender.node)
        allowed = {COORDINATOR: (Tier.CLOUD,), "server": (Tier.CLOUD, Tier.EDGE)}.get(author.role)
        if allowed is not None and sender.tier not in allowed:
            reason = f"{sender.node!r} is a {sender.tier}; {letter.key!r} is taken from {' or '.join(allowed)} only."
            self._refuse(f"an order of {sender.node}, a {sender.tier}", reason)
            raise IdentityRefused(reason, node=sender.node)

    async def _check_client(
        self, driver: RoleDriver | LetterAck, letter: AnyLetter, frame: Frame, sender: NodeInfo
    ) -> None:
        author = letter.author
        if author.role == CLIENT and sender.client != author.name:
            whom = f"client {sender.client!r}" if sender.client else "no client"
            reason = (
                f"{sender.node!r} holds the data of {whom}, its report is in the name of {author.name!r}. "
                "A node reports for its own client only."
            )
            self._refuse(f"a report of {sender.node} in the name of client {author.name}", reason)
            if sender.client and isinstance(driver, RoleDriver):
                await driver.dispatch(
                    LetterInvalid(
                        run=driver.run,
                        client=sender.client,
                        round=getattr(letter, "round", RoundNumber(0)),
                        generation=frame.generation,
                        reason=reason,
                    )
                )
            raise IdentityRefused(reason, node=sender.node)

    def _refuse(self, what: str, reason: str) -> None:
        log.warning("%s refuses a letter: %s", self._node.name, reason)
        self._node.count_refusal(what)

    async def _fetch(self, driver: RoleDriver, letter: AnyLetter, frame: Frame, sender: NodeInfo) -> None:
        if letter.author.role == CLIENT and (size := len(msgspec.msgpack.encode(letter))) > LETTER_BYTES:
            raise FrameRefused(
                f"{sender.node!r} writes {letter.key!r} in {size:,} bytes; a client's letter, which stays in the log and in "
                f"what is told of a round, has at most {LETTER_BYTES:,}. Report fewer metrics."
            )
        inline = {tensor.name: tensor.array for tensor in frame.tensors}
        passed_on = {blob.digest for blob in letter.passed_on}
        most = most_bytes(driver.algorithm, letter, driver.spec.num_entries)
        for place, blob in enumerate(letter.blobs):
            if not 0 <= blob.size_bytes <= most:
                raise FrameRefused(
                    f"{sender.node!r} announces a blob of {blob.size_bytes:,} bytes with {letter.key!r}; it was to "
                    f"announce one of at most {most:,} bytes."
                )
            self._node.grants.give(blob.digest, sender.node)  # who gave it may have it back
            if str(place) in inline:
                await self._keep(driver, blob, inline[str(place)])
            elif blob.digest in passed_on:
                await self._fetches.begin(
                    blob, sender.node, wanted=lambda: not driver.is_closed, met=partial(driver.met, driver)
                )
            else:
                await self._fetches.whole(blob, sender.node)

    async def _keep(self, driver: RoleDriver, blob: BlobName, array: np.ndarray[Any, Any]) -> None:
        data = array.tobytes()
        if len(data) != blob.size_bytes or digest_of(data) != blob.digest:
            raise FrameRefused(f"{len(data):,} bytes came as blob {blob.digest[:12]}, which they are not.")
        if not self._node.blobs.claim(blob.digest):
            if driver.role_name == COORDINATOR:
                await asyncio.to_thread(driver.put, data)
            else:
                driver.put(data)


def run_of(letter: AnyLetter) -> RunId:
    """The run that a letter belongs to."""
    return letter.spec.run if isinstance(letter, Order) else letter.run


def with_spec(letter: AnyLetter, spec: RunSpec) -> AnyLetter:
    """A letter with all that the receiver knows of its run, where it says only the run's name."""
    if isinstance(letter, Order) and letter.spec.is_brief:
        return msgspec.structs.replace(letter, spec=spec)
    return letter


def most_bytes(algorithm: FederatedAlgorithm, letter: AnyLetter, num_entries: int) -> int:
    """Bound of one blob of a letter.

    Args:
        algorithm: Its exchanges say what clients send.
        letter: The letter.
        num_entries: d.

    Returns:
        Bytes.
    """
    if not isinstance(letter, UpdateReport):
        return SUM_BYTES_PER_ENTRY * num_entries + SPARE_BYTES
    exchange = algorithm.exchanges[min(max(letter.exchange, 0), len(algorithm.exchanges) - 1)]
    sections = exchange.local.sections(num_entries)
    entries = sum(prod(num_entries if n is None else n for n in section.shape) for section in sections)
    return CODED_BYTES_PER_ENTRY * entries + SPARE_BYTES


def answer_in(actions: tuple[Action, ...]) -> LetterAck:
    """What the sender of a letter hears, from what its step does.

    Args:
        actions: As dispatched.

    Returns:
        Yes, or why not; a duplicate counts already, so that is a yes.
    """
    for action in actions:
        if isinstance(action, Accept):
            return LetterAck()
        if isinstance(action, Refuse):
            return LetterAck(action.reason is Refusal.DUPLICATE, action.reason, action.text)
    return LetterAck()
