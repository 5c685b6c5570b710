"""The local work of a simulation: many clients' orders in one call of the functions that run on a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from edgewise.codecs.bundle import Bundle, bundle_from_bytes, bundle_to_bytes, decode_bundle, encode_bundle
from edgewise.core.errors import DataError, EdgewiseError, TaskError
from edgewise.core.ids import ClientId
from edgewise.core.seeds import Seeds
from edgewise.models.data_check import DataCheck
from edgewise.models.task import Examples, Task, user_code
from edgewise.training.algorithm import FederatedAlgorithm
from edgewise.training.client_update import ClientUpdate, client_seeds, client_updates_or_causes, received_bundle
from edgewise.training.local.engines.engine import LocalEngine
from edgewise.training.protocols.letters import WorkOrder
from edgewise.training.protocols.protocol import Blobs


class Worked(msgspec.Struct, frozen=True):
    """What came of one order.

    Attributes:
        update: Bytes of the coded bundle.
        kept: Bytes of what the client keeps; b"" for nothing.
        num_examples: Behind it.
        num_steps: Local steps.
        metrics: What was measured.
        cause: Why the client gives up; "" if it does not.
        has_diverged: Whether that is since its update is not finite.
    """

    update: bytes
    kept: bytes
    num_examples: int
    num_steps: int
    metrics: dict[str, float]
    cause: str = ""
    has_diverged: bool = False


class Workers(Protocol):
    """Does the local work of clients."""

    def work(self, orders: Sequence[tuple[WorkOrder, bytes]], blobs: Blobs) -> list[Worked]:
        """Works on orders, each with what its client keeps (b"" for nothing)."""


@dataclass(slots=True)
class VirtualClients:
    """All clients of a simulation with one engine.

    Attributes:
        task: Gives each client's examples.
        algorithm: The parts.
        engine: Does the local work.
        seed: The job's seed.
        checked: Asks for data and checks them; None takes them as they come.
    """

    task: Task
    algorithm: FederatedAlgorithm
    engine: LocalEngine
    seed: int
    checked: DataCheck | None = None
    _held: dict[ClientId, Examples] = field(default_factory=dict)

    def examples(self, client: ClientId) -> Examples:
        """A client's examples, asked for once."""
        if client not in self._held:
            asked = self.checked
            self._held[client] = self.task.data(client) if asked is None else asked.data(client).examples
        return self._held[client]

    def work(self, orders: Sequence[tuple[WorkOrder, bytes]], blobs: Blobs) -> list[Worked]:
        """Works on orders; those of one exchange with the same sections go to the engine together."""
        groups: dict[tuple[object, ...], list[int]] = {}
        for index, (order, _) in enumerate(orders):
            groups.setdefault((order.round, order.exchange, order.sections, order.reply_to), []).append(index)
        found: list[Worked | None] = [None] * len(orders)
        for indices in groups.values():
            done = self._worked([orders[i] for i in indices], blobs)
            for index, worked in zip(indices, done, strict=True):
                found[index] = worked
        return [worked for worked in found if worked is not None]

    def _worked(self, orders: Sequence[tuple[WorkOrder, bytes]], blobs: Blobs) -> list[Worked]:
        first = orders[0][0]
        exchange = self.algorithm.exchanges[first.exchange]
        try:
            with user_code(f"{exchange.local.spec} cannot be done by {first.client!r}"):
                made = client_updates_or_causes(
                    exchange,
                    self.engine,
                    received_bundle(first, exchange, blobs, self.engine.layout.size),
                    [kept_from_bytes(kept) for _, kept in orders],
                    [self.examples(order.client) for order, _ in orders],
                    [client_seeds(self.seed, order.round, order.client, order.exchange) for order, _ in orders],
                )
        except (DataError, TaskError):
            if len(orders) == 1:
                raise
            return self._one_by_one(orders, blobs)
        return [_given_up(u) if isinstance(u, EdgewiseError) else _done(u) for u in made]

    def _one_by_one(self, orders: Sequence[tuple[WorkOrder, bytes]], blobs: Blobs) -> list[Worked]:
        """Finds whose work it is that cannot be done; the others' counts. Raises where it is everybody's."""
        found: list[Worked] = []
        failed: list[EdgewiseError] = []
        for order in orders:
            try:
                found += self._worked([order], blobs)
            except (DataError, TaskError) as error:
                failed.append(error)
                found.append(_given_up(error))
        if len(failed) == len(orders):
            raise failed[0]
        return found


def _done(update: ClientUpdate) -> Worked:
    sent, kept = bundle_to_bytes(update.coded), kept_to_bytes(update.kept)
    return Worked(sent, kept, update.num_examples, update.num_steps, update.metrics)


def _given_up(error: EdgewiseError) -> Worked:
    return Worked(b"", b"", 0, 0, {}, error.message, bool(error.fields.get("has_diverged")))


def kept_to_bytes(kept: Bundle) -> bytes:
    """What a client keeps, as bytes; b"" for nothing."""
    return bundle_to_bytes(encode_bundle({}, kept, None, Seeds(0).lazy_rng())[0]) if kept else b""


def kept_from_bytes(data: bytes) -> Bundle:
    """Undoes `kept_to_bytes`."""
    return decode_bundle({}, None, bundle_from_bytes(data)) if data else {}
