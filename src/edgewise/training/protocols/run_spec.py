"""What every node of a run must know of it."""

from __future__ import annotations

from typing import Any

import msgspec

from edgewise.core.ids import Digest, RunId


class RunSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """What every node of a run must know of it; the same value from the operator's request to the device.

    A node that has it is sent its name alone (`brief`): it is the same in every order of a run.

    Attributes:
        run: Name of the run.
        algorithm: Spec of the algorithm, as `FederatedAlgorithm.spec.to_dict()`.
        protocol: Spec of the protocol.
        seed: The job's seed.
        layout: Digest of the model's layout.
        num_entries: d, entries of the flat vector.
        buffers: (offset, size) of entries that are buffers (running statistics); servers average them plainly.
        extra: What the fleet adds for its devices, e.g. which hard examples join the data; no protocol reads it.
    """

    run: RunId
    algorithm: dict[str, Any] = {}
    protocol: dict[str, Any] = {}
    seed: int = 0
    layout: Digest = Digest("")
    num_entries: int = 0
    buffers: tuple[tuple[int, int], ...] = ()
    extra: dict[str, Any] = {}

    @property
    def is_brief(self) -> bool:
        """Whether it is a name only."""
        return not self.layout

    @property
    def brief(self) -> RunSpec:
        """Its name only, for a node that has the rest."""
        return RunSpec(self.run)
