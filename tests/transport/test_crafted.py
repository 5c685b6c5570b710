"""Whatever comes as an answer is an answer or a refusal: no decoder's own exception passes."""

from __future__ import annotations

import contextlib
import random

import numpy as np
import pytest

from edgewise.codecs import make_codec
from edgewise.codecs.bundle import CodedBundle, CodedSection, bundle_from_bytes, bundle_to_bytes, decode_bundle
from edgewise.core.errors import EdgewiseError, FrameRefused, RemoteError
from edgewise.core.ids import Generation, NodeId
from edgewise.fleet.messages import NodeInfo, Progress, RunLetter, RunStatus
from edgewise.inference.stage_frames import stage_answer
from edgewise.ledger.entry import FrameCounter
from edgewise.transport.frame import encode_frame, make_frame
from edgewise.transport.guard import FrameGuard
from edgewise.transport.remote import open_reply
from tests.transport.crafted import HUGE, REPLIES, error_with, made_up

GUARD = FrameGuard(node=NodeId("me"), generation=Generation(1), counter=FrameCounter(NodeId("me")))
READERS = (NodeInfo, Progress, RunLetter, RunStatus)


@pytest.mark.parametrize("name", REPLIES)
def test_a_crafted_answer_is_refused(name: str) -> None:
    with pytest.raises((FrameRefused, RemoteError)):
        open_reply(GUARD, REPLIES[name])


def test_of_a_thousand_made_up_answers_none_raises_anything_else() -> None:
    read = 0
    for seed in range(1000):
        try:
            reply = open_reply(GUARD, made_up(random.Random(seed)))
            read += 1
            for kind in READERS:
                with contextlib.suppress(FrameRefused):
                    reply.read(kind)
            stage_answer(reply)
        except EdgewiseError:
            continue
    assert 100 < read < 900  # frames pass, and messages are reached


def test_fields_of_an_error_may_have_any_name() -> None:
    with pytest.raises(RemoteError, match="'hub' refused: no") as caught:
        open_reply(GUARD, error_with({"message": "m", "self": 1, "reason": "forged"}))
    assert caught.value.fields["message"] == "m"
    assert caught.value.reply.sender == "hub"


def test_what_nobody_would_take_is_not_sent() -> None:
    with pytest.raises(FrameRefused, match=r"'x' has shape \(0, 1099511627776\)"):
        encode_frame(make_frame("k", tensors={"x": np.zeros((0, 2**40), np.uint8)}))


@pytest.mark.parametrize("codec", ["none", "int8", "top_k", "zstd"])
def test_made_up_bundles_are_refused(codec: str) -> None:
    """A blob's bytes with every header that fits: shapes that no memory holds, parts of other codecs."""
    rng = random.Random(codec)
    coder = make_codec({"name": codec, **({"fraction": 0.5} if codec == "top_k" else {})})
    for _ in range(300):
        shape = tuple(rng.choice((0, 1, 4, 2**31, HUGE)) for _ in range(rng.randrange(4)))
        parts = {
            f"model/{rng.choice(('values', 'indices', 'scale', 'plain', 'data', 'step'))}": np.frombuffer(
                rng.randbytes(8), rng.choice((np.uint8, np.float32, np.int8, np.uint32))
            )
            for _ in range(rng.randrange(4))
        }
        data = bundle_to_bytes(CodedBundle((CodedSection("model", shape),), parts))
        with contextlib.suppress(EdgewiseError):
            decode_bundle({"model": coder}, None, bundle_from_bytes(data))
