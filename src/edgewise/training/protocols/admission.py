"""Whether an update counts. The same judgement on a coordinator and on an edge."""

from __future__ import annotations

from edgewise.core.errors import EdgewiseError, StoreError
from edgewise.core.ids import ClientId, RoundNumber, RunId
from edgewise.training.aggregate.fixed_point import check_update, check_weight
from edgewise.training.algorithm import FederatedAlgorithm
from edgewise.training.protocols import gathering as g
from edgewise.training.protocols.folding import Blobs, blob, decode_update
from edgewise.training.protocols.messages import (
    AcceptUpdate,
    Action,
    Quarantine,
    Refusal,
    RefuseUpdate,
    UpdateReceived,
)

Judged = tuple[g.Gathering, tuple[Action, ...]]


def admit(
    algorithm: FederatedAlgorithm, blobs: Blobs, gathering: g.Gathering, event: UpdateReceived, num_entries: int
) -> Judged:
    """Counts an update, or says why not.

    Args:
        algorithm: Its uplink decodes the update.
        blobs: Holds the payload.
        gathering: The round.
        event: An update of the right run.
        num_entries: d.

    Returns:
        The gathering and the answer to the sender. A sender of nonsense goes into quarantine; one without examples
        is a dropout; anything else that does not count changes only its counter.
    """
    refusal = g.refusal_of(gathering, event)
    if refusal is not None:
        gathering, actions = refuse(gathering, event, *refusal)
        if refusal[0] is Refusal.NO_EXAMPLES:
            gathering = g.dropped(gathering, event.client, refusal[1])
        return gathering, actions
    fault = _fault(algorithm, blobs, event, num_entries)
    if fault:
        return refuse_invalid(gathering, event.run, event.round, event.client, fault)
    return g.accepted(gathering, event), (AcceptUpdate(event.run, event.round, event.client),)


def refuse(gathering: g.Gathering, event: UpdateReceived, reason: Refusal, text: str) -> Judged:
    """Counts a refusal and tells the sender."""
    action = RefuseUpdate(event.run, event.round, event.client, reason, text)
    return g.counted_refusal(gathering, reason), (action,)


def refuse_invalid(gathering: g.Gathering, run: RunId, number: RoundNumber, client: ClientId, reason: str) -> Judged:
    """Puts the sender of nonsense into quarantine.

    Args:
        gathering: The round.
        run: The run.
        number: Round of the update.
        client: Its sender.
        reason: What is wrong with it.

    Returns:
        The gathering, and what to tell.
    """
    gathering = g.counted_refusal(gathering, Refusal.INVALID)
    actions: tuple[Action, ...] = (RefuseUpdate(run, number, client, Refusal.INVALID, reason),)
    if client in gathering.members and not gathering.members[client].quarantine:
        gathering = g.quarantined(gathering, client, reason)
        actions += (Quarantine(client, reason),)
    return gathering, actions


def _fault(algorithm: FederatedAlgorithm, blobs: Blobs, event: UpdateReceived, num_entries: int) -> str:
    try:
        check_weight(event.weight)
        check_update(decode_update(algorithm.uplink, blob(blobs, event.payload), num_entries), num_entries)
    except StoreError:
        raise
    except EdgewiseError as error:
        return error.message
    return ""
