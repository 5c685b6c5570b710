"""Edgewise trains and runs models together across device, edge and cloud.

    from edgewise import InMemoryTask, plan, serve, simulate, split_examples

Each name is imported when it is first asked for, so that `import edgewise` stays light: a node that only serves needs no
torch. `docs/reference/python.md` has them all; what they are made of is in the packages below.
"""

TYPE_CHECKING = False
"""For a type checker it is true; `typing` itself costs more than the rest of this import."""

if TYPE_CHECKING:
    from edgewise.api.federated_run import FederatedRun, simulate
    from edgewise.api.in_memory_task import InMemoryTask, split_examples
    from edgewise.api.local_endpoint import LocalEndpoint, serve
    from edgewise.api.model_plan import ModelPlan, plan
    from edgewise.core.errors import EdgewiseError, RunEndedEarly
    from edgewise.models.graph.graph import Graph
    from edgewise.models.task import Examples, Task, load_task
    from edgewise.planning.policy import Policy
    from edgewise.training.algorithms.fed_avg import fed_avg
    from edgewise.training.algorithms.fed_prox import fed_prox
    from edgewise.training.algorithms.scaffold import scaffold
    from edgewise.training.local.sgd import sgd

__version__ = "0.2.0"

_PLACES = {
    "EdgewiseError": "edgewise.core.errors",
    "Examples": "edgewise.models.task",
    "FederatedRun": "edgewise.api.federated_run",
    "Graph": "edgewise.models.graph.graph",
    "InMemoryTask": "edgewise.api.in_memory_task",
    "LocalEndpoint": "edgewise.api.local_endpoint",
    "ModelPlan": "edgewise.api.model_plan",
    "Policy": "edgewise.planning.policy",
    "RunEndedEarly": "edgewise.core.errors",
    "Task": "edgewise.models.task",
    "fed_avg": "edgewise.training.algorithms.fed_avg",
    "fed_prox": "edgewise.training.algorithms.fed_prox",
    "load_task": "edgewise.models.task",
    "plan": "edgewise.api.model_plan",
    "scaffold": "edgewise.training.algorithms.scaffold",
    "serve": "edgewise.api.local_endpoint",
    "sgd": "edgewise.training.local.sgd",
    "simulate": "edgewise.api.federated_run",
    "split_examples": "edgewise.api.in_memory_task",
}
"""Name -> module. The lines above say the same to a type checker; a test compares them."""

__all__ = [
    "EdgewiseError",
    "Examples",
    "FederatedRun",
    "Graph",
    "InMemoryTask",
    "LocalEndpoint",
    "ModelPlan",
    "Policy",
    "RunEndedEarly",
    "Task",
    "__version__",
    "fed_avg",
    "fed_prox",
    "load_task",
    "plan",
    "scaffold",
    "serve",
    "sgd",
    "simulate",
    "split_examples",
]


if not TYPE_CHECKING:  # else any misspelt name would be known to a type checker, as Any

    def __getattr__(name: str) -> object:
        if name not in _PLACES:
            raise AttributeError(f"module 'edgewise' has no attribute {name!r}")
        import importlib

        value = getattr(importlib.import_module(_PLACES[name]), name)
        globals()[name] = value  # asked once
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
