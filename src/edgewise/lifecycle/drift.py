"""Drift: what both monitors say together, what follows from it, and what is waited for. Pure; read `loop.py` next.

    state = drift_state(DriftReference(seen, judged), rng=rng)
    state = answered(state, seen, now, rng)                    # every request; `change.py` looks at it
    state = judged(state, LabelArrived(label, is_wrong), rng)  # a label that came, also late; `harm.py` bets on it
    state = settled(state, confidence)                         # a request whose label comes no more
    state.finding

Only harm calls for training. A change without it is told, described and waited on: brightness or another mix of classes may
harm nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import NamedTuple

import numpy as np

from edgewise.lifecycle import change, harm
from edgewise.lifecycle.change import ChangeDetected, ChangeState, Seen
from edgewise.lifecycle.drift_finding import DriftFinding
from edgewise.lifecycle.harm import HarmDetected, HarmState, LabelArrived
from edgewise.lifecycle.shift_kind import Shift, ShiftKind, shift_of

ALPHA = 0.01
"""Of each monitor: probability that a false alarm ever comes while one version serves."""
NUM_RECENT = 512
"""Requests that a change is described by."""
QUIET = 1000
"""Requests without another alarm after which a change is over."""
QUIET_LABELS = 300
"""Labels without another alarm after which harm is over."""


class DriftReference(NamedTuple):
    """What is known of a version along a plan from held-out data.

    Attributes:
        seen: How it sees held-out requests.
        judged: Their true class, and whether its answer is wrong.
    """

    seen: Sequence[Seen]
    judged: Sequence[tuple[int, bool]]


@dataclass(frozen=True, slots=True)
class DriftState:
    """Both monitors, and what they found.

    Attributes:
        reference: Held-out requests.
        change: Without labels; None if there is nothing to compare with.
        harm: With labels; None if there is nothing to compare with.
        recent: The last requests.
        changed: The change that is there; None if none is.
        harmed: The harm that is there; None if none is.
        shift: What changed.
        num_since: Requests since the drift began, at the alarm.
        has_begun: Whether a drift has begun that nobody acted on: examples from before it are of another kind.
        news: Alarms that nobody has told.
    """

    reference: Sequence[Seen] = ()
    change: ChangeState | None = None
    harm: HarmState | None = None
    recent: tuple[Seen, ...] = ()
    changed: ChangeDetected | None = None
    harmed: HarmDetected | None = None
    shift: Shift | None = None
    num_since: int = 0
    has_begun: bool = False
    news: tuple[ChangeDetected | HarmDetected, ...] = ()

    @property
    def finding(self) -> DriftFinding:
        """What is known now."""
        harm_state, change_state = self.harm, self.change
        needed = () if harm_state is None else _labels_needed(harm_state)
        return DriftFinding(
            _sentence(self),
            "" if self.shift is None else str(self.shift.kind),
            self.harmed is not None,
            _waits_for(self, needed),
            "" if harm_state is None else _price(needed),
            None if harm_state is None else harm_state.statistic,
            None if change_state is None else change_state.statistic,
            next((monitor.threshold for monitor in (harm_state, change_state) if monitor is not None), 0.0),
            num_labels=0 if harm_state is None else harm_state.num_labels,
            num_requests=0 if change_state is None else change_state.num_seen,
            labels_needed=needed,
            risk=None if harm_state is None else harm_state.risk,
            risk_reference=None if harm_state is None else harm_state.risk_reference,
        )


def drift_state(reference: DriftReference, *, rng: np.random.Generator, alpha: float = ALPHA) -> DriftState:
    """Both monitors, which have seen nothing yet; one with too few held-out examples is left out.

    Args:
        reference: From held-out data.
        rng: Breaks ties.
        alpha: Of each monitor.

    Returns:
        The first state of `answered`, `judged` and `settled`.
    """
    seen, labels = reference
    return DriftState(
        tuple(seen),
        change.change_monitor(seen, rng=rng, alpha=alpha) if len(seen) >= change.MIN_REFERENCE else None,
        harm.harm_monitor(labels, alpha=alpha) if len(labels) >= harm.MIN_REFERENCE else None,
    )


def answered(state: DriftState, seen: Seen, time: float, rng: np.random.Generator) -> DriftState:
    """Takes a request that was answered.

    Args:
        state: Before.
        seen: The request.
        time: Seconds on the caller's clock.
        rng: Breaks ties.

    Returns:
        The next state; `has_begun` where a change begins.
    """
    if state.change is None:
        return state
    looked_at, alarms = change.step(state.change, seen, time, rng)
    state = replace(state, change=looked_at, recent=(*state.recent, seen)[-NUM_RECENT:])
    if state.changed is not None and not alarms and looked_at.num_armed >= QUIET and state.harmed is None:
        return replace(state, changed=None, shift=None)
    for alarm in alarms:
        shift = shift_of(state.reference, state.recent[-alarm.num_since :])
        is_new = state.changed is None or alarm.num_armed - alarm.num_since > alarm.num_since
        if is_new:
            state = replace(state, changed=alarm, shift=shift, num_since=alarm.num_since)
            state = replace(state, has_begun=True, news=(*state.news, alarm))
    return state


def judged(state: DriftState, event: LabelArrived, rng: np.random.Generator) -> DriftState:
    """Takes a label, of any request that was not given to `settled`.

    Args:
        state: Before.
        event: The label.
        rng: Breaks ties.

    Returns:
        The next state.
    """
    if state.harm is None:
        return state
    weighed, alarms = harm.labelled(state.harm, event, rng)
    state = replace(state, harm=weighed)
    if state.harmed is not None and not alarms and weighed.num_armed >= QUIET_LABELS:
        return replace(state, harmed=None, shift=state.shift if state.changed else None)
    for alarm in alarms:
        is_news, is_new = state.harmed is None, state.harmed is None and state.changed is None
        if is_news:
            state = replace(state, news=(*state.news, alarm))
        state = replace(state, harmed=alarm, shift=state.shift or Shift(ShiftKind.CONCEPT, "nothing that is looked at"))
        if is_new:  # labels are some of the requests, and their share is as good a guess as any
            seen = state.change.num_seen if state.change else weighed.num_labels
            since = ceil(alarm.num_since * max(seen, weighed.num_labels) / weighed.num_labels)
            state = replace(state, num_since=since, has_begun=True)
    return state


def settled(state: DriftState, confidence: float) -> DriftState:
    """Takes a request that was answered long ago and got no label; a label that comes for it later is left out.

    Args:
        state: Before.
        confidence: Of its answer, in [0, 1].

    Returns:
        The next state.
    """
    return state if state.harm is None else replace(state, harm=harm.unlabelled(state.harm, 1.0 - confidence))


def _sentence(state: DriftState) -> str:
    found, harmed = state.changed, state.harmed
    if harmed is not None:
        what = "" if state.shift is None else f" What changed: {state.shift.text}."
        return (
            f"drift: for {harmed.num_since} labels before the alarm {harmed.risk_since:.0%} of the answers were wrong, "
            f"before {harmed.risk_before:.0%}.{what} Train with --collected."
        )
    if found is not None and state.shift is not None:
        return (
            f"drift: for {found.num_since} requests before the alarm the inputs did not look like those of the held-out "
            f"data ({state.shift.kind}: {state.shift.text}). Whether answers are worse is not known."
        )
    return ""


def _waits_for(state: DriftState, needed: tuple[tuple[int, int], ...]) -> str:
    if state.harmed is not None:
        return "labels of new examples, to train with"
    if state.harm is None:
        return "held-out data with labels (--holdout): without it nobody knows how often answers are wrong"
    return f"labels, {state.harm.num_labels} held: {_price(needed)}"


def _labels_needed(state: HarmState) -> tuple[tuple[int, int], ...]:
    found = ((points, harm.labels_needed(state, points / 100)) for points in (30, 10))
    return tuple((points, number) for points, number in found if number is not None)


def _price(needed: tuple[tuple[int, int], ...]) -> str:
    price = [f"{number} prove a fall of {points} points" for points, number in needed]
    return (
        f"about {' and '.join(price)}" if price else "there are too few held-out examples to prove a fall of 30 points"
    )
