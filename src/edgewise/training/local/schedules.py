"""Learning-rate schedules: a factor on the rate by the number of steps that a client has done in the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import InputError
from edgewise.core.spec import Spec

Factor = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class RateSchedule:
    """A schedule with the words that rebuild it on a device.

    Attributes:
        spec: The words.
        factor: Steps done, float64[...] -> factor on the learning rate, float64[...].
    """

    spec: Spec
    factor: Factor


def cosine(steps: int, warmup: int = 0, least: float = 0.0) -> RateSchedule:
    """Rises for `warmup` steps, then falls to `least` along half a cosine, and stays there.

    Args:
        steps: Steps until `least`, those of the warm-up in it; above `warmup`.
        warmup: Steps of the linear rise.
        least: The last factor, in [0, 1].

    Returns:
        The schedule.

    Raises:
        InputError: If a number is out of range.

    Reference:
        Loshchilov & Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017, eq. 5, without restarts.
    """
    shape = _falling("cosine", steps, warmup, least, lambda share: 0.5 * (1 + np.cos(np.pi * share)))
    return RateSchedule(Spec("cosine", {"steps": steps, "warmup": warmup, "least": least}), shape)


def linear(steps: int, warmup: int = 0, least: float = 0.0) -> RateSchedule:
    """Rises for `warmup` steps, then falls to `least` in a straight line, and stays there.

    Args:
        steps: As in `cosine`.
        warmup: As in `cosine`.
        least: As in `cosine`.

    Returns:
        The schedule.

    Raises:
        InputError: If a number is out of range.
    """
    shape = _falling("linear", steps, warmup, least, lambda share: 1 - share)
    return RateSchedule(Spec("linear", {"steps": steps, "warmup": warmup, "least": least}), shape)


def exponential(factor: float, every: int = 1) -> RateSchedule:
    """Multiplies the rate by `factor` after every so many steps.

    Args:
        factor: In (0, 1].
        every: Steps between; at least 1.

    Returns:
        The schedule.

    Raises:
        InputError: If a number is out of range.
    """
    if not 0 < factor <= 1 or every < 1:
        raise InputError(f"exponential takes factor in (0, 1] and every >= 1, found {factor!r} and {every!r}.")
    words = Spec("exponential", {"factor": factor, "every": every})
    return RateSchedule(words, lambda done: np.power(factor, done // every))


def _falling(name: str, steps: int, warmup: int, least: float, shape: Callable[[NDArray[Any]], NDArray[Any]]) -> Factor:
    if not 0 <= warmup < steps or not 0 <= least <= 1:
        raise InputError(
            f"{name} takes 0 <= warmup < steps and least in 0 to 1, found warmup={warmup!r}, steps={steps!r}, least={least!r}."
        )

    def factor(done: NDArray[np.float64]) -> NDArray[np.float64]:
        share = np.clip((done - warmup) / (steps - warmup), 0, 1)
        falls: NDArray[np.float64] = least + (1 - least) * shape(share)
        return np.where(done < warmup, (done + 1) / (warmup + 1), falls)

    return factor


SCHEDULES: dict[str, Callable[..., RateSchedule]] = {"cosine": cosine, "exponential": exponential, "linear": linear}
