"""The arithmetic of an exchange: from stored updates to the server's next sections. Reads blobs by digest, writes nothing.

A section is a blob of its own: a float32 vector as raw little-endian bytes (so a model is the same blob as a version's
weights), anything else as a bundle of that one section. Blobs may be any buffer (a file mapped into memory): vectors are
views of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
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
from edgewise.core.errors import FrameRefused, InputError, StoreDamaged
from edgewise.core.ids import Digest, digest_of
from edgewise.core.layout import Vector
from edgewise.core.seeds import Seeds
from edgewise.training.aggregate.collect import collected
from edgewise.training.algorithm import MODEL, Aggregator, Closed, Counted, Exchange, Kind, State
from edgewise.training.protocols.letters import BlobName, SectionBlob
from edgewise.training.protocols.messages import Answer
from edgewise.training.protocols.protocol import Blobs
from edgewise.training.server.stepped import Folded, NextState, next_state

_FOLD_ENTRIES = 2**20


def blob(blobs: Blobs, digest: Digest) -> bytes:
    """The bytes of a digest.

    Args:
        blobs: The store.
        digest: Their name.

    Returns:
        The bytes, or a buffer of them.

    Raises:
        StoreDamaged: If the store does not have them.
    """
    try:
        return blobs[digest]
    except KeyError:
        raise lost_blob(digest) from None


def lost_blob(digest: Digest) -> StoreDamaged:
    """The error of a blob that a run needs and that is gone."""
    return StoreDamaged(
        f"blob {digest[:12]} is not in the store, and the run needs it. It is fetched again where a node has it: "
        "`edgewise repair` looks for one.",
        digest=str(digest),
    )


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
        coded, _ = encode_bundle(codecs or {}, {name: array}, None, place.lazy_rng())
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


@dataclass(slots=True)
class Decoder:
    """Decodes updates, and keeps small ones from their check until they are folded. It changes no result.

    Attributes:
        blobs: Holds the updates.
        most_entries: Remembered at most, all together.
    """

    blobs: Blobs
    most_entries: int = 2**22
    _found: dict[Digest, dict[str, NDArray[Any]]] = field(default_factory=dict)
    _sections: dict[tuple[int, int], tuple[Section, ...]] = field(default_factory=dict)

    def read(self, exchange: Exchange, digest: Digest, num_entries: int) -> dict[str, NDArray[Any]]:
        """An update, as `decode_update`; the exchange is one of the run's."""
        known = self._found.pop(digest, None)
        if known is not None:
            return known
        key = (id(exchange), num_entries)
        sections = self._sections.get(key)
        if sections is None:
            sections = self._sections[key] = exchange.local.sections(num_entries)
        return decode_bundle(exchange.uplink, sections, bundle_from_bytes(blob(self.blobs, digest)))

    def keep(self, digest: Digest, bundle: dict[str, NDArray[Any]], num_entries: int) -> None:
        """Remembers an update that will be folded, if there is room."""
        if (len(self._found) + 1) * num_entries <= self.most_entries:
            self._found[digest] = bundle

    def forget(self) -> None:
        """Forgets what was not folded."""
        self._found.clear()


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


