"""Models asked on a live device about its examples: former versions, for comparison, and teachers, which label.

A teacher is a larger model that runs here, or the part of the served model beyond this device. That is asked along the plan in force, from the features that are handed over and with that codec, as a request is;
only the device's own exits are passed over. `lifecycle/labels.py` decides what a source may use.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.core.ids import Tier
from edgewise.inference.gates.exit import probabilities
from edgewise.inference.model_server import ModelServer
from edgewise.inference.stages import make_session
from edgewise.lifecycle.former import PairCounts
from edgewise.lifecycle.labels import LabelHelp
from edgewise.models.graph.graph import Graph
from edgewise.models.task import Examples
from edgewise.planning.policy import Policy


def label_help(
    served: ModelServer,
    labels: Mapping[str, Any],
    policy: Policy,
    teacher: Graph | None,
    loop: asyncio.AbstractEventLoop,
) -> LabelHelp:
    """What this device offers a source of labels.

    Args:
        served: The model in force.
        labels: Spec of the source; `reads` says where its teacher stands.
        policy: What may leave.
        teacher: A model that shall label here; None takes the one in force.
        loop: Where it is served; the help itself is used on another thread.

    Returns:
        The help; without a teacher where none can be asked so.
    """
    reads, graph = labels.get("reads", "features"), teacher or served.graph
    if teacher is not None or reads == "device":
        return LabelHelp(teacher=None if graph is None else _runs_here(graph), teacher_tier=Tier.DEVICE, policy=policy)
    handover, active = served.handover, served.active
    if active is None or handover is None or len(handover.tensors) != 1 or handover.carries_raw != (reads == "raw"):
        return LabelHelp(policy=policy)

    def ask(features: NDArray[Any]) -> NDArray[Any]:
        logits = asyncio.run_coroutine_threadsafe(served.beyond(features), loop).result()
        return probabilities(logits)

    features = None if handover.carries_raw else served.features
    return LabelHelp(
        features=features, teacher=ask, teacher_tier=active.plan.site_of(handover.target).tier, policy=policy
    )


def pair_counts(former: Graph, in_force: Graph, examples: Examples) -> PairCounts:
    """Two models on the same labelled examples, each to its end.

    Args:
        former: One.
        in_force: The other.
        examples: Inputs [n, …] and classes int64[n].

    Returns:
        The counts.
    """
    targets = np.asarray(examples.targets)
    old, now = (_runs_here(graph)(examples.inputs).argmax(axis=-1) == targets for graph in (former, in_force))
    return PairCounts(len(targets), int((now & ~old).sum()), int((old & ~now).sum()))


def _runs_here(graph: Graph) -> Any:
    session, end = make_session(graph.whole), graph.outputs[-1].name

    def answer(inputs: NDArray[Any]) -> NDArray[Any]:
        rows = [session.run([end], {graph.inputs[0].name: np.asarray(row)[None]})[0] for row in inputs]
        return probabilities(np.concatenate(rows))

    return answer
