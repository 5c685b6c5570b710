"""The one local loop: rules, one after the other, on the same batches, driven over the questions an engine answers.

    for each rule:  init ─▶ begin ─▶ for each step: gradient ─▶ step ─▶ … ─▶ finish ─▶ take

Whether `oracle` stands for one client or for a cohort is the engine's business: a cohort is sorted so that those who still
work in a step are a prefix of its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from edgewise.core.errors import InputError, MisfitError
from edgewise.training.local.rule import GRADIENT, Array, Arrays, LocalWork, Oracle, Rule


class Driven(Oracle, Protocol):
    """What the loop needs of an engine beside the questions that rules ask.

    Attributes:
        num_steps: float32[..., 1]; steps of the client, or of each of a cohort.
        longest: The largest of them.
        buffers: Entries of `weights` that only the forward pass changes; None without any.
    """

    num_steps: Array
    longest: int
    buffers: slice | None

    def begin(self, weights: Array) -> Array:
        """A copy in the engine's own memory, [d] or [clients, d]; it is good until the next `begin`."""

    def active(self, step: int) -> int | None:
        """How many rows still work in a step; None where all do."""

    def descend(self, weights: Array, step: int, rate: float) -> None:
        """weights ← weights − rate · gradient, in place and by the shortest way."""

    def joined(self, head: Array, tail: Array) -> Array:
        """Rows of both, as one array."""

    def take(self, arrays: Arrays) -> list[dict[str, Any]]:
        """Numpy copies for each client; no longer traced as raw data."""

    def losses(self) -> list[float]:
        """Of each client: mean loss over all examples seen since `begin`, before each step; nan if none was."""


def run_rules(
    work: LocalWork, oracle: Driven, received: Arrays, kept: Arrays, tick: Callable[[], None]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[float]]:
    """Does local work.

    Args:
        work: Loop and rules; the engine has laid out the loop's batches already.
        oracle: Answers for one client or for a cohort.
        received: Sections from the server, as the engine's arrays.
        kept: Sections of the last update that counted; empty at first.
        tick: Called after every step.

    Returns:
        What each client sends, what it keeps, and its loss, which is that of the first rule.

    Raises:
        InputError: If a section is missing.
        MisfitError: If a rule sends or keeps other than it says, or what is no array.
    """
    sent: list[dict[str, Any]] = []
    keeps: list[dict[str, Any]] = []
    losses: list[float] = []
    for rule in work.rules:
        if missing := [name for name in rule.receives if name not in received]:
            raise InputError(f"{rule.spec} needs the sections {missing}, received are {sorted(received)}.")
        weights, carry = rule.init(received, {n: kept[n] for n in rule.keeps if n in kept}, oracle)
        weights = oracle.begin(weights)
        for step in range(oracle.longest):
            carry = _stepped(rule, oracle, step, weights, carry)
            tick()
        losses = losses or oracle.losses()
        found = rule.finish(weights, carry, oracle.num_steps)
        _check_finished(rule, found, type(weights))
        made, stays = (oracle.take(arrays) for arrays in found)
        sent = [before | now for before, now in zip(sent, made, strict=True)] if sent else made
        keeps = [before | now for before, now in zip(keeps, stays, strict=True)] if keeps else stays
    return sent, keeps, losses


def _check_finished(rule: Rule, found: Any, kind: type) -> None:
    """Refuses what a rule gives other than it says: nobody would read it, or miss it, rounds later."""
    if not isinstance(found, tuple) or len(found) != 2 or not all(isinstance(part, Mapping) for part in found):
        raise MisfitError(
            f"finish of {rule.spec} is to give two dicts, what is sent and what is kept; found a {type(found).__name__}."
        )
    sent, kept = found
    sends = {section.name for section in rule.sends}
    if sent.keys() != sends or not kept.keys() <= set(rule.keeps):
        raise MisfitError(
            f"{rule.spec} says that it sends {sorted(sends)} and keeps {sorted(rule.keeps)}; its finish sends {sorted(sent)} "
            f"and keeps {sorted(kept)}. Name them alike."
        )
    for name, value in (*sent.items(), *kept.items()):
        if not isinstance(value, kind):
            raise MisfitError(
                f"{rule.spec} gives {name!r} as a {type(value).__name__}, an array of this engine is needed ({kind.__name__}). "
                "Make it one: oracle.like(array)."
            )


def descend(weights: Array, direction: Array, rate: float, *, scratch: Array | None = None) -> Array:
    """weights ← weights − rate · direction, in place.

    Args:
        weights: float32[..., d]; a torch tensor or numpy array.
        direction: Of the same shape.
        rate: η.
        scratch: An array of that shape that may be overwritten; the step's gradient may.

    Returns:
        `weights`.
    """
    if isinstance(weights, np.ndarray):
        weights -= np.multiply(direction, np.float32(rate), out=scratch)
    elif weights.ndim == 1:
        weights.add_(direction, alpha=-rate)  # one rounding an entry (FMA)
    else:
        weights -= rate * direction
    return weights


def _stepped(rule: Rule, oracle: Driven, step: int, weights: Array, carry: Arrays) -> Arrays:
    """One step of one rule; the carry after it."""
    active = oracle.active(step)
    flat = weights if active is None else weights[:active]
    if rule.plain_rate is not None:
        oracle.descend(flat, step, rule.plain_rate)
        return carry
    gradient = oracle.gradient(flat, step) if GRADIENT in rule.needs else None
    forwarded = None if oracle.buffers is None else flat[..., oracle.buffers] * 1
    used = carry if active is None else {name: _head(value, active) for name, value in carry.items()}
    moved, after = rule.step(gradient, flat, used)
    if moved is not flat:
        flat[...] = moved
    if forwarded is not None:
        flat[..., oracle.buffers] = forwarded
    if active is None:
        return after
    return {n: carry[n] if n in carry and v is used[n] else _whole(oracle, v, carry.get(n)) for n, v in after.items()}


def _head(value: Any, active: int) -> Any:
    return value[:active] if _is_rows(value) else value


def _whole(oracle: Driven, head: Any, before: Any) -> Any:
    """A carried array with the rows of those who have finished."""
    if not _is_rows(before) or not getattr(head, "ndim", 0) or len(head) >= len(before):
        return head
    return oracle.joined(head, before[len(head) :])


def _is_rows(value: Any) -> bool:
    return getattr(value, "ndim", 0) > 0 and len(value) > 1


def kept_of(kept: Mapping[str, Any], work: LocalWork) -> dict[str, Any]:
    """The kept sections that rules read; codec states and those of other exchanges are left out.

    Args:
        kept: Everything that a client keeps.
        work: Whose rules.

    Returns:
        By name.
    """
    return {name: kept[name] for name in work.keeps if name in kept}
