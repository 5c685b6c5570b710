"""What a client does with its data, as data and rules: a loop (`Loop`), and for each model it trains a rule.

    received, kept ─▶ init ─▶ weights, carry ─▶ for each batch: gradient ─▶ step ─▶ weights, carry ─▶ finish ─▶ sent, kept

A rule is the client's optimiser as pure functions on flat vectors: float32[d] for one client or [clients, d] for a cohort,
torch tensors or numpy arrays, so it uses arithmetic operators only. What it keeps stays on the client, and is provisional
until the server says that the update counted. The loop is written once (`local_loop.py`); engines answer its questions.

For a cohort every array has a leading axis: [clients, ...], or [1, ...] where all share one value. A number of one client is
float32[1], of a cohort float32[clients, 1], so that it broadcasts over entries in both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgewise.codecs.bundle import Section
from edgewise.core.errors import MisfitError
from edgewise.core.layout import Layout
from edgewise.core.spec import Spec

Array = Any
"""A torch tensor or numpy array, float32[..., d] unless said otherwise."""
Arrays = Mapping[str, Array]
"""Sections by name: as received, as kept, or what a rule carries from step to step."""

GRADIENT, LOSS, HVP, OUTPUTS = "gradient", "loss", "hvp", "outputs"
"""Questions a rule may ask an engine."""
PRECISIONS = ("float32", "bf16")
ALONE = "alone"
"""In `needs`: the rule works one client at a time, its arrays have no leading axis."""
ENTRIES = -1
"""In the shape of a section: d, the entries of the model."""
VECTOR = (ENTRIES,)


class Oracle(Protocol):
    """What an engine answers of a client's data. `batch` is a step's number; None is all of the client's examples.

    Attributes:
        trained: 1 for parameters that all clients share and 0 for the rest (buffers, `personal` entries), as float32[..., d];
            just 1.0 where all are.
    """

    trained: Array | float

    def gradient(self, weights: Array, batch: int | None = None) -> Array:
        """Gradient of the mean loss, float32[..., d]; 0 for buffers.

        That of a step belongs to the rule until the next question: it may be written into, and is copied to be carried. The
        forward pass of a step moves the buffers in `weights` on; that of all examples leaves them.
        """

    def loss(self, weights: Array, batch: int | None = None) -> Array:
        """Mean loss, float32[...]."""

    def hvp(self, weights: Array, vector: Array, batch: int | None = None) -> Array:
        """Hessian of the mean loss times a vector, float32[..., d]."""

    def outputs(self, weights: Array, inputs: Array) -> tuple[Array, ...]:
        """What the model answers to inputs when it serves, per exit float32[..., n, classes]."""

    def entries(self, patterns: Sequence[str]) -> Array:
        """bool[d]: entries of the layout's slots that match (`Layout.entries`)."""

    def hold(self, patterns: Sequence[str]) -> Array:
        """As `entries`; a layer whose running statistics are among them uses these until the client's work is done."""

    def rng(self, *names: str | int) -> Any:
        """A numpy generator at that place below the client's own in the seed tree; for a cohort it draws [clients, ...]."""

    def like(self, array: Any) -> Array:
        """A numpy array as the kind of array this engine works with."""


@dataclass(frozen=True, slots=True)
class Loop:
    """How often a rule steps.

    Attributes:
        epochs: Passes over the client's data; 0 takes no step.
        batch_size: Examples per step; the last batch of an epoch may be smaller. 0 takes all at once, in their own order.
        max_steps: Steps at most; None for as many as epochs give.
        precision: What the forward pass of a step computes in, and with it the gradient: `float32`, or `bf16` where torch's
            autocast finds that it may. Weights, loss and update are float32 in both.
    """

    epochs: int = 1
    batch_size: int = 16
    max_steps: int | None = None
    precision: str = "float32"


def _sends_all(layout: Layout) -> NDArray[np.bool_]:
    return np.zeros(layout.size, bool)


