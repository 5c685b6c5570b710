"""What one request cost and who answered it: measured, where a plan's `Prediction` is predicted."""

from __future__ import annotations

import time

import msgspec

from edgewise.core.ids import Digest, NodeId, RequestId, Revision
from edgewise.inference.session import AnswerSource
from edgewise.planning.plan import ActivePlan


class Observation(msgspec.Struct, frozen=True):
    """One request, after its end.

    Attributes:
        request: Its name.
        revision: Revision of the plan it began and ended on.
        version: Model version.
        plan: Digest of the plan.
        source: Who answered.
        exit_index: Where it ended; −1 at a filter, None if nothing was ready in time.
        cause: Why the full plan did not answer; "" if it did.
        arrived_s: Arrival on the device's monotonic clock.
        latency_s: From arrival to the answer, at the device, HTTP excluded.
        deadline_s: Seconds it had.
        served_by: Nodes that computed, in order.
        stages: Seconds by stage in order, e.g. (("device compute", 0.004), ("device→edge", 0.012), …); what is
            between nodes is the round trip less the stages beyond it.
        payload_bytes: Bytes handed over by boundary, e.g. (("device→edge", 512),).
        confidence: Top-1 softmax at the plan's first exit, which every request reaches; what drift is seen in. None
            where that exit was not reached, or is no classifier.
        confidence_exit: Index of that exit in the model.
        predicted: The class with the highest score there, of the first example; known where the confidence is.
    """

    request: RequestId
    revision: Revision
    version: int
    plan: Digest
    source: AnswerSource
    exit_index: int | None
    cause: str
    arrived_s: float
    latency_s: float
    deadline_s: float
    served_by: tuple[NodeId, ...] = ()
    stages: tuple[tuple[str, float], ...] = ()
    payload_bytes: tuple[tuple[str, int], ...] = ()
    confidence: float | None = None
    confidence_exit: int = 0
    predicted: int | None = None

    @property
    def compute_s(self) -> float:
        """Seconds of computing, on all nodes, dilation included."""
        return sum(seconds for name, seconds in self.stages if name.endswith(" compute"))


def unanswered(request: RequestId, active: ActivePlan, digest: Digest, cause: str, deadline_s: float) -> Observation:
    """A request that a plan could not have answered in time, so that it was refused at once.

    Args:
        request: Its name.
        active: The plan.
        digest: Of the plan.
        cause: Why.
        deadline_s: Seconds it had.
    """
    return Observation(
        request=request,
        revision=active.revision,
        version=active.version,
        plan=digest,
        source=AnswerSource.NONE,
        exit_index=None,
        cause=cause,
        arrived_s=time.monotonic(),
        latency_s=0.0,
        deadline_s=deadline_s,
    )
