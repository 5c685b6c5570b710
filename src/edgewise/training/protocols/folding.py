"""The arithmetic of a round: from stored updates to the next model. Reads blobs by digest, writes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import fsum, isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.codecs import Codec, Payload, payload_from_bytes, payload_to_bytes
from edgewise.core.errors import FrameRefused, InputError, StoreError
from edgewise.core.ids import Digest, RoundNumber, digest_of
from edgewise.core.layout import Vector
from edgewise.training.algorithm import FederatedAlgorithm, State
from edgewise.training.protocols.messages import Answer, RunConfig, StoreModel

Blobs = Mapping[Digest, bytes]
"""Bytes by their digest; a name always gives the same bytes, so reading is a pure function."""

_FOLD_ENTRIES = 2**20


def blob(blobs: Blobs, digest: Digest) -> bytes:
    """The bytes of a digest.

    Args:
        blobs: The store.
        digest: Their name.

    Returns:
        The bytes.

    Raises:
        StoreError: If the store does not have them.
    """
    try:
        return blobs[digest]
    except KeyError:
        raise StoreError(
            f"blob {digest[:12]}… is not in the store. A driver stores bytes before it reports the event "
            "that names them; check the blob folder of this run."
        ) from None


def vector_to_bytes(vector: Vector) -> bytes:
    """float32[d] as little-endian bytes, whose digest names the model."""
    return np.ascontiguousarray(vector, "<f4").tobytes()


def vector_from_bytes(data: bytes, num_entries: int) -> Vector:
    """Undoes `vector_to_bytes`.

    Args:
        data: The bytes.
        num_entries: d.

    Returns:
        float32[d], read-only.

    Raises:
        FrameRefused: If there are not 4 · d bytes.
    """
    if len(data) != 4 * num_entries:
        raise FrameRefused(f"a model of {num_entries:,} entries has {4 * num_entries:,} bytes, found {len(data):,}.")
    return np.frombuffer(data, "<f4").astype(np.float32, copy=False)


def arrays_to_bytes(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Named arrays (a server's state, a sum) as bytes."""
    return payload_to_bytes(Payload((), arrays))


def arrays_from_bytes(data: bytes) -> dict[str, NDArray[Any]]:
    """Undoes `arrays_to_bytes`."""
    return dict(payload_from_bytes(data).arrays)


def server_state_to_bytes(state: State) -> bytes:
    """A server's state as bytes; () and {} are the same."""
    return arrays_to_bytes(state or {})


def decode_update(codec: Codec, data: bytes, num_entries: int) -> Vector:
    """A client's update from the bytes it sent.

    Args:
        codec: The uplink.
        data: As made by `payload_to_bytes`.
        num_entries: d.

    Returns:
        float32[d].

    Raises:
        FrameRefused: If it is not an update of this model.
    """
    payload = payload_from_bytes(data)
    if payload.shape != (num_entries,):
        raise FrameRefused(f"an update of this model has shape ({num_entries},), found {payload.shape}.")
    return codec.decode(payload)


def fold(algorithm: FederatedAlgorithm, blobs: Blobs, answers: Iterable[Answer], num_entries: int) -> State:
    """The sum of stored updates, in O(d) memory: a few megabytes of them are decoded at a time.

    Args:
        algorithm: Uplink and aggregator.
        blobs: Holds the payloads.
        answers: Accepted updates; their order changes nothing.
        num_entries: d.

    Returns:
        The aggregator's sum.
    """
    total, listed = algorithm.aggregate.init(num_entries), list(answers)
    height = max(1, _FOLD_ENTRIES // max(1, num_entries))
    for start in range(0, len(listed), height):
        part = listed[start : start + height]
        updates = np.stack([decode_update(algorithm.uplink, blob(blobs, a.payload), num_entries) for a in part])
        total = algorithm.aggregate.add(total, updates, np.array([a.weight for a in part]))
    return total


def mean_metrics(answers: Iterable[tuple[Mapping[str, float], int]]) -> dict[str, float]:
    """Means of metrics weighted by examples, exact in any order.

    Args:
        answers: (metrics, weight) of each participant.

    Returns:
        Mean per name, over those that report it as a finite number.
    """
    listed = list(answers)
    found: dict[str, float] = {}
    for name in sorted({n for metrics, _ in listed for n in metrics}):
        terms = [(metrics[name], w) for metrics, w in listed if name in metrics and isfinite(metrics[name])]
        total = sum(w for _, w in terms)
        if total:
            found[name] = fsum(value * w for value, w in terms) / total
    return found


def next_model(
    algorithm: FederatedAlgorithm,
    blobs: Blobs,
    config: RunConfig,
    round_number: RoundNumber,
    current: tuple[Digest, Digest],
    total: State,
) -> tuple[StoreModel, float]:
    """The server's step from a folded sum.

    Args:
        algorithm: The five parts.
        blobs: Holds the current model and server state.
        config: The run.
        round_number: The round that closes.
        current: Digests of model and server state.
        total: The aggregator's sum.

    Returns:
        What to store, and the Euclidean norm of the mean update.

    Raises:
        InputError: If nothing was summed, or the next model is not finite.
    """
    model = vector_from_bytes(blob(blobs, current[0]), config.num_entries)
    mean = algorithm.aggregate.finish(total)
    with np.errstate(over="ignore", invalid="ignore"):
        stepped, state = algorithm.server.step(model, mean, arrays_from_bytes(blob(blobs, current[1])))
    if not np.isfinite(stepped).all():
        raise InputError(
            f"{algorithm.server.spec} gives a model with {int((~np.isfinite(stepped)).sum())} of {stepped.size} "
            "entries not finite"
        )
    data, server_data = vector_to_bytes(stepped), server_state_to_bytes(state)
    store = StoreModel(config.run, round_number, digest_of(data), data, digest_of(server_data), server_data)
    return store, float(np.linalg.norm(mean.astype(np.float64)))
