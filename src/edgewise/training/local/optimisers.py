"""Local optimisers beside plain descent: momentum, Adam and AdamW as rules, with torch.optim's arithmetic.

Momentum and moments begin anew in every round; a schedule goes on, by the steps of those of the client's updates that counted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgewise.codecs.bundle import Section
from edgewise.core.errors import InputError
from edgewise.core.spec import Spec
from edgewise.training.local.directions import StepDirection, gradient
from edgewise.training.local.rule import VECTOR, Array, Arrays, Oracle, Rule
from edgewise.training.local.schedules import RateSchedule

STEPS_DONE = "steps_done"
"""The section a scheduled client keeps: float32[..., 1]."""
_LIKE = "like"
Move = Callable[[Array, Array, Arrays, Any], tuple[Array, dict[str, Any]]]
"""(gradient, weights, carry, rate) -> the weights, and what of the carry changed."""


def momentum_step(
    learning_rate: float = 0.1,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    direction: StepDirection | None = None,
    schedule: RateSchedule | None = None,
) -> Rule:
    """v ← μ·v + g + λ·w,  w ← w − η·v; with Nesterov's w ← w − η·(g + λ·w + μ·v).

    Args:
        learning_rate: η, above 0.
        momentum: μ, in [0, 1).
        nesterov: Whether to look ahead.
        weight_decay: λ, at least 0.
        direction: What stands for g; the gradient if not given.
        schedule: A factor on η; constant if not given.

    Returns:
        The rule.

    Raises:
        InputError: If a number is out of range.

    Reference:
        Sutskever et al., "On the importance of initialization and momentum in deep learning", ICML 2013.
        Differs: as torch.optim.SGD, η stands outside the velocity.
    """
    _check("momentum_step", learning_rate, weight_decay, momentum=momentum)
    if nesterov and not momentum:
        raise InputError("momentum_step takes nesterov with momentum > 0, found 0. Give one, or leave nesterov out.")
    along = direction or gradient()

    def move(slope: Array, weights: Array, carry: Arrays, rate: Any) -> tuple[Array, dict[str, Any]]:
        towards = along(slope, weights, carry["received"]) + weight_decay * weights
        if not momentum:
            return weights - rate * towards, {}
        velocity = momentum * carry["velocity"] + towards
        ahead = towards + momentum * velocity if nesterov else velocity
        return weights - rate * ahead, {"velocity": velocity}

    words: dict[str, Any] = {"learning_rate": learning_rate, "momentum": momentum}
    words |= {"nesterov": True} if nesterov else {}
    words |= {"direction": direction.spec} if direction is not None else {}
    return _rule("momentum_step", words, weight_decay, schedule, {"velocity": 0.0}, move)


def adam_step(
    learning_rate: float = 0.001,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    schedule: RateSchedule | None = None,
) -> Rule:
    """m ← β₁m + (1 − β₁)g,  s ← β₂s + (1 − β₂)g²,  w ← w − η·m̂ / (√ŝ + ε).

    Args:
        learning_rate: η, above 0.
        beta_1: β₁, in [0, 1).
        beta_2: β₂, in [0, 1).
        epsilon: ε, above 0.
        weight_decay: λ, at least 0.
        decoupled: Whether it shrinks the weights by η·λ (AdamW) instead of joining the gradient (Adam).
        schedule: A factor on η; constant if not given.

    Returns:
        The rule.

    Raises:
        InputError: If a number is out of range.

    Reference:
        Kingma & Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, algorithm 1;
        Loshchilov & Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, algorithm 2.
    """
    _check("adam_step", learning_rate, weight_decay, beta_1=beta_1, beta_2=beta_2)
    if not epsilon > 0:
        raise InputError(f"adam_step takes epsilon > 0, found {epsilon!r}.")

    def move(slope: Array, weights: Array, carry: Arrays, rate: Any) -> tuple[Array, dict[str, Any]]:
        if decoupled:
            weights = weights * (1 - rate * weight_decay)
        elif weight_decay:
            slope = slope + weight_decay * weights
        done = carry["step"] + 1
        mean = beta_1 * carry["mean"] + (1 - beta_1) * slope
        square = beta_2 * carry["square"] + (1 - beta_2) * (slope * slope)
        scale = square**0.5 / (1 - beta_2**done) ** 0.5 + epsilon
        return weights - rate / (1 - beta_1**done) * (mean / scale), {"mean": mean, "square": square}

    words = {"learning_rate": learning_rate, "beta_1": beta_1, "beta_2": beta_2, "epsilon": epsilon}
    words |= {"decoupled": True} if decoupled else {}
    return _rule("adam_step", words, weight_decay, schedule, {"mean": 0.0, "square": 0.0}, move)


def _rule(
    name: str,
    words: dict[str, Any],
    weight_decay: float,
    schedule: RateSchedule | None,
    starts: dict[str, float],
    move: Move,
) -> Rule:
    learning_rate = words["learning_rate"]

    def init(received: Arrays, kept: Arrays, oracle: Oracle) -> tuple[Array, Arrays]:
        model = received["model"]
        # In a tuple: the loop takes rows of arrays.
        carry = {**starts, "received": model, "step": 0, _LIKE: (oracle.like,)}
        return model, {**carry, **({"done": kept.get(STEPS_DONE, 0.0)} if schedule else {})}

    def step(slope: Array, weights: Array, carry: Arrays) -> tuple[Array, Arrays]:
        rate = learning_rate
        if schedule is not None:
            done = np.asarray(carry["done"], np.float64) + carry["step"]
            factors = learning_rate * schedule.factor(done)
            rate = float(factors) if not factors.ndim else carry[_LIKE][0](factors.astype(np.float32))
        moved, changed = move(slope, weights, carry, rate)
        return moved, {**carry, **changed, "step": carry["step"] + 1}

    def finish(weights: Array, carry: Arrays, num_steps: Array) -> tuple[Arrays, Arrays]:
        weights -= carry["received"]
        return {"model": weights}, {STEPS_DONE: num_steps + carry["done"]} if schedule else {}

    words |= {"weight_decay": weight_decay} if weight_decay else {}
    words |= {"schedule": schedule.spec} if schedule else {}
    keeps = (STEPS_DONE,) if schedule else ()
    return Rule(Spec(name, words), init, step, finish, sends=(Section("model", shape=VECTOR),), keeps=keeps)


def _check(name: str, learning_rate: float, weight_decay: float, **shares: float) -> None:
    if not learning_rate > 0 or not weight_decay >= 0:
        raise InputError(
            f"{name} takes learning_rate > 0 and weight_decay >= 0, found {learning_rate!r} and {weight_decay!r}."
        )
    for word, value in shares.items():
        if not 0 <= value < 1:
            raise InputError(f"{name} takes {word} in 0 to 1 (1 excluded), found {value!r}.")
