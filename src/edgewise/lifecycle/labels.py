"""Where labels of hard examples come from. A source is a plug-in: a spec, and a function. Read `version_gate.py` next.

`feedback` asks the user, whose true labels come back by request. `teacher` asks a larger model: on the device, or far away from the
cut's features; a teacher that needs the raw input works only where the data policy lets raw data go, and its bytes are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import InputError, PolicyViolation
from edgewise.core.ids import RequestId, Tier
from edgewise.core.spec import Spec, build
from edgewise.lifecycle.hard_examples import HardExample
from edgewise.planning.policy import Policy


@dataclass(frozen=True, slots=True)
class LabelHelp:
    """What a device can offer a source; a source takes what it needs.

    Attributes:
        answers: True labels that came back, by request.
        features: Inputs float32[n, ...] -> the cut's activation float32[n, ...], by the head on the device.
        teacher: What the teacher model answers: float32[n, ...] -> probabilities float32[n, classes].
        teacher_tier: Where the teacher runs.
        policy: What may leave.
    """

    answers: Mapping[RequestId, int] = field(default_factory=dict)
    features: Callable[[NDArray[Any]], NDArray[Any]] | None = None
    teacher: Callable[[NDArray[Any]], NDArray[Any]] | None = None
    teacher_tier: Tier = Tier.EDGE
    policy: Policy = Policy(raw_may_reach=Tier.DEVICE)


class Labels(msgspec.Struct, frozen=True):
    """What a source gave.

    Attributes:
        source: Its spec.
        labels: Per example the class, None where it does not know.
        raw_bytes_sent: Raw bytes that left the device for it.
        feature_bytes_sent: Feature bytes that did.
    """

    source: str
    labels: tuple[int | None, ...]
    raw_bytes_sent: int = 0
    feature_bytes_sent: int = 0

    @property
    def share(self) -> float:
        """Share of the examples it labelled; NaN for none asked."""
        return sum(label is not None for label in self.labels) / len(self.labels) if self.labels else float("nan")


@dataclass(frozen=True, slots=True)
class LabelSource:
    """A source of labels.

    Attributes:
        spec: What builds it.
        label: (examples of one device, what the device offers) -> labels.
    """

    spec: Spec
    label: Callable[[Sequence[HardExample], LabelHelp], Labels]


def feedback() -> LabelSource:
    """True labels that the user sent back; examples without an answer stay unlabelled.

    Returns:
        The source. Nothing leaves the device for it.
    """
    spec = Spec("feedback")

    def label(examples: Sequence[HardExample], help: LabelHelp) -> Labels:
        return Labels(str(spec), tuple(help.answers.get(e.request) for e in examples))

    return LabelSource(spec, label)


def teacher(*, reads: str = "features", min_confidence: float = 0.8) -> LabelSource:
    """A larger model's answers, where it is confident enough.

    Args:
        reads: `device` runs the teacher on the device; `features` sends the cut's activation to it; `raw` sends the
            input and needs the policy's grant.
        min_confidence: Top-1 probability below which an example stays unlabelled, in [0, 1].

    Returns:
        The source.

    Raises:
        InputError: If `reads` is not one of the three.

    Reference:
        Lee, "Pseudo-Label: the simple and efficient semi-supervised learning method", 2013, with the threshold of
        Sohn et al., "FixMatch", NeurIPS 2020. Differs: another, larger model labels.
    """
    if reads not in ("device", "features", "raw"):
        raise InputError(f"a teacher reads 'device', 'features' or 'raw', found {reads!r}.")
    spec = Spec("teacher", {"reads": reads, "min_confidence": min_confidence})

    def label(examples: Sequence[HardExample], help: LabelHelp) -> Labels:
        if not examples:
            return Labels(str(spec), ())
        if help.teacher is None or (reads == "features" and help.features is None):
            raise InputError(f"{spec} has no teacher to ask. Give this device one, or use the source 'feedback'.")
        inputs = np.stack([e.input for e in examples])
        raw_bytes = feature_bytes = 0
        if reads == "raw":
            _refuse_without_grant(spec, help, help.policy.raw_may_reach, "raw inputs")
            raw_bytes = 0 if help.teacher_tier is Tier.DEVICE else inputs.nbytes
        elif reads == "features" and help.features is not None:
            _refuse_without_grant(spec, help, help.policy.features_may_reach, "features")
            inputs = help.features(inputs)
            feature_bytes = 0 if help.teacher_tier is Tier.DEVICE else inputs.nbytes
        chances = np.asarray(help.teacher(inputs))
        best, sure = chances.argmax(axis=1), chances.max(axis=1) >= min_confidence
        labels = tuple(int(b) if s else None for b, s in zip(best, sure, strict=True))
        return Labels(str(spec), labels, raw_bytes, feature_bytes)

    return LabelSource(spec, label)


LABEL_SOURCES: dict[str, Callable[..., LabelSource]] = {"feedback": feedback, "teacher": teacher}


def label_source(spec: Any) -> LabelSource:
    """Builds a source from its spec, built in or from the entry points `edgewise.labels`.

    Args:
        spec: A name, a table with `name`, or a text such as `teacher(reads='device')`.

    Returns:
        The source.

    Raises:
        InputError: If there is none of that name.
    """
    return build("labels", LABEL_SOURCES, Spec.parse(spec) if isinstance(spec, str) else spec)


def agreement(labels: Labels, truth: Sequence[int | None]) -> float:
    """How often a source is right, where the truth (or another source's label) is known.

    Args:
        labels: Of one source.
        truth: Per example the other label; None where unknown.

    Returns:
        Share equal among those both know; NaN if there is none.

    Raises:
        InputError: If they are not about the same examples.
    """
    if len(labels.labels) != len(truth):
        raise InputError(
            f"{len(labels.labels)} labels cannot be compared with {len(truth)}. Ask about the same examples."
        )
    both = [(a, b) for a, b in zip(labels.labels, truth, strict=True) if a is not None and b is not None]
    return sum(a == b for a, b in both) / len(both) if both else float("nan")


def _refuse_without_grant(spec: Spec, help: LabelHelp, reach: Tier, what: str) -> None:
    if help.teacher_tier.rank > reach.rank:
        raise PolicyViolation(
            f"{spec} would send {what} to the {help.teacher_tier}, the data policy lets them reach the {reach}. "
            "Let the teacher run on the device (reads = 'device'), or grant it in the policy.",
            source=str(spec),
        )
