"""Makes every key of a fleet; this is the one key layout.

    ew/{fleet}/alive/{tier}/{node}/{generation}      liveliness token of a node's incarnation
    ew/{fleet}/node/{node}/{service}            query: one service of one node
    ew/{fleet}/event/{node}                     publication: events of a node

Services: `info` capability and certificate · `control` orders (signed) · `report` updates and folded sums to a
server (signed) · `stage` one stage of a plan · `blob` chunks by digest · `progress` the worker's counter.
Access rules let a node serve only `node/{its own name}/**` and declare only `alive/*/{its own name}/*`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgewise.core.errors import FrameRefused, InputError
from edgewise.core.ids import Generation, NodeId, Tier, node_id

_GENERATION = re.compile("[0-9]{1,19}")


@dataclass(frozen=True, slots=True)
class Keys:
    """Makes the keys of one fleet.

    Attributes:
        fleet: The fleet's name; fleets on one fabric do not receive each other's frames.
    """

    fleet: str = "main"

    def alive(self, tier: Tier | str, node: NodeId | str, generation: Generation | str) -> str:
        """Returns the liveliness token's key of an incarnation; `"*"` in any place makes an expression to watch."""
        return f"ew/{self.fleet}/alive/{tier}/{node}/{generation}"

    def service(self, node: NodeId | str, service: str) -> str:
        """Returns the key of a node's service; `"*"` as node addresses all."""
        return f"ew/{self.fleet}/node/{node}/{service}"

    def event(self, node: NodeId | str) -> str:
        """Returns the key of a node's publications; `"*"` subscribes to all."""
        return f"ew/{self.fleet}/event/{node}"

    @staticmethod
    def read_alive(key: str) -> tuple[Tier, NodeId, Generation]:
        """Splits a liveliness token's key into its parts. Anybody in the fleet can have declared it: it proves nothing.

        Args:
            key: As made by `alive`.

        Returns:
            Tier, node and incarnation, as it claims.

        Raises:
            FrameRefused: If it is no such key.
        """
        *_, tier, node, generation = ("", "", *key.split("/"))
        try:
            if not _GENERATION.fullmatch(generation):
                raise InputError("it does not end with an incarnation")
            return Tier(tier), node_id(node), Generation(int(generation))
        except (ValueError, InputError) as error:
            raise FrameRefused(f"{key[:200]!r} is no liveliness token of a node: {error}.") from error


def matches(expression: str, key: str) -> bool:
    """Returns whether a key matches an expression in which `*` stands for one chunk.

    Args:
        expression: As made by `Keys` with `"*"` in some places.
        key: A key without wildcards.

    Returns:
        True if every chunk is equal or wild.
    """
    wanted, found = expression.split("/"), key.split("/")
    return len(wanted) == len(found) and all(w in ("*", f) for w, f in zip(wanted, found, strict=True))
