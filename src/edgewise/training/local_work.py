"""Builders of local work: what a client does, as data and a small rule. Engines in `local/` run it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgewise.core.errors import InputError
from edgewise.core.layout import Vector
from edgewise.core.spec import Spec
from edgewise.training.algorithm import Direction, LocalWork, plain_gradient


@dataclass(frozen=True, slots=True)
class NamedDirection:
    """A direction with the words that rebuild it on a device.

    Attributes:
        spec: The words.
        rule: (gradient, weights, received) -> direction, each float32[..., d].
    """

    spec: Spec
    rule: Direction

    def __call__(self, gradient: Vector, weights: Vector, received: Vector) -> Vector:
        return self.rule(gradient, weights, received)


def gradient() -> Direction:
    """The gradient itself: plain SGD.

    Returns:
        `plain_gradient`, which engines recognise.
    """
    return plain_gradient


def proximal(mu: float) -> Direction:
    """The gradient of the local loss plus μ/2·‖w − w_received‖².

    Args:
        mu: Weight of the proximal term, μ in eq. 2; at least 0.

    Returns:
        The direction.

    Raises:
        InputError: If `mu` is negative.

    Reference:
        Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020.
    """
    if mu < 0:
        raise InputError(f"proximal takes mu >= 0, found {mu!r}. 0.001 to 1 is usual.")

    def rule(gradient: Vector, weights: Vector, received: Vector) -> Vector:
        return gradient + mu * (weights - received)

    return NamedDirection(Spec("proximal", {"mu": mu}), rule)


def clipped(bound: float) -> Direction:
    """The gradient, shortened to a bound on its norm: no single batch can throw a client far off.

    Args:
        bound: Largest Euclidean norm of a step's gradient, above 0; a shorter one is left as it is.

    Returns:
        The direction.

    Raises:
        InputError: If `bound` is not above 0.

    Reference:
        Pascanu, Mikolov & Bengio, "On the difficulty of training recurrent neural networks", ICML 2013, algorithm 1.
    """
    if not bound > 0:
        raise InputError(f"clipped takes bound > 0, found {bound!r}. 1 to 5 is usual.")

    def rule(gradient: Vector, weights: Vector, received: Vector) -> Vector:
        excess: Vector = ((gradient * gradient).sum(-1) ** 0.5 / bound).clip(min=1.0)  # numpy and torch alike
        return gradient / excess[..., None]

    return NamedDirection(Spec("clipped", {"bound": bound}), rule)


def sgd(
    learning_rate: float = 0.1, epochs: int = 1, batch_size: int = 16, direction: Direction = plain_gradient
) -> LocalWork:
    """Plain local descent: `epochs` passes in batches, w ← w − η·direction.

    Args:
        learning_rate: η, above 0.
        epochs: Passes over the client's data, E; at least 1.
        batch_size: Examples per step, B; at least 1.
        direction: `gradient()`, `proximal(mu)`, `clipped(bound)` or a function of (gradient, weights, received). A
            function without `spec` is known only in this process; to send it to devices, register it in `LOCAL_WORK`.

    Returns:
        The local work.

    Raises:
        InputError: If a number is out of range.
    """
    for name, value, least in (("epochs", epochs, 1), ("batch_size", batch_size, 1)):
        if value < least:
            raise InputError(f"sgd takes {name} >= {least}, found {value!r}.")
    if not learning_rate > 0:
        raise InputError(f"sgd takes learning_rate > 0, found {learning_rate!r}.")
    words: dict[str, Any] = {"learning_rate": learning_rate, "epochs": epochs, "batch_size": batch_size}
    if direction is not plain_gradient:
        words["direction"] = getattr(direction, "spec", Spec(getattr(direction, "__name__", "direction")))
    return LocalWork(Spec("sgd", words), epochs, batch_size, learning_rate, direction)


LOCAL_WORK: dict[str, Callable[..., Any]] = {
    "clipped": clipped,
    "gradient": gradient,
    "proximal": proximal,
    "sgd": sgd,
}
