"""What two nodes say to each other while serving: one request, one answer, on the `stage` service of `keys.py`."""

from __future__ import annotations

import msgspec

from edgewise.codecs.bundle import CodedSection
from edgewise.core.ids import Digest, Generation, NodeId, RequestId, Revision, Tier
from edgewise.inference.streams import StreamStep
from edgewise.ledger.entry import Purpose
from edgewise.planning.plan import Site
from edgewise.transport.frame import encode_frame, make_frame, stamped

STAGE = "stage"
"""The service's name in `Keys.service`."""
STAGE_REQUEST = "stage_request"
STAGE_ANSWER = "stage_answer"
STREAM_END = "stream_end"


class StageRequest(msgspec.Struct, frozen=True):
    """Run a plan's stages at one site on the tensors of this frame, encoded with the hand-over's codec.

    Attributes:
        plan: Digest of the plan; a revision that names another plan is refused.
        revision: Revision the request began with; it ends on it.
        version: Model version the request began with.
        site: Whose stages must run now.
        request: Names the request in both nodes' records.
        sections: The encoded tensors, in order.
        step: The request's place in its stream, if it has one.
    """

    plan: Digest
    revision: Revision
    version: int
    site: Site
    request: RequestId
    sections: tuple[CodedSection, ...]
    step: StreamStep | None = None


class StreamEnd(msgspec.Struct, frozen=True):
    """A stream ends without a last request: free its state, here and further on.

    Attributes:
        plan: Digest of the plan it ran on.
        revision: Of that plan.
        version: Model version.
        site: Who is told.
        stream: Its name.
    """

    plan: Digest
    revision: Revision
    version: int
    site: Site
    stream: str


class StageAnswer(msgspec.Struct, frozen=True):
    """The answer travels as this frame's tensors.

    Attributes:
        exit_index: Where the request ended.
        served_by: Nodes that computed, in order.
        stages: Seconds of each stage in order, e.g. (("edge compute", 0.002), ("edge codec", 0.0001)).
        payload_bytes: Bytes that left each of those nodes, by boundary, e.g. (("edge→cloud", 2048),).
        cause: Why an outer site did not answer, if this is a nearer exit; "" otherwise.
        confidence: Top-1 softmax at the plan's first exit, if one of these nodes computed it.
        predicted: The class with the highest score there.
    """

    exit_index: int
    served_by: tuple[NodeId, ...]
    stages: tuple[tuple[str, float], ...]
    payload_bytes: tuple[tuple[str, int], ...] = ()
    cause: str = ""
    confidence: float | None = None
    predicted: int | None = None


def empty_frame_bytes(inner: NodeId, outer: NodeId) -> tuple[int, int]:
    """Bytes of a stage request's frame and of its answer's, as two nodes write them, without any tensor.

    Args:
        inner: Who asks.
        outer: Who runs the stages.

    Returns:
        Of the request, of the answer.
    """
    request = StageRequest(
        plan=Digest("0" * 64),
        revision=Revision(2**10),
        version=1,
        site=Site(Tier.EDGE),
        request=RequestId("0" * 16),
        sections=(),
    )
    answer = StageAnswer(0, (outer,), (("edge decode", 0.1), ("edge compute", 0.1)), confidence=0.1, predicted=1)
    run, generation = "version-1", Generation(2**60)
    asked = make_frame(STAGE_REQUEST, request, purpose=Purpose.SERVING, deadline_s=0.1, run=run)
    answered = make_frame(STAGE_ANSWER, answer, purpose=Purpose.SERVING, run=run)
    frames = (
        stamped(asked, sender=inner, generation=generation),
        stamped(answered, sender=outer, generation=generation),
    )
    return len(encode_frame(frames[0])), len(encode_frame(frames[1]))
