"""How many bytes of models and updates a run has moved: counted from what its log has, so a crash changes nothing.

An order and an update count once, however often they had to be sent, or folded by an edge: what came twice because a node was
killed in between is in the frames that each node counts (`ledger/entry.py`), not here.
"""

from __future__ import annotations

import msgspec

from edgewise.core.ids import ClientId
from edgewise.training.protocols.letters import AnyLetter, BlobName, Order, SumReport
from edgewise.training.protocols.messages import Action, AnnounceRound, Event, Received, Send
from edgewise.training.protocols.protocol import CLIENT


class RunBytes(msgspec.Struct, frozen=True):
    """Payloads of one run at its server, without frames around them.

    Attributes:
        up, down: Since the last round closed.
        counted: Of each party, `from client/a`, what was counted last (an order's key, an update's round and exchange), and its bytes.
        closed: (up, down) by round that has closed.
    """

    up: int = 0
    down: int = 0
    counted: dict[str, tuple[str, int]] = {}
    closed: dict[int, tuple[int, int]] = {}

    def after(self, event: Event, actions: tuple[Action, ...]) -> RunBytes:
        """Counts one event that is logged.

        Args:
            event: What happened.
            actions: What follows from it.

        Returns:
            The next count.
        """
        up, down, counted, closed = self.up, self.down, self.counted, self.closed

        def more(party: str, key: str, size: int) -> int:
            nonlocal counted
            known_key, before = counted.get(party, ("", 0))
            known = before if known_key == key else 0
            counted = dict(counted) if counted is self.counted else counted
            counted[party] = key, max(size, known)
            return max(0, size - known)

        if isinstance(event, Received):
            for client, size in _up(event.letter).items():
                up += more(f"from client/{client}", _place(event.letter), size)
        for action in actions:
            if isinstance(action, AnnounceRound):
                closed = {**closed, int(action.summary.round): (up, down)}
                up = down = 0
            elif isinstance(action, Send) and isinstance(action.letter, Order):
                down += more(f"to {action.to.role}/{action.to.name}", action.letter.key, _down(action.letter))
        return RunBytes(up, down, counted, closed)

    def of(self, number: int) -> tuple[int, int]:
        """(up, down) of a round that has closed; zeros of an unknown one."""
        return self.closed.get(int(number), (0, 0))


def _up(letter: AnyLetter) -> dict[ClientId, int]:
    """Bytes of updates by client; an edge tells their sum."""
    if isinstance(letter, SumReport):
        clients = sorted(letter.contributions)
        each, rest = divmod(letter.uplink_bytes, len(clients) or 1)
        return {client: each + (rest if place == 0 else 0) for place, client in enumerate(clients)}
    is_client = letter.author.role == CLIENT
    return {ClientId(letter.author.name): sum(blob.size_bytes for blob in letter.blobs)} if is_client else {}


def _place(letter: AnyLetter) -> str:
    return f"{getattr(letter, 'round', letter.key)}/{getattr(letter, 'exchange', 0)}"


def _down(letter: Order) -> int:
    """What all clients behind an order are sent: to an edge it goes once, from there to each of them."""
    per_client = len(getattr(letter, "clients", "1"))
    own: list[BlobName] = [s.blob for sections in getattr(letter, "own", {}).values() for s in sections]
    shared = sum(blob.size_bytes for blob in letter.blobs if blob not in own)
    return per_client * shared + sum(blob.size_bytes for blob in own)
