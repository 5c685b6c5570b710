"""Fetching what a letter names: whole, or only begun where it is passed on while it still comes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from edgewise.core.errors import EdgewiseError, FrameRefused, StoreError, StoreUnavailable
from edgewise.core.ids import Digest, NodeId
from edgewise.fleet.messages import BlobRef
from edgewise.fleet.node.delivery import deliver
from edgewise.fleet.node.node import Node
from edgewise.training.protocols.letters import BlobName

log = logging.getLogger("edgewise.fleet")
FETCH_AGAIN_S = 1.0


class BlobFetches:
    """A node's fetches for its runs.

    Args:
        node: Who fetches.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._begun: dict[Digest, asyncio.Future[None]] = {}

    async def whole(self, blob: BlobName, holder: NodeId) -> None:
        """Fetches a blob, unless it is here.

        Args:
            blob: Which.
            holder: Who announced it.

        Raises:
            FrameRefused: If it is not what its name says.
            StoreUnavailable: If there is no room for it now.
            Unreachable, RemoteError: As `Node.pull`.
        """
        try:
            await self._node.pull(BlobRef(blob.digest, blob.size_bytes, holder))
        except StoreUnavailable:
            raise
        except StoreError as error:
            raise FrameRefused(error.message) from error

    async def begin(
        self, blob: BlobName, holder: NodeId, *, wanted: Callable[[], bool], met: Callable[[StoreUnavailable], None]
    ) -> None:
        """Begins to fetch a blob that is passed on; returns when its first bytes are here, the rest follows.

        Args:
            blob: Which.
            holder: Who has it, or is fetching it.
            wanted: Whether it still is; looked at before each attempt.
            met: Told when there is no room for the rest of it; it goes on when there is.

        Raises:
            EdgewiseError, OSError: If it cannot even begin: refused, or no room for it.
        """
        if self._node.blobs.claim(blob.digest):
            return
        begun = self._begun.get(blob.digest)
        if begun is None:
            begun = self._begun[blob.digest] = asyncio.get_running_loop().create_future()
            self._node.spawn(self._fetch(blob, holder, wanted, met, begun), f"fetch {blob.digest[:12]}")
        await asyncio.shield(begun)

    async def _fetch(
        self,
        blob: BlobName,
        holder: NodeId,
        wanted: Callable[[], bool],
        met: Callable[[StoreUnavailable], None],
        begun: asyncio.Future[None],
    ) -> None:
        def moved(*_: int) -> None:
            if not begun.done():
                begun.set_result(None)

        async def pull() -> StoreUnavailable | None:
            try:
                await self._node.pull(ref, progress=moved)
            except StoreUnavailable as error:  # this node's own disk: that is told, not only tried again
                return error
            return None

        ref, what = BlobRef(blob.digest, blob.size_bytes, holder), f"blob {blob.digest[:12]}"
        try:
            while wanted():
                try:
                    refusal = await deliver(pull, what=what, wanted=wanted)
                    if refusal is not None:
                        raise refusal
                    break
                except (EdgewiseError, OSError) as error:  # refused, spoiled on its way, or no room for it
                    if not begun.done():  # what names it is refused with this
                        begun.set_exception(error)
                        begun.exception()
                        return
                    if isinstance(error, StoreUnavailable):
                        met(error)
                    log.error("%s broke off, it is fetched again: %s", what, error)
                    await asyncio.sleep(FETCH_AGAIN_S)
            moved()
        finally:
            self._begun.pop(blob.digest, None)
            if not begun.done():
                begun.cancel()
