"""The arithmetic of an exchange: from stored updates to the server's next sections. Reads blobs by digest, writes nothing.

A section is a blob of its own: a float32 vector as raw little-endian bytes (so a model is the same blob as a version's
weights), anything else as a bundle of that one section. Blobs may be any buffer (a file mapped into memory): vectors are
views of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import fsum, isfinite, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.codecs import Payload, payload_from_bytes, payload_to_bytes
from edgewise.codecs.bundle import (
    Bundle,
    Codecs,
    Section,
    bundle_from_bytes,
    bundle_to_bytes,
    decode_bundle,
    encode_bundle,
)
from edgewise.core.errors import FrameRefused, InputError, StoreError
from edgewise.core.ids import Digest, digest_of
from edgewise.core.layout import Vector
from edgewise.core.seeds import Seeds
from edgewise.training.algorithm import MODEL, Aggregator, Closed, Counted, Exchange, Kind, State
from edgewise.training.protocols.letters import BlobName, SectionBlob
from edgewise.training.protocols.messages import Answer
from edgewise.training.protocols.protocol import Blobs

_FOLD_ENTRIES = 2**20


def blob(blobs: Blobs, digest: Digest) -> bytes:
    """The bytes of a digest.

    Args:
        blobs: The store.
        digest: Their name.

    Returns:
        The bytes, or a buffer of them.

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


def section_to_blob(
    name: str, array: NDArray[Any], codecs: Codecs | None = None, seeds: Seeds | None = None
) -> tuple[SectionBlob, bytes]:
    """A section on its way down, or in a server's store.

    Args:
        name: Of the section.
        array: Its content.
        codecs: The downlink's, by section.
        seeds: Place of a codec that rounds at random.

    Returns:
        Its name, and the bytes (a buffer, without a copy where it is a vector).
    """
    array = np.asarray(array)
    is_coded = name in (codecs or {}) or array.dtype != np.float32 or array.ndim != 1
    data: Any
    if is_coded:
        place = (seeds or Seeds(0)).at("downlink", name)
        coded, _ = encode_bundle(codecs or {}, {name: array}, None, place.rng())
        data = bundle_to_bytes(coded)
    else:
        data = np.ascontiguousarray(array, "<f4").data.cast("B")
    return SectionBlob(name, BlobName(digest_of(data), len(data)), is_coded), data


def section_from_blob(section: SectionBlob, data: bytes, codecs: Codecs | None = None) -> NDArray[Any]:
    """Undoes `section_to_blob`.

    Args:
        section: Its name.
        data: Its bytes, or a buffer of them.
        codecs: The downlink's, by section.

    Returns:
        Its content; a read-only view where it is a vector.

    Raises:
        FrameRefused: If the bytes are not that section.
    """
    if section.is_coded:
        found = decode_bundle(codecs or {}, None, bundle_from_bytes(data))
        if list(found) != [section.name]:
            raise FrameRefused(f"a blob of section {section.name!r} holds {sorted(found)[:10]}.")
        return found[section.name]
    if len(data) % 4:
        raise FrameRefused(f"section {section.name!r} is float32, {len(data):,} bytes are not a multiple of 4.")
    return np.frombuffer(data, "<f4").astype(np.float32, copy=False)


