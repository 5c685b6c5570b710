"""Recorded stage outputs for `benchmarks/drift.py`: small two-exit models, their inputs shifted, along three plans.

A recording is what both exits of a model score on held-out examples, clean and under each shift. Streams are drawn from it with
replacement, so that in a stable stream reference and requests have one law, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, uniform_filter1d
from torch import nn
from torch.nn import functional

from edgewise.codecs import make_codec
from edgewise.core.seeds import Seeds
from edgewise.datasets.digits_data import load_digits
from edgewise.datasets.found import load_uci_har
from edgewise.datasets.shifts import noisy, rotated
from edgewise.inference.gates.exit import probabilities
from edgewise.lifecycle.change import DriftAnswer, Seen
from edgewise.lifecycle.covariates import covariates

SHIFTS = ("rotation", "noise", "blur", "brightness", "class mix", "one class missing", "sensor stuck")
OF_MIX = ("class mix", "one class missing")
"""Shifts of how often classes come; the inputs of a class are as they were."""
PLANS = ("all on device", "split", "all on edge")
UNSEEN = (2, 4, 9, 10, 12, 13, 18, 20, 24)
"""The data set's own test people; three more are held out."""
EARLY = 0.9
"""Confidence at which answers leave at the first exit."""


class TwoExits(nn.Module):  # type: ignore[misc]
    """A convolution, an exit, another convolution, the end."""

    def __init__(self, channels: int, classes: int, dimensions: int) -> None:
        super().__init__()
        conv, pool = (nn.Conv2d, nn.AdaptiveAvgPool2d(4)) if dimensions == 2 else (nn.Conv1d, nn.AdaptiveAvgPool1d(16))
        self.head = nn.Sequential(conv(channels, 12, 3, padding=1), nn.ReLU(), pool)
        self.exit_0 = nn.Sequential(nn.Flatten(), nn.Linear(12 * 16, classes))
        self.tail = nn.Sequential(conv(12, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 16, classes))

    def forward(self, inputs: Any) -> tuple[Any, Any]:
        """Scores of both exits."""
        cut = self.head(inputs)
        return self.exit_0(cut), self.tail(cut)


@dataclass(frozen=True)
class Recorded:
    """What a plan's exits gave on some examples.

    Attributes:
        seen: As the change monitor sees each example.
        labels: True classes.
        wrong: bool[n], whether the plan's answer is wrong.
        unsure: float[n], 1 − confidence of that answer.
    """

    seen: tuple[Seen, ...]
    labels: NDArray[np.int64]
    wrong: NDArray[np.bool_]
    unsure: NDArray[np.float64]


@dataclass(frozen=True)
class Recording:
    """One trained model: the same held-out examples, clean and shifted, by plan."""

    data: str
    seed: int
    num_reference: int
    clean: dict[str, Recorded]
    shifted: dict[str, dict[str, Recorded]]
    weights: dict[str, NDArray[np.float64]]


def record(data: str, seed: int) -> Recording:
    """Trains a small model and records it.

    Args:
        data: `digits` or `human activity`.
        seed: Of the division, the training and the strength of shifts.

    Returns:
        The recording.
    """
    rng = Seeds(seed).at("drift benchmark", data).rng()
    make = _digits if data == "digits" else _activity
    train_x, train_y, x, y, num_reference = make(seed, rng)
    model = _trained(train_x, train_y, seed)
    shifted = {name: _shifted(data, name, x, rng) for name in SHIFTS if name not in OF_MIX}
    classes = int(y.max()) + 1
    return Recording(
        data,
        seed,
        num_reference,
        {plan: _recorded(model, plan, x, y) for plan in PLANS},
        {name: {plan: _recorded(model, plan, moved, y) for plan in PLANS} for name, moved in shifted.items()},
        {
            "class mix": _weights(y, rng.dirichlet(np.full(classes, 0.5))),
            "one class missing": _weights(y, (np.arange(classes) != rng.integers(classes)).astype(float)),
        },
    )


def _digits(seed: int, _: np.random.Generator) -> tuple[Any, ...]:
    parts = load_digits(seed, train=500, calibration=1, gate=1, stream=1295)
    return parts.train.inputs, parts.train.targets, parts.stream.inputs, parts.stream.targets, 1000


def _activity(_: int, rng: np.random.Generator) -> tuple[Any, ...]:
    arrays, subjects = load_uci_har()
    people = np.asarray(subjects)
    others = rng.permutation(np.setdiff1d(np.unique(people), UNSEEN))
    held_out = np.isin(people, [*UNSEEN, *others[:3]])
    chosen = rng.permutation(np.flatnonzero(~held_out))[:2000]
    x = np.asarray(arrays.inputs, np.float32)
    kept = rng.permutation(np.flatnonzero(held_out))[:3000]
    return x[chosen], np.asarray(arrays.targets)[chosen], x[kept], np.asarray(arrays.targets)[kept], 2000


