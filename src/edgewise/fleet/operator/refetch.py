"""Fetches a blob again for a state folder that lost it, from whatever node of the fleet holds it."""

from __future__ import annotations

import logging

from edgewise.core.errors import EdgewiseError
from edgewise.core.ids import Digest, NodeId
from edgewise.fleet.messages import BLOB
from edgewise.fleet.operator.operator import Operator
from edgewise.transport.bulk.blobs import FolderBlobs
from edgewise.transport.bulk.fetch import fetch_unsized

log = logging.getLogger("edgewise.fleet")


async def fetch_from_anybody(operator: Operator, digest: Digest, blobs: FolderBlobs) -> NodeId | None:
    """Asks every live node of a fleet for a blob until one gives it.

    Args:
        operator: Connection to the fleet.
        digest: Which blob.
        blobs: Where it goes.

    Returns:
        Who gave it; None where nobody has it.
    """
    for row in (await operator.nodes()).nodes:
        if row.state != "alive":
            continue
        try:
            key = operator.node.keys.service(row.info.node, BLOB)
            await fetch_unsized(operator.node.transport, key, digest, blobs)
        except EdgewiseError as error:
            log.info("%s does not give blob %s: %s", row.info.node, digest[:12], error)
        else:
            return row.info.node
    return None
