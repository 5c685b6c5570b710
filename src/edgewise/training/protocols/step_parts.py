"""What the step of a role works with, the same for every protocol: an algorithm, a store, and a decoder that reads it."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgewise.training.algorithm import FederatedAlgorithm
from edgewise.training.protocols.folding import Decoder
from edgewise.training.protocols.protocol import Blobs


@dataclass(frozen=True, slots=True)
class StepParts:
    """What a step is bound to; its handlers take it first.

    Attributes:
        algorithm: Of the run.
        blobs: The node's store, read by digest only.
        decoder: Reads updates from it.
    """

    algorithm: FederatedAlgorithm
    blobs: Blobs
    decoder: Decoder = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "decoder", Decoder(self.blobs))
