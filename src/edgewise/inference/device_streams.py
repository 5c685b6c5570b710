"""The streams of one model at the device: which are open, on which plan, how far, and which node has their state."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from numpy.typing import NDArray

from edgewise.core.ids import NodeId
from edgewise.inference.peers import SitePeers
from edgewise.inference.prepared import PreparedPlan
from edgewise.inference.request_driver import Served
from edgewise.inference.stage_server import end_stream
from edgewise.inference.streams import StreamLost, StreamStep


@dataclass(slots=True, eq=False)
class OpenStream:
    """A stream at the device.

    Attributes:
        key: Names it to whoever keeps its state: unlike those of all others before and after it, also of its name.
        prepared: The plan it began on and stays with.
        turn: Whose request it is; they are taken in order.
        num_asked: Requests that came, those at work and those refused among them.
        num_sent: Requests whose answer, or its failure, is known.
        nodes: Who has its state, and alone is asked; None while nobody has.
    """

    key: str
    prepared: PreparedPlan
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    num_asked: int = 0
    num_sent: int = 0
    nodes: tuple[str, ...] | None = None

    def answered(self, own: NodeId, served_by: Sequence[NodeId]) -> None:
        """Remembers who computed, if state was left there."""
        others = [str(node) for node in served_by if node != own]
        if self.nodes is None and self.prepared.plan.state and others:
            self.nodes = (others[0],)


class OpenStreams:
    """Streams of one model, bounded.

    Attributes:
        max_streams: Beginning one more ends the one that was used longest ago.
        telling: Nodes being told that a stream ends.
    """

    def __init__(self, node: NodeId, peers: SitePeers, max_streams: int = 64) -> None:
        self.max_streams = max_streams
        self.telling: set[asyncio.Task[None]] = set()
        self._node, self._peers = node, peers
        self._open: OrderedDict[str, OpenStream] = OrderedDict()
        self._num_begun = 0

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, name: str, prepared: PreparedPlan) -> None:
        """Opens a stream; one of that name that is open ends."""
        self.end(name)
        while len(self._open) >= self.max_streams:
            self.end(next(iter(self._open)))
        prepared.num_streams += 1
        self._num_begun += 1
        self._open[name] = OpenStream(f"{name}~{self._num_begun}", prepared)

    def is_new(self, name: str) -> bool:
        """Whether a stream is open and has had no request."""
        return name in self._open and self._open[name].num_asked == 0

    def is_open(self, name: str, stream: OpenStream) -> bool:
        """Whether a stream is still the one of its name."""
        return self._open.get(name) is stream

    def opened(self, name: str) -> OpenStream:
        """An open stream.

        Raises:
            StreamLost: If it is not, or no longer, open.
        """
        if name not in self._open:
            raise StreamLost(
                f"stream {name!r} is not open on {self._node!r}: it ended, was evicted when more than "
                f"{self.max_streams} were open, or its version is long gone. Begin a new one."
            )
        self._open.move_to_end(name)
        return self._open[name]

    def end(self, name: str) -> None:
        """Closes a stream and frees its state, here and where its node can be told; nothing happens without it."""
        stream = self._open.pop(name, None)
        if stream is None:
            return
        stream.prepared.num_streams -= 1
        self.free(stream)

    def free(self, stream: OpenStream) -> None:
        """Gives up the state of a stream that has ended; once more after a request that was at work meanwhile."""
        prepared = stream.prepared
        for gates in (prepared.filters, prepared.gates):
            gates.drop(stream.key)
        if prepared.streams is not None:
            prepared.streams.drop(stream.key)
        if prepared.stages.target is not None and prepared.plan.state and stream.num_asked:
            work = end_stream(prepared, self._peers, stream.key, stream.nodes or ())
            task = asyncio.get_running_loop().create_task(work)
            self.telling.add(task)
            task.add_done_callback(self.telling.discard)

    def end_all(self, prepared: PreparedPlan | None = None) -> None:
        """Closes every stream, or all that began on a plan."""
        for name in [n for n, stream in self._open.items() if prepared is None or stream.prepared is prepared]:
            self.end(name)


class _Infer(Protocol):
    async def __call__(
        self,
        inputs: Mapping[str, NDArray[Any]],
        *,
        deadline_s: float | None = None,
        request: str = "",
        stream: StreamStep | None = None,
    ) -> Served: ...


class Stream:
    """Requests in order, between which stages keep their state.

    Attributes:
        name: Of the stream.
    """

    def __init__(self, name: str, infer: _Infer, end: Callable[[str], None]) -> None:
        self.name, self._infer, self._end, self._num_sent = name, infer, end, 0

    async def infer(
        self,
        inputs: Mapping[str, NDArray[Any]],
        *,
        deadline_s: float | None = None,
        request: str = "",
        is_last: bool = False,
    ) -> Served:
        """Serves the stream's next request; see `ModelServer.infer`. With `is_last` the stream ends after it."""
        step = StreamStep(self.name, self._num_sent, is_last)
        self._num_sent += 1
        return await self._infer(inputs, deadline_s=deadline_s, request=request, stream=step)

    def close(self) -> None:
        """Ends the stream: its state is freed."""
        self._end(self.name)
