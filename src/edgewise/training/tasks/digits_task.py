"""The demo's task: a multi-exit network on scikit-learn's digits, split with label skew. Loads like a user's own file."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from edgewise.core.errors import TaskError, nearest
from edgewise.core.ids import ClientId
from edgewise.core.seeds import Seeds
from edgewise.datasets.arrays import Arrays
from edgewise.datasets.digits_data import DividedDigits, load_digits
from edgewise.datasets.split import dirichlet
from edgewise.models.task import Examples, Task

if TYPE_CHECKING:
    from torch import Tensor, nn

SETTINGS = ("clients", "alpha", "seed", "minimum_examples", "sizes", "exit_weight", "model")


class DigitsTask(Task):
    """Digits held by clients in a Dirichlet split.

    Settings (all optional): `clients`, a number or a list of names (6); `alpha` (0.5); `seed` (0);
    `minimum_examples` (40); `sizes`, a table of the four parts' sizes; `exit_weight`, the loss weight of exit 0 (0.5);
    `model`, a table of `MultiExitNet`'s parameters.
    """

    name = "digits"
    input_shape = (1, 8, 8)
    num_classes = 10

    def __init__(self, **settings: Any) -> None:
        for name in settings:
            if name not in SETTINGS:
                raise TaskError(f"task 'digits' has no setting {name!r}.{nearest(name, SETTINGS)}")
        super().__init__(**settings)

    def model(self) -> nn.Module:
        from edgewise.models.zoo.early_exits import MultiExitNet

        return MultiExitNet(**self.settings.get("model", {}))

    def loss(self, outputs: Tensor | tuple[Tensor, ...], targets: Tensor) -> Tensor:
        from edgewise.models.zoo.early_exits import joint_cross_entropy

        return joint_cross_entropy(outputs, targets, (self.settings.get("exit_weight", 0.5), 1.0))

    def clients(self) -> Sequence[ClientId]:
        named = self.settings.get("clients", 6)
        names = [f"client-{i}" for i in range(named)] if isinstance(named, int) else named
        return tuple(ClientId(name) for name in names)

    def data(self, client: ClientId) -> Examples:
        if client not in self._held:
            raise TaskError(f"task 'digits' has no data of client {client!r}.{nearest(client, self._held)}")
        return _examples(self._held[client])

    def test_data(self) -> Examples:
        """The calibration part; the gate's and the stream's examples stay unseen."""
        return _examples(self.parts.calibration)

    def held_out(self) -> tuple[Examples, Examples]:
        """The calibration part, and the gate's."""
        return _examples(self.parts.calibration), _examples(self.parts.gate)

    @cached_property
    def parts(self) -> DividedDigits:
        """Train, calibration, gate and stream."""
        return load_digits(self._seed, **self.settings.get("sizes", {}))

    @property
    def _seed(self) -> int:
        return int(self.settings.get("seed", 0))

    @cached_property
    def _held(self) -> dict[ClientId, Arrays]:
        clients = self.clients()
        split: dict[str, Any] = {
            "alpha": self.settings.get("alpha", 0.5),
            "minimum_examples": self.settings.get("minimum_examples", 40),
        }
        rng = Seeds(self._seed).at("data", "split").rng()
        indices = dirichlet(self.parts.train.targets, len(clients), rng=rng, **split)
        return {c: self.parts.train.take(held) for c, held in zip(clients, indices, strict=True)}


def _examples(arrays: Arrays) -> Examples:
    return Examples.of(arrays.inputs, arrays.targets)
