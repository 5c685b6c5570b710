"""An operator's job file as a wish to a running fleet: who takes part, what they hold, and what is sent.

held = participants(rows, task.name)
print(audit_of(held))
wish, tensors = make_wish(job, task, held)
run = await operator.submit(wish, tensors)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgewise.core.errors import InputError
from edgewise.core.ids import RoundNumber
from edgewise.core.seeds import Seeds
from edgewise.core.units import parse_duration
from edgewise.datasets.audit import SplitAudit, audit
from edgewise.fleet.messages import HardExamples, NodeInfo, NodeRow, SubmitRun
from edgewise.fleet.operator.operator import encode_layout
from edgewise.lifecycle.labels import label_source
from edgewise.models.task import Task, user_code
from edgewise.training.job import JobFile
from edgewise.training.protocols.rounds import cohort_of


def participants(rows: Sequence[NodeRow], task: str) -> tuple[NodeInfo, ...]:
    """Who can train a task: nodes that are alive and have it installed.

    Args:
        rows: The coordinator's view.
        task: The task's name.

    Returns:
        Their infos, in the order of their clients.

    Raises:
        InputError: If there is none; says what is installed instead.
    """
    found = [r.info for r in rows if r.state == "alive" and r.info.client and r.info.task == task]
    if not found:
        others = ", ".join(f"{r.info.task!r} on {r.info.node} ({r.state})" for r in rows if r.info.task) or "nothing"
        raise InputError(
            f"no live node of the fleet has task {task!r} installed; installed is {others}. "
            "Start devices with: edgewise agent --task FILE"
        )
    return tuple(sorted(found, key=lambda info: info.client))


def audit_of(held: Sequence[NodeInfo]) -> SplitAudit:
    """Looks at who holds what, from the counts that nodes tell; no example leaves them.

    Args:
        held: As from `participants`.

    Returns:
        The audit.
    """
    return audit({str(info.client): _targets(info) for info in held})


def make_wish(
    job: JobFile,
    task: Task,
    held: Sequence[NodeInfo],
    *,
    start_version: int = 0,
    name: str = "",
    labels: str = "",
    teacher_version: int = 0,
) -> tuple[SubmitRun, dict[str, Any]]:
    """Turns a job into what `Operator.submit` takes. Imports torch, for the template and the first model.

    Who holds no examples is left out. Without a quorum a round needs its whole cohort.

    Args:
        job: As read and checked.
        task: Of the job.
        held: Who takes part.
        start_version: Version to go on from; 0 starts anew.
        name: The run's name; "" lets the coordinator name it.
        labels: Words of the source of labels for the hard examples that join; "" trains without them.
        teacher_version: Version that labels, for the source `teacher`; 0 for the one in force.

    Returns:
        The wish, and the tensors that travel beside it.

    Raises:
        InputError: If nobody holds examples, or more updates are asked for than there are clients.
    """
    from edgewise.models.export import export_template
    from edgewise.models.flat import initial_vector

    training, algorithm = job.training, job.algorithm()
    source = label_source(labels) if labels else None
    clients = tuple(info.client for info in held if info.num_examples)
    if not clients:
        raise InputError(f"none of the {len(held)} nodes with task {task.name!r} holds examples. Look at the audit.")
    needed = training.quorum or len(cohort_of(algorithm, clients, RoundNumber(1), training.seed))
    if needed > len(clients):
        raise InputError(
            f"training.quorum is {needed}, only {len(clients)} nodes hold data of task {task.name!r}. "
            "Lower it, or start more devices."
        )
    with user_code(f"task {task.name!r} makes no model"):
        graph, layout = export_template(task)
        model = initial_vector(task, Seeds(training.seed)) if start_version == 0 else None
    tensors: dict[str, Any] = {"graph": np.frombuffer(graph, np.uint8)} | ({} if model is None else {"model": model})
    deadline_s = parse_duration(training.round_deadline) if training.round_deadline else None
    wish = SubmitRun(
        task.name, algorithm.spec.to_dict(), training.rounds, training.seed, encode_layout(layout),
        protocol=training.protocol, name=name, quorum_fraction=needed / len(clients),
        round_deadline_s=deadline_s, clients=clients, start_version=start_version,
        hard_examples=HardExamples(source.spec.to_dict()) if source is not None else None, teacher_version=teacher_version,
    )  # fmt: skip
    return wish, tensors


def _targets(info: NodeInfo) -> Any:
    """Targets with the counts a node tells; without labels only their number is known."""
    if not info.label_counts:
        return np.zeros(info.num_examples, np.float32)
    labels = np.array([int(label) for label in info.label_counts], np.int64)
    return np.repeat(labels, list(info.label_counts.values()))
