"""What no update of a run has: frozen tensors, those that rules leave as they were received, those that stay on a client.

Both ends know it from the algorithm and the layout, so the uplink's codec leaves it out (`codecs/skip_zeros.py`).
"""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgewise.codecs import none, skip_zeros
from edgewise.core.layout import Layout, SlotKind
from edgewise.training.algorithm import BiasedUplink, Exchange, FederatedAlgorithm
from edgewise.training.local import Rule
from edgewise.training.local.rule import VECTOR


def without_unsent(algorithm: FederatedAlgorithm, layout: Layout) -> FederatedAlgorithm:
    """An algorithm whose clients send nothing for what they do not change.

    Args:
        algorithm: Any; done to one that has it already, nothing changes.
        layout: Of the run's model.

    Returns:
        The algorithm; its uplinks skip what is 0 in every update.

    Raises:
        InputError: If a rule names tensors that the model does not have.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BiasedUplink)  # said when it was joined
        return replace(algorithm, exchanges=tuple(_skipping(exchange, layout) for exchange in algorithm.exchanges))


def _skipping(exchange: Exchange, layout: Layout) -> Exchange:
    uplink = dict(exchange.uplink)
    for rule in exchange.local.rules:
        ranges = _runs(_unsent(rule, layout))
        for section in rule.sends if ranges else ():
            codec = uplink.get(section.name) or none()
            if section.shape == VECTOR and section.dtype == "float32" and codec.spec.name != "skip_zeros":
                uplink[section.name] = skip_zeros(codec, ranges)
    return replace(exchange, uplink=uplink) if uplink != exchange.uplink else exchange


def _unsent(rule: Rule, layout: Layout) -> NDArray[np.bool_]:
    """bool[d]: entries that are 0 in what a rule sends."""
    found = rule.unsent(layout)
    for slot in layout.slots:
        found[slot.offset : slot.offset + slot.size] |= slot.kind is SlotKind.FROZEN
    return found


def _runs(entries: NDArray[np.bool_]) -> tuple[tuple[int, int], ...]:
    """(offset, size) of the runs of a mask."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], entries.astype(np.int8), [0]))))
    return tuple((int(low), int(high - low)) for low, high in edges.reshape(-1, 2))
