"""The life of an agent's process: signals, the lines it prints, and what it does while a newer process has its name."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable

import msgspec

from edgewise.core.errors import InputError
from edgewise.core.process import begin_anew, end_in_time, keep_for_good
from edgewise.fleet.agent import Agent
from edgewise.fleet.node.node_status import Phase
from edgewise.fleet.node.settings import AgentSettings
from edgewise.fleet.node.sole_process import SECOND
from edgewise.fleet.node.standing_by import stand_by
from edgewise.fleet.serving.serving_role import OpenEndpoint
from edgewise.security.access import log_refused_links

Say = Callable[..., None]
log = logging.getLogger("edgewise.fleet")
LISTENED, LISTENED_HTTP = "EDGEWISE_LISTENED", "EDGEWISE_LISTENED_HTTP"
"""Where a process listened that begins anew, if its settings leave the port open: others know it by that."""
ANEW_S = 1.0
"""Before a process begins anew: what made it do so, e.g. a full disk, may be there still."""
STOP_S = 4.0
"""Longest a stopping process waits for its threads."""


async def run_agent(
    settings: AgentSettings, on_event: Say, *, open_endpoint: OpenEndpoint | None = None, exit_with_parent: bool = False
) -> None:
    """Runs a node until SIGTERM, SIGINT, a stop order, or the end of its standard input.

    Args:
        settings: How.
        open_endpoint: Opens the inference endpoint of a device.
        on_event: Takes `waiting` with what it waits for where no parent is there and nothing can be served, `ready` with
            endpoint, http_port and pid, `displaced` with its cause where a newer process of this name is heard, and `stopped`.
        exit_with_parent: Whether the end of standard input ends the node.

    Raises:
        Unreachable: If it is to give up, or waiting cannot help; with the cause.
    """
    logging.basicConfig(
        level=os.environ.get("EDGEWISE_LOG", "INFO"), format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    log_refused_links()
    stopped, loop = asyncio.Event(), asyncio.get_running_loop()
    settings = _where_it_listened(settings)
    agent = await Agent.open(settings, open_endpoint, stopped=stopped)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    if exit_with_parent:
        threading.Thread(target=_wait_for_end_of_input, args=(loop, stopped), daemon=True).start()
    while True:
        await _run_until_it_ends(agent, on_event, stopped)
        if not agent.is_displaced:
            return
        stopped.clear()
        again = await _when_it_is_alone(agent, settings, open_endpoint, stopped)
        if again is None:
            agent.status.becomes("stopped", agent.stop_cause)
            on_event("stopped", node=settings.name, cause=agent.stop_cause)
            return
        agent = again


async def _run_until_it_ends(agent: Agent, on_event: Say, stopped: asyncio.Event) -> None:
    settings = agent.settings
    try:
        if not agent.is_ready:
            waits = {what: wait.cause for what, wait in agent.status.record.waits_for.items()}
            on_event("waiting", node=settings.name, waits_for=waits, pid=os.getpid())
            await _first_of(agent.is_joined, stopped)
        keep_for_good()
        if not stopped.is_set():
            on_event(
                "ready",
                node=settings.name,
                tier=str(settings.tier),
                endpoint=agent.endpoint,
                http_port=agent.serving.http_port,
                pid=os.getpid(),
            )
        await stopped.wait()
    finally:
        if agent.must_begin_anew:
            log.critical("%s begins anew: zenoh has panicked, and reaches nobody from this process", settings.name)
            stopped.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopped.wait(), ANEW_S)
            if not stopped.is_set():  # else it was told to stop meanwhile
                begin_anew({LISTENED: agent.endpoint, LISTENED_HTTP: str(agent.serving.http_port or "")})
        if not agent.is_displaced:
            end_in_time(STOP_S, 0)  # what must be on disk is there before it is acknowledged
        await agent.close()
        cause = {"cause": agent.stop_cause} if agent.stop_cause else {}
        phase: Phase = "displaced" if agent.is_displaced else "stopped"
        agent.status.becomes(phase, agent.stop_cause)
        on_event(phase, node=settings.name, **cause)
    if agent.failure is not None:
        raise agent.failure


def _where_it_listened(settings: AgentSettings) -> AgentSettings:
    """The settings with the ports of the process that began anew as this one."""
    endpoint, port = os.environ.pop(LISTENED, ""), os.environ.pop(LISTENED_HTTP, "")
    listen = (endpoint,) if endpoint and len(settings.listen) == 1 else settings.listen
    host, colon, wanted = settings.http.rpartition(":")
    http = f"{host}{colon}{port}" if port and wanted == "0" else settings.http
    return msgspec.structs.replace(settings, listen=listen, http=http)


async def _first_of(*events: asyncio.Event) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def _when_it_is_alone(
    agent: Agent, settings: AgentSettings, open_endpoint: OpenEndpoint | None, stopped: asyncio.Event
) -> Agent | None:
    """The agent anew, once the process that displaced it is gone; None if this one is to stop."""
    settings, newest = msgspec.structs.replace(settings, take_over=False), agent.displaced_by
    while True:
        newest = await stand_by(settings, agent.describe, newest, stopped)
        if stopped.is_set():
            return None
        try:
            return await Agent.open(settings, open_endpoint, stopped=stopped, newer_than=newest)
        except InputError as error:
            if not error.fields.get(SECOND):  # it came back in that moment
                raise


def _wait_for_end_of_input(loop: asyncio.AbstractEventLoop, stopped: asyncio.Event) -> None:
    with contextlib.suppress(OSError, ValueError):
        while os.read(sys.stdin.fileno(), 4096):  # sys.stdin holds a lock that the interpreter's end would wait for
            pass
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(stopped.set)
