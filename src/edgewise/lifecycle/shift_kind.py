"""What changed: the mix of classes, how inputs look, or how they are answered. A description, not a test; read `drift.py` next."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from math import sqrt

import numpy as np

from edgewise.lifecycle.change import Seen
from edgewise.lifecycle.covariates import COVARIATES

FAR = 4.0
"""Standard errors by which something must differ to be named."""
MIN_OF_CLASS = 5
"""Held-out requests of a class that others of it are ranked among; with fewer, among all."""


class ShiftKind(StrEnum):
    """What is unlike the held-out requests."""

    CLASS_MIX = "class mix"
    COVARIATES = "covariates"
    ANSWERS = "answers"
    CONCEPT = "concept"


@dataclass(frozen=True, slots=True)
class Shift:
    """What a change is.

    Attributes:
        kind: Class mix if only how often classes come is another; covariates if inputs of the same class look different;
            answers if only their confidences do; concept if nothing does and answers are wrong more often.
        text: What moved, in words.
    """

    kind: ShiftKind
    text: str


def shift_of(reference: Sequence[Seen], since: Sequence[Seen]) -> Shift:
    """Describes how requests differ from the held-out ones.

    Classes are those predicted at the first exit. Confidences and covariates are ranked among held-out requests of the same
    predicted class, so that a mix of classes alone moves none of them. Standard errors count both samples. Errors made on
    one class move requests to another, so a strong change of the answers moves the mix as well; then it is not called a mix.

    Args:
        reference: Held-out requests.
        since: Requests since the change began; at least one.

    Returns:
        The kind and a sentence; `CONCEPT` if nothing moved.
    """
    said = []
    mix = _class_mix(reference, since)
    if mix:
        said.append(mix)
    moved = [
        f"{name} is {'higher' if far > 0 else 'lower'}"
        for index, name in enumerate(COVARIATES)
        if abs(far := _within_class(reference, since, partial(_covariate, index))) > FAR
    ]
    sure = _within_class(reference, since, lambda seen: _first(seen)[0])
    answers = [f"the same classes are answered {'surer' if sure > 0 else 'less surely'}"] if abs(sure) > FAR else []
    text = ", ".join([*said, *moved, *answers]) or "nothing that is looked at"
    if moved:
        return Shift(ShiftKind.COVARIATES, text)
    if answers:
        return Shift(ShiftKind.ANSWERS, text)
    return Shift(ShiftKind.CLASS_MIX if mix else ShiftKind.CONCEPT, text)


def _first(seen: Seen) -> tuple[float, int | None]:
    answer = seen.answers[min(seen.answers)]
    return answer.confidence, answer.predicted


def _covariate(index: int, seen: Seen) -> float:
    return seen.covariates[index] if seen.covariates else 0.0


def _class_mix(reference: Sequence[Seen], since: Sequence[Seen]) -> str:
    """The class that moved most, in words; "" if the mix is as it was (χ² on both samples)."""
    before, now = (Counter(_first(seen)[1] for seen in part) for part in (reference, since))
    classes = [name for name in {**before, **now} if name is not None]
    if len(classes) < 2:
        return ""
    num, total = len(since), len(reference)
    usual = {name: (before[name] + 0.5) / (total + 0.5 * len(classes)) for name in classes}
    error = {name: usual[name] * (1 / num + 1 / total) for name in classes}
    square = sum((now[name] / num - usual[name]) ** 2 / error[name] for name in classes)
    free = len(classes) - 1
    if (square - free) / sqrt(2 * free) < FAR:
        return ""
    most = max(classes, key=lambda name: (now[name] / num - usual[name]) ** 2 / error[name])
    return f"class {most} is {now[most] / num:.0%} of the answers, it was {before[most] / total:.0%}"


def _within_class(reference: Sequence[Seen], since: Sequence[Seen], value: Callable[[Seen], float]) -> float:
    """Standard errors by which the mean rank among held-out requests of the same class is off the middle."""
    by_class: Mapping[int | None, list[float]] = defaultdict(list)
    for seen in reference:
        by_class[_first(seen)[1]].append(value(seen))
    everyone = np.sort([value(seen) for seen in reference])
    usual = {name: np.sort(values) for name, values in by_class.items() if len(values) >= MIN_OF_CLASS}
    ranks, variance = [], 0.0
    for name, num in Counter(_first(seen)[1] for seen in since).items():
        among = usual.get(name, everyone)
        values = np.array([value(seen) for seen in since if _first(seen)[1] == name])
        middle = np.searchsorted(among, values, "left") + np.searchsorted(among, values, "right")
        ranks.extend((middle / (2 * len(among)) - 0.5).tolist())
        variance += num * num / 12.0 * (1 / num + 1 / len(among))
    return float(np.sum(ranks) / sqrt(variance))
