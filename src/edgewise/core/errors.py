"""Defines every exception of Edgewise.

    EdgewiseError                 edgewise
    ├── InputError                input             something the user gave is wrong
    │   ├── ConfigError           input.config      a TOML file: file, dotted key, nearest key
    │   ├── TaskError             input.task        a task file cannot be used
    │   ├── KeptLost              input.kept        a device lost what its algorithm keeps there
    │   ├── DataError             input.data        a data set is missing, empty or misshaped
    │   └── GraphError            input.graph       an ONNX model cannot be used
    ├── MisfitError               parts.misfit      parts that cannot be joined
    ├── PartFailed                parts.failed      a part of an algorithm raised, or gave what nobody can use
    ├── RunEndedEarly             run.ended         a simulated run closed fewer rounds than asked; carries what there is
    ├── PlanInfeasible            plan.infeasible   no plan meets the policy
    ├── TransportError            transport
    │   ├── Unreachable           transport.unreachable   nobody answers; says which cause
    │   ├── DeadlineExceeded      transport.deadline      the work's deadline has passed
    │   ├── FrameRefused          transport.frame   version, digest, size, generation or shape is wrong
    │   ├── Busy                  transport.busy    a bounded queue is full; the work was dropped
    │   └── RemoteError           transport.remote  the other side answered with an error
    ├── SecurityError             security
    │   ├── IdentityRefused       security.identity  certificate or signature is not acceptable
    │   └── PolicyViolation       security.policy    data that may not leave its tier
    ├── StoreError                store             log, registry or blobs
    │   ├── StoreUnavailable      store.unavailable not now: full, locked or read-only; what was to be stored is kept and tried again
    │   └── StoreDamaged          store.damaged     what is on the disk is not what was written; names the file and the cure
    └── GateRefused               lifecycle.gate    a version that is not good enough

Expected outcomes (too few clients, fell back to the device's exit) are values, not exceptions.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar


class EdgewiseError(Exception):
    """Is the base of all errors: a message with the cure, a stable `code`, `fields` for callers."""

    code: ClassVar[str] = "edgewise"

    def __init__(self, message: str, /, **fields: Any) -> None:  # a field may be called `message`
        super().__init__(message)
        self.message = message
        self.fields: dict[str, Any] = fields

    def to_dict(self) -> dict[str, Any]:
        """Returns the error envelope of API and CLI: code, message, fields."""
        return {"code": self.code, "message": self.message, "fields": self.fields}


class InputError(EdgewiseError):
    """Reports a wrong input of the user."""

    code = "input"


class ConfigError(InputError):
    """Reports an error in a configuration file, with file and dotted key."""

    code = "input.config"


class TaskError(InputError):
    """Reports a task file that cannot be used."""

    code = "input.task"


class KeptLost(InputError):
    """Reports that a device lost what its algorithm keeps there and cannot do without; its server begins it anew."""

    code = "input.kept"


class DataError(InputError):
    """Reports a data set that is missing, empty or misshaped."""

    code = "input.data"


class GraphError(InputError):
    """Reports an ONNX model that is corrupt or cannot be planned."""

    code = "input.graph"


class MisfitError(EdgewiseError):
    """Reports parts that cannot be joined."""

    code = "parts.misfit"


class PartFailed(EdgewiseError):
    """Reports a part of an algorithm that raised, or gave what nobody can use; a run ends with it."""

    code = "parts.failed"


class RunEndedEarly(EdgewiseError):
    """Reports a run of a program that closed fewer rounds than it was asked for.

    Attributes:
        run: What came of it: the rounds that closed and the last good model, which may be the untrained one.
    """

    code = "run.ended"

    def __init__(self, message: str, /, run: Any = None, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.run = run


class PlanInfeasible(EdgewiseError):
    """Reports that no plan meets the policy, with the binding constraint."""

    code = "plan.infeasible"


class TransportError(EdgewiseError):
    """Reports a failure between two nodes."""

    code = "transport"


class Unreachable(TransportError):
    """Reports that nobody answers at an address or key."""

    code = "transport.unreachable"


class DeadlineExceeded(TransportError):
    """Reports that the deadline of the work has passed."""

    code = "transport.deadline"


class FrameRefused(TransportError):
    """Reports a frame with a wrong version, digest, size, generation or shape."""

    code = "transport.frame"


class Busy(TransportError):
    """Reports a full queue; the work was dropped, not queued."""

    code = "transport.busy"


class RemoteError(TransportError):
    """Reports an error of the other node; `fields['remote_code']` is its code.

    Attributes:
        reply: The frame that said so, for whoever must know who refused; None where none came.
    """

    code = "transport.remote"
    reply: Any = None


class SecurityError(EdgewiseError):
    """Is the base of identity and data policy errors."""

    code = "security"


class IdentityRefused(SecurityError):
    """Reports a certificate or signature that is not acceptable."""

    code = "security.identity"


class PolicyViolation(SecurityError):
    """Reports data that may not leave its tier."""

    code = "security.policy"


class StoreError(EdgewiseError):
    """Reports a failure of the event log, registry or blob store."""

    code = "store"


class StoreUnavailable(StoreError):
    """Reports a store that takes nothing now: full, locked, read-only. Whoever asked keeps it and tries again.

    `fields['path']` is the store, `fields['reason']` what it says, e.g. `is full: No space left on device`.
    """

    code = "store.unavailable"


class StoreDamaged(StoreError):
    """Reports a file or row whose content is not what was written; `fields['path']` is the file."""

    code = "store.damaged"


class GateRefused(EdgewiseError):
    """Reports a model version that is not good enough to serve."""

    code = "lifecycle.gate"


@contextmanager
def error_context(**fields: Any) -> Iterator[None]:
    """Adds fields (round, client, stage) to any EdgewiseError raised inside.

    Args:
        **fields: What to add; inner values win.
    """
    try:
        yield
    except EdgewiseError as error:
        error.fields = {**fields, **error.fields}
        raise


_LONGEST_WORD = 200
"""Comparing takes the square of it."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Suggests the nearest known spelling.

    Args:
        name: What was written.
        known: What exists.

    Returns:
        " Did you mean 'x'?" or the list of what exists (cut at ten); starts with a space.
    """
    names = sorted(known)
    close = difflib.get_close_matches(name[:_LONGEST_WORD], names, n=1, cutoff=0.5)
    if close:
        return f" Did you mean {close[0]!r}?"
    return f" Known: {', '.join(names[:10])}{', …' if len(names) > 10 else ''}."
