"""Every exception of Edgewise.

    EdgewiseError                 edgewise
    ├── InputError                input             something the user gave is wrong
    │   ├── ConfigError           input.config      a TOML file: file, dotted key, nearest key
    │   ├── TaskError             input.task        a task file cannot be used
    │   ├── DataError             input.data        a data set is missing, empty or misshaped
    │   └── GraphError            input.graph       an ONNX model cannot be used
    ├── MisfitError               parts.misfit      parts that cannot be joined
    ├── PlanInfeasible            plan.infeasible   no plan meets the policy
    ├── TransportError            transport
    │   ├── Unreachable           transport.unreachable   nobody answers; says which cause
    │   ├── DeadlineExceeded      transport.deadline      the work's deadline has passed
    │   ├── FrameRefused          transport.frame   version, digest, size, epoch or shape is wrong
    │   ├── Busy                  transport.busy    a bounded queue is full; the work was dropped
    │   └── RemoteError           transport.remote  the other side answered with an error
    ├── SecurityError             security
    │   ├── IdentityRefused       security.identity  certificate or signature is not acceptable
    │   └── PolicyViolation       security.policy    data that may not leave its tier
    ├── StoreError                store             log, registry or blobs
    └── GateRefused               lifecycle.gate    a version that is not good enough

Expected outcomes (too few clients, fell back to the device's exit) are values, not exceptions.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar


class EdgewiseError(Exception):
    """What was wrong, what was needed, what to do; `code` is stable, `fields` are for callers."""

    code: ClassVar[str] = "edgewise"

    def __init__(self, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        self.fields: dict[str, Any] = fields

    def to_dict(self) -> dict[str, Any]:
        """The error envelope of API and CLI: code, message, fields."""
        return {"code": self.code, "message": self.message, "fields": self.fields}


class InputError(EdgewiseError):
    """Something the user gave is wrong."""

    code = "input"


class ConfigError(InputError):
    """A configuration file is wrong; the message names file and dotted key."""

    code = "input.config"


class TaskError(InputError):
    """A task file cannot be used."""

    code = "input.task"


class DataError(InputError):
    """A data set is missing, empty or misshaped."""

    code = "input.data"


class GraphError(InputError):
    """An ONNX model is corrupt or uses what cannot be planned."""

    code = "input.graph"


class MisfitError(EdgewiseError):
    """Parts that cannot be joined."""

    code = "parts.misfit"


class PlanInfeasible(EdgewiseError):
    """No plan meets the policy; the message names the binding constraint."""

    code = "plan.infeasible"


class TransportError(EdgewiseError):
    """Something went wrong between two nodes."""

    code = "transport"


class Unreachable(TransportError):
    """Nobody answers at that address or key."""

    code = "transport.unreachable"


class DeadlineExceeded(TransportError):
    """The deadline of the work has passed."""

    code = "transport.deadline"


class FrameRefused(TransportError):
    """A frame with a wrong version, digest, size, epoch or shape."""

    code = "transport.frame"


class Busy(TransportError):
    """A bounded queue is full; the work was dropped, not queued."""

    code = "transport.busy"


class RemoteError(TransportError):
    """The other node answered with an error; `fields['remote_code']` is its code."""

    code = "transport.remote"


class SecurityError(EdgewiseError):
    """Identity or data policy."""

    code = "security"


class IdentityRefused(SecurityError):
    """A certificate or signature that is not acceptable."""

    code = "security.identity"


class PolicyViolation(SecurityError):
    """Data that may not leave its tier."""

    code = "security.policy"


class StoreError(EdgewiseError):
    """The event log, registry or blob store."""

    code = "store"


class GateRefused(EdgewiseError):
    """A model version that is not good enough to serve."""

    code = "lifecycle.gate"


@contextmanager
def error_context(**fields: Any) -> Iterator[None]:
    """Adds fields (round, client, stage) to whatever EdgewiseError passes through.

    Args:
        **fields: What to add; inner values win.
    """
    try:
        yield
    except EdgewiseError as error:
        error.fields = {**fields, **error.fields}
        raise


def nearest(name: str, known: Iterable[str]) -> str:
    """Suggests a spelling.

    Args:
        name: What was written.
        known: What exists.

    Returns:
        " Did you mean 'x'?" or the list of what exists (cut at ten); starts with a space.
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f" Did you mean {close[0]!r}?"
    return f" Known: {', '.join(names[:10])}{', …' if len(names) > 10 else ''}."
