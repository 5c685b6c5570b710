"""Says to whom a node gives a blob: whom it named it to, and graphs of models to every enrolled node.

An update is named in a letter to the server of its client, and to nobody else; so only that server may pull it, and
whoever learns its digest otherwise learns nothing more. A model is named to its cohort and to the tiers it goes through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from edgewise.core.errors import PolicyViolation
from edgewise.core.ids import Digest, NodeId
from edgewise.fleet.messages import BlobRef, Message, RunLetter
from edgewise.transport.bulk.blobs import FolderBlobs

NOT_NAMED = "not_named"
"""Reason of a refusal here. It may pass: a node that began anew names its blobs again as it repeats its letters."""
_FEW = 64
"""Digests that are remembered before it is looked for the first time which blobs are gone."""


class BlobGrants:
    """A node's grants; on its event loop. They are gone with its process, and come back with what it says again.

    Attributes:
        is_graph: Whether a digest is the graph of a model known here, e.g. in the registry.
    """

    def __init__(self, blobs: FolderBlobs) -> None:
        self._blobs = blobs
        self._named: dict[Digest, frozenset[NodeId]] = {}
        self._open: set[Digest] = set()
        self._look_at = _FEW
        self.is_graph: Callable[[Digest], bool] = lambda _: False

    def name(self, message: Message, to: NodeId) -> None:
        """Grants what a message names to the node that it is sent to, also what travels beside it: that may be lost there.

        Args:
            message: Any; most name nothing.
            to: Who gets it.
        """
        for digest in named_in(message):
            self.give(digest, to)

    def give(self, digest: Digest, to: NodeId) -> None:
        """Grants one blob to one node: also to whoever gave it here, should it lose it.

        Args:
            digest: Which.
            to: Who may have it.
        """
        self._named[digest] = self._named.get(digest, frozenset()) | {to}
        if len(self._named) > self._look_at:
            self._forget()

    def related(self, digest: Digest) -> list[NodeId]:
        """Who may have a blob since it was named to them, or they gave it: whoever has it is among them."""
        return sorted(self._named.get(digest, ()))

    def open(self, digest: Digest) -> None:
        """Grants a model's graph to every enrolled node.

        Args:
            digest: Of the graph.
        """
        self._open.add(digest)

    def may_have(self, node: NodeId, digest: Digest) -> bool:
        """The policy: a blob is given to whom it was named, a model's graph to every enrolled node, anything else to nobody.

        Args:
            node: Who asks, proved.
            digest: For what.
        """
        if node in self._named.get(digest, ()) or digest in self._open:
            return True
        if self.is_graph(digest):
            self.open(digest)
        return digest in self._open

    def check(self, node: NodeId, digest: Digest) -> None:
        """Refuses what `may_have` does not grant.

        Args:
            node: Who asks, proved.
            digest: For what.

        Raises:
            PolicyViolation: If it may not have it; its reason is `not_named`.
        """
        if not self.may_have(node, digest):
            raise PolicyViolation(
                f"blob {digest[:12]} is not for {node!r}: a node gives a blob only to whom it named it, and graphs of "
                "models to all. Wait for the letter that names it.",
                reason=NOT_NAMED,
            )

    def _forget(self) -> None:
        """Lets go of blobs that are gone; what stays says when to look again, so that a look costs little on average."""
        here = self._blobs
        self._named = {d: to for d, to in self._named.items() if here.has(d) or here.partial_size(d)}
        self._look_at = max(_FEW, 2 * len(self._named))


def named_in(message: Message) -> Iterable[Digest]:
    """The blobs that a message names to its receiver.

    Args:
        message: Any.
    """
    if isinstance(message, RunLetter):
        return [blob.digest for blob in message.letter.blobs]
    values = (getattr(message, name) for name in message.__struct_fields__)
    return [value.digest for value in values if isinstance(value, BlobRef)]
