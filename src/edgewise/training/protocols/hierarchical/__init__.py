"""Rounds over edges: clients answer their edge, edges forward sums, the cloud folds sums. `cloud.py` is one side, `edge.py` the other."""

from __future__ import annotations

from edgewise.core.spec import Spec
from edgewise.training.protocols.client_role import CLIENT_ROLE
from edgewise.training.protocols.hierarchical.cloud import CLOUD_ROLE, view
from edgewise.training.protocols.hierarchical.edge import EDGE_ROLE
from edgewise.training.protocols.protocol import CLIENT, COORDINATOR, EDGE, Protocol

__all__ = ["hierarchical"]


def hierarchical() -> Protocol:
    """Rounds in lockstep through edges, each of which folds the updates of its clients into one sum.

    Sums are exact, so the model equals that of `synchronous` over the same survivors, bit for bit.

    Returns:
        The protocol.

    Reference:
        Liu et al., "Client-Edge-Cloud Hierarchical Federated Learning", ICC 2020.
        Differs: edges do not aggregate more often than the cloud.
    """
    roles = {COORDINATOR: CLOUD_ROLE, EDGE: EDGE_ROLE, CLIENT: CLIENT_ROLE}
    return Protocol(Spec("hierarchical"), roles, view, folds_in_parts=True)
