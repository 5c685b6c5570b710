"""Makes the frame that asks the next site for its stages, and reads the answer."""

from __future__ import annotations

from math import inf

from edgewise.codecs.bundle import CodedBundle
from edgewise.core.errors import FrameRefused
from edgewise.core.ids import RequestId
from edgewise.inference.prepared import PreparedPlan
from edgewise.inference.stage_messages import STAGE_REQUEST, StageAnswer, StageRequest
from edgewise.inference.stages import Tensors
from edgewise.inference.streams import StreamStep
from edgewise.inference.text_tensors import unpack_text_tensors
from edgewise.ledger.entry import Purpose
from edgewise.transport.frame import Frame, make_frame


def stage_request(
    prepared: PreparedPlan,
    payload: CodedBundle,
    *,
    request: RequestId,
    timeout_s: float,
    purpose: Purpose = Purpose.SERVING,
    step: StreamStep | None = None,
) -> Frame:
    """What hands a request over to the next site.

    Args:
        prepared: The plan it began on.
        payload: What is handed over.
        request: Its name.
        timeout_s: Seconds of work left.
        purpose: Why it is asked; the answer has the same.
        step: Its place in its stream, if it has one.

    Returns:
        The frame.
    """
    active, target = prepared.active, prepared.stages.target
    assert target is not None
    message = StageRequest(
        plan=prepared.digest,
        revision=active.revision,
        version=active.version,
        site=target,
        request=request,
        sections=payload.sections,
        step=step,
    )
    return make_frame(
        STAGE_REQUEST,
        message,
        payload.arrays,
        purpose=purpose,
        deadline_s=timeout_s,
        run=f"version-{active.version}",
    )


def stage_answer(reply: Frame) -> tuple[StageAnswer, Tensors]:
    """Reads what the next site answered: the answer and its tensors.

    Raises:
        FrameRefused: If it is no answer, or says seconds that nobody can have taken.
    """
    answer = reply.read(StageAnswer)
    if not all(0 <= seconds < inf for _, seconds in answer.stages):
        raise FrameRefused(f"an answer of {reply.sender!r} says stages of {answer.stages[:10]} seconds.")
    return answer, unpack_text_tensors({t.name: t.array for t in reply.tensors})
