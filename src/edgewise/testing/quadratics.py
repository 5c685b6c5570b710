"""Problems with a known answer, for tests of algorithms against theory: least squares, a numpy engine, a round written out.

An example is a system: inputs float[rows, d], targets float[rows], loss ½‖Xw − y‖² + ridge/2·‖w‖². `run_rounds` is what a
synchronous run comes to, without a protocol: the same functions for the client, the fold and the server's step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.codecs.bundle import Bundle, bundle_to_bytes
from edgewise.core.ids import ClientId, RoundNumber, digest_of
from edgewise.core.layout import Layout, Vector
from edgewise.core.provenance import derived
from edgewise.core.seeds import Seeds
from edgewise.models.task import Examples
from edgewise.training.algorithm import MODEL, Candidate, ClientRecord, Closed, Counted, FederatedAlgorithm
from edgewise.training.client_update import client_seeds, client_update
from edgewise.training.local import GRADIENT, HVP, LOSS, LocalEngine, LocalResult, LocalWork, Progress, descend
from edgewise.training.local.batches import batches
from edgewise.training.local.engines.engine import bundle_of
from edgewise.training.local.local_loop import kept_of, run_rules
from edgewise.training.protocols.folding import Decoder, fold, step_server
from edgewise.training.protocols.messages import Answer


def quadratic(curvature: NDArray[Any], optimum: NDArray[Any], copies: int = 1) -> Examples:
    """Examples whose loss is ½(w − t)ᵀA(w − t).

    Args:
        curvature: A, float[d, d], symmetric and positive definite.
        optimum: t, float[d].
        copies: How many equal examples; with a batch size of 1, so many steps an epoch.

    Returns:
        The client's data.
    """
    root = np.linalg.cholesky(curvature).T
    return Examples.of(np.repeat(root[None], copies, 0), np.repeat((root @ optimum)[None], copies, 0))


def least_squares_optimum(held: Sequence[Examples], weights: Sequence[float], ridge: float = 0.0) -> NDArray[Any]:
    """Where the weighted mean of the clients' losses is least.

    Args:
        held: Per client.
        weights: Per client; their sum does not matter.
        ridge: As of the engine.

    Returns:
        float64[d].
    """
    size = held[0].inputs.shape[-1]
    left, right, total = np.zeros((size, size)), np.zeros(size), float(sum(weights))
    for client, weight in zip(held, weights, strict=True):
        x, y = _system(client)
        left += weight / total * x.T @ x / len(client)
        right += weight / total * x.T @ y / len(client)
    return np.linalg.solve(left + ridge * np.eye(size), right)


class LeastSquaresEngine(LocalEngine):
    """Answers for least squares, one client after the other; arithmetic in float64, what travels is float32.

    Args:
        size: d; or the layout of the weights, where their names matter.
        ridge: Weight of ½‖w‖².
    """

    name = "least_squares"
    offers = frozenset((GRADIENT, LOSS, HVP))

    def __init__(self, size: int | Layout, ridge: float = 0.0) -> None:
        self.layout = size if isinstance(size, Layout) else Layout.of([("weights", (size,))])
        self.ridge = ridge

    def work_cohort(
        self,
        work: LocalWork,
        received: Bundle | Sequence[Bundle],
        kept: Sequence[Bundle],
        examples: Sequence[Examples],
        seeds: Sequence[Seeds],
        *,
        progress: Progress | None = None,
    ) -> list[LocalResult]:
        self.check(work, received)
        results = []
        for client, (held, stays, place) in enumerate(zip(examples, kept, seeds, strict=True)):
            oracle = _Oracle(self, held, batches(len(held), work.loop, place), place)
            mine, own = (dict(b) for b in (bundle_of(received, client), kept_of(stays, work)))
            sent, keeps, losses = run_rules(work, oracle, mine, own, lambda: progress and progress(0))
            results.append(LocalResult(sent[0], keeps[0], losses[0], oracle.longest, len(held)))
        return results

    def loss_of(self, weights: NDArray[Any], held: Sequence[Examples]) -> float:
        """The mean loss of clients of equal weight, in float64."""
        w = np.asarray(weights, np.float64)
        parts = [0.5 * np.square(x @ w - y).sum() / len(h) for h in held for x, y in [_system(h)]]
        return float(np.mean(parts)) + 0.5 * self.ridge * float(w @ w)


class _Oracle:
    """Answers for one client (`local_loop.Driven`)."""

    buffers: slice | None = None
    trained: Any = 1.0

    def __init__(self, engine: LeastSquaresEngine, held: Examples, parts: list[Any], seeds: Seeds) -> None:
        self._engine, self._held, self._parts, self._seeds = engine, held, parts, seeds
        self.longest, self.num_steps = len(parts), np.array([len(parts)], np.float32)
        self._seen: list[float] = []

    def begin(self, weights: Any) -> Any:
        return np.array(weights, np.float32)

    def active(self, step: int) -> None:
        return None

    def descend(self, weights: Any, step: int, rate: float) -> None:
        descend(weights, self.gradient(weights, step), rate)

    def gradient(self, weights: Any, batch: int | None = None) -> Any:
        x, y, count, w = self._at(weights, batch)
        self._seen.append(float(self.loss(weights, batch)))
        return (x.T @ (x @ w - y) / count + self._engine.ridge * w).astype(np.float32)

    def loss(self, weights: Any, batch: int | None = None) -> Any:
        x, y, count, w = self._at(weights, batch)
        return np.float64(0.5 * np.square(x @ w - y).sum() / count + 0.5 * self._engine.ridge * w @ w)

    def hvp(self, weights: Any, vector: Any, batch: int | None = None) -> Any:
        x, _, count, v = self._at(vector, batch)
        return (x.T @ (x @ v) / count + self._engine.ridge * v).astype(np.float32)

    def outputs(self, weights: Any, inputs: Any) -> Any:
        raise NotImplementedError("least squares has no outputs")

    def entries(self, patterns: Sequence[str]) -> Any:
        return self._engine.layout.entries(patterns)

    def hold(self, patterns: Sequence[str]) -> Any:
        """As in `Oracle`; least squares have no running statistics."""
        return self.entries(patterns)

    def rng(self, *names: str | int) -> np.random.Generator:
        return self._seeds.at(*names).rng()

    def like(self, array: Any) -> Any:
        return np.asarray(array)

    def joined(self, head: Any, tail: Any) -> Any:
        return np.concatenate((head, tail))

    def take(self, arrays: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [{name: derived(array) for name, array in arrays.items()}]

    def losses(self) -> list[float]:
        return [float(np.mean(self._seen)) if self._seen else float("nan")]

    def _at(self, weights: Any, batch: int | None) -> tuple[Any, Any, int, Any]:
        chosen = slice(None) if batch is None else self._parts[batch]
        x, y = self._held.inputs.view(np.ndarray)[chosen], self._held.targets.view(np.ndarray)[chosen]
        return x.reshape(-1, x.shape[-1]), y.reshape(-1), len(x), np.asarray(weights, np.float64)


@dataclass(frozen=True)
class Ran:
    """How rounds ended.

    Attributes:
        state: The server's sections.
        kept: What each client keeps.
        models: The model after each round.
        uplink_bytes: Of all updates.
        losses: The clients' mean loss, per exchange.
    """

    state: dict[str, Any]
    kept: dict[ClientId, Bundle]
    models: list[Vector]
    uplink_bytes: int
    losses: list[float]

    @property
    def model(self) -> Vector:
        """The last model."""
        return self.models[-1]


def run_rounds(
    algorithm: FederatedAlgorithm,
    engine: LocalEngine,
    clients: Mapping[str, Examples],
    model: Vector | None = None,
    num_rounds: int = 1,
    seed: int = 0,
) -> Ran:
    """Rounds in which everybody who is chosen answers.

    Args:
        algorithm: What is run.
        engine: Does the local work.
        clients: Who, with what data.
        model: To start from; zeros if not given.
        num_rounds: How many.
        seed: The job's seed.

    Returns:
        How they ended.
    """
    first = np.zeros(engine.layout.size, np.float32) if model is None else model
    state: dict[str, Any] = {MODEL: first}
    for exchange in algorithm.exchanges:
        state = {**exchange.server.init(first), **state}
    kept: dict[ClientId, Bundle] = {ClientId(client): {} for client in clients}
    records: dict[ClientId, ClientRecord] = {}
    models: list[Vector] = []
    losses: list[float] = []
    size = 0
    for number in range(1, num_rounds + 1):
        who = [Candidate(client, len(clients[client]), records.get(client)) for client in kept]
        cohort = algorithm.select.choose(who, RoundNumber(number), Seeds(seed).at("round", number, "select").rng())
        for index, exchange in enumerate(algorithm.exchanges):
            down = {name: state[name] for name in exchange.server.sends}
            blobs, answers = {}, []
            for client in cohort:
                own = (exchange.server.letters or _no_letter)(state, client, records.get(client))
                place = client_seeds(seed, RoundNumber(number), client, index)
                done = client_update(exchange, engine, {**down, **(own or {})}, kept[client], clients[client], place)
                data, kept[client] = bundle_to_bytes(done.coded), done.kept
                blobs[digest_of(data)] = data
                size += done.coded.size_bytes
                answers.append(Answer(update=digest_of(data), num_examples=done.num_examples, metrics=done.metrics))
                records[client] = ClientRecord(RoundNumber(number), 1, done.metrics)
            everybody = [Counted(len(held)) for held in clients.values()]
            place = Seeds(seed).at("round", number, "server", index)
            closed = Closed(RoundNumber(number), len(answers), len(clients), place.rng(), everybody)
            sums = fold(exchange, Decoder(blobs), answers, first.size)
            state |= step_server(exchange, blobs, state, sums, answers, closed, engine.layout.buffers).changed
            losses.append(float(np.mean([a.metrics.get("loss", np.nan) for a in answers])))
        models.append(state[MODEL])
    return Ran(state, kept, models, size, losses)


def _no_letter(state: Bundle, client: ClientId, record: ClientRecord | None) -> None:
    return None


def _system(held: Examples) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x = np.asarray(held.inputs, np.float64)
    return x.reshape(-1, x.shape[-1]), np.asarray(held.targets, np.float64).reshape(-1)
