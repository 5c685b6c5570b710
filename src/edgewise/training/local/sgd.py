"""Builders of local work: a loop and its rules. `LOCAL_WORK` and `RULES` name what a job may write."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from edgewise.core.errors import InputError, MisfitError
from edgewise.core.spec import Spec
from edgewise.training.local.descent import descent
from edgewise.training.local.directions import DIRECTIONS, StepDirection
from edgewise.training.local.only import only
from edgewise.training.local.personal import personal
from edgewise.training.local.rule import LocalWork, Loop, Rule


def local_work(*rules: Rule, epochs: int = 1, batch_size: int = 16, max_steps: int | None = None) -> LocalWork:
    """Rules, one after the other on the same batches.

    Args:
        *rules: At least one; a second is a second model.
        epochs: Passes over the client's data, E; 0 takes no step.
        batch_size: Examples per step, B; 0 takes all at once.
        max_steps: Steps at most; None for as many as the epochs give.

    Returns:
        The local work.

    Raises:
        InputError: If a number is out of range.
    """
    params = {"rules": tuple(rule.spec for rule in rules), **_loop_params(epochs, batch_size, max_steps)}
    return LocalWork(Spec("local_work", params), Loop(epochs, batch_size, max_steps), rules)


def sgd(
    learning_rate: float = 0.1,
    epochs: int = 1,
    batch_size: int = 16,
    direction: StepDirection | None = None,
    max_steps: int | None = None,
) -> LocalWork:
    """Plain local descent: `epochs` passes in batches, w ← w − η·direction.

    Args:
        learning_rate: η, above 0.
        epochs: Passes over the client's data, E; at least 1.
        batch_size: Examples per step, B; 0 takes all at once.
        direction: `gradient()` if not given, `proximal(mu)`, `clipped(bound)`, or one of your own, registered in
            `DIRECTIONS` where devices must know it.
        max_steps: Steps at most; None for as many as the epochs give.

    Returns:
        The local work.

    Raises:
        InputError: If a number is out of range.
    """
    if epochs < 1:
        raise InputError(f"sgd takes epochs >= 1, found {epochs!r}.")
    if not learning_rate > 0:
        raise InputError(f"sgd takes learning_rate > 0, found {learning_rate!r}.")
    rule = descent(learning_rate, direction)
    params = {"learning_rate": learning_rate, **_loop_params(epochs, batch_size, max_steps)}
    if rule.plain_rate is None:
        params["direction"] = rule.spec.params["direction"]
    return LocalWork(Spec("sgd", params), Loop(epochs, batch_size, max_steps), (rule,))


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
    return local_work(*rules, epochs=loop.epochs, batch_size=loop.batch_size, max_steps=loop.max_steps)


def _loop_params(epochs: int, batch_size: int, max_steps: int | None) -> dict[str, Any]:
    if epochs < 0 or batch_size < 0 or (max_steps is not None and max_steps < 1):
        raise InputError(
            f"a loop takes epochs >= 0, batch_size >= 0 (0 takes all) and max_steps >= 1, found {epochs!r}, "
            f"{batch_size!r} and {max_steps!r}."
        )
    return {"epochs": epochs, "batch_size": batch_size} | ({} if max_steps is None else {"max_steps": max_steps})


RULES: dict[str, Callable[..., Rule]] = {"descent": descent, "only": only, "personal": personal}
LOCAL_WORK: Mapping[str, Callable[..., Any]] = ChainMap({"local_work": local_work, "sgd": sgd}, RULES, DIRECTIONS)
"""Local work, and the parts that stand inside it: `build` reads both from one table. What joins `RULES` later is in it."""
