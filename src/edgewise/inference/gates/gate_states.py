"""The gates of one place in a plan, with the state of each per stream of requests."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from edgewise.inference.gates import GateRule, make_gate
from edgewise.inference.gates.gate import Answer, State
from edgewise.planning.plan import FILTERED, Gate

_MAX_GATE_STATES = 64


class GateStates:
    """The gates of one place with their state per stream of requests; the longest unused stream beyond 64 goes."""

    def __init__(self, gates: tuple[Gate, ...]) -> None:
        self._rules: tuple[tuple[Gate, GateRule], ...] = tuple((gate, make_gate(gate)) for gate in gates)
        self._states: OrderedDict[str, list[State]] = OrderedDict()
        self._stateless: list[State] = [None] * len(self._rules)
        self.learns = any(rule.learn is not None for _, rule in self._rules)

    def __len__(self) -> int:
        return len(self._rules)

    def ask(self, tensors: Mapping[str, NDArray[Any]], stream: str = "") -> tuple[Gate, Answer, bool] | None:
        """Asks the gates in order.

        Args:
            tensors: At least what they look at.
            stream: Whose state.

        Returns:
            (gate, answer, True) of the first that answers; (last exit, its outputs, False) if none does; None without
            exits.
        """
        latest: tuple[Gate, Answer, bool] | None = None
        states = self._of(stream) if self.learns else self._stateless
        for place, (gate, rule) in enumerate(self._rules):
            seen = {name: tensors[name] for name in gate.tensors}
            answer, states[place] = rule.ask(seen, states[place])
            if answer is not None:
                return gate, answer, True
            if gate.index != FILTERED:
                latest = gate, seen, False
        return latest

    def learn(self, tensors: Mapping[str, NDArray[Any]], answer: Answer, stream: str = "") -> None:
        """Tells the gates that learn what a request that had passed was answered."""
        states = self._of(stream)
        for place, (gate, rule) in enumerate(self._rules):
            if rule.learn is not None:
                states[place] = rule.learn({name: tensors[name] for name in gate.tensors}, answer, states[place])

    def drop(self, stream: str) -> None:
        """Forgets a stream."""
        self._states.pop(stream, None)

    def _of(self, stream: str) -> list[State]:
        if stream not in self._states and len(self._states) >= _MAX_GATE_STATES:
            self._states.popitem(last=False)
        states = self._states.setdefault(stream, [None] * len(self._rules))
        self._states.move_to_end(stream)
        return states
