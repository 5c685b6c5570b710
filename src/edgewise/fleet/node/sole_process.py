"""One process a node: a lock on its state folder, and a question to the fleet whether somebody answers to its name already.

A second process would take the first one's place in the fleet without a word: its frames are newer, the first one's are
refused from then on. So the second is refused, unless it is to take over; then the first is told, stops, and is waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from edgewise.core.errors import EdgewiseError, InputError, StoreError
from edgewise.core.files import write_atomic
from edgewise.core.ids import Generation
from edgewise.core.private_files import PRIVATE, make_private, make_private_folder, open_private
from edgewise.fleet.messages import Ack, NodeInfo, TakeOver
from edgewise.fleet.node.node import Node
from edgewise.fleet.node.proof import proofs_of

LOCK, GENERATION = "agent.lock", "generation"
ASK_TIMEOUT_S = 2.0
"""For who answers to a name; one that is frozen or cut off does not, and learns of its successor when it is back."""
SECOND = "running_since_ns"
"""Field of the error that refuses a second process of a name."""
LEAVE_TIMEOUT_S = 20.0
"""How long the first may take to stop once it is told."""
LOOK_EVERY_S = 0.1


class StateLock:
    """Holds a state folder for this process until it ends or closes it."""

    def __init__(self, file: IO[str], state: Path) -> None:
        self._file, self._generation = file, state / GENERATION

    @staticmethod
    async def take(state: Path, *, take_over: bool = False) -> StateLock:
        """Takes a folder.

        Args:
            state: The node's state folder; made if it is not there.
            take_over: Whether a process of this machine that holds it is asked to stop.

        Returns:
            The lock.

        Raises:
            StoreError: If another process holds it, or does not let go of it.
        """
        file = _opened(state)
        try:
            if not _is_taken(file):
                holder, host = _holder(file)
                text = f"the state folder {str(state)!r} is in use by process {holder or 'unknown'} on {host or 'this machine'}"
                if not take_over:
                    raise StoreError(
                        f"{text}; a node is one process. Stop that one, give this node its own --state, or say --take-over: "
                        "then that one stops.",
                        path=str(state),
                        process=holder,
                    )
                if not holder or host != socket.gethostname():
                    raise StoreError(
                        f"{text}, where it cannot be told to stop from here. Stop it there.", process=holder
                    )
                with contextlib.suppress(ProcessLookupError):
                    os.kill(holder, signal.SIGTERM)
                if not await _within(LEAVE_TIMEOUT_S, lambda: _is_taken(file)):
                    raise StoreError(f"{text}, which was told to stop and has not. End it by hand.", process=holder)
        except BaseException:
            file.close()
            raise
        file.truncate(0)
        file.write(f"{os.getpid()} {socket.gethostname()}")
        file.flush()
        return StateLock(file, state)

    def next_generation(self) -> Generation:
        """The time, or one more than the last generation where a clock was set back: older than it nobody would be heard."""
        try:
            last = int(self._generation.read_text())
        except (OSError, ValueError):
            last = 0
        return self.keep(Generation(max(time.time_ns(), last + 1)))

    def keep(self, generation: Generation) -> Generation:
        """Notes the generation of this process."""
        write_atomic(self._generation, str(generation).encode(), mode=PRIVATE)
        return generation

    def close(self) -> None:
        """Lets the folder go; idempotent."""
        self._file.close()


def is_held(state: Path) -> bool:
    """Whether a process holds a state folder, without taking it.

    Args:
        state: The folder.
    """
    try:
        with (state / LOCK).open("r") as file:
            return not _is_taken(file)
    except OSError:
        return False


async def first_of(node: Node) -> NodeInfo | None:
    """Which other process answers to a node's name, and proves that it may.

    Args:
        node: The node.

    Returns:
        The newest one as it describes itself; None if nobody answers who has this node's key.
    """
    try:
        found = await proofs_of(node, node.name, timeout_s=ASK_TIMEOUT_S)
    except EdgewiseError:
        return None
    others = [info for info in found if info.generation != node.generation]
    return others[-1] if others else None


def refuse_second(first: NodeInfo, *, operator: bool = False) -> None:
    """Refuses to be the second process of a name.

    Args:
        first: Who answers to it.
        operator: Whether an operator's session asks, of which there may be several.

    Raises:
        InputError: Says since when the first runs, and what to do.
    """
    if not first.capability.cores:  # an operator's session: they come and go under one certificate
        return
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(first.generation / 1e9))
    text = f"a node of the name {first.node!r} is running already, since {since}"
    if operator:
        raise InputError(
            f"{text}, and orders in its name would put it out of the fleet. Give operators certificates of their own: "
            "edgewise ca issue operator --tier cloud"
        )
    raise InputError(
        f"{text}. Two processes cannot be one node: stop that one, give this one a certificate of its own, or say "
        "--take-over: then that one is told and stops.",
        **{SECOND: int(first.generation)},
    )


async def take_place_of(first: NodeInfo, node: Node) -> None:
    """Tells the first process of a name to stop, and waits until it has left.

    Args:
        first: Who answers to the name.
        node: The one that takes over, of a newer generation.

    Raises:
        InputError: If it does not leave.
    """
    with contextlib.suppress(EdgewiseError):  # it may leave before its answer is here
        order = TakeOver(node.identity.certificate_pem.decode())
        await node.ask(node.name, "control", order, Ack, timeout_s=ASK_TIMEOUT_S)
    end = time.monotonic() + LEAVE_TIMEOUT_S
    while (still := await first_of(node)) is not None and still.generation == first.generation:
        if time.monotonic() > end:
            raise InputError(
                f"{first.node!r} was told to stop and still answers. End its process by hand, then start this one."
            )
        await asyncio.sleep(LOOK_EVERY_S)


def successor_of(first: NodeInfo, generation: Generation) -> Generation:
    """A generation that is newer than the first one's, whatever the clocks of two machines say."""
    return max(generation, Generation(first.generation + 1))


def _opened(state: Path) -> IO[str]:
    try:
        make_private_folder(state)
    except (FileExistsError, NotADirectoryError) as error:
        raise StoreError(f"the state folder {str(state)!r} is a file. Give the path of a folder, --state.") from error
    make_private(state)
    return open_private(state / LOCK, "a+")


def _is_taken(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(file: IO[str]) -> tuple[int, str]:
    file.seek(0)
    number, _, host = file.read().strip().partition(" ")
    return int(number) if number.isdigit() else 0, host


async def _within(seconds: float, holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        await asyncio.sleep(LOOK_EVERY_S)
    return True
