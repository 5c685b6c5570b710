"""`GateRule`: the contract of a gate, where a request may end. A pair of pure functions and a value that is its state.

    answer, state = rule.ask(tensors, state)          # None lets the request pass
    state = rule.learn(tensors, answer, state)        # after the plan answered a request that had passed

A gate in front of every stage sees the request's inputs, a gate behind a stage what that stage made. `make_gate` builds
the rule of a plan's `Gate`; state is kept per stream of requests by whoever runs the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

Given = Mapping[str, NDArray[Any]]
"""Tensors a gate looks at, by name."""
Answer = dict[str, NDArray[Any]]
"""What a request is answered with, by name."""
State = Any
"""A rule's own value; None before the first request."""


@dataclass(frozen=True, slots=True)
class GateRule:
    """What decides at a gate.

    Attributes:
        ask: (tensors, state) -> (answer or None, state).
        learn: (tensors, answer, state) -> state, told what a request that had passed was answered; None if the rule
            does not learn.
    """

    ask: Callable[[Given, State], tuple[Answer | None, State]]
    learn: Callable[[Given, Answer, State], State] | None = None
