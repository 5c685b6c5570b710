"""The seed tree: one job seed; every node, round, client and step derives its own by name."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Seeds:
    """A place in the seed tree.

    Attributes:
        seed: The job's seed.
        path: Names from the root, e.g. `("round", "3", "client", "device-1")`.

    Example:
        >>> a = int(Seeds(1).at("round", 3).rng().integers(100))
        >>> a == int(Seeds(1).at("round").at(3).rng().integers(100))
        True
    """

    seed: int
    path: tuple[str, ...] = ()

    def at(self, *names: str | int) -> Seeds:
        """The place below this one with those names."""
        return Seeds(self.seed, self.path + tuple(str(name) for name in names))

    def integer(self) -> int:
        """This place's own 64-bit seed."""
        text = "\x1f".join((str(self.seed), *self.path)).encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")

    def rng(self) -> np.random.Generator:
        """A fresh generator for this place; the same on every machine."""
        return np.random.Generator(np.random.PCG64(self.integer()))
