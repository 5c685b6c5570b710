"""What an endpoint needs of a model, and how it finds one by its name; `inference.model_server.ModelServer` is one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from edgewise.core.errors import Busy, nearest
from edgewise.inference.request_driver import Served
from edgewise.inference.serving_metrics import Count
from edgewise.inference.session import AnswerSource
from edgewise.inference.streams import StreamStep
from edgewise.ledger.metric import Metric
from edgewise.models.graph.graph import Graph, PlainTensor
from edgewise.planning.plan import ActivePlan
from edgewise.service.http_errors import UnknownModel

_READY_IN_S = 5.0


class Model(Protocol):
    """What can be served; `inference.model_server.ModelServer` is one."""

    name: str
    default_deadline_s: float

    @property
    def active(self) -> ActivePlan | None:
        """The plan in force."""
        ...

    @property
    def inputs(self) -> tuple[PlainTensor, ...]:
        """The model's inputs."""
        ...

    @property
    def outputs(self) -> tuple[PlainTensor, ...]:
        """What answers carry."""
        ...

    @property
    def graph(self) -> Graph | None:
        """The whole model; None before the first plan."""
        ...

    @property
    def counts(self) -> Mapping[AnswerSource, Count]:
        """Requests by who answered."""
        ...

    async def infer(
        self,
        inputs: Mapping[str, NDArray[Any]],
        *,
        deadline_s: float | None = None,
        request: str = "",
        stream: StreamStep | None = None,
    ) -> Served:
        """Serves one request."""
        ...

    def metrics(self) -> list[Metric]:
        """What `/metrics` says of it."""
        ...

    def feedback(self, labels: Mapping[str, int]) -> int:
        """Takes true classes by request; how many belong to examples that are kept."""
        ...


def find_model(models: Mapping[str, Model], name: str, version: str = "") -> tuple[Model, ActivePlan]:
    """A model and its plan in force.

    Args:
        models: What is served, by name.
        name: As asked for.
        version: The version that is meant; "" for the one in force.

    Raises:
        UnknownModel: If it is not served, or not in that version.
        Busy: If it has no plan yet.
    """
    if name not in models:
        raise UnknownModel(f"no model {name[:200]!r} is served here.{nearest(name, models)}")
    active = models[name].active
    if active is None:
        raise Busy(
            f"model {name!r} is not ready: it has no active plan yet. Try again soon.", retry_after_s=_READY_IN_S
        )
    if version and version != str(active.version):
        raise UnknownModel(f"model {name!r} has version {active.version} in force, not {version[:200]!r}.")
    return models[name], active
