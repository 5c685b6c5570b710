"""What nodes of a fleet say to each other: orders, reports and answers, each a typed struct.

The struct's frame kind is its snake-case name (`kind_of`). Orders travel outward on `control`, reports inward
on `report`; both are signed. Tensors (updates, models small enough) travel beside the struct in the same frame.

    message.py            the base and the plain answer     training_messages.py   rounds and runs
    node_messages.py      nodes and their resources         serving_messages.py    versions, plans, answers
    events.py             what is published to watchers
"""

from __future__ import annotations

from edgewise.fleet.messages.message import (
    INLINE_BYTES,
    Ack,
    BlobRef,
    Message,
    kind_of,
)
from edgewise.fleet.messages.node_messages import (
    Capability,
    FleetAnswer,
    FleetRequest,
    InForce,
    InfoRequest,
    LedgerAnswer,
    LedgerRequest,
    NodeInfo,
    NodeRow,
    Progress,
    ProgressRequest,
    StopOrder,
)
from edgewise.fleet.messages.serving_messages import (
    Deploy,
    ExampleCounts,
    ExampleCountsRequest,
    Feedback,
    GraphRequest,
    Health,
    HealthRequest,
    InstallOrder,
    ListVersions,
    NodesAt,
    PlanInputs,
    ProfileAnswer,
    ProfileOrder,
    RegisterVersion,
    Rollback,
    UninstallOrder,
    Versions,
)
from edgewise.fleet.messages.training_messages import (
    CancelRun,
    ClientPlace,
    HardExamples,
    LetterAck,
    RoundRecord,
    RunLetter,
    RunRequest,
    RunStatus,
    RunSubmitted,
    SubmitRun,
    WhereIs,
    hard_examples_of,
    with_hard_examples,
)

__all__ = [
    "INLINE_BYTES",
    "Ack",
    "BlobRef",
    "CancelRun",
    "Capability",
    "ClientPlace",
    "Deploy",
    "ExampleCounts",
    "ExampleCountsRequest",
    "Feedback",
    "FleetAnswer",
    "FleetRequest",
    "GraphRequest",
    "HardExamples",
    "Health",
    "HealthRequest",
    "InForce",
    "InfoRequest",
    "InstallOrder",
    "LedgerAnswer",
    "LedgerRequest",
    "LetterAck",
    "ListVersions",
    "Message",
    "NodeInfo",
    "NodeRow",
    "NodesAt",
    "PlanInputs",
    "ProfileAnswer",
    "ProfileOrder",
    "Progress",
    "ProgressRequest",
    "RegisterVersion",
    "Rollback",
    "RoundRecord",
    "RunLetter",
    "RunRequest",
    "RunStatus",
    "RunSubmitted",
    "StopOrder",
    "SubmitRun",
    "UninstallOrder",
    "Versions",
    "WhereIs",
    "hard_examples_of",
    "kind_of",
    "with_hard_examples",
]