def _trained(x: Any, y: Any, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # a process a core
    x, y = torch.from_numpy(np.array(x, np.float32)), torch.from_numpy(np.array(y))
    model = TwoExits(x.shape[1], int(y.max()) + 1, x.ndim - 2)
    steps = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(20 if x.ndim == 4 else 10):
        for rows in torch.randperm(len(x)).split(32):
            steps.zero_grad()
            first, last = model(x[rows])
            (functional.cross_entropy(first, y[rows]) * 0.5 + functional.cross_entropy(last, y[rows])).backward()
            steps.step()
    return model.eval()


def _shifted(data: str, name: str, x: Any, rng: np.random.Generator) -> NDArray[np.float32]:
    """Inputs under a shift of a strength drawn for this recording."""
    x, strength = np.asarray(x, np.float32), float(rng.uniform(0.5, 1.5))
    moved = (_shifted_digits if data == "digits" else _shifted_activity)(name, x, strength, rng)
    return np.ascontiguousarray(moved, np.float32)


def _shifted_digits(name: str, x: Any, strength: float, rng: np.random.Generator) -> Any:
    if name == "rotation":
        return rotated(x, 25.0 * strength)
    if name == "noise":
        return noisy(x, 0.35 * strength, rng=rng)
    if name == "blur":
        return gaussian_filter(x, (0, 0, 0.8 * strength, 0.8 * strength))
    if name == "brightness":
        return np.clip(x * (1.0 - 0.4 * strength), 0, 1)
    stuck, column = x.copy(), int(rng.integers(2, 6))
    stuck[..., column : column + 1 + round(strength)] = 0.5
    return stuck


def _shifted_activity(name: str, x: Any, strength: float, rng: np.random.Generator) -> Any:
    if name == "rotation":  # the phone sits otherwise: x and y of each sensor turn into each other
        angle, turned = np.deg2rad(40.0 * strength), x.copy()
        for first in (0, 3, 6):
            turned[:, first] = np.cos(angle) * x[:, first] - np.sin(angle) * x[:, first + 1]
            turned[:, first + 1] = np.sin(angle) * x[:, first] + np.cos(angle) * x[:, first + 1]
        return turned
    if name == "noise":
        return x + rng.normal(0, 0.3 * strength, x.shape)
    if name == "blur":
        return uniform_filter1d(x, 1 + 2 * round(4 * strength), axis=2)
    if name == "brightness":
        return x * (1.0 - 0.4 * strength)
    stuck, channel = x.copy(), 3 * int(rng.integers(3))
    stuck[:, channel : channel + 3] = 0.0  # one sensor has three
    return stuck


def _weights(y: Any, mix: NDArray[np.float64]) -> NDArray[np.float64]:
    share = np.bincount(y, minlength=len(mix)) / len(y)
    weights = (mix / np.maximum(share, 1e-9))[y]
    return np.asarray(weights / weights.sum())


def _recorded(model: Any, plan: str, x: Any, y: Any) -> Recorded:
    """A plan's exits on examples: early exit on the device; the same with int8 at the cut; only the end, far away."""
    x = np.asarray(x, np.float32)
    with torch.no_grad():
        cut = model.head(torch.from_numpy(x))
        first = model.exit_0(cut).numpy()
        if plan == "split":
            codec, cut_array = make_codec("int8"), cut.numpy()
            decoded = [
                codec.decode(codec.encode(row, codec.init(row.shape), np.random.default_rng(0))[0]) for row in cut_array
            ]
            cut = torch.from_numpy(np.stack(decoded).reshape(cut_array.shape))
        last = model.tail(cut).numpy()
    by_exit = [(p.max(axis=1), p.argmax(axis=1)) for p in (probabilities(first), probabilities(last))]
    (sure, named), (sure_end, named_end) = by_exit
    leaves = (sure >= EARLY) if plan != "all on edge" else np.zeros(len(x), bool)
    looks = [covariates(example) for example in x]

    def seen(index: int) -> Seen:
        end = DriftAnswer(float(sure_end[index]), int(named_end[index]))
        if plan == "all on edge":
            return Seen({1: end}, looks[index])
        start = DriftAnswer(float(sure[index]), int(named[index]))
        return Seen({0: start} if leaves[index] else {0: start, 1: end}, looks[index])

    answer = np.where(leaves, named, named_end)
    return Recorded(
        tuple(seen(index) for index in range(len(x))),
        np.asarray(y),
        answer != np.asarray(y),
        1.0 - np.where(leaves, sure, sure_end),
    )
