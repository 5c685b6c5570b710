"""Gates: where a request may end. One file each; the contract is `gate.py`.

To add one: a function of a threshold (and more) that returns a `GateRule`, in a file of its own, and one line in
`GATES`; the contract suite `tests/contracts/test_gates.py` then tests it. Plug-ins: entry points `edgewise.gates`.
"""

from collections.abc import Callable

from edgewise.core.spec import Spec, build
from edgewise.inference.gates.exit import exit_by_confidence
from edgewise.inference.gates.frame_difference import frame_difference
from edgewise.inference.gates.gate import GateRule
from edgewise.planning.plan import EXIT, Gate

GATES: dict[str, Callable[..., GateRule]] = {EXIT: exit_by_confidence, "frame_difference": frame_difference}


def make_gate(gate: Gate) -> GateRule:
    """Builds the rule of a plan's gate.

    Args:
        gate: Its spec names the rule; its threshold is the rule's.

    Returns:
        The rule.

    Raises:
        InputError: If no rule has that name, or it takes other parameters.
    """
    spec = Spec.parse(gate.spec)
    return build("gates", GATES, Spec(spec.name, {**spec.params, "threshold": gate.threshold}))


__all__ = ["GATES", "GateRule", "exit_by_confidence", "frame_difference", "make_gate"]
