"""When the parts of an algorithm are called: each protocol is one value with a step for each role.

    protocol = make_protocol("synchronous")                       # or the spec in a run's `RunSpec.protocol`
    step = protocol.roles["coordinator"].make_step(algorithm, blobs)
    state, actions = step(None, RunStarted(config, present))      # log the event, step, then act
    state = replay(step, map(decode_event, log), blobs)           # after a crash: the identical state
    actions = protocol.roles["coordinator"].resume(state)         # what is outstanding

Rules of a driver: store a letter's blobs, append the event that names them, step, carry out the actions (`Store` before
the next event); a letter is delivered until it is acknowledged or its role wants it no more; `duplicate` is a yes.
`letters.py` and `messages.py` have every word, `event_log.py` the log's format, `protocol.py` the contract. Drivers are
`simulation/virtual_run.py` and `fleet/training/`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgewise.core.spec import build
from edgewise.training.protocols.buffered import buffered
from edgewise.training.protocols.gossip import gossip
from edgewise.training.protocols.hierarchical import hierarchical
from edgewise.training.protocols.protocol import Protocol, Role, RunView, check_carries, replay
from edgewise.training.protocols.synchronous import synchronous

__all__ = [
    "PROTOCOLS",
    "Protocol",
    "Role",
    "RunView",
    "check_carries",
    "hierarchical",
    "make_protocol",
    "replay",
    "synchronous",
]

PROTOCOLS: dict[str, Callable[..., Protocol]] = {
    "buffered": buffered,
    "gossip": gossip,
    "hierarchical": hierarchical,
    "synchronous": synchronous,
}


def make_protocol(spec: Any) -> Protocol:
    """Builds a protocol from its spec.

    Args:
        spec: `"hierarchical"`, `{"name": "buffered", "concurrency": 8, "buffer_size": 4}`, or a `Spec`.

    Returns:
        The protocol.

    Raises:
        InputError: If the name or a parameter is unknown; the nearest is suggested.
    """
    return spec if isinstance(spec, Protocol) else build("protocols", PROTOCOLS, spec)
