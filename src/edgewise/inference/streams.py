"""State that a stage keeps between the requests of one stream: bounded, freed when the stream ends.

Each request of a stream carries a `StreamStep`: its stream's name and how many requests came before it. A stage whose
state does not stand exactly there, because it was evicted, lost with its node, or never made, says so with
`StreamLost` rather than answer from a wrong state.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import msgspec
from numpy.typing import NDArray

from edgewise.core.errors import InputError

State = dict[str, NDArray[Any]]
"""State by the name of the input that it is given under."""


class StreamLost(InputError):
    """A stream whose state is not there: begin a new one."""

    code = "input.stream"


class StreamStep(msgspec.Struct, frozen=True, array_like=True):
    """Where a request stands in its stream.

    Attributes:
        stream: Name, unique on its device and model.
        index: Requests of the stream before this one.
        is_last: Whether the stream ends with it.
    """

    stream: str
    index: int
    is_last: bool = False


class StreamStates:
    """State of the streams of one plan on one node; not shared between threads.

    Attributes:
        max_streams: Streams that are kept; beginning one more evicts the one that was used longest ago.
        num_evicted: Streams evicted so far.
    """

    def __init__(self, initial: Mapping[str, NDArray[Any]], max_streams: int = 64) -> None:
        self.max_streams, self.num_evicted = max_streams, 0
        self._initial = dict(initial)
        self._kept: OrderedDict[str, tuple[int, State]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def before(self, step: StreamStep | None) -> State:
        """The state that a request begins with.

        Args:
            step: Its place in its stream; None for a request of its own.

        Returns:
            State by input name; the initial one for the first request.

        Raises:
            StreamLost: If the stream's state does not stand where the request does.
        """
        if step is None or step.index == 0:
            return dict(self._initial)
        index, state = self._kept.get(step.stream, (0, {}))
        if index != step.index:
            raise StreamLost(
                f"request {step.index} of stream {step.stream!r} cannot be computed: its state "
                f"{f'stands after request {index}' if index else 'is not here; it was evicted or its node restarted'}. "
                "Begin a new stream."
            )
        return state

    def after(self, step: StreamStep | None, state: State) -> None:
        """Keeps what a request left behind, or frees its stream with the last one.

        Args:
            step: Its place in its stream; None keeps nothing.
            state: By input name.
        """
        if step is None:
            return
        self._kept.pop(step.stream, None)
        if step.is_last:
            return
        self._kept[step.stream] = (step.index + 1, state)
        while len(self._kept) > self.max_streams:
            self._kept.popitem(last=False)
            self.num_evicted += 1

    def drop(self, stream: str) -> None:
        """Frees a stream; nothing happens if it is not there."""
        self._kept.pop(stream, None)
