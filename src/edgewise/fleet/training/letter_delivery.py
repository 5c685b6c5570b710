"""Delivering a run's letters: sent until they are acknowledged, or until their role wants them no more.

A letter to somebody who is not there waits and goes out when they return. One that is sent again while it is on its way
is tried again: an answer that was given before says nothing of it. Blobs travel in the frame while they are small, else their receiver pulls them from here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
import numpy as np

from edgewise.core.errors import EdgewiseError
from edgewise.core.ids import Digest, NodeId
from edgewise.fleet.messages import LetterAck, RunLetter
from edgewise.fleet.node.delivery import Waits, is_passing
from edgewise.fleet.node.node import Node
from edgewise.fleet.store.patience import PASSING
from edgewise.fleet.training.blob_fetches import BlobFetches
from edgewise.fleet.training.role_driver import RoleDriver
from edgewise.ledger.entry import Purpose
from edgewise.training.protocols.folding import lost_blob
from edgewise.training.protocols.letters import Address, AnyLetter, Order
from edgewise.training.protocols.messages import Delivered, Refusal, Send
from edgewise.training.protocols.protocol import CLIENT, EDGE

log = logging.getLogger("edgewise.fleet")
LETTER_TIMEOUT_S, MOST_S = 30.0, 600.0
"""How long a receiver may take to judge a letter, and with all that it pulls; then it is sent again. No longer than it needs: Zenoh
remembers a query until its time-out, also when it is answered."""
INLINE_BYTES_PER_S, PULLED_BYTES_PER_S = 1_000.0, 10_000.0
"""For what a letter carries and for what is pulled, which goes on where it was, there is time on links that are as slow."""

Locate = Callable[[RoleDriver, Address, bool], Awaitable[NodeId | None]]
"""(driver, address, whether the place it told before was wrong) -> node; None while it is not there."""
Inline = dict[str, np.ndarray[Any, Any]]


@dataclass(slots=True)
class _Pending:
    letter: AnyLetter
    poke: asyncio.Event = field(default_factory=asyncio.Event)
    num_sent: int = 1


class LetterDelivery:
    """A node's letters under way.

    Args:
        node: Who sends.
        fetches: Fetches what is only passed on and is not here yet.
        locate: Tells the node of an address; None while it is not there.
    """

    def __init__(self, node: Node, fetches: BlobFetches, locate: Locate) -> None:
        self._node = node
        self._fetches = fetches
        self._locate = locate
        self._pending: dict[tuple[str, Address, str], _Pending] = {}
        self._informed: dict[str, set[NodeId]] = {}

    def send(self, driver: RoleDriver, action: Send) -> None:
        """Begins to deliver a letter; one of that key that is under way gets the new content and is tried at once.

        Args:
            driver: Whose letter it is.
            action: As its step says.
        """
        key = (driver.log, action.to, action.letter.key)
        if key in self._pending:
            self._pending[key].letter = action.letter
            self._pending[key].num_sent += 1
            self._pending[key].poke.set()
            return
        self._pending[key] = _Pending(action.letter)
        self._node.spawn(self._deliver(driver, key), f"deliver {action.letter.key} of {driver.run}")

    def returned(self, *names: str) -> None:
        """Tries at once what waits for a client or a node.

        Args:
            *names: Its names.
        """
        for (_, to, _), pending in self._pending.items():
            if not names or to.name in names or not to.name:
                pending.poke.set()

    def end(self, driver: RoleDriver) -> None:
        """Lets go at once of letters that a role whose run has ended wants no more.

        Args:
            driver: Whose they are.
        """
        self._informed.pop(driver.log, None)
        for (name, to, _), pending in self._pending.items():
            if name == driver.log and not driver.role.wants(driver.state, to, pending.letter):
                pending.poke.set()

    def is_sent_again(self, driver: RoleDriver, answered: Delivered) -> bool:
        """Whether a letter is under way anew since it was answered; any thread."""
        return (driver.log, answered.to, answered.key) in self._pending

    def has(self, driver: RoleDriver) -> bool:
        """Whether letters of a role are under way."""
        return any(name == driver.log for name, _, _ in self._pending)

    def digests(self) -> set[Digest]:
        """Blobs of letters that are under way; any thread."""
        return {blob.digest for pending in tuple(self._pending.values()) for blob in pending.letter.blobs}

    async def _deliver(self, driver: RoleDriver, key: tuple[str, Address, str]) -> None:
        _, to, name = key
        pending = self._pending[key]
        try:
            ack = await self._answer(driver, to, pending)
        finally:
            del self._pending[key]  # before the step hears of it: it may send that letter again
        if isinstance(pending.letter, Order) and (ack is None or ack.accepted):
            self._end_again(driver, to)
        if ack is None or (ack.accepted and type(pending.letter) in driver.role.ignores_yes):
            driver.folded(driver)  # no event says that one letter less is under way
        else:
            await driver.dispatch(Delivered(to=to, key=name, accepted=ack.accepted, reason=ack.text))

    def _end_again(self, driver: RoleDriver, to: Address) -> None:
        """Tells whoever may have taken an order after it heard that the run is over: it has begun anew since."""
        if driver.is_over and not driver.is_closed:
            for action in driver.role.resume(driver.state):
                if isinstance(action, Send) and action.to == to:
                    self.send(driver, action)

    async def _answer(self, driver: RoleDriver, to: Address, pending: _Pending) -> LetterAck | None:
        """What the receiver says to a letter's newest content; None once its role wants it no more."""
        waits, is_again = Waits(), False
        while not driver.is_closed and driver.role.wants(driver.state, to, pending.letter):
            letter, num_sent = pending.letter, pending.num_sent
            ack = await self._attempt(driver, to, letter, is_again)
            if ack is None:
                is_again = True
                await waits.wait(pending.poke)
            elif pending.num_sent == num_sent:
                return ack
        return None

    async def _attempt(self, driver: RoleDriver, to: Address, letter: AnyLetter, is_again: bool) -> LetterAck | None:
        """One attempt; None where another may help."""
        try:
            node = await self._locate(driver, to, is_again)
            if node is None:
                return None
            inline = self._inline(letter)
            for place, blob in enumerate(letter.blobs):
                if str(place) not in inline and not self._node.blobs.has(blob.digest):
                    if not driver.server:
                        raise lost_blob(blob.digest)
                    await self._fetches.begin(
                        blob, driver.server, wanted=lambda: not driver.is_closed, met=partial(driver.met, driver)
                    )
            ack = await self._ask(driver, node, to, letter, inline)
        except PASSING as error:  # the letter stays until the disk answers, or the blob is here again
            driver.met(driver, error)
            return None
        except EdgewiseError as error:
            if is_passing(error):
                log.info("%s of %s waits: %s", letter.key, driver.run, error)
                return None
            log.warning("%s of %s was refused: %s", letter.key, driver.run, error)
            return LetterAck(False, None, error.message)
        if not ack.accepted and ack.refusal is not Refusal.DUPLICATE:
            log.info("%s does not take %s of %s: %s", node, letter.key, driver.run, ack.text)
        return ack

    async def _ask(self, driver: RoleDriver, node: NodeId, to: Address, letter: AnyLetter, inline: Inline) -> LetterAck:
        """What a node says to a letter; of an order it gets the run's whole spec until it has taken one."""
        said = letter
        if isinstance(letter, Order) and node in self._informed.get(driver.log, ()):
            said = msgspec.structs.replace(letter, spec=letter.spec.brief)
        inward = to.role != CLIENT and letter.author.role in (CLIENT, EDGE)
        ack = await self._node.ask(
            node,
            "report" if inward else "control",
            RunLetter(to, said),
            LetterAck,
            inline,
            purpose=Purpose.TRAINING,
            run=driver.run,
            timeout_s=_timeout_s(letter, inline),
        )
        if said is not letter and ack.refusal is Refusal.RUN_UNKNOWN:  # it began anew since
            self._informed.get(driver.log, set()).discard(node)
            return await self._ask(driver, node, to, letter, inline)
        if isinstance(letter, Order) and ack.accepted:
            self._informed.setdefault(driver.log, set()).add(node)
        return ack

    def _inline(self, letter: AnyLetter) -> Inline:
        """Small blobs that are here, by their place in the letter."""
        tensors, room = {}, self._node.inline_bytes
        for place, blob in enumerate(letter.blobs):
            if blob.size_bytes <= room and (data := self._node.blobs.find(blob.digest)) is not None:
                tensors[str(place)] = np.frombuffer(data, np.uint8)
                room -= blob.size_bytes
        return tensors


def _timeout_s(letter: AnyLetter, inline: Inline) -> float:
    carried = sum(data.nbytes for data in inline.values())
    pulled = sum(blob.size_bytes for blob in letter.blobs) - carried
    return min(LETTER_TIMEOUT_S + carried / INLINE_BYTES_PER_S + pulled / PULLED_BYTES_PER_S, MOST_S)
