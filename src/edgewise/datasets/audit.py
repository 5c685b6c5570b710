"""Audits a split before training: who holds what, and how skewed it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import DataError


class SplitAudit(msgspec.Struct, frozen=True, kw_only=True):
    """Holds sizes and label skew of a split.

    Attributes:
        examples: Number of examples by client.
        label_counts: Examples of each label by client; empty where targets are not labels.
        label_skew: Mean over examples of the total variation distance between the client's label shares
            and the whole's; 0 for identical shares, near 1 for one rare label per client.
        empty_clients: Clients without a single example.
        duplicates: Examples that more than one client holds; -1 if inputs were not given.
        notes: What was found in a client's data, or done to it, by client.
    """

    examples: dict[str, int]
    label_counts: dict[str, dict[int, int]]
    label_skew: float
    empty_clients: tuple[str, ...]
    duplicates: int = -1
    notes: dict[str, tuple[str, ...]] = {}

    @property
    def num_clients(self) -> int:
        """Returns the number of clients."""
        return len(self.examples)

    @property
    def num_examples(self) -> int:
        """Returns the number of examples of all clients."""
        return sum(self.examples.values())

    @property
    def warnings(self) -> tuple[str, ...]:
        """Returns warnings to read before training."""
        found = []
        if self.empty_clients:
            names = ", ".join(self.empty_clients[:10])
            found.append(f"{len(self.empty_clients)} clients hold no examples and will be left out: {names}.")
        if self.duplicates > 0:
            found.append(f"{self.duplicates} examples are held by more than one client.")
        if self.label_skew > 0.6:
            found.append(f"label skew {self.label_skew:.2f} is strong: expect slow or unsteady training.")
        return tuple(found)

    def __str__(self) -> str:
        sizes = sorted(self.examples.values()) or [0]
        lines = [
            f"clients {self.num_clients}   examples {self.num_examples}   "
            f"per client {sizes[0]} to {sizes[-1]} (median {int(np.median(sizes))})   "
            f"label skew {self.label_skew:.2f} (0 even, 1 apart)"
        ]
        width = max((len(name) for name in self.examples), default=0)
        shown = list(self.examples)[:20]
        lines += [f"  {name:{width}}  {self.examples[name]:6d}  {self._labels_text(name)}".rstrip() for name in shown]
        if self.num_clients > len(shown):
            lines.append(f"  … and {self.num_clients - len(shown)} more")
        lines += [f"note: {text}" for text in self._note_texts()]
        return "\n".join(lines + [f"warning: {text}" for text in self.warnings])

    def _note_texts(self) -> list[str]:
        """One line for each thing that was noted, with whom it is about."""
        about: dict[str, list[str]] = {}
        for name, texts in self.notes.items():
            for text in texts:
                about.setdefault(text, []).append(name)
        every = len(self.examples)
        return [
            f"{'every client' if len(names) == every else ', '.join(names[:10])}: {text}"
            + (f" ({len(names)} clients)" if 10 < len(names) < every else "")
            for text, names in about.items()
        ]

    def _labels_text(self, client: str) -> str:
        every = sorted({label for counts in self.label_counts.values() for label in counts})
        held = self.label_counts.get(client, {})
        return " ".join(f"{label}:{held.get(label, 0)}" for label in every[:12])


def audit(
    targets: Mapping[str, Any],
    inputs: Mapping[str, Any] | None = None,
    notes: Mapping[str, tuple[str, ...]] | None = None,
) -> SplitAudit:
    """Audits a split.

    Args:
        targets: Targets of each client, an array or a dict of them; whole numbers are taken as labels.
        inputs: Inputs of each client, to look for examples held twice.
        notes: What was found in a client's data, by client.

    Returns:
        The audit; `str()` of it is the table to print.

    Raises:
        DataError: If there are no clients.
    """
    if not targets:
        raise DataError("a split without clients cannot be audited. Give the targets of at least one client.")
    plain = {name: _one(values) for name, values in targets.items()}
    counts = {name: _label_counts(values) for name, values in plain.items()}
    return SplitAudit(
        examples={name: len(values) for name, values in plain.items()},
        label_counts=counts if any(counts.values()) else {},
        label_skew=_label_skew(counts),
        empty_clients=tuple(name for name, values in plain.items() if len(values) == 0),
        duplicates=-1 if inputs is None else _duplicates(inputs),
        notes={name: texts for name, texts in (notes or {}).items() if texts},
    )


def _label_counts(values: NDArray[Any]) -> dict[int, int]:
    if values.ndim != 1 or values.dtype.kind not in "iu":
        return {}
    labels, numbers = np.unique(values, return_counts=True)
    return {int(label): int(number) for label, number in zip(labels, numbers, strict=True)}


def _label_skew(counts: Mapping[str, Mapping[int, int]]) -> float:
    every = sorted({label for held in counts.values() for label in held})
    table = np.array([[held.get(label, 0) for label in every] for held in counts.values()], np.float64)
    totals = table.sum(axis=1)
    if table.size == 0 or totals.sum() == 0:
        return 0.0
    whole = table.sum(axis=0) / totals.sum()
    shares = table / np.maximum(totals, 1)[:, None]
    distance = 0.5 * np.abs(shares - whole).sum(axis=1)
    return float((distance * totals).sum() / totals.sum())


def _one(values: Any) -> NDArray[Any]:
    """The array, or of several that without labels: so that their number is known."""
    if isinstance(values, Mapping):
        first = np.asarray(next(iter(values.values())))
        return np.empty((len(first), 0), np.float32)
    return np.asarray(values)


def _duplicates(inputs: Mapping[str, Any]) -> int:
    holders: dict[bytes, set[str]] = {}
    for name, values in inputs.items():
        arrays = [np.ascontiguousarray(a) for a in (values.values() if isinstance(values, Mapping) else (values,))]
        for rows in zip(*arrays, strict=True):
            holders.setdefault(b"".join(bytes(row.tobytes()) for row in rows), set()).add(name)
    return sum(len(names) > 1 for names in holders.values())