@dataclass(frozen=True, slots=True)
class Rule:
    """One model's optimiser on a client.

    Attributes:
        spec: Name and parameters that build it.
        init: (received, kept, oracle) -> (weights, carry). `kept` is empty at first.
        step: (gradient, weights, carry) -> (weights, carry); may change `weights` and `gradient` in place. An array that is
            carried has a leading axis in a cohort; anything else is carried as it is. Without GRADIENT in `needs` it gets None.
        finish: (weights, carry, num_steps) -> (sent, kept); may change `weights` in place. num_steps is float32[..., 1].
        receives: Sections it must be given.
        sends: Sections it sends; `ENTRIES` in a shape is d.
        keeps: Sections it keeps for the next round.
        needs: Questions it asks an engine.
        plain_rate: Set where `step` is exactly w ← w − η·gradient, for engines with a short way for that; None otherwise.
        own: Which tensors each client keeps to itself: names with `*` and `?`, or kinds.
        unsent: layout -> bool[d], entries that are 0 in all it sends; nothing travels for them.
    """

    spec: Spec
    init: Callable[[Arrays, Arrays, Oracle], tuple[Array, Arrays]]
    step: Callable[[Array, Array, Arrays], tuple[Array, Arrays]]
    finish: Callable[[Array, Arrays, Any], tuple[Arrays, Arrays]]
    receives: tuple[str, ...] = ("model",)
    sends: tuple[Section, ...] = (Section("model", shape=VECTOR),)
    keeps: tuple[str, ...] = ()
    needs: frozenset[str] = frozenset((GRADIENT,))
    plain_rate: float | None = None
    own: tuple[str, ...] = ()
    unsent: Callable[[Layout], NDArray[np.bool_]] = _sends_all


@dataclass(frozen=True, slots=True)
class LocalWork:
    """A loop and the rules it drives, one after the other on the same batches; a second rule is a second model (Ditto).

    Attributes:
        spec: Name and parameters that build it.
        loop: How often each rule steps.
        rules: At least one; sections they send and keep have different names.
    """

    spec: Spec
    loop: Loop
    rules: tuple[Rule, ...]

    def __post_init__(self) -> None:
        for names in ([s.name for r in self.rules for s in r.sends], [n for r in self.rules for n in r.keeps]):
            if len(names) != len(set(names)):
                raise MisfitError(
                    f"two rules of {self.spec} use one section: {sorted(names)}. Give them names of their own."
                )
        names = [*(s.name for r in self.rules for s in r.sends), *(n for r in self.rules for n in r.keeps)]
        if nested := [name for name in names if "/" in name]:
            raise MisfitError(
                f"{self.spec} names sections {nested}; a '/' parts a section from its codec's arrays. Use another sign."
            )
        if not self.rules:
            raise MisfitError(f"{self.spec} has no rule, so it trains nothing. Give it one, e.g. descent(0.1).")

    @property
    def sends(self) -> tuple[Section, ...]:
        """Sections a client sends."""
        return tuple(section for rule in self.rules for section in rule.sends)

    @property
    def receives(self) -> tuple[str, ...]:
        """Sections it must be given."""
        return tuple(dict.fromkeys(name for rule in self.rules for name in rule.receives))

    @property
    def keeps(self) -> tuple[str, ...]:
        """Sections it keeps."""
        return tuple(name for rule in self.rules for name in rule.keeps)

    @property
    def needs(self) -> frozenset[str]:
        """Questions it asks an engine."""
        mixed = {self.loop.precision} - {PRECISIONS[0]}
        return frozenset().union(mixed, *(rule.needs for rule in self.rules))

    def sections(self, num_entries: int) -> tuple[Section, ...]:
        """What a server accepts from a client: `sends` with d filled in."""
        return tuple(
            Section(s.name, s.dtype, tuple(num_entries if n == ENTRIES else n for n in s.shape)) for s in self.sends
        )
