"""Published algorithms, one file each, as compositions of parts. `make_algorithm` builds one from a job's spec."""

from __future__ import annotations

import inspect
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from edgewise.codecs import CODECS, Codec
from edgewise.core.errors import InputError, nearest
from edgewise.core.spec import Spec, build
from edgewise.training.aggregate import AGGREGATORS
from edgewise.training.algorithm import Aggregator, Exchange, FederatedAlgorithm, Select, ServerRule
from edgewise.training.algorithms.dane import dane, full_gradient, shifted
from edgewise.training.algorithms.ditto import ditto, drawn
from edgewise.training.algorithms.fed_adam import fed_adam
from edgewise.training.algorithms.fed_avg import fed_avg, one_exchange
from edgewise.training.algorithms.fed_avg_m import fed_avg_m
from edgewise.training.algorithms.fed_bn import fed_bn
from edgewise.training.algorithms.fed_nova import fed_nova, normalised, normalised_step
from edgewise.training.algorithms.fed_per import fed_per
from edgewise.training.algorithms.fed_prox import fed_prox
from edgewise.training.algorithms.scaffold import control_step, controlled, scaffold
from edgewise.training.algorithms.zeroth_order import along_slopes, two_point, zeroth_order
from edgewise.training.local import LOCAL_WORK, LocalWork, Rule
from edgewise.training.select import SELECT
from edgewise.training.server import SERVERS

__all__ = [
    "ALGORITHMS",
    "dane",
    "ditto",
    "fed_adam",
    "fed_avg",
    "fed_avg_m",
    "fed_bn",
    "fed_nova",
    "fed_per",
    "fed_prox",
    "make_algorithm",
    "scaffold",
    "zeroth_order",
]


def federated(*, select: Select, exchanges: Sequence[Exchange]) -> FederatedAlgorithm:
    """All parts spelled out: what `FederatedAlgorithm.spec` writes.

    Args:
        select: Who takes part.
        exchanges: Of a round.

    Returns:
        The algorithm.
    """
    return FederatedAlgorithm(select, tuple(exchanges))


ALGORITHMS: dict[str, Callable[..., FederatedAlgorithm]] = {
    "dane": dane,
    "ditto": ditto,
    "fed_adam": fed_adam,
    "fed_avg": fed_avg,
    "fed_avg_m": fed_avg_m,
    "fed_bn": fed_bn,
    "fed_nova": fed_nova,
    "fed_per": fed_per,
    "fed_prox": fed_prox,
    "federated": federated,
    "scaffold": scaffold,
    "zeroth_order": zeroth_order,
}

OWN_RULES: dict[str, Callable[..., Rule]] = {
    "controlled": controlled,
    "drawn": drawn,
    "full_gradient": full_gradient,
    "normalised": normalised,
    "shifted": shifted,
    "two_point": two_point,
}
"""Client rules that an algorithm's file brings, beside `local.RULES`."""
OWN_SERVERS: dict[str, Callable[..., ServerRule]] = {
    "along_slopes": along_slopes,
    "control_step": control_step,
    "normalised_step": normalised_step,
}
"""Server rules that an algorithm's file brings, beside `server.SERVERS`."""

_SLOTS: dict[str, tuple[str, Mapping[str, Callable[..., Any]], Any]] = {
    "select": ("select", SELECT, Select),
    "local": ("local", ChainMap(OWN_RULES, cast(Any, LOCAL_WORK)), LocalWork),
    "uplink": ("codecs", CODECS, Codec),
    "downlink": ("codecs", CODECS, Codec),
    "aggregate": ("aggregate", AGGREGATORS, Aggregator),
    "server": ("server", ChainMap(OWN_SERVERS, SERVERS), ServerRule),
}
_BRINGS = {
    "fed_adam": frozenset(["server"]),
    "fed_avg_m": frozenset(["server"]),
    "fed_nova": frozenset(["server"]),
    "scaffold": frozenset(["aggregate", "server"]),
}
"""Slots that an algorithm fills itself."""
_BY_SECTION = frozenset(["aggregate", "uplink", "downlink"])


def make_algorithm(given: Any) -> FederatedAlgorithm:
    """Builds an algorithm from its spec: a table of a TOML file, a `Spec`, or `FederatedAlgorithm.spec`.

    Args:
        given: e.g. `{"name": "fed_prox", "mu": 0.01, "uplink": {"name": "int8"}, "local": {"name": "sgd",
            "learning_rate": 0.1, "epochs": 2}}`. The slots select, local, uplink, downlink, aggregate and server take a
            part's spec, uplink, downlink and aggregate also a table of them by section: `{"model": "int8"}`.
            Everything else goes to the algorithm.

    Returns:
        The algorithm.

    Raises:
        InputError: If a name or a parameter is unknown; it names the slot and suggests the nearest.

    Example:
        >>> make_algorithm({"name": "fed_prox", "mu": 0.5, "uplink": "int8"}).exchanges[0].uplink
        {'model': int8(rounding='nearest')}
    """
    if isinstance(given, FederatedAlgorithm):
        return given
    spec = Spec.of(given)
    if spec.name in ALGORITHMS:
        _check_parameters(spec)
    params = {name: _built(name, value) for name, value in spec.params.items()}
    return build("algorithms", ALGORITHMS, Spec(spec.name, params))


def _check_parameters(spec: Spec) -> None:
    """Refuses a parameter that is unknown or missing before a builder in the middle of a chain of `**settings` does."""
    parameters = inspect.signature(ALGORITHMS[spec.name]).parameters
    accepted = set(parameters)
    if "settings" in accepted:
        accepted = accepted - {"settings"} | (set(_SLOTS) - _BRINGS.get(spec.name, frozenset()))
    for name in spec.params:
        if name not in accepted and spec.name == "federated" and name in _SLOTS:
            raise InputError(
                f"federated takes no {name!r}: since 0.2.0 a round is one or more 'exchanges', each with its own parts. "
                'For one exchange write name = "fed_avg" with the same parts.'
            )
        if name not in accepted:
            raise InputError(f"{spec.name} takes no {name!r}.{nearest(name, accepted)}")
    missing = [
        n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY and p.default is p.empty and n not in spec.params
    ]
    if missing:
        raise InputError(f"{spec.name} needs {missing}, they are not given. Its docstring says what they are.")


def _built(slot: str, given: Any) -> Any:
    """What an algorithm's builder is given for a parameter."""
    if slot == "exchanges":
        return tuple(_exchange(part) for part in given)
    if slot not in _SLOTS:
        return given
    if slot in _BY_SECTION and isinstance(given, Mapping) and "name" not in given:
        return {section: _part(slot, part) for section, part in given.items()}
    return _part(slot, given)


def _exchange(given: Any) -> Exchange:
    if isinstance(given, Exchange):
        return given
    params = {name: _built(name, value) for name, value in Spec.of(given).params.items()}
    for name in params:
        if name not in inspect.signature(one_exchange).parameters:
            raise InputError(f"an exchange takes no {name!r}.{nearest(name, _SLOTS)}")
    return one_exchange(**params)


def _part(slot: str, given: Any) -> Any:
    kind, registry, part_type = _SLOTS[slot]
    try:
        made = given if isinstance(given, part_type) else build(kind, registry, given)
    except InputError as error:
        raise InputError(f"{slot}: {error.message}") from error
    if not isinstance(made, part_type):
        raise InputError(f"{slot}: {given!s} does not build a {part_type.__name__}.")
    return made
