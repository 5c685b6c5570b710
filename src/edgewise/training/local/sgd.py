"""Builders of local work: a loop and its rules. `LOCAL_WORK` and `RULES` name what a job may write."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from edgewise.core.errors import InputError, MisfitError, nearest
from edgewise.core.spec import Spec
from edgewise.training.local.accumulated import accumulated
from edgewise.training.local.descent import descent
from edgewise.training.local.directions import DIRECTIONS, StepDirection
from edgewise.training.local.frozen import frozen
from edgewise.training.local.only import only
from edgewise.training.local.optimisers import adam_step, momentum_step
from edgewise.training.local.personal import personal
from edgewise.training.local.rule import PRECISIONS, LocalWork, Loop, Rule
from edgewise.training.local.schedules import SCHEDULES, RateSchedule


def local_work(
    *rules: Rule, epochs: int = 1, batch_size: int = 16, max_steps: int | None = None, precision: str = PRECISIONS[0]
) -> LocalWork:
    """Rules, one after the other on the same batches.

    Args:
        *rules: At least one; a second is a second model.
        epochs: Passes over the client's data, E; 0 takes no step.
        batch_size: Examples per step, B; 0 takes all at once.
        max_steps: Steps at most; None for as many as the epochs give.
        precision: `float32`, or `bf16`: forward passes and gradients of steps in it where torch's autocast finds that it may,
            everything else in float32. Faster on processors that compute in it (`python -m benchmarks.precision`).

    Returns:
        The local work.

    Raises:
        InputError: If a number is out of range.
    """
    for rule in rules:
        if not isinstance(rule, Rule):
            raise InputError(f"local_work takes rules, {rule!r} is none.{nearest(str(rule), RULES)}")
    loop = _loop_params(epochs, batch_size, max_steps, precision)
    params = {"rules": tuple(rule.spec for rule in rules), **loop}
    return LocalWork(Spec("local_work", params), Loop(epochs, batch_size, max_steps, precision), rules)


def sgd(
    learning_rate: float = 0.1,
    epochs: int = 1,
    batch_size: int = 16,
    direction: StepDirection | None = None,
    max_steps: int | None = None,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    schedule: RateSchedule | None = None,
    accumulate: int = 1,
    precision: str = PRECISIONS[0],
) -> LocalWork:
    """Local descent: `epochs` passes in batches, w ← w − η·direction; with momentum where asked.

    Args:
        learning_rate: η, above 0.
        epochs: Passes over the client's data, E; at least 1.
        batch_size: Examples per step, B; 0 takes all at once.
        direction: `gradient()` if not given, `proximal(mu)`, `clipped(bound)`, or one of your own, registered in
            `DIRECTIONS` where devices must know it.
        max_steps: Batches at most; None for as many as the epochs give.
        momentum: As in `momentum_step`, 0 for none.
        nesterov: As in `momentum_step`.
        weight_decay: As in `momentum_step`.
        schedule: As in `momentum_step`: `cosine(steps)`, `linear(steps)`, `exponential(factor)`.
        accumulate: Batches a step.
        precision: As in `local_work`.

    Returns:
        The local work.

    Raises:
        InputError: If a number is out of range.
    """
    if not learning_rate > 0:
        raise InputError(f"sgd takes learning_rate > 0, found {learning_rate!r}.")
    more: dict[str, Any] = {"momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
    more = {name: value for name, value in more.items() if value} | ({"schedule": schedule.spec} if schedule else {})
    if more:
        rule = momentum_step(learning_rate, momentum, nesterov, weight_decay, direction, schedule)
    else:
        rule = descent(learning_rate, direction)
    params = {"learning_rate": learning_rate, **_loop_params(epochs, batch_size, max_steps, precision)}
    if "direction" in rule.spec.params:
        params["direction"] = rule.spec.params["direction"]
    return _named("sgd", rule, params | more, accumulate)


def adam(
    learning_rate: float = 0.001,
    epochs: int = 1,
    batch_size: int = 16,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    schedule: RateSchedule | None = None,
    max_steps: int | None = None,
    accumulate: int = 1,
    precision: str = PRECISIONS[0],
) -> LocalWork:
    """Local Adam; its moments begin anew in every round.

    Args:
        learning_rate: As in `adam_step`.
        epochs: As in `sgd`.
        batch_size: As in `sgd`.
        beta_1: As in `adam_step`.
        beta_2: As in `adam_step`.
        epsilon: As in `adam_step`.
        weight_decay: As in `adam_step`; it joins the gradient.
        schedule: As in `sgd`.
        max_steps: As in `sgd`.
        accumulate: As in `sgd`.
        precision: As in `local_work`.

    Returns:
        The local work.

    Raises:
        InputError: If a number is out of range.

    Reference:
        Kingma & Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, algorithm 1.
    """
    rule = adam_step(learning_rate, beta_1, beta_2, epsilon, weight_decay, False, schedule)
    return _named(
        "adam", rule, dict(rule.spec.params) | _loop_params(epochs, batch_size, max_steps, precision), accumulate
    )


def adam_w(
    learning_rate: float = 0.001,
    epochs: int = 1,
    batch_size: int = 16,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.01,
    schedule: RateSchedule | None = None,
    max_steps: int | None = None,
    accumulate: int = 1,
    precision: str = PRECISIONS[0],
) -> LocalWork:
    """Local AdamW; its moments begin anew in every round.

    Args:
        learning_rate: As in `adam_step`.
        epochs: As in `sgd`.
        batch_size: As in `sgd`.
        beta_1: As in `adam_step`.
        beta_2: As in `adam_step`.
        epsilon: As in `adam_step`.
        weight_decay: As in `adam_step`; it shrinks the weights themselves.
        schedule: As in `sgd`.
        max_steps: As in `sgd`.
        accumulate: As in `sgd`.
        precision: As in `local_work`.

    Returns:
        The local work.

    Raises:
        InputError: If a number is out of range.

    Reference:
        Loshchilov & Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, algorithm 2.
    """
    rule = adam_step(learning_rate, beta_1, beta_2, epsilon, weight_decay, True, schedule)
    params = {n: v for n, v in rule.spec.params.items() if n != "decoupled"} | {"weight_decay": weight_decay}
    return _named("adam_w", rule, params | _loop_params(epochs, batch_size, max_steps, precision), accumulate)


def _named(name: str, rule: Rule, params: dict[str, Any], accumulate: int) -> LocalWork:
    words = {name: params[name] for name in ("epochs", "batch_size", "max_steps", "precision") if name in params}
    loop = Loop(**words)
    if loop.epochs < 1:
        raise InputError(f"{name} takes epochs >= 1, found {loop.epochs!r}.")
    if accumulate != 1:
        rule, params = accumulated(rule, accumulate), params | {"accumulate": accumulate}
    return LocalWork(Spec(name, params), loop, (rule,))


def with_rules(work: LocalWork, *make: Callable[..., Rule]) -> LocalWork:
    """The same loop with other rules, for algorithms that bring their own.

    Args:
        work: As from `sgd`; its learning rate goes on.
        *make: Builders of rules, called with that learning rate.

    Returns:
        The local work.

    Raises:
        MisfitError: If `work` is no plain descent.
    """
    rate = work.rules[0].plain_rate
    if rate is None or len(work.rules) > 1:
        raise MisfitError(
            f"the algorithm brings its own rule, and {work.spec} has one too. Give it sgd(learning_rate, epochs, batch_size)."
        )
    return _same_loop(work, (m(rate) for m in make))


def with_each(work: LocalWork, wrap: Callable[[Rule], Rule]) -> LocalWork:
    """The same loop, with every rule wrapped, e.g. in `personal`.

    Args:
        work: Any.
        wrap: From a rule to the one in its place.

    Returns:
        The local work.
    """
    return _same_loop(work, (wrap(rule) for rule in work.rules))


def _same_loop(work: LocalWork, rules: Iterable[Rule]) -> LocalWork:
    loop = work.loop
    return local_work(
        *rules, epochs=loop.epochs, batch_size=loop.batch_size, max_steps=loop.max_steps, precision=loop.precision
    )


def _loop_params(epochs: int, batch_size: int, max_steps: int | None, precision: str) -> dict[str, Any]:
    if epochs < 0 or batch_size < 0 or (max_steps is not None and max_steps < 1):
        raise InputError(
            f"a loop takes epochs >= 0, batch_size >= 0 (0 takes all) and max_steps >= 1, found {epochs!r}, "
            f"{batch_size!r} and {max_steps!r}."
        )
    if precision not in PRECISIONS:
        raise InputError(
            f"precision is one of {', '.join(PRECISIONS)}, found {precision!r}.{nearest(precision, PRECISIONS)}"
        )
    most = {} if max_steps is None else {"max_steps": max_steps}
    return {"epochs": epochs, "batch_size": batch_size, **most} | (
        {"precision": precision} if precision != PRECISIONS[0] else {}
    )


RULES: dict[str, Callable[..., Rule]] = {
    "accumulated": accumulated,
    "adam_step": adam_step,
    "descent": descent,
    "frozen": frozen,
    "momentum_step": momentum_step,
    "only": only,
    "personal": personal,
}
LOCAL_WORK: Mapping[str, Callable[..., Any]] = ChainMap(
    {"adam": adam, "adam_w": adam_w, "local_work": local_work, "sgd": sgd}, RULES, DIRECTIONS, SCHEDULES
)
"""Local work, and the parts that stand inside it: `build` reads both from one table. What joins `RULES` later is in it."""
