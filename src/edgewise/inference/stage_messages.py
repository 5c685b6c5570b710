"""What two nodes say to each other while serving: one question, one answer, on the `stage` service of `keys.py`."""

from __future__ import annotations

import msgspec

from edgewise.core.ids import Digest, Epoch, NodeId, RequestId, Tier
from edgewise.inference.cuts import Coded

STAGE = "stage"
"""The service's name in `Keys.service`."""
STAGE_REQUEST = "stage_request"
STAGE_ANSWER = "stage_answer"


class StageRequest(msgspec.Struct, frozen=True):
    """Run the next segment of a plan on the tensors of this frame, encoded with the cut's codec.

    Attributes:
        plan: Digest of the plan; an epoch that names another plan is refused.
        epoch: Epoch the request began with; it ends on it.
        version: Model version the request began with.
        tier: Tier that must run now.
        request: Names the request in both nodes' records.
        coded: The encoded tensors, in order.
    """

    plan: Digest
    epoch: Epoch
    version: int
    tier: Tier
    request: RequestId
    coded: tuple[Coded, ...]


class StageAnswer(msgspec.Struct, frozen=True):
    """The logits travel as this frame's tensors.

    Attributes:
        exit_index: Where the request left.
        served_by: Nodes that computed, in order.
        stages: Seconds of each stage in order, e.g. (("edge compute", 0.002), ("edge codec", 0.0001)).
        payload_bytes: Bytes of cut payloads that left each of those nodes, by boundary, e.g. (("edge→cloud", 2048),).
        cause: Why an outer tier did not answer, if this is a nearer exit; "" otherwise.
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
