"""Hard examples, kept on the device that saw them, within a bound. Pure; read `labels.py` next.

Examples never leave here: inputs stay traced as raw data, so that a frame which carries one is refused by the sender.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import exp, inf, log
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import InputError
from edgewise.core.ids import RequestId
from edgewise.core.provenance import RAW, traced

EVEN = "even"
UNCERTAIN = "uncertain"
LEAST_WEIGHT = 0.02
"""Weight, 1 − confidence, from which on a fair sample is fair."""


@dataclass(frozen=True, slots=True)
class HardExample:
    """One example and what was answered.

    Attributes:
        request: The request it came with.
        input: float32[*input_shape], traced as raw data.
        predicted: Class that was answered.
        confidence: Top-1 softmax of the answer, in [0, 1].
        time: Seconds on the fleet's clock.
    """

    request: RequestId
    input: NDArray[Any]
    predicted: int
    confidence: float
    time: float

    @property
    def size_bytes(self) -> int:
        """Memory of the input."""
        return int(self.input.nbytes)


@dataclass(frozen=True, slots=True)
class ExampleDropped:
    """An example that is not kept (any more), and why: `displaced`, `passed over` or `too large`."""

    request: RequestId
    cause: str


@dataclass(frozen=True, slots=True)
class BufferState:
    """The buffer.

    Attributes:
        max_examples: Bound on their number.
        max_bytes: Bound on the bytes of their inputs.
        weighting: `uncertain` prefers low confidence, `even` is a fair sample of the stream.
        kept: Examples with their keys; the smallest key goes first.
        num_offered: Examples seen.
        dropped: How many by cause.
        bar: The largest key that went; what is kept is above it.
    """

    max_examples: int
    max_bytes: int
    weighting: str = UNCERTAIN
    kept: tuple[tuple[float, HardExample], ...] = ()
    num_offered: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    bar: float = -inf

    @property
    def examples(self) -> tuple[HardExample, ...]:
        """What is kept, in the order it was seen."""
        return tuple(sorted((example for _, example in self.kept), key=lambda e: e.time))

    @property
    def size_bytes(self) -> int:
        """Bytes of the inputs kept."""
        return sum(example.size_bytes for _, example in self.kept)


def hard_examples(max_examples: int = 200, max_bytes: int = 4_000_000, *, weighting: str = UNCERTAIN) -> BufferState:
    """An empty buffer.

    A weighted reservoir: of a stream of any length it holds a sample without replacement in which an example's chance
    grows with 1 − confidence; with `even`, a uniform sample. So hard examples prevail and easy ones still occur.

    Args:
        max_examples: Bound on the number kept.
        max_bytes: Bound on the bytes of their inputs.
        weighting: `uncertain` or `even`.

    Returns:
        The first state of `step`.

    Raises:
        InputError: If a bound is not positive or the weighting is unknown.

    Reference:
        Efraimidis & Spirakis, "Weighted random sampling with a reservoir", 2006 (algorithm A-Res). Differs: a bound
        in bytes too.
    """
    if max_examples < 1 or max_bytes < 1:
        raise InputError(f"a buffer of {max_examples} examples and {max_bytes} bytes holds nothing. Give both above 0.")
    if weighting not in (UNCERTAIN, EVEN):
        raise InputError(f"weighting {weighting!r} is not known. Use {UNCERTAIN!r} or {EVEN!r}.")
    return BufferState(max_examples, max_bytes, weighting)


def step(
    state: BufferState, event: HardExample, rng: np.random.Generator
) -> tuple[BufferState, tuple[ExampleDropped, ...]]:
    """Offers one more example.

    Args:
        state: From `hard_examples` or the last step.
        event: The example; its input becomes raw data if it was not marked yet.
        rng: This example's place in the seed tree; one draw.

    Returns:
        The next state, and what is dropped for it.
    """
    event = replace(event, input=traced(event.input, RAW))
    state = replace(state, num_offered=state.num_offered + 1)
    if event.size_bytes > state.max_bytes:
        return _dropped(state, (ExampleDropped(event.request, "too large"),))
    weight = 1.0 if state.weighting == EVEN else _weight(event)
    # key u^(1/w) of the paper, as its logarithm: the same order, no underflow
    key = log(max(float(rng.random()), 1e-300)) / weight
    kept = sorted((*state.kept, (key, event)), key=lambda pair: -pair[0])
    losers = []
    while len(kept) > state.max_examples or sum(e.size_bytes for _, e in kept) > state.max_bytes:
        key, loser = kept.pop()
        losers.append(loser)
        state = replace(state, bar=max(state.bar, key))
    causes = tuple(
        ExampleDropped(e.request, "passed over" if e.request == event.request else "displaced") for e in losers
    )
    return _dropped(replace(state, kept=tuple(kept)), causes)


def fair_sample(state: BufferState, rng: np.random.Generator) -> tuple[HardExample, ...]:
    """Examples kept, as if each request had had the same chance: what two models are compared on.

    A full buffer prefers what the version in force was unsure of, where any other model looks better than it is. An example
    of weight w is kept with probability 1 − e^(w · bar), and is taken with the inverse of it. Examples above a
    confidence of 1 − `LEAST_WEIGHT` are kept more seldom than that evens out; nearly all of them are answered rightly.

    Args:
        state: The buffer.
        rng: One draw for each example.

    Returns:
        All examples where none had to go, else some of them, in the order they were seen.
    """
    if state.bar == -inf or state.weighting == EVEN:
        return state.examples
    least = 1.0 - exp(LEAST_WEIGHT * state.bar)
    return tuple(e for e in state.examples if rng.random() * (1.0 - exp(_weight(e) * state.bar)) < least)


def _weight(example: HardExample) -> float:
    return max(1.0 - example.confidence, 1e-6)


def emptied(state: BufferState) -> BufferState:
    """The buffer after its examples went into a training set; counts go on.

    Args:
        state: Any state.

    Returns:
        The same bounds, nothing kept.
    """
    return replace(state, kept=())


def _dropped(state: BufferState, causes: tuple[ExampleDropped, ...]) -> tuple[BufferState, tuple[ExampleDropped, ...]]:
    counts = dict(state.dropped)
    for drop in causes:
        counts[drop.cause] = counts.get(drop.cause, 0) + 1
    return replace(state, dropped=counts), causes
