"""Emulates a link by a TCP proxy with rate, delay, losses and outages; TLS passes unread.

    link = await open_link(LinkSpec(name="device-1", target="127.0.0.1:7447", shape=Shape(bytes_per_s=2.5e6, delay_s=0.005)))
    print(link.port)                      # device-1 dials this instead
    link.set(bytes_per_s=8_000.0)         # while it runs
    link.set(outage="cut")                # and outage=None to heal

`up` is towards the target, `down` is back. Many links live in one process: `link_control.py`, or
`python -m edgewise.simulation.links.link_control --spec '<json>'`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections import deque
from typing import Any, Literal

import msgspec

from edgewise.core.errors import InputError
from edgewise.simulation.links.shape import Course, LinkSpec, Shape, split_address
from edgewise.simulation.links.sockets import close_by_reset, kernel_received, receive_as_a_network_does

__all__ = ["Counter", "Link", "LinkSpec", "Outage", "Shape", "open_link"]

Outage = Literal["black_hole", "cut"]
_READ_BYTES = 2**16
_EARLY_S = 5e-5


class Counter(msgspec.Struct):
    """Counts bytes of one direction: read from one socket, delivered to the other."""

    read_bytes: int = 0
    delivered_bytes: int = 0


async def open_link(spec: LinkSpec) -> Link:
    """Opens a link's listening socket; its target is dialled per connection.

    Args:
        spec: What to open.

    Returns:
        The running link.

    Raises:
        InputError: If an address is not `host:port`, or the listening port is taken.
    """
    host, port = split_address(spec.listen)
    split_address(spec.target)
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    receive_as_a_network_does(listener)
    listener.setblocking(False)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise InputError(f"link {spec.name!r} cannot listen on {spec.listen!r}: {error.strerror}.") from error
    listener.listen(256)
    return Link(spec, listener)


class Link:
    """Runs one link. Made by `open_link`; `close` it."""

    def __init__(self, spec: LinkSpec, listener: socket.socket) -> None:
        self.spec = spec
        self.port: int = listener.getsockname()[1]
        self.outage: Outage | None = None
        self.num_connections = 0
        self.num_to_corrupt = 0
        self.counters = {"up": Counter(), "down": Counter()}
        self.courses = {
            "up": Course(spec.shape, random.Random(spec.seed)),
            "down": Course(spec.down or spec.shape, random.Random(spec.seed + 1)),
        }
        self._target = spec.target
        self._listener = listener
        self._connections: set[_Connection] = set()
        self._loop = asyncio.get_running_loop()
        self._dialling: set[asyncio.Task[None]] = set()
        self._loop.add_reader(listener, self._accept)

    def set(
        self,
        *,
        direction: Literal["up", "down"] | None = None,
        outage: Outage | Literal["keep"] | None = "keep",
        target: str | None = None,
        corrupt: int = 0,
        **shape: Any,
    ) -> None:
        """Changes the link while it runs.

        Args:
            direction: Which way the shape changes; None is both.
            outage: `black_hole` stops all bytes and keeps connections, `cut` closes them and refuses new
                ones, None heals.
            target: Where new connections lead.
            corrupt: In so many of the next pieces that are read, either way, a bit is flipped.
            **shape: Fields of `Shape`.

        Raises:
            InputError: If a value cannot be used.
        """
        if target is not None:
            split_address(target)
            self._target = target
        self.num_to_corrupt += corrupt
        if outage not in (None, "keep", "black_hole", "cut"):
            raise InputError(f"outage {outage!r} is not known. Use 'black_hole', 'cut' or null.")
        for way in ("up", "down") if direction is None else (direction,):
            self._reshape(way, shape)
        if outage != "keep":
            self._set_outage(outage)

    def _reshape(self, way: str, shape: dict[str, Any]) -> None:
        course = self.courses[way]
        try:
            changed = msgspec.convert({**msgspec.structs.asdict(course.shape), **shape}, Shape)
        except msgspec.ValidationError as error:
            raise InputError(f"link {self.spec.name!r} cannot be set so: {error}.") from error
        if changed == course.shape:
            return
        now = self._loop.time()
        pipes = [connection.pipes[way] for connection in self._connections]
        past = max((pipe.past_queue_until(now) for pipe in pipes), default=now)
        course.restart(changed, now, past)
        for pipe in pipes:
            pipe.readmit(now)

    def _set_outage(self, outage: Outage | None) -> None:
        self.outage = outage
        for connection in list(self._connections):
            if outage == "cut":
                connection.close(reset=True)
            else:
                connection.resume()
        if outage == "black_hole":
            self._loop.remove_reader(self._listener)
        else:
            self._loop.add_reader(self._listener, self._accept)

    def counters_dict(self) -> dict[str, Any]:
        """Returns the counters as JSON values: per direction, and connections open and ever opened.

        `kernel_bytes` is the kernel's own count of what open connections received, where it tells (Linux).
        """
        ways: dict[str, Any] = {way: msgspec.structs.asdict(counter) for way, counter in self.counters.items()}
        for index, way in enumerate(("up", "down")):
            ways[way]["kernel_bytes"] = sum(kernel_received(each.ends[index]) for each in self._connections)
        return {**ways, "open": len(self._connections), "connections": self.num_connections}

    async def close(self) -> None:
        """Closes the listener and every connection; idempotent."""
        self._loop.remove_reader(self._listener)
        self._listener.close()
        for task in self._dialling:
            task.cancel()
        await asyncio.gather(*self._dialling, return_exceptions=True)
        for connection in list(self._connections):
            connection.close(reset=True)

    def forget(self, connection: _Connection) -> None:
        """Drops a closed connection."""
        self._connections.discard(connection)

    def _accept(self) -> None:
        try:
            near, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        if self.outage == "cut":
            close_by_reset(near)
            return
        near.setblocking(False)
        task = self._loop.create_task(self._dial(near))
        self._dialling.add(task)
        task.add_done_callback(self._dialling.discard)

    async def _dial(self, near: socket.socket) -> None:
        host, port = split_address(self._target)
        far = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        far.setblocking(False)
        receive_as_a_network_does(far)
        try:
            await self._loop.sock_connect(far, (host, port))
        except (OSError, asyncio.CancelledError) as error:
            far.close()
            close_by_reset(near)
            if isinstance(error, asyncio.CancelledError):
                raise
            return
        for end in (near, far):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.num_connections += 1
        self._connections.add(_Connection(self, near, far))


class _Connection:
    """Holds two sockets and a pipe each way."""

    def __init__(self, link: Link, near: socket.socket, far: socket.socket) -> None:
        self.link = link
        self.ends = (near, far)
        self.is_open = True
        self.pipes = {"up": _Pipe(self, near, far, "up"), "down": _Pipe(self, far, near, "down")}
        self.resume()

    def resume(self) -> None:
        """Starts or resumes, or stops while the link is a black hole."""
        for pipe in self.pipes.values():
            pipe.resume()

    def ended(self) -> None:
        """Closes the connection once both directions have delivered their end."""
        if all(pipe.is_ended for pipe in self.pipes.values()):
            self.close()

    def close(self, *, reset: bool = False) -> None:
        """Closes both ends, by a reset if something went wrong; idempotent."""
        if not self.is_open:
            return
        self.is_open = False
        for pipe in self.pipes.values():
            pipe.stop()
        for end in self.ends:
            if reset:
                close_by_reset(end)
            else:
                end.close()
        self.link.forget(self)


class _Pipe:
    """Carries one direction of one connection."""

    def __init__(self, connection: _Connection, source: socket.socket, sink: socket.socket, way: str) -> None:
        self._connection = connection
        self._source, self._sink = source, sink
        self._counter = connection.link.counters[way]
        self._course = connection.link.courses[way]
        self._loop = asyncio.get_running_loop()
        self._pending: deque[tuple[float, float, memoryview]] = deque()
        self._held_bytes = 0
        self._got_end = self.is_ended = False
        self._is_blocked = self._is_reading = False
        self._deliver_timer: asyncio.TimerHandle | None = None
        self._read_timer: asyncio.TimerHandle | None = None

    def resume(self) -> None:
        if self._connection.link.outage is not None:
            self.stop()
        else:
            self._is_blocked = False
            self._read_on()
            self._arm()

    def stop(self) -> None:
        self._stop_reading()
        self._loop.remove_writer(self._sink)
        for timer in (self._deliver_timer, self._read_timer):
            if timer is not None:
                timer.cancel()
        self._deliver_timer = self._read_timer = None

    def past_queue_until(self, now: float) -> float:
        """Returns when the last byte that has left the queue arrives."""
        return max((due for left_at, due, _ in self._pending if left_at <= now), default=now)

    def readmit(self, now: float) -> None:
        """Schedules queued bytes anew, under the new shape."""
        waiting = [entry for entry in self._pending if entry[0] > now]
        for _ in waiting:
            self._pending.pop()
        for _, _, data in waiting:
            self._admit(data, now)
        self.stop()
        if self._connection.link.outage is None:
            self.resume()

    def _read_on(self) -> None:
        if not (self._is_reading or self._got_end or self._read_timer) and self._connection.is_open:
            self._is_reading = True
            self._loop.add_reader(self._source, self._readable)

    def _stop_reading(self) -> None:
        if self._is_reading:
            self._is_reading = False
            self._loop.remove_reader(self._source)

    def _read_again(self) -> None:
        self._read_timer = None
        self._read_on()

    def _readable(self) -> None:
        now = self._loop.time()
        shape = self._course.shape
        room = min(self._course.room_bytes(now), shape.bound_bytes + self._in_flight_bytes() - self._held_bytes)
        wanted = min(shape.bound_bytes // 4, _READ_BYTES)
        if room < wanted or self._is_blocked:
            self._stop_reading()
            if self._course.room_bytes(now) < wanted:
                self._read_timer = self._loop.call_at(self._course.room_at(wanted), self._read_again)
            return  # else: delivery makes room and reads on
        try:
            data = self._source.recv(min(room, _READ_BYTES))
        except BlockingIOError:
            return
        except OSError:
            self._connection.close(reset=True)
            return
        if not data:
            self._got_end = True
            self._stop_reading()
            self._pending.append((now, self._course.admit(0, now), memoryview(b"")))
        elif self._connection.link.num_to_corrupt:
            self._connection.link.num_to_corrupt -= 1
            data = bytes([data[0] ^ 1]) + data[1:] if len(data) < 8 else data[:7] + bytes([data[7] ^ 1]) + data[8:]
        self._counter.read_bytes += len(data)
        self._held_bytes += len(data)
        view = memoryview(data)
        for start in range(0, len(data), shape.piece_bytes):
            self._admit(view[start : start + shape.piece_bytes], now)
        self._arm()

    def _in_flight_bytes(self) -> int:
        shape = self._course.shape
        if shape.bytes_per_s is None:
            return 0
        return int(shape.bytes_per_s * (3.0 * shape.delay_s + shape.jitter_s)) + shape.piece_bytes

    def _admit(self, data: memoryview, now: float) -> None:
        due = self._course.admit(len(data), now)
        self._pending.append((self._course.free_at, due, data))

    def _arm(self) -> None:
        if self._deliver_timer is None and self._pending and not self._is_blocked:
            self._deliver_timer = self._loop.call_at(self._pending[0][1], self._deliver)

    def _deliver(self) -> None:
        self._deliver_timer = None
        if self._is_blocked:
            self._is_blocked = False
            self._loop.remove_writer(self._sink)
        due_by = self._loop.time() + _EARLY_S
        ready: list[memoryview] = []
        while self._pending and self._pending[0][1] <= due_by:
            ready.append(self._pending.popleft()[2])
        if ready and not self._write(ready):
            return
        self._read_on()
        self._arm()

    def _write(self, ready: list[memoryview]) -> bool:
        """Writes due bytes; returns False if the sink is full or gone."""
        is_end = self._got_end and not self._pending
        data = ready[0] if len(ready) == 1 else memoryview(b"".join(ready))
        try:
            sent = self._sink.send(data) if data else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self._connection.close(reset=True)
            return False
        self._counter.delivered_bytes += sent
        self._held_bytes -= sent
        if sent < len(data):
            self._pending.appendleft((0.0, 0.0, data[sent:]))
            self._is_blocked = True
            self._loop.add_writer(self._sink, self._deliver)
            return False
        if is_end:
            self.is_ended = True
            with contextlib.suppress(OSError):
                self._sink.shutdown(socket.SHUT_WR)
            self._connection.ended()
        return not is_end
