"""The blobs of a virtual run: one store for all nodes, from which goes what no role needs and no letter carries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from edgewise.core.ids import Digest
from edgewise.simulation.virtual_node import VirtualNode
from edgewise.training.protocols.letters import BlobName

_MANY = 1024
"""So many new ones are looked through also where no round closes."""


class StoreContent(msgspec.Struct, frozen=True, array_like=True):
    """What a store is, between two instants of its run.

    Attributes:
        blobs: Held.
        fresh: Put since the last sweep, or under way at it.
        users: How many nodes need each.
        under_way: How many letters carry each.
    """

    blobs: dict[Digest, bytes]
    fresh: tuple[Digest, ...]
    users: dict[Digest, int]
    under_way: dict[Digest, int]


class VirtualStore:
    """Bytes by digest, and who still needs them.

    Attributes:
        blobs: Bytes, or buffers of them.
    """

    def __init__(self, blobs: dict[Digest, Any]) -> None:
        self.blobs = blobs
        self._fresh = set(blobs)
        self._users: dict[Digest, int] = {}
        self._under_way: dict[Digest, int] = {}

    def update(self, blobs: dict[Digest, bytes]) -> None:
        """Stores what a step made."""
        self.blobs.update(blobs)
        self._fresh.update(blobs)

    def put(self, digest: Digest, data: bytes) -> Digest:
        """Stores bytes under a name."""
        self.blobs[digest] = data
        self._fresh.add(digest)
        return digest

    def sent(self, names: Sequence[BlobName], held: frozenset[Digest]) -> int:
        """Notes that a letter carries blobs.

        Args:
            names: Of the letter.
            held: What its receiver has.

        Returns:
            Bytes that must be sent.
        """
        size, under_way = 0, self._under_way
        for name in names:
            digest = name.digest
            if digest not in held:
                size += name.size_bytes
            under_way[digest] = under_way.get(digest, 0) + 1
        return size

    def arrived(self, names: Sequence[BlobName]) -> None:
        """Notes that a letter has come."""
        for name in names:
            self._under_way[name.digest] -= 1

    @property
    def has_many(self) -> bool:
        """Whether a sweep would be worth its time."""
        return len(self._fresh) > _MANY + 2 * len(self._users)

    def sweep(self, touched: Iterable[VirtualNode]) -> None:
        """Drops what nobody needs; looks only at what changed since the last time.

        Args:
            touched: Nodes whose state may have changed since.
        """
        users, loose = self._users, self._fresh
        for node in touched:
            needed = frozenset(node.part.needs(node.state)) - node.delivered
            for digest in needed - node.needed:
                users[digest] = users.get(digest, 0) + 1
            for digest in node.needed - needed:
                users[digest] -= 1
                loose.add(digest)
            node.needed = needed
            node.delivered.clear()
        self._under_way = {digest: count for digest, count in self._under_way.items() if count}
        self._fresh = set()
        for digest in loose:
            if users.get(digest):
                continue
            if digest in self._under_way:
                self._fresh.add(digest)
            else:
                self.blobs.pop(digest, None)
                users.pop(digest, None)

    def content(self) -> StoreContent:
        """All that `load` needs."""
        blobs = {digest: bytes(data) for digest, data in self.blobs.items()}
        return StoreContent(blobs, tuple(self._fresh), self._users, self._under_way)

    def load(self, content: StoreContent) -> None:
        """Makes it what it was when `content` was taken; whoever holds `blobs` sees these from now on."""
        self.blobs.clear()
        self.blobs.update(content.blobs)
        self._fresh, self._users, self._under_way = set(content.fresh), dict(content.users), dict(content.under_way)
