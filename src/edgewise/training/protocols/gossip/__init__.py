"""Gossip: clients learn without a server in the loop. `peer.py` is the client, `gossip_coordinator.py` the start and the end, `mass.py` the arithmetic."""

from __future__ import annotations

from edgewise.core.errors import InputError
from edgewise.core.spec import Spec
from edgewise.training.algorithm import MODEL, FederatedAlgorithm, Kind
from edgewise.training.protocols.gossip.gossip_coordinator import coordinator_role
from edgewise.training.protocols.gossip.peer import PEER_ROLE
from edgewise.training.protocols.protocol import CLIENT, COORDINATOR, Protocol
from edgewise.training.protocols.run_state import view

__all__ = ["gossip"]


def gossip(num_rings: int = 1, mixing: int = 10) -> Protocol:
    """Averages models between neighbours, after each client's local work, without a server in the loop.

    Clients stand on `num_rings` rings laid through all of them, the first in their order, the others drawn from the job's seed.
    With a round deadline a client goes on without a neighbour that is silent so long; without one it waits.

    Args:
        num_rings: 1 is a ring; more make a random graph of at most twice as many neighbours each.
        mixing: Rounds of shares after each round of local work.

    Returns:
        The protocol.

    Raises:
        InputError: If a number is below 1.

    Reference:
        Kempe, Dobra & Gehrke, "Gossip-Based Computation of Aggregate Information", FOCS 2003.
        Differs: shares go to all neighbours in fixed parts, in rounds, so mixing contracts by λ₂ of the graph.
    """
    if num_rings < 1 or mixing < 1:
        raise InputError(f"gossip takes num_rings >= 1 and mixing >= 1, found {num_rings!r} and {mixing!r}.")
    roles = {COORDINATOR: coordinator_role(num_rings, mixing), CLIENT: PEER_ROLE}
    return Protocol(Spec("gossip", {"num_rings": num_rings, "mixing": mixing}), roles, view, carries=_misfit)


def _misfit(algorithm: FederatedAlgorithm) -> str:
    exchange = algorithm.exchanges[0]
    aggregator = exchange.aggregate.get(MODEL)
    if len(algorithm.exchanges) > 1 or set(exchange.aggregate) != {MODEL} or exchange.local.receives != (MODEL,):
        return "only a model travels between neighbours, in one exchange. Take fed_avg or fed_prox."
    if aggregator is None or aggregator.kind is not Kind.SUM or aggregator.hides_updates:
        return "neighbours join what they have by a weighted mean."
    if exchange.server.spec not in (Spec("step"), Spec("step", {"learning_rate": 1.0})):
        return "there is no server that could make the step. Take step(1.0)."
    return ""
