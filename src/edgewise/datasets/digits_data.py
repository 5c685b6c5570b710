"""Divides scikit-learn's 1,797 handwritten digits into disjoint parts. Needs no network."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import DataError
from edgewise.core.provenance import RAW, traced
from edgewise.core.seeds import Seeds
from edgewise.datasets.arrays import Arrays

NUM_DIGITS = 1797
FULL_SCALE = 16


@dataclass(frozen=True, slots=True)
class DividedDigits:
    """Holds four disjoint parts of the digits.

    Attributes:
        train: What the clients hold.
        calibration: Chooses exit thresholds and gives plan evidence.
        gate: Decides whether a version may serve; nothing else may look at it.
        stream: Requests of the running system.
    """

    train: Arrays
    calibration: Arrays
    gate: Arrays
    stream: Arrays

    @property
    def sizes(self) -> dict[str, int]:
        """Returns the number of examples of each part, by name."""
        return {name: len(getattr(self, name)) for name in self.__slots__}


def load_digits(
    seed: int = 0, *, train: int = 760, calibration: int = 320, gate: int = 337, stream: int = 380
) -> DividedDigits:
    """Loads the digits and divides them by seed.

    Args:
        seed: Chooses who is where.
        train: Examples in the training part.
        calibration: Examples in the calibration part.
        gate: Examples in the gate part; at least 300 give the gate its bound.
        stream: Examples in the stream part.

    Returns:
        Inputs float32[n, 1, 8, 8] in 0..1, targets int64[n].

    Raises:
        DataError: If the parts need more than there is, or one is empty.
    """
    wanted = (train, calibration, gate, stream)
    if min(wanted) < 1 or sum(wanted) > NUM_DIGITS:
        raise DataError(
            f"the digits cannot be divided into {wanted}: each part needs at least one example, "
            f"together at most {NUM_DIGITS}, found {sum(wanted)}. Make the parts smaller."
        )
    images, labels = _read()
    order = Seeds(seed).at("data", "digits").rng().permutation(NUM_DIGITS)
    parts = np.split(order, np.cumsum(wanted))[:4]
    whole = Arrays.of(images, labels)
    return DividedDigits(*(whole.take(indices) for indices in parts))


def to_raw(inputs: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Returns inputs in the sensor's form: whole numbers 0..16, 64 bytes a digit.

    Args:
        inputs: float32[..., 8, 8] in 0..1.

    Returns:
        uint8 of the same shape; still traced.
    """
    return np.asanyarray(np.rint(inputs * FULL_SCALE).clip(0, 255).astype(np.uint8))


def from_raw(raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns inputs in 0..1 from the sensor's form; `from_raw(to_raw(x))` equals x for undrifted digits."""
    return np.asanyarray(raw.astype(np.float32) / np.float32(FULL_SCALE))


def _read() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Reads the data file of scikit-learn without importing it, which would cost each process over a second."""
    found = find_spec("sklearn")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")
    rows = np.loadtxt(Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",", dtype=np.int64)
    images = traced(rows[:, :-1].reshape(-1, 1, 8, 8).astype(np.float32) / np.float32(FULL_SCALE), RAW)
    return images, rows[:, -1]
