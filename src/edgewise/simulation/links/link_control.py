"""Runs many links in one process, controlled by lines of JSON over a loopback connection.

    python -m edgewise.simulation.links.link_control --spec '[{"name": "device-1", "target": "127.0.0.1:7447"}]'
    {"control": 40001, "links": {"device-1": 40002}}

    > {"op": "set", "link": "device-1", "bytes_per_s": 8000, "outage": null}
    < {"ok": true}

Operations: `set` (fields of `Link.set`), `counters`, `add` (a `spec`), `stop`. The process also ends on
SIGTERM, SIGINT and, with `--until-stdin-closes`, when whoever started it is gone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import selectors
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from edgewise.core.errors import EdgewiseError, InputError, nearest
from edgewise.simulation.links.link import Link, LinkSpec, open_link


class Links:
    """Holds the links of one process and handles the operations of the control channel."""

    def __init__(self) -> None:
        self.links: dict[str, Link] = {}
        self.stopped = asyncio.Event()

    async def add(self, spec: LinkSpec) -> int:
        """Opens one more link.

        Args:
            spec: With a name of its own.

        Returns:
            Its port.

        Raises:
            InputError: If the name is taken, or as `open_link`.
        """
        if spec.name in self.links:
            raise InputError(f"link {spec.name!r} exists. Give every link a name of its own.")
        self.links[spec.name] = await open_link(spec)
        return self.links[spec.name].port

    async def handle(self, order: dict[str, Any]) -> dict[str, Any]:
        """Executes one line of the control channel.

        Args:
            order: With `op`.

        Returns:
            The answer; an error is `{"error": {code, message, fields}}`.
        """
        operations: dict[str, Callable[..., Awaitable[dict[str, Any]]]] = {
            "set": self._set,
            "counters": self._counters,
            "add": self._add,
            "stop": self._stop,
        }
        try:
            op = str(order.pop("op", ""))
            if op not in operations:
                raise InputError(f"the control channel has no operation {op!r}.{nearest(op, operations)}")
            return await operations[op](**order)
        except EdgewiseError as error:
            return {"error": error.to_dict()}
        except TypeError as error:
            return {"error": InputError(f"operation {op!r} cannot be called so: {error}.").to_dict()}

    async def _set(self, link: str, **changes: Any) -> dict[str, Any]:
        if link not in self.links:
            raise InputError(f"there is no link {link!r}.{nearest(link, self.links)}")
        self.links[link].set(**changes)
        return {"ok": True}

    async def _counters(self) -> dict[str, Any]:
        return {"counters": {name: link.counters_dict() for name, link in self.links.items()}}

    async def _add(self, spec: dict[str, Any]) -> dict[str, Any]:
        return {"port": await self.add(read_specs([spec])[0])}

    async def _stop(self) -> dict[str, Any]:
        self.stopped.set()
        return {"ok": True}

    async def close(self) -> None:
        """Closes every link."""
        for link in self.links.values():
            await link.close()


def read_specs(value: Any) -> list[LinkSpec]:
    """Validates link specs.

    Args:
        value: A list of tables.

    Returns:
        The specs.

    Raises:
        InputError: If a field is missing, unknown or of the wrong type.
    """
    try:
        return msgspec.convert(value, list[LinkSpec])
    except msgspec.ValidationError as error:
        raise InputError(f"a link spec is not usable: {error}.") from error


async def run_links(
    specs: list[LinkSpec], ready: Callable[[dict[str, Any]], object], *, stop: asyncio.Event | None = None
) -> None:
    """Runs links and their control channel until stopped.

    Args:
        specs: Links to open at once.
        ready: Called with the ports: `{"control": port, "links": {name: port}}`.
        stop: Ends it from outside.
    """
    links = Links()
    links.stopped = stop or links.stopped

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                try:
                    order = json.loads(line)
                    reply = await links.handle(order if isinstance(order, dict) else {})
                except json.JSONDecodeError as error:
                    reply = {"error": InputError(f"the line is not JSON: {error}.").to_dict()}
                writer.write(json.dumps(reply).encode() + b"\n")
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        ports = {spec.name: await links.add(spec) for spec in specs}
        ready({"control": server.sockets[0].getsockname()[1], "links": ports})
        await links.stopped.wait()
    finally:
        server.close()
        await links.close()


class LinkControl:
    """Is the client of the control channel.

    control = await LinkControl.connect(port)
    await control.set("device-1", outage="cut")
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._lock = asyncio.Lock()

    @staticmethod
    async def connect(port: int) -> LinkControl:
        """Connects to the control port of a link process on this machine."""
        return LinkControl(*await asyncio.open_connection("127.0.0.1", port))

    async def call(self, op: str, **fields: Any) -> dict[str, Any]:
        """Sends one operation.

        Args:
            op: `set`, `counters`, `add` or `stop`.
            **fields: Of the operation.

        Returns:
            The answer.

        Raises:
            InputError: If the process refused it.
        """
        async with self._lock:
            self._writer.write(json.dumps({"op": op, **fields}).encode() + b"\n")
            await self._writer.drain()
            reply: dict[str, Any] = json.loads(await self._reader.readline() or b"{}")
        if "error" in reply:
            raise InputError(reply["error"]["message"])
        return reply

    async def set(self, link: str, **changes: Any) -> None:
        """Changes a link: fields of `Link.set`."""
        await self.call("set", link=link, **changes)

    async def counters(self) -> dict[str, Any]:
        """Returns the counters of every link by name: `{"up": {"read_bytes", "delivered_bytes"}, "down": …, "open", …}`."""
        counters: dict[str, Any] = (await self.call("counters"))["counters"]
        return counters

    async def add(self, spec: LinkSpec) -> int:
        """Opens one more link and returns its port."""
        return int((await self.call("add", spec=msgspec.to_builtins(spec)))["port"])

    async def close(self) -> None:
        """Closes the channel; the links keep running."""
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


def main(arguments: list[str] | None = None) -> None:
    """Runs links as a process; prints its ports as one JSON line.

    Args:
        arguments: Command line; None takes the process's own.
    """
    parser = argparse.ArgumentParser(prog="python -m edgewise.simulation.links.link_control", description=__doc__)
    parser.add_argument("--spec", default="[]", help="JSON list of link specs, or @FILE")
    parser.add_argument("--until-stdin-closes", action="store_true", help="end with whoever started this")
    options = parser.parse_args(arguments)
    text = options.spec
    if text.startswith("@"):
        with open(text[1:]) as file:
            text = file.read()
    try:
        specs = read_specs(json.loads(text))
    except (EdgewiseError, json.JSONDecodeError) as error:
        print(f"--spec: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    # select() waits to the microsecond; epoll, asyncio's default, rounds every wait up to a millisecond.
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    with contextlib.closing(loop):
        asyncio.set_event_loop(loop)
        loop.run_until_complete(_serve(specs, options.until_stdin_closes))


async def _serve(specs: list[LinkSpec], until_stdin_closes: bool) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if until_stdin_closes:
        loop.add_reader(0, lambda: stop.set() if not os.read(0, 4096) else None)
    await run_links(specs, lambda ports: print(json.dumps(ports), flush=True), stop=stop)


if __name__ == "__main__":
    main()
