"""One round as five parts. A part is a value; none keeps state; each carries the words that build it.

    server                                                     client
    select ─▶ broadcast ─▶ ───────────── bytes ──────▶ decode ─▶ local ─▶ prepare ─▶ uplink.encode
      ▲                                                                                    │
      └── step ◀── finish ◀── add (weight) ◀── verify ◀── uplink.decode ◀──── bytes ───────┘

Vectors are flat float32: `[d]` for one client or `[clients, d]` for a cohort; every part that runs on a client
broadcasts over the leading axis. Who runs local work is the engine's business (`training/local/engines/engine.py`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgewise.codecs.codec import Codec
from edgewise.core.errors import MisfitError
from edgewise.core.ids import ClientId, RoundNumber
from edgewise.core.layout import Vector
from edgewise.core.spec import Spec

State = Any


class BiasedUplink(UserWarning):
    """A biased codec was joined without `error_feedback`."""


Direction = Callable[[Vector, Vector, Vector], Vector]
"""(gradient, weights, received), each float32[..., d] -> the direction a local step descends."""


def plain_gradient(gradient: Vector, weights: Vector, received: Vector) -> Vector:
    """The gradient itself: SGD."""
    return gradient


@dataclass(frozen=True, slots=True)
class Select:
    """Who takes part: `choose(clients, round, rng) -> cohort`, in the order of `clients`."""

    spec: Spec
    choose: Callable[[Sequence[ClientId], RoundNumber, np.random.Generator], tuple[ClientId, ...]]


@dataclass(frozen=True, slots=True)
class LocalWork:
    """What a client does with its data: data and a small rule, not a loop.

    Attributes:
        spec: The words that build it.
        epochs: Passes over the client's data.
        batch_size: Examples per local step; the last batch of an epoch may be smaller.
        learning_rate: Step size η.
        direction: The rule of one step.
    """

    spec: Spec
    epochs: int = 1
    batch_size: int = 16
    learning_rate: float = 0.1
    direction: Direction = plain_gradient


@dataclass(frozen=True, slots=True)
class Aggregator:
    """Folds updates into one, independent of their order.

    Attributes:
        spec: The words that build it.
        prepare: On the client: (update, weight, rng) -> (update, weight).
        init: d -> empty sum.
        add: (sum, update[d] or [clients, d], weight or one per client) -> sum; exact, so associative and commutative.
        merge: (sum, sum) -> sum; folds of disjoint clients.
        finish: sum -> float32[d].
        to_arrays / from_arrays: The sum as named arrays for a frame, and back.
        sees_single_updates: It must read each update, so masked sums do not fit.
    """

    spec: Spec
    prepare: Callable[[Vector, float, np.random.Generator], tuple[Vector, float]]
    init: Callable[[int], State]
    add: Callable[[State, Vector, Any], State]
    merge: Callable[[State, State], State]
    finish: Callable[[State], Vector]
    to_arrays: Callable[[State], dict[str, np.ndarray[Any, Any]]]
    from_arrays: Callable[[dict[str, np.ndarray[Any, Any]]], State]
    sees_single_updates: bool = False


@dataclass(frozen=True, slots=True)
class ServerUpdate:
    """What the server does with the mean update.

    Attributes:
        spec: The words that build it.
        init: model -> state (momentum and the like; a dict of arrays, () if none).
        step: (model, mean update, state) -> (model, state).
    """

    spec: Spec
    init: Callable[[Vector], State]
    step: Callable[[Vector, Vector, State], tuple[Vector, State]]


@dataclass(frozen=True, slots=True)
class FederatedAlgorithm:
    """Five parts. An experiment is a `replace` of one of them."""

    select: Select
    local: LocalWork
    uplink: Codec
    aggregate: Aggregator
    server: ServerUpdate

    def __post_init__(self) -> None:
        if self.aggregate.sees_single_updates and self.uplink.spec.name.startswith("mask"):
            raise MisfitError(
                f"{self.aggregate.spec} reads single updates, {self.uplink.spec} hides them. "
                "Use an aggregator that needs only the sum, e.g. weighted_mean()."
            )
        if self.uplink.biased:
            warnings.warn(
                f"the uplink {self.uplink} is biased: what it drops is lost for good and training may stall. "
                f"Wrap it: error_feedback({self.uplink}).",
                BiasedUplink,
                stacklevel=3,
            )

    @property
    def spec(self) -> Spec:
        """The words of all five parts; their digest names the run."""
        parts = {
            "select": self.select.spec,
            "local": self.local.spec,
            "uplink": self.uplink.spec,
            "aggregate": self.aggregate.spec,
            "server": self.server.spec,
        }
        return Spec("federated", dict(parts))