def fold(exchange: Exchange, decoder: Decoder, answers: Iterable[Answer], num_entries: int) -> dict[str, State]:
    """The sums of stored updates by section; a few megabytes of updates are decoded at a time.

    Args:
        exchange: Uplink and aggregators; all of them sums.
        decoder: Reads the updates.
        answers: Updates that count; their order changes nothing.
        num_entries: d.

    Returns:
        Each aggregator's sum.
    """
    listed, sums = list(answers), empty_sums(exchange, num_entries)
    height = max(1, _FOLD_ENTRIES // max(1, num_entries))
    for start in range(0, len(listed) if sums else 0, height):
        part = listed[start : start + height]
        updates = [decoder.read(exchange, a.update, num_entries) for a in part]
        counted = [counted_of(a) for a in part]
        for name, total in sums.items():
            aggregator = exchange.aggregate[name]
            weights = [aggregator.weigh.weight(c) for c in counted]
            sums[name] = aggregator.add(total, _rows(updates, name), weights)
    decoder.forget()
    return sums


def _rows(updates: Sequence[Bundle], name: str) -> NDArray[Any]:
    if len(updates) == 1:
        return updates[0][name].reshape(1, -1)  # a large update is not copied
    rows = np.empty((len(updates), updates[0][name].size), updates[0][name].dtype)
    for row, update in zip(rows, updates, strict=True):
        row[:] = update[name].reshape(-1)
    return rows


def empty_sums(exchange: Exchange, num_entries: int) -> dict[str, State]:
    """The folds of no updates, by section; aggregators that must read every update have none."""
    sizes = sizes_of(exchange, num_entries)
    return {n: a.init(sizes[n]) for n, a in exchange.aggregate.items() if a.kind is not Kind.COLLECT}


def sums_to_bytes(exchange: Exchange, sums: Mapping[str, State]) -> bytes:
    """The folds of all sections in one blob."""
    parts = {name: exchange.aggregate[name].to_arrays(total) for name, total in sums.items()}
    return arrays_to_bytes({f"{name}/{part}": a for name, arrays in parts.items() for part, a in arrays.items()})


def add_sums(exchange: Exchange, sums: Mapping[str, State], data: bytes) -> dict[str, State]:
    """Folds that travelled, onto running ones, which are changed in place.

    Args:
        exchange: Its aggregators made them.
        sums: The running folds.
        data: As from `sums_to_bytes`.

    Returns:
        The folds of both.

    Raises:
        FrameRefused, InputError: If they are not honest folds of these sections.
    """
    arrays, found = arrays_from_bytes(data), {}
    strangers = [key for key in arrays if key.partition("/")[0] not in sums]
    if strangers:
        raise FrameRefused(f"sums of sections {sorted(sums)} are expected, found {sorted(strangers)[:10]}.")
    for name, total in sums.items():
        prefix = f"{name}/"
        part = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
        found[name] = exchange.aggregate[name].add_arrays(total, part)
    return found


def step_server(
    exchange: Exchange,
    blobs: Blobs,
    state: Bundle,
    sums: Mapping[str, State],
    answers: Sequence[Answer],
    closed: Closed,
    buffers: Sequence[tuple[int, int]] = (),
) -> NextState:
    """The server's step at the end of an exchange.

    Args:
        exchange: Aggregators and the server's rule.
        blobs: Holds the updates, for aggregators that must read every one.
        state: All sections of the server's state.
        sums: The folds of the others.
        answers: Updates that count.
        closed: For the parts.
        buffers: (offset, size) of entries that are averaged plainly.

    Returns:
        The sections that change, and the norm of the folded model section.

    Raises:
        InputError: If nothing was folded, or what comes is not finite.
    """
    num_entries, folded = state[MODEL].size, {}
    for section in exchange.local.sections(num_entries):
        name, aggregator = section.name, exchange.aggregate[section.name]
        if aggregator.kind is Kind.COLLECT:
            read = _collected(exchange, blobs, answers, name, closed, num_entries).__getitem__
        else:
            read = partial(_finished, aggregator, sums[name], closed)
        folded[name] = Folded(tuple(n or 0 for n in section.shape), read)
    return next_state(exchange.server, state, folded, closed, buffers)


def _finished(aggregator: Aggregator, total: State, closed: Closed, entries: slice) -> NDArray[Any]:
    found = aggregator.finish(total, closed, entries)
    aggregator.forget(total, entries)  # each slice is read once
    return found


def _collected(
    exchange: Exchange, blobs: Blobs, answers: Sequence[Answer], name: str, closed: Closed, num_entries: int
) -> NDArray[Any]:
    aggregator, size = exchange.aggregate[name], sizes_of(exchange, num_entries)[name]

    def decode(index: int, entries: slice) -> NDArray[Any]:
        update = decode_update(exchange, blob(blobs, answers[index].update), num_entries)
        return update[name].reshape(-1)[entries]

    weights = [aggregator.weigh.weight(counted_of(a)) for a in answers]
    return collected(aggregator, decode, len(answers), size, weights, closed)


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
        total = sum([w for _, w in terms])
        if total:
            found[name] = fsum([value * w for value, w in terms]) / total
    return found
