"""Whether a version may serve in place of another, and what an operator's word overrides. Pure; its numbers: `version_gate.py`.

Whatever a version came from (a run from scratch, a run that went on, a file), it is compared with the version of its model
that is in force when it is to serve. What cannot be compared serves only `ungated`, what is worse only by `force`.
"""

from __future__ import annotations

import msgspec

from edgewise.models.version import GateResult, ModelVersion


class Admission(msgspec.Struct, frozen=True):
    """An answer to "may it serve".

    Attributes:
        refusal: Why not, and what would let it; "" if it may.
        overridden: What spoke against it and was overridden, for the history; "" if nothing did.
        note: What to know of one that may; "" where there is nothing.
    """

    refusal: str = ""
    overridden: str = ""
    note: str = ""


def admit(
    version: ModelVersion,
    serves: int,
    gate: GateResult | None,
    *,
    missing: str = "",
    force: bool = False,
    ungated: bool = False,
) -> Admission:
    """Decides whether a version may serve.

    Args:
        version: Which.
        serves: Number of the version of its model that is in force; 0 for none.
        gate: Its comparison with that one; with none in force, with the newest that might serve. None where there is none.
        missing: Why there is no comparison.
        force: An operator wants it whatever the comparison says, and whatever it lacks.
        ungated: An operator wants it without a comparison.

    Returns:
        The answer; `force` and `ungated` are in it only where they overrode something.

    Example:
        >>> first = ModelVersion(1, graph="", weights="", task="digits")
        >>> admit(first, 0, None, missing="there is no held-out data for it").refusal
        ''
        >>> admit(msgspec.structs.replace(first, number=2), 1, None, missing="there is no held-out data for it").refusal
        "version 2 was not compared with version 1 of 'digits', which serves: there is no held-out data for it. ..."
    """
    name = f"version {version.number}"
    overridden, note = [], ""
    if version.number != serves and gate is not None and not gate.passed:
        against = f" (compared with version {gate.reference})" if gate.reference else ""
        text = f"{name} of {version.task!r} did not pass its gate{against}: {gate.reason}"
        if not force:
            return Admission(
                f"{text} Train it longer, or on more of what it loses; to serve it all the same, deploy it with --force, "
                "which the history keeps."
            )
        overridden.append(text)
    elif version.number != serves and gate is None:
        if not serves:
            note = f"{name} of {version.task!r} was compared with nothing: {missing or 'it is the first'}"
        else:
            text = f"{name} was not compared with version {serves} of {version.task!r}, which serves: {missing}"
            if not (ungated or force):
                return Admission(
                    f"{text}. Start the coordinator with --holdout {version.task}=FILE, or deploy it unseen with "
                    f"--ungated; --version {serves} plans the one in force anew."
                )
            overridden.append(text)
    if version.caution:
        if not force:
            return Admission(f"{version.caution} To serve it as it is, deploy it with --force.")
        overridden.append(version.caution)
    return Admission(overridden=" ".join(overridden), note=note)
