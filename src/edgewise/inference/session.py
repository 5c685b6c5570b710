"""One request at the device, as `step(state, event) -> (state, actions)`: deadline, hedge, fallback. Pure.

    RequestArrived ─▶ RunStages ─▶ StagesDone ─┬─ confident ─▶ SessionAnswer(plan)
                                                 └─ Offload ─┬─▶ RemoteAnswered ─▶ SessionAnswer(plan | other edge)
                                                             ├─▶ RemoteFailed ─▶ next target, own exit or local tail
                                                             └─▶ timers: hedge ─▶ RunLocalTail, last call ─▶ own exit

Every request ends in exactly one `Answer`, never later than its deadline: by the last call, a margin before it, if the
device has an exit of its own by then, else with the first thing that comes. An `Answer` whose source is `NONE` says that
nothing was computed in time, and why. The driver is `request_driver.py`; it drops events of ended requests.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec
from msgspec.structs import replace


class AnswerSource(StrEnum):
    """Who gave the answer."""

    PLAN = "plan"
    """The plan as intended; an early exit that was confident is part of it."""
    FILTER = "filter"
    """A gate in front of every stage: nothing was computed, the answer is that of a request like this one."""
    OTHER_EDGE = "other_edge"
    """The plan's outer stages, on another node than the first choice."""
    LOCAL_TAIL = "local_tail"
    """The device computed on to an exit of its own after its hand-over."""
    EDGE_EXIT = "edge_exit"
    """An outer node's own exit, below its threshold, because the node behind it did not answer."""
    DEVICE_EXIT = "device_exit"
    """The device's own exit, below its threshold."""
    NONE = "none"
    """Nothing was ready in time."""


class Timer(StrEnum):
    """What a timer is for."""

    HEDGE = "hedge"
    LAST_CALL = "last_call"
    DEADLINE = "deadline"


class RequestArrived(msgspec.Struct, frozen=True):
    """A request and what is known when it arrives.

    Attributes:
        at_s: Time of arrival.
        deadline_s: Time by which it must be answered.
        margin_s: How long before the deadline the device's own exit is good enough, for the way back to the client;
            with a local tail, half of it.
        targets: Names of usable nodes for the next stages, best first; () if none is reachable.
        home: The preferred node, usable or not; another's answer counts as `OTHER_EDGE`.
        is_local: Whether the whole plan runs on the device.
        has_head: Whether the device runs a stage before it hands over.
        tail_s: 99th percentile of the local work that hedges, waiting included; None without a local tail.
        remote_s: Usual time from offloading to the answer; less than that left is no second try.
    """

    at_s: float
    deadline_s: float
    margin_s: float = 0.0
    targets: tuple[str, ...] = ()
    home: str = ""
    is_local: bool = False
    has_head: bool = True
    tail_s: float | None = None
    remote_s: float = 0.0


class StagesDone(msgspec.Struct, frozen=True):
    """The device's stages ran; `exit_index` is its last exit if it has one, `leaves` whether the rule is met."""

    at_s: float
    exit_index: int | None = None
    leaves: bool = False


class StagesFailed(msgspec.Struct, frozen=True):
    """The device's stages could not run."""

    at_s: float
    cause: str


class RemoteAnswered(msgspec.Struct, frozen=True):
    """A target answered; `cause` says why it is not from as far out as the plan wanted."""

    at_s: float
    target: str
    exit_index: int
    cause: str = ""


class RemoteFailed(msgspec.Struct, frozen=True):
    """A target failed; `cause` is its error's code and sentence."""

    at_s: float
    target: str
    cause: str


class TailDone(msgspec.Struct, frozen=True):
    """The local tail ran; `exit_index` is where it ended."""

    at_s: float
    exit_index: int


class TailFailed(msgspec.Struct, frozen=True):
    """The local tail could not run."""

    at_s: float
    cause: str


class TimerExpired(msgspec.Struct, frozen=True):
    """A timer's time has come."""

    at_s: float
    timer: Timer


Event = (
    RequestArrived | StagesDone | StagesFailed | RemoteAnswered | RemoteFailed | TailDone | TailFailed | TimerExpired
)


class RunStages(msgspec.Struct, frozen=True):
    """Run the device's stages of the plan."""


class RunLocalTail(msgspec.Struct, frozen=True):
    """Run the fallback from what the device has computed so far."""


class Offload(msgspec.Struct, frozen=True):
    """Hand over to a target, which has `timeout_s` for it."""

    target: str
    timeout_s: float


class StartTimer(msgspec.Struct, frozen=True):
    """Fire `timer` at `at_s`."""

    timer: Timer
    at_s: float


class SessionAnswer(msgspec.Struct, frozen=True):
    """The one end of a request.

    Attributes:
        source: Who answers.
        exit_index: Which exit; None only if the source is `NONE`.
        cause: Why the full plan did not answer; "" if it did.
    """

    source: AnswerSource
    exit_index: int | None
    cause: str = ""


Action = RunStages | RunLocalTail | Offload | StartTimer | SessionAnswer


class Session(msgspec.Struct, frozen=True):
    """State of one request.

    Attributes:
        setup: What was known at arrival; None before.
        remaining: Targets not tried yet.
        trying: The target that is working; "" if none.
        has_head_run: Whether the device's stages are done, so that what is handed over exists.
        own_exit: The device's exit whose logits are at hand.
        tail: `none`, `idle`, `running` or `failed`.
        is_last_call: Whether whatever comes first is the answer.
        causes: What went wrong so far, in order.
        answer: The end; None while the request is open.
    """

    setup: RequestArrived | None = None
    remaining: tuple[str, ...] = ()
    trying: str = ""
    has_head_run: bool = False
    own_exit: int | None = None
    tail: str = "none"
    is_last_call: bool = False
    causes: tuple[str, ...] = ()
    answer: SessionAnswer | None = None


