"""Trains models in each of the four domains by which the levels of edge intelligence differ.

cloud         pooled on the share of the data that its owners made public      levels 0 to 3
federated     by all clients together, through their edges                     level 4
edge          federated under each edge on its own                             level 5
device        every client on its own data only                                level 6
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from edgewise.codecs.bundle import Bundle
from edgewise.core.errors import InputError, nearest
from edgewise.core.ids import ClientId, NodeId, RoundNumber
from edgewise.core.layout import Vector
from edgewise.core.seeds import Seeds
from edgewise.models.flat import initial_vector
from edgewise.models.task import Examples, Task
from edgewise.models.version import FEDERATED
from edgewise.simulation.simulate import SimulationOptions, simulate_rounds
from edgewise.training.algorithm import MODEL, FederatedAlgorithm
from edgewise.training.client_update import client_seeds
from edgewise.training.local import LocalEngine, choose_engine

DOMAINS = ("cloud", FEDERATED, "edge", "device")
POOL = ClientId("cloud")


class DomainResult(msgspec.Struct, frozen=True):
    """Holds the models and metrics of training in one domain.

    Attributes:
        domain: Which.
        vectors: Model by owner: `cloud` or `all`, or one per edge or per client.
        accuracies: Metrics of each owner's model on the same test data.
        num_examples: Training examples behind each model.
    """

    domain: str
    vectors: dict[str, Vector]
    accuracies: dict[str, dict[str, float]]
    num_examples: dict[str, int]

    @property
    def accuracy(self) -> float:
        """Returns the mean accuracy over the owners, as met by a request to any of them."""
        return float(np.mean([metrics["accuracy"] for metrics in self.accuracies.values()]))

    @property
    def representative(self) -> str:
        """Returns the owner whose model's accuracy is closest to the mean."""
        return min(self.accuracies, key=lambda owner: abs(self.accuracies[owner]["accuracy"] - self.accuracy))

    @property
    def vector(self) -> Vector:
        """Returns the representative's model."""
        return self.vectors[self.representative]


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainTraining:
    """Holds the settings all domains share, so that their accuracies can be compared.

    Attributes:
        task: What is learned.
        algorithm: The five parts; on one client only its local work counts.
        rounds: Rounds, of as many local epochs each, in every domain.
        edge_of: Edge of each client.
        seed: The job's seed.
        public_fraction: Share of each client's data that the cloud may pool.
        options: How it is simulated.
    """

    task: Task
    algorithm: FederatedAlgorithm
    rounds: int
    edge_of: Mapping[ClientId, NodeId]
    seed: int = 0
    public_fraction: float = 0.2
    options: SimulationOptions = SimulationOptions()


def simulate_domain(domain: str, training: DomainTraining) -> DomainResult:
    """Trains in one domain.

    Args:
        domain: `cloud`, `federated`, `edge` or `device`.
        training: What and how.

    Returns:
        Models and their metrics on the task's test data.

    Raises:
        InputError: If the domain is unknown, or the public share is not above 0 and at most 1.
    """
    if domain not in DOMAINS:
        raise InputError(f"there is no training domain {domain!r}.{nearest(domain, DOMAINS)}")
    if domain == "cloud":
        return _alone(domain, training, {POOL: public_share(training)})
    if domain == "device":
        return _alone(domain, training, {c: training.task.data(c) for c in training.edge_of})
    if domain == "edge":
        return _federated(domain, training, clients_by_edge(training.edge_of), flat=True)
    return _federated(domain, training, {"all": tuple(training.edge_of)}, flat=False)


def public_share(training: DomainTraining) -> Examples:
    """Returns the examples the cloud may pool: the same share of every client, at least one of each.

    Args:
        training: Its `public_fraction` says how much.

    Returns:
        The pooled examples; still traced as raw.

    Raises:
        InputError: If the fraction is not above 0 and at most 1.
    """
    fraction = training.public_fraction
    if not 0 < fraction <= 1:
        raise InputError(f"public_fraction must be above 0 and at most 1, got {fraction!r}. 0.2 is usual.")
    inputs, targets = [], []
    for client in training.edge_of:
        held = training.task.data(client)
        order = Seeds(training.seed).at("domain", "public", client).rng().permutation(len(held))
        chosen = order[: max(1, round(fraction * len(held)))]
        inputs.append(held.inputs[chosen])
        targets.append(held.targets[chosen])
    return Examples.of(np.concatenate(inputs), np.concatenate(targets))


def clients_by_edge(edge_of: Mapping[ClientId, NodeId]) -> dict[str, tuple[ClientId, ...]]:
    """Returns the clients of each edge, in the order of `edge_of`."""
    edges = dict.fromkeys(edge_of.values())
    return {str(edge): tuple(c for c, its_edge in edge_of.items() if its_edge == edge) for edge in edges}


def _federated(
    domain: str, training: DomainTraining, groups: Mapping[str, Sequence[ClientId]], *, flat: bool
) -> DomainResult:
    vectors, accuracies, sizes = {}, {}, {}
    for owner, clients in groups.items():
        run = simulate_rounds(
            training.task,
            training.algorithm,
            rounds=training.rounds,
            seed=training.seed,
            clients=clients,
            edge_of=None if flat else training.edge_of,
            options=replace(training.options, evaluate_every=0),
        )
        vectors[owner], accuracies[owner] = run.vector, run.record.metrics
        sizes[owner] = sum(len(training.task.data(client)) for client in clients)
    return DomainResult(domain, vectors, accuracies, sizes)


def _alone(domain: str, training: DomainTraining, held: Mapping[ClientId, Examples]) -> DomainResult:
    from edgewise.training.local.evaluate import Evaluator

    task, work = training.task, training.algorithm.exchanges[0].local
    engine = choose_engine(task, work, list(held.values())[:1], pinned=training.options.engine).engine
    test = training.options.test_data if training.options.test_data is not None else task.test_data()
    vectors = {str(owner): _descended(training, engine, owner, examples) for owner, examples in held.items()}
    evaluator = Evaluator(task)
    accuracies = {o: dict(evaluator.metrics(v, test)) for o, v in vectors.items()} if test is not None else {}
    return DomainResult(domain, vectors, accuracies, {str(owner): len(e) for owner, e in held.items()})


def _descended(training: DomainTraining, engine: LocalEngine, owner: ClientId, examples: Examples) -> Vector:
    vector, exchange = initial_vector(training.task, Seeds(training.seed)), training.algorithm.exchanges[0]
    kept: Bundle = {}
    others = exchange.server.init(vector)  # as a server sends them before anybody answered
    for number in range(1, training.rounds + 1):
        seeds = client_seeds(training.seed, RoundNumber(number), owner).at("local")
        done = engine.work_one(exchange.local, {**others, MODEL: vector}, kept, examples, seeds)
        vector, kept = vector + done.sent[MODEL], done.kept
    return vector
