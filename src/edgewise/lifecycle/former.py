"""Former versions: which of them are tried when answers become worse, before anything is trained. Pure; read `loop.py` next.

What came back may be what an older version was made for. It is judged in pairs with the version in force, on the fresh
labelled examples that devices hold, by the gate's test of a gain.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from edgewise.lifecycle.version_gate import gain_p_value
from edgewise.models.version import ModelVersion

MOST_TRIED = 5
"""Former versions tried at once: each costs devices a pass over their examples, and all of them share one error."""


class PairCounts(msgspec.Struct, frozen=True):
    """A former version and the one in force on the same examples.

    Attributes:
        num: Examples.
        lost: Only the one in force is right.
        gained: Only the former one is.
    """

    num: int = 0
    lost: int = 0
    gained: int = 0


def former_versions(
    versions: Iterable[ModelVersion], served: Sequence[int], in_force: int, besides: Collection[int] = ()
) -> tuple[ModelVersion, ...]:
    """Versions of a model to try: those that served, what served last first, then older ones that passed their gate.

    Args:
        versions: Of the model.
        served: Numbers that came into force, oldest first.
        in_force: The one that serves.
        besides: Not these.

    Returns:
        At most `MOST_TRIED`; none that its gate refused, lacks tensors of its clients, or is the model in force.
    """
    known = {version.number: version for version in versions}
    graphs = {known[in_force].graph} if in_force in known else set()
    passed = [v.number for v in known.values() if v.number < in_force and v.gate is not None and v.gate.passed]
    found: list[ModelVersion] = []
    for number in dict.fromkeys([*reversed(served), *sorted(passed, reverse=True)]):
        version = known.get(number)
        if version is None or number == in_force or number in besides or version.graph in graphs:
            continue
        if (version.gate is None or version.gate.passed) and not version.caution:
            graphs.add(version.graph)
            found.append(version)
    return tuple(found[:MOST_TRIED])


def choose_former(pairs: Mapping[int, PairCounts], confidence: float = 0.95) -> tuple[int, str]:
    """The former version that is better than the one in force, if one surely is.

    Args:
        pairs: By version.
        confidence: That none is chosen which is no better (Bonferroni over those tried).

    Returns:
        Its number and a sentence; 0 and why not.

    Example:
        >>> choose_former({1: PairCounts(60, 2, 20), 2: PairCounts(60, 5, 4)})
        (1, 'of 60 fresh examples it loses 2 and gains 20 (p = 6.06e-05, needed is 0.025)')
    """
    if not pairs:
        return 0, ""
    needed = (1 - confidence) / len(pairs)
    chances = {number: gain_p_value(of.lost, of.gained) for number, of in pairs.items()}
    best = min(chances, key=lambda number: (chances[number], pairs[number].lost - pairs[number].gained))
    of = pairs[best]
    text = f"of {of.num} fresh examples it loses {of.lost} and gains {of.gained} (p = {chances[best]:.3g}, needed is {needed:.2g})"
    return (best, text) if chances[best] <= needed else (0, f"version {best} is not surely better: {text}")
