"""The contract of a local engine: who answers the questions of local work (`rule.Oracle`) with a client's data.

    received, kept, examples ─▶ engine's oracle ─▶ run_rules ─▶ sent, kept, loss, number of steps

The work is data and rules (`LocalWork`); the order of examples comes from the seed tree alone, so every engine does the
same steps on the same batches. The smallest complete engine is `sequential.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewise.codecs.bundle import Bundle
from edgewise.core.errors import InputError, MisfitError
from edgewise.core.layout import Layout
from edgewise.core.seeds import Seeds
from edgewise.models.task import Examples
from edgewise.training.local.rule import LocalWork

Progress = Callable[[int], None]
"""Called after every step of the engine with a growing count; raising from it stops the work."""


class LocalResult(msgspec.Struct, frozen=True):
    """What local work on one client gave.

    Attributes:
        sent: Sections for the server; no longer traced as raw data.
        kept: Sections that stay, if the update counts.
        loss: Mean training loss of the first rule over all examples seen, before each step; nan if it saw none.
        num_steps: Local steps of each rule.
        num_examples: Behind it.
        metrics: What else was measured, by name.
    """

    sent: Bundle
    kept: Bundle
    loss: float
    num_steps: int
    num_examples: int
    metrics: Mapping[str, float] = {}


class LocalEngine(ABC):
    """Does local work for one model. Not safe for use by two threads at once.

    Attributes:
        name: The registry's word.
        layout: How the model's tensors lie in a vector.
        offers: Questions it answers.
    """

    name: str
    layout: Layout
    offers: frozenset[str]

    @abstractmethod
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
        """Does the work of several clients.

        Args:
            work: What each client does.
            received: Sections from the server, the same for all, or of each client.
            kept: Per client what it keeps; sections that no rule reads are left alone.
            examples: Per client; none may be empty.
            seeds: Per client its own place, e.g. `seeds.at("round", r, "client", c, "local")`.
            progress: Liveness; see `Progress`.

        Returns:
            One result per client, in order.

        Raises:
            DataError: If a client has no examples.
            InputError: If what was received is not of this layout.
            MisfitError: If a rule asks what this engine does not answer.
        """

    def work_one(
        self,
        work: LocalWork,
        received: Bundle,
        kept: Bundle,
        examples: Examples,
        seeds: Seeds,
        *,
        progress: Progress | None = None,
    ) -> LocalResult:
        """Does the work of one client: `work_cohort` with one."""
        return self.work_cohort(work, received, [kept], [examples], [seeds], progress=progress)[0]

    def check(self, work: LocalWork, received: Bundle | Sequence[Bundle]) -> None:
        """Refuses what this engine cannot work.

        Args:
            work: What is to be done.
            received: As in `work_cohort`.

        Raises:
            InputError: If the received model is not of this layout.
            MisfitError: If a rule asks what this engine does not answer.
        """
        if lacking := sorted(work.needs - self.offers):
            raise MisfitError(
                f"{work.spec} asks an engine for {lacking}, engine {self.name!r} answers {sorted(self.offers)}. "
                "Use engine 'sequential', which answers everything."
            )
        for bundle in {id(b): b for b in ([received] if isinstance(received, Mapping) else received)}.values():
            model = bundle.get("model")
            if model is not None and model.shape != (self.layout.size,):
                raise InputError(
                    f"the received model has shape {model.shape}, this task's model needs {(self.layout.size,)}. "
                    "Start from a version of the same task."
                )


def bundle_of(received: Bundle | Sequence[Bundle], client: int) -> Bundle:
    """What one client of a cohort received.

    Args:
        received: As in `LocalEngine.work_cohort`.
        client: Its place in the cohort.

    Returns:
        Its sections.
    """
    return received if isinstance(received, Mapping) else received[client]


class CohortRng:
    """The generators of a cohort as one: every method draws for each client and stacks what came.

    Args:
        generators: Per client.
    """

    def __init__(self, generators: Sequence[np.random.Generator]) -> None:
        self._generators = generators

    def __getattr__(self, name: str) -> Callable[..., NDArray[Any]]:
        return lambda *args, **kwargs: np.stack([getattr(rng, name)(*args, **kwargs) for rng in self._generators])
