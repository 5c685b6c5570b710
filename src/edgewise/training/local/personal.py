"""`personal`: some entries of the model are each client's own, and never leave it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from edgewise.core.spec import Spec
from edgewise.models.personal_version import OWN
from edgewise.training.local.rule import VECTOR, Array, Arrays, LocalWork, Oracle, Rule

_ENTRIES = "own_entries"


def personal(rule: Rule, own: Sequence[str]) -> Rule:
    """Any rule, on a model of which a part stays on the client: trained with the rest, kept, and 0 in all that is sent.

    Args:
        rule: What trains the model.
        own: Which tensors: names with `*` and `?` (`head.*`), kinds, or `batch_norm`.

    Returns:
        The rule; it keeps `own`, float32[m], the m own entries.

    Reference:
        Arivazhagan et al., "Federated Learning with Personalization Layers", 2019.
    """
    names = (own,) if isinstance(own, str) else tuple(own)

    def init(received: Arrays, kept: Arrays, oracle: Oracle) -> tuple[Array, Arrays]:
        entries = oracle.entries(names)
        model = received["model"] * 1
        if OWN in kept:
            model = model + 0 * kept[OWN][..., :1]  # a row for each client, where all received one
            model[..., entries] = kept[OWN]
        shared = received["model"] * 0 + 1
        shared[..., entries] = 0
        weights, carry = rule.init(
            {**received, "model": model}, kept, cast(Oracle, _Shared(oracle, shared * oracle.trained))
        )
        return weights, {**carry, _ENTRIES: (entries,)}  # in a tuple: the loop takes rows of arrays

    def step(gradient: Array, weights: Array, carry: Arrays) -> tuple[Array, Arrays]:
        moved, after = rule.step(gradient, weights, carry)
        return moved, {**after, _ENTRIES: carry[_ENTRIES]}

    def finish(weights: Array, carry: Arrays, num_steps: Array) -> tuple[Arrays, Arrays]:
        (entries,) = carry[_ENTRIES]
        mine = weights[..., entries]  # before `finish`, which may write into the weights
        sent, kept = rule.finish(weights, carry, num_steps)
        for section in rule.sends:
            if section.shape == VECTOR:
                sent[section.name][..., entries] = 0
        return sent, {**kept, OWN: mine}

    spec = Spec("personal", {"rule": rule.spec, "own": names})
    return replace(
        rule,
        spec=spec,
        init=init,
        step=step,
        finish=finish,
        keeps=(*rule.keeps, OWN),
        own=(*rule.own, *names),
        unsent=lambda layout: rule.unsent(layout) | layout.entries(names),
    )


class _Shared:
    """An oracle for which what is own is no part of what clients do together, as buffers are none."""

    def __init__(self, oracle: Oracle, trained: Array) -> None:
        self._oracle, self.trained = oracle, trained

    def __getattr__(self, name: str) -> Any:
        return getattr(self._oracle, name)


def own_patterns(work: LocalWork) -> tuple[str, ...]:
    """Which entries stay on the clients.

    Args:
        work: An algorithm's local work.

    Returns:
        The patterns of its `personal` rules; empty if the server's model is whole.
    """
    return tuple(pattern for rule in work.rules for pattern in rule.own)
