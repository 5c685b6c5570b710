"""What a local step descends: small pure rules on flat vectors, one client's or a cohort's, numpy and torch alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgewise.core.errors import InputError
from edgewise.core.spec import Spec
from edgewise.training.local.rule import Array


@dataclass(frozen=True, slots=True)
class StepDirection:
    """A direction with the spec that rebuilds it on a device.

    Attributes:
        spec: Name and parameters.
        rule: (gradient, weights, received) -> direction, each float32[..., d].
    """

    spec: Spec
    rule: Callable[[Array, Array, Array], Array]

    def __call__(self, gradient: Array, weights: Array, received: Array) -> Array:
        return self.rule(gradient, weights, received)


def gradient() -> StepDirection:
    """The gradient itself: plain SGD.

    Returns:
        The direction.
    """
    return StepDirection(Spec("gradient"), lambda gradient, weights, received: gradient)


def proximal(mu: float) -> StepDirection:
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
    return StepDirection(
        Spec("proximal", {"mu": mu}), lambda gradient, weights, received: gradient + mu * (weights - received)
    )


def clipped(bound: float) -> StepDirection:
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

    def rule(gradient: Array, weights: Array, received: Array) -> Array:
        excess = ((gradient * gradient).sum(-1) ** 0.5 / bound).clip(min=1.0)  # numpy and torch alike
        return gradient / excess[..., None]

    return StepDirection(Spec("clipped", {"bound": bound}), rule)


DIRECTIONS: dict[str, Callable[..., StepDirection]] = {"clipped": clipped, "gradient": gradient, "proximal": proximal}
