from __future__ import annotations

import pytest

from edgewise.core.errors import IdentityRefused
from edgewise.core.ids import Generation
from edgewise.ledger.entry import FrameCounter
from edgewise.security import Identity
from edgewise.transport.frame import make_frame
from edgewise.transport.guard import FrameGuard, addressed
from edgewise.transport.keys import Keys

MINE = Keys().service("device-1", "control")
ANOTHERS = Keys().service("device-2", "control")


def test_a_relay_cannot_hand_an_order_to_another_node(edge: Identity) -> None:
    door = FrameGuard(node=edge.node, generation=Generation(1), counter=FrameCounter(edge.node), sign=edge.sign)
    frame = door.open(door.seal(make_frame("train_order"), MINE))
    verifier = edge.verifier()
    verifier.learn(edge.certificate_pem)
    fields = (frame.sender, frame.generation, frame.sequence, frame.signature)
    with pytest.raises(IdentityRefused, match="claims to be from 'edge-1' and is signed by nobody known"):
        verifier.check(*fields, addressed(frame.signed_bytes, ANOTHERS))
    assert verifier.check(*fields, addressed(frame.signed_bytes, MINE)) == ("edge-1", "edge")
