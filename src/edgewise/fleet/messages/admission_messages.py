"""What is said about whether a version may serve: its comparison with the one in force, and trials of former versions."""

from __future__ import annotations

from edgewise.fleet.messages.message import Ack, BlobRef, Message
from edgewise.lifecycle.former import PairCounts
from edgewise.models.version import GateResult


class AdmissionRequest(Message, frozen=True):
    """Asks whether a version may serve in place of the one in force; nothing is changed.

    Attributes:
        version: Which.
        force: As `Deploy.force`.
        ungated: As `Deploy.ungated`.
    """

    version: int
    force: bool = False
    ungated: bool = False


class AdmissionAck(Ack, frozen=True):
    """Answers `AdmissionRequest`; `reason` says why not.

    Attributes:
        serves: The version of that model in force; 0 for none.
        gate: The comparison with it; None without.
        overridden: What spoke against it and is overridden.
        note: What to know of it.
    """

    serves: int = 0
    gate: GateResult | None = None
    overridden: str = ""
    note: str = ""


class FormerRequest(Message, frozen=True):
    """Asks whether a version that served before is better, on fresh labelled examples, than the one in force.

    Attributes:
        model: Of which model.
        besides: Versions that are not tried.
    """

    model: str
    besides: tuple[int, ...] = ()


class FormerAnswer(Message, frozen=True):
    """The former version that is surely better; 0 for none.

    Attributes:
        version: Which.
        reason: On how many examples, or why none; "" if there is none to try.
    """

    version: int = 0
    reason: str = ""


class PairsOrder(Message, frozen=True):
    """Compare a former version with the one in force on the labelled examples a device holds; they stay there.

    Attributes:
        model: Whose examples.
        in_force: The version that serves there; another is not compared.
        graph: Of the former one.
    """

    model: str
    in_force: int
    graph: BlobRef


class PairsAnswer(Message, frozen=True):
    """What came of it: counts, no examples."""

    pairs: PairCounts
