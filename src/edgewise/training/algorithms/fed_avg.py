"""FedAvg, and `one_exchange`, with which most algorithms are joined."""

from __future__ import annotations

from collections.abc import Mapping

from edgewise.codecs import Codec, none
from edgewise.training.aggregate import weighted_mean
from edgewise.training.algorithm import MODEL, Aggregator, Exchange, FederatedAlgorithm, Select, ServerRule
from edgewise.training.local import LocalWork, sgd
from edgewise.training.select import all_clients
from edgewise.training.server import step

Codecs = Codec | Mapping[str, Codec] | None
"""One codec for the model, or codecs by section."""


def fed_avg(
    *,
    select: Select | None = None,
    local: LocalWork | None = None,
    uplink: Codecs = None,
    downlink: Codecs = None,
    aggregate: Aggregator | Mapping[str, Aggregator] | None = None,
    server: ServerRule | None = None,
) -> FederatedAlgorithm:
    """Local SGD on each client, the mean of their updates weighted by examples, applied as it is.

    Args:
        select: Who takes part; `all_clients()` if not given.
        local: What a client does; `sgd()`.
        uplink: How its update is coded: a codec for the model, or codecs by section; `none()`.
        downlink: How the model is coded on its way down; as it is.
        aggregate: How updates become one: an aggregator for the model, or by section; `weighted_mean()`.
        server: What is done with it; `step(1.0)`.

    Returns:
        The algorithm.

    Reference:
        McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017.
    """
    folded = dict(aggregate) if isinstance(aggregate, Mapping) else ({MODEL: aggregate} if aggregate else {})
    return FederatedAlgorithm(
        select or all_clients(),
        (one_exchange(local or sgd(), server or step(), folded, none() if uplink is None else uplink, downlink),),
    )


def one_exchange(
    local: LocalWork,
    server: ServerRule,
    aggregate: Mapping[str, Aggregator] | None = None,
    uplink: Codecs = None,
    downlink: Codecs = None,
) -> Exchange:
    """An exchange whose sections are folded by `weighted_mean()` where nothing else is said.

    Args:
        local: What a client does.
        server: What is done with the folded sections.
        aggregate: Aggregators by section.
        uplink: A codec for the model, or codecs by section.
        downlink: The same for the way down.

    Returns:
        The exchange.
    """
    folded = {section.name: weighted_mean() for section in local.sends} | dict(aggregate or {})
    return Exchange(local, server, folded, _by_section(uplink), _by_section(downlink))


def _by_section(codecs: Codecs) -> dict[str, Codec]:
    if codecs is None:
        return {}
    return {MODEL: codecs} if isinstance(codecs, Codec) else dict(codecs)