Step = tuple[Session, tuple[Action, ...]]


def step(state: Session, event: Event) -> Step:
    """Decides what a request does next.

    Args:
        state: `Session()` at first, then what the last call returned.
        event: What happened.

    Returns:
        The next state and what to do now. An ended request ignores every event.
    """
    if state.answer is not None:
        return state, ()
    if isinstance(event, RequestArrived):
        return _arrived(state, event)
    assert state.setup is not None, "the first event of a request is its arrival"
    if isinstance(event, StagesDone):
        return _stages_done(state, event)
    if isinstance(event, StagesFailed):
        return _end(state, AnswerSource.NONE, None, f"the device's stages failed: {event.cause}")
    if isinstance(event, RemoteAnswered):
        source = AnswerSource.PLAN if event.target == state.setup.home else AnswerSource.OTHER_EDGE
        return _end(state, AnswerSource.EDGE_EXIT if event.cause else source, event.exit_index, event.cause)
    if isinstance(event, RemoteFailed):
        return _remote_failed(state, event)
    if isinstance(event, TailDone):
        cause = "" if state.causes else f"{state.trying or 'nobody'} had not answered when the local tail was done"
        return _end(state, AnswerSource.LOCAL_TAIL, event.exit_index, cause)
    if isinstance(event, TailFailed):
        return _fall_back(replace(state, tail="failed", causes=(*state.causes, event.cause)), event.at_s)
    return _timer_fired(state, event)


def _arrived(state: Session, event: RequestArrived) -> Step:
    tail = "none" if event.tail_s is None or event.is_local else "idle"
    is_away = event.home and event.home not in event.targets
    causes = (f"{event.home}: is unreachable or on trial",) if is_away else ()
    state = replace(
        state, setup=event, remaining=event.targets, tail=tail, has_head_run=not event.has_head, causes=causes
    )
    # A local tail that began on time may end a little late; half the margin is still left for the way back.
    margin_s = event.margin_s if tail == "none" else event.margin_s / 2
    last_call = StartTimer(Timer.LAST_CALL, max(event.at_s, event.deadline_s - margin_s))
    if event.has_head:
        return state, (last_call, RunStages())
    state, actions = _offload(state, event.at_s)
    return state, (last_call, *actions)


def _stages_done(state: Session, event: StagesDone) -> Step:
    state = replace(state, has_head_run=True, own_exit=event.exit_index)
    setup = state.setup
    if event.leaves or (setup is not None and setup.is_local):
        return _end(state, AnswerSource.PLAN, event.exit_index)
    if state.is_last_call:
        return (state, ()) if event.exit_index is None else _end(state, AnswerSource.DEVICE_EXIT, event.exit_index)
    return _offload(state, event.at_s)


def _offload(state: Session, at_s: float) -> Step:
    """The next target, with a hedge at the latest time that local work still meets the deadline."""
    setup = state.setup
    assert setup is not None
    if not state.remaining:
        cause = state.causes or ("no node of the next tier is reachable",)
        return _fall_back(replace(state, causes=cause), at_s)
    target, *rest = state.remaining
    actions: list[Action] = [Offload(target, max(setup.deadline_s - at_s, 0.0))]
    if setup.tail_s is not None and state.own_exit is None and state.tail == "idle":
        hedge_s = setup.deadline_s - setup.margin_s - setup.tail_s
        actions.append(StartTimer(Timer.HEDGE, max(at_s, hedge_s)))
    return replace(state, trying=target, remaining=tuple(rest)), tuple(actions)


def _remote_failed(state: Session, event: RemoteFailed) -> Step:
    setup = state.setup
    assert setup is not None
    if event.target != state.trying:
        return state, ()
    state = replace(state, trying="", causes=(*state.causes, f"{event.target}: {event.cause}"))
    if state.remaining and event.at_s + setup.remote_s <= setup.deadline_s - setup.margin_s:
        return _offload(state, event.at_s)
    return _fall_back(state, event.at_s)


def _fall_back(state: Session, at_s: float) -> Step:
    """Answers from the device: its own exit if there is one, else the local tail."""
    if state.own_exit is not None:
        return _end(state, AnswerSource.DEVICE_EXIT, state.own_exit)
    if state.tail == "idle":
        return replace(state, tail="running"), (RunLocalTail(),)
    if state.tail == "running" or state.trying:
        return state, ()
    return _end(state, AnswerSource.NONE, None)


def _timer_fired(state: Session, event: TimerExpired) -> Step:
    if event.timer is Timer.HEDGE:
        is_due = state.tail == "idle" and state.own_exit is None and state.has_head_run
        return (replace(state, tail="running"), (RunLocalTail(),)) if is_due else (state, ())
    if event.timer is Timer.DEADLINE:
        return _end(state, AnswerSource.NONE, None)
    if not state.has_head_run:
        waiting = "the device's own stages were not done at the last call; the device is overloaded"
    else:
        waiting = f"{state.trying or 'nobody'} had not answered at the last call"
    state = replace(state, causes=(*state.causes, waiting), is_last_call=True)
    if state.own_exit is not None:
        return _end(state, AnswerSource.DEVICE_EXIT, state.own_exit)
    assert state.setup is not None
    return state, (StartTimer(Timer.DEADLINE, max(event.at_s, state.setup.deadline_s)),)


def _end(state: Session, source: AnswerSource, exit_index: int | None, cause: str = "") -> Step:
    causes = () if source is AnswerSource.PLAN else (*state.causes, *((cause,) if cause else ()))
    answer = SessionAnswer(source, exit_index, "; ".join(causes))
    return replace(state, answer=answer), (answer,)
