"""A role's literal table: what each event does in each phase. What is not in it is an error, not a shrug."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgewise.core.errors import StoreError
from edgewise.training.protocols.letters import AnyLetter
from edgewise.training.protocols.messages import Accept, Event, LetterInvalid, Received, Refusal, Refuse

Handler = Callable[[Any, Any, Any], tuple[Any, tuple[Any, ...]]]
"""(parts, state, event) -> state, actions."""


@dataclass(frozen=True, slots=True)
class Table:
    """What each event does.

    Attributes:
        phases: The columns.
        rows: By event, or by letter for `Received`: a handler per phase.
    """

    phases: tuple[str, ...]
    rows: Mapping[type, tuple[Handler, ...]]

    def __post_init__(self) -> None:
        for kind, handlers in self.rows.items():
            assert len(handlers) == len(self.phases), kind


def ignored(parts: Any, state: Any, event: Event) -> tuple[Any, tuple[Any, ...]]:
    """Nothing changes, on purpose."""
    return state, ()


def accepted(parts: Any, state: Any, event: Event) -> tuple[Any, tuple[Any, ...]]:
    """A letter is taken and changes nothing, on purpose."""
    return state, (Accept(),)


def refused(reason: Refusal, text: str) -> Handler:
    """A letter that does not count in a phase, whatever it says."""

    def refuse(parts: Any, state: Any, event: Event) -> tuple[Any, tuple[Any, ...]]:
        return state, (Refuse(reason, text),)

    return refuse


def kind_of(event: Event) -> type:
    """What a table names an event by."""
    return type(event.letter) if isinstance(event, Received) else type(event)


def dispatch(table: Table, role: str, parts: Any, phase: str, state: Any, event: Event) -> tuple[Any, tuple[Any, ...]]:
    """Looks up what an event does and does it.

    Args:
        table: The role's.
        role: Its name, for messages.
        parts: For the handler.
        phase: Of the state.
        state: Before.
        event: What happened.

    Returns:
        State and actions. A letter that the role never takes is refused: its sender must not stop a run.

    Raises:
        StoreError: If the driver reports an event that this role knows nothing of.
    """
    kind = type(event.letter) if type(event) is Received else type(event)
    handlers = table.rows.get(kind)
    if handlers is not None:
        return handlers[table.phases.index(phase)](parts, state, event)
    if isinstance(event, Received):
        return state, (Refuse(Refusal.NOT_ASKED, f"a {role} takes no {kind.__name__}."),)
    if isinstance(event, LetterInvalid):
        return state, (Refuse(Refusal.INVALID, event.reason),)
    raise StoreError(f"{kind.__name__} in the log of a {role}: it is no event of that role. Check whose log it is.")


LETTERS: tuple[type, ...] = AnyLetter.__args__
"""Every letter there is."""
