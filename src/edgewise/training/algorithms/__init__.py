"""Published algorithms, one file each, as compositions of parts. `make_algorithm` builds one from a job's words."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from edgewise.codecs import CODECS, Codec
from edgewise.core.errors import InputError, nearest
from edgewise.core.spec import Spec, build
from edgewise.training.aggregate import AGGREGATORS
from edgewise.training.algorithm import Aggregator, FederatedAlgorithm, LocalWork, Select, ServerUpdate
from edgewise.training.algorithms.fed_adam import fed_adam
from edgewise.training.algorithms.fed_avg import fed_avg
from edgewise.training.algorithms.fed_avg_m import fed_avg_m
from edgewise.training.algorithms.fed_prox import fed_prox
from edgewise.training.local_work import LOCAL_WORK
from edgewise.training.select import SELECT
from edgewise.training.server import SERVERS

__all__ = ["ALGORITHMS", "fed_adam", "fed_avg", "fed_avg_m", "fed_prox", "make_algorithm"]

ALGORITHMS: dict[str, Callable[..., FederatedAlgorithm]] = {
    "fed_adam": fed_adam,
    "fed_avg": fed_avg,
    "fed_avg_m": fed_avg_m,
    "fed_prox": fed_prox,
    "federated": fed_avg,  # what `FederatedAlgorithm.spec` writes: all five parts spelled out
}

_OWN_SERVER = frozenset(["fed_adam", "fed_avg_m"])

_SLOTS: dict[str, tuple[str, Mapping[str, Callable[..., Any]], type]] = {
    "select": ("select", SELECT, Select),
    "local": ("local", LOCAL_WORK, LocalWork),
    "uplink": ("codecs", CODECS, Codec),
    "aggregate": ("aggregate", AGGREGATORS, Aggregator),
    "server": ("server", SERVERS, ServerUpdate),
}


def make_algorithm(words: Any) -> FederatedAlgorithm:
    """Builds an algorithm from the words of a TOML table, of a spec, or of `FederatedAlgorithm.spec`.

    Args:
        words: e.g. `{"name": "fed_prox", "mu": 0.01, "uplink": {"name": "int8"}, "local": {"name": "sgd",
            "learning_rate": 0.1, "epochs": 2}}`. The slots select, local, uplink, aggregate and server take a part's
            words; everything else goes to the algorithm.

    Returns:
        The algorithm.

    Raises:
        InputError: If a name or a parameter is unknown; it names the slot and suggests the nearest.

    Example:
        >>> make_algorithm({"name": "fed_prox", "mu": 0.5, "uplink": "int8"}).uplink
        int8(rounding='nearest')
    """
    if isinstance(words, FederatedAlgorithm):
        return words
    spec = Spec.of(words)
    params = {k: _part(k, v) if k in _SLOTS else v for k, v in spec.params.items()}
    if spec.name in ALGORITHMS:
        accepted = set(inspect.signature(ALGORITHMS[spec.name]).parameters) - {"settings"} | set(_SLOTS)
        if spec.name in _OWN_SERVER:
            accepted -= {"server"}
        for key in params:
            if key not in accepted:
                raise InputError(f"{spec.name} takes no {key!r}.{nearest(key, accepted)}")
    return build("algorithms", ALGORITHMS, Spec(spec.name, params))


def _part(slot: str, words: Any) -> Any:
    kind, registry, part_type = _SLOTS[slot]
    try:
        made = words if isinstance(words, part_type) else build(kind, registry, words)
    except InputError as error:
        raise InputError(f"{slot}: {error.message}") from error
    if not isinstance(made, part_type):
        raise InputError(f"{slot}: {words!s} does not build a {part_type.__name__}.")
    return made
