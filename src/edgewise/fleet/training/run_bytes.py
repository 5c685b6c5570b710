"""How many bytes of models and updates a run has moved: counted from what its log has, so a crash changes nothing.

A letter counts once, however often it had to be sent: what came twice because a node was killed in between is in the
frames that each node counts (`ledger/entry.py`), not here.
"""

from __future__ import annotations

import msgspec

from edgewise.training.protocols.letters import AnyLetter, BlobName, Order, SumReport
from edgewise.training.protocols.messages import Action, AnnounceRound, Event, Received, Refusal, Refuse, Send
from edgewise.training.protocols.protocol import CLIENT


class RunBytes(msgspec.Struct, frozen=True):
    """Payloads of one run at its server, without frames around them.

    Attributes:
        up, down: Since the last round closed.
        ordered: The newest order of each receiver, `role/name`, and its bytes.
        closed: (up, down) by round that has closed.
    """

    up: int = 0
    down: int = 0
    ordered: dict[str, tuple[str, int]] = {}
    closed: dict[int, tuple[int, int]] = {}

    def after(self, event: Event, actions: tuple[Action, ...]) -> RunBytes:
        """Counts one event that is logged.

        Args:
            event: What happened.
            actions: What follows from it.

        Returns:
            The next count.
        """
        up, down, ordered, closed = self.up + _up(event, actions), self.down, self.ordered, self.closed
        for action in actions:
            if isinstance(action, AnnounceRound):
                closed = {**closed, int(action.summary.round): (up, down)}
                up = down = 0
            elif isinstance(action, Send) and isinstance(action.letter, Order):
                to, size = f"{action.to.role}/{action.to.name}", _down(action.letter)
                key, before = ordered.get(to, ("", 0))
                known = before if key == action.letter.key else 0
                down += max(0, size - known)
                ordered = dict(ordered) if ordered is self.ordered else ordered
                ordered[to] = action.letter.key, max(size, known)
        return RunBytes(up, down, ordered, closed)

    def of(self, number: int) -> tuple[int, int]:
        """(up, down) of a round that has closed; zeros of an unknown one."""
        return self.closed.get(int(number), (0, 0))


def _up(event: Event, actions: tuple[Action, ...]) -> int:
    if not isinstance(event, Received):
        return 0
    if any(isinstance(action, Refuse) and action.reason is Refusal.DUPLICATE for action in actions):
        return 0
    letter: AnyLetter = event.letter
    if isinstance(letter, SumReport):
        return letter.uplink_bytes
    return sum(blob.size_bytes for blob in letter.blobs) if letter.author.role == CLIENT else 0


def _down(letter: Order) -> int:
    """What all clients behind an order are sent: to an edge it goes once, from there to each of them."""
    per_client = len(getattr(letter, "clients", "1"))
    own: list[BlobName] = [s.blob for sections in getattr(letter, "own", {}).values() for s in sections]
    shared = sum(blob.size_bytes for blob in letter.blobs if blob not in own)
    return per_client * shared + sum(blob.size_bytes for blob in own)
