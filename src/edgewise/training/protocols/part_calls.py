"""Calls of parts that others wrote, on a server: what a part raises ends its run, with the place; no node stops or waits."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgewise.core.errors import EdgewiseError, PartFailed, StoreError
from edgewise.training.protocols.messages import Event
from edgewise.training.protocols.protocol import Step

Ended = Callable[[Any, Event, str], tuple[Any, tuple[Any, ...]]]
"""(state, or None before the first event; event; sentence) -> the terminal state of a run whose part failed."""
CURE = "Mend that part or take another, then start again from the last model."


@contextmanager
def asked(what: str) -> Iterator[None]:
    """Turns what a part raises into `PartFailed`; a store's errors are not the part's and pass through.

    Args:
        what: Whom and for what, e.g. `uniform(cohort_size=3) chooses`.

    Raises:
        PartFailed: With its text; with kind, file and line where it is no error of ours.
    """
    try:
        yield
    except (StoreError, PartFailed):
        raise
    except EdgewiseError as error:
        raise PartFailed(f"{what}: {error.message}") from error
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise PartFailed(
            f"{what}: {type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})."
        ) from error


def ended_by_parts(step: Step, ended: Ended) -> Step:
    """A coordinator's step for which a part that fails is the end of the run, instead of an event that nobody can fold.

    Args:
        step: The coordinator's.
        ended: Makes the terminal state.

    Returns:
        The step.
    """

    def safe(state: Any, event: Event) -> tuple[Any, tuple[Any, ...]]:
        try:
            return step(state, event)
        except PartFailed as error:
            return ended(state, event, error.message)

    return safe