def arrays_to_bytes(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Named arrays (a sum) as bytes."""
    return payload_to_bytes(Payload((), arrays))


def arrays_from_bytes(data: bytes) -> dict[str, NDArray[Any]]:
    """Undoes `arrays_to_bytes`."""
    return dict(payload_from_bytes(data).arrays)


def decode_update(exchange: Exchange, data: bytes, num_entries: int) -> dict[str, NDArray[Any]]:
    """A client's bundle from the bytes it sent.

    Args:
        exchange: Its uplink, and the sections it accepts.
        data: As made by `bundle_to_bytes`.
        num_entries: d.

    Returns:
        Arrays by section.

    Raises:
        FrameRefused: If it is not an update of this exchange.
    """
    return decode_bundle(exchange.uplink, exchange.local.sections(num_entries), bundle_from_bytes(data))


def counted_of(answer: Answer) -> Counted:
    """What decides the weight of an answer."""
    return Counted(answer.num_examples, answer.staleness, answer.metrics)


def sizes_of(exchange: Exchange, num_entries: int) -> dict[str, int]:
    """Entries of each section that clients send."""
    return {s.name: _size(s) for s in exchange.local.sections(num_entries)}


def _size(section: Section) -> int:
    if any(length is None for length in section.shape):
        raise InputError(f"section {section.name!r} of shape {section.shape} has no size of its own, so it has no sum.")
    return prod(length for length in section.shape if length is not None)


def fold(exchange: Exchange, blobs: Blobs, answers: Iterable[Answer], num_entries: int) -> dict[str, State]:
    """The sums of stored updates by section; a few megabytes of updates are decoded at a time.

    Args:
        exchange: Uplink and aggregators; all of them sums.
        blobs: Holds the updates.
        answers: Updates that count; their order changes nothing.
        num_entries: d.

    Returns:
        Each aggregator's sum.
    """
    listed, sizes = list(answers), sizes_of(exchange, num_entries)
    sums = {name: aggregator.init(sizes[name]) for name, aggregator in _of_kind(exchange, Kind.SUM)}
    height = max(1, _FOLD_ENTRIES // max(1, num_entries))
    for start in range(0, len(listed) if sums else 0, height):
        part = listed[start : start + height]
        updates = [decode_update(exchange, blob(blobs, a.update), num_entries) for a in part]
        counted = [counted_of(a) for a in part]
        for name, total in sums.items():
            aggregator = exchange.aggregate[name]
            weights = [aggregator.weigh.weight(c) for c in counted]
            sums[name] = aggregator.add(total, _rows(updates, name), weights)
    return sums


def _rows(updates: Sequence[Bundle], name: str) -> NDArray[Any]:
    if len(updates) == 1:
        return updates[0][name].reshape(1, -1)  # a large update is not copied
    return np.stack([update[name].reshape(-1) for update in updates])


def _of_kind(exchange: Exchange, kind: Kind) -> list[tuple[str, Aggregator]]:
    return [(name, a) for name, a in exchange.aggregate.items() if (a.kind is Kind.COLLECT) == (kind is Kind.COLLECT)]


def sums_to_bytes(exchange: Exchange, sums: Mapping[str, State]) -> bytes:
    """The folds of all sections in one blob."""
    parts = {name: exchange.aggregate[name].to_arrays(total) for name, total in sums.items()}
    return arrays_to_bytes({f"{name}/{part}": a for name, arrays in parts.items() for part, a in arrays.items()})


def sums_from_bytes(exchange: Exchange, data: bytes, num_entries: int) -> dict[str, State]:
    """Undoes `sums_to_bytes`.

    Args:
        exchange: Its aggregators made the folds.
        data: The bytes.
        num_entries: d.

    Returns:
        The folds by section.

    Raises:
        FrameRefused, InputError: If they are not folds of these sections.
    """
    arrays, found = arrays_from_bytes(data), {}
    sizes = sizes_of(exchange, num_entries)
    strangers = [key for key in arrays if key.partition("/")[0] not in exchange.aggregate]
    if strangers:
        raise FrameRefused(
            f"sums of sections {sorted(exchange.aggregate)} are expected, found {sorted(strangers)[:10]}."
        )
    for name, aggregator in exchange.aggregate.items():
        prefix = f"{name}/"
        part = aggregator.from_arrays({k.removeprefix(prefix): a for k, a in arrays.items() if k.startswith(prefix)})
        found[name] = aggregator.merge(aggregator.init(sizes[name]), part)
    return found


def merge_sums(exchange: Exchange, left: Mapping[str, State], right: Mapping[str, State]) -> dict[str, State]:
    """The folds of disjoint updates together."""
    return {name: exchange.aggregate[name].merge(left[name], right[name]) for name in left}


def finish(
    exchange: Exchange,
    blobs: Blobs,
    sums: Mapping[str, State],
    answers: Iterable[Answer],
    closed: Closed,
    num_entries: int,
) -> dict[str, NDArray[Any]]:
    """What the updates of an exchange became, by section.

    Args:
        exchange: The aggregators.
        blobs: Holds the updates, for aggregators that must read every one.
        sums: The folds of the others.
        answers: Updates that count.
        closed: For the aggregators.
        num_entries: d.

    Returns:
        An array per section, in its shape.
    """
    shapes = {s.name: s.shape for s in exchange.local.sections(num_entries)}
    found = {name: exchange.aggregate[name].finish(total, closed) for name, total in sums.items()}
    collected = [name for name, _ in _of_kind(exchange, Kind.COLLECT)]
    if collected:
        from edgewise.training.aggregate.collect import collect

        found |= collect(exchange, blobs, list(answers), closed, num_entries, collected)
    return {name: array.reshape(shapes[name]) for name, array in found.items()}


def next_sections(
    exchange: Exchange,
    state: Bundle,
    folded: Bundle,
    closed: Closed,
    buffers: Sequence[tuple[int, int]] = (),
) -> dict[str, NDArray[Any]]:
    """The server's step.

    Args:
        exchange: Its server's rule.
        state: All sections of the server's state.
        folded: What the updates became.
        closed: For the rule.
        buffers: (offset, size) of entries that are averaged plainly, whatever the rule does.

    Returns:
        The sections that change.

    Raises:
        InputError: If one is not finite.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        stepped = dict(exchange.server.step(state, folded, closed))
    if buffers and MODEL in folded:
        moved = np.array(stepped.get(MODEL, state[MODEL]))
        for offset, size in buffers:
            place = slice(offset, offset + size)
            moved[place] = state[MODEL][place] + folded[MODEL][place]
        stepped[MODEL] = moved
    for name, array in stepped.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            what = "a model" if name == MODEL else f"a section {name!r}"
            raise InputError(
                f"{exchange.server.spec} gives {what} with {int((~np.isfinite(array)).sum())} of {array.size} "
                "entries not finite"
            )
    return stepped


def norm_of(array: NDArray[Any]) -> float:
    """Euclidean norm in float64, without a copy of a large array."""
    flat = array.reshape(-1)
    width = 2**20
    if flat.size <= width:
        return float(np.linalg.norm(flat.astype(np.float64)))
    parts = (flat[start : start + width].astype(np.float64) for start in range(0, flat.size, width))
    return float(np.sqrt(fsum(float(part @ part) for part in parts)))


def mean_metrics(answers: Iterable[tuple[Mapping[str, float], int]]) -> dict[str, float]:
    """Means of metrics weighted by examples, exact in any order.

    Args:
        answers: (metrics, number of examples) of each participant.

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
