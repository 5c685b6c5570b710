"""The process that reads large JSON requests (`json_tensors.py`): begun when one comes, ended when none has come for a while.

It has an interpreter of its own, so nobody waits for its lock, and its memory goes back to the machine with it. One
request at a time; whose deadline passes is not waited for: the process is killed and begun anew for the next.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from edgewise.core.errors import Busy, DeadlineExceeded, InputError
from edgewise.service.http_errors import BodyTooLarge
from edgewise.service.json_tensors import receive, send
from edgewise.service.tensor_data import Body

R = TypeVar("R")
IDLE_S = 30.0


class LargeBodies:
    """Works on large bodies off the event loop, one after the other.

    Attributes:
        num_waiting: Bodies that are being worked on or wait for it.
    """

    def __init__(self, idle_s: float = IDLE_S) -> None:
        self._idle_s = idle_s
        self._thread = ThreadPoolExecutor(1, "large-bodies")
        self._process: subprocess.Popen[bytes] | None = None
        self._ending: asyncio.TimerHandle | None = None
        self.num_waiting = 0

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return None if self._process is None else self._process.pid

    async def run(self, work: Callable[[], R], within_s: float, *, kills: bool = False) -> R:
        """Does a piece of work in the one thread for large bodies.

        Args:
            work: Lets go of the interpreter's lock while it takes long.
            within_s: Seconds it may take, its wait included.
            kills: Whether the process is ended where they pass.

        Returns:
            What it returns.

        Raises:
            DeadlineExceeded: If they pass.
        """
        self.num_waiting += 1
        future = self._thread.submit(work)
        try:
            async with asyncio.timeout(within_s):
                return await asyncio.wrap_future(future)
        except TimeoutError as error:
            if kills and not future.cancelled() and self._process is not None:
                self._process.kill()  # the thread sees its end
            raise late(within_s) from error
        finally:
            del future  # its error knows this frame: a circle, and the body in it would wait for the collector
            self.num_waiting -= 1

    async def with_binary_tensors(self, body: Body, json_length: int, within_s: float) -> tuple[memoryview, int]:
        """Rewrites a JSON request as one with binary tensors.

        Args:
            body: JSON, perhaps followed by tensors' bytes.
            json_length: Length of the JSON.
            within_s: Seconds it may take.

        Returns:
            The body of the same request in bytes, and the length of its JSON.

        Raises:
            InputError: If it is not a request.
            BodyTooLarge: If it has too many values.
            DeadlineExceeded: As `run`.
            Busy: If the process ended, e.g. because the machine had no memory left.
        """
        if self._ending is not None:
            self._ending.cancel()
        try:
            sent_s = time.monotonic()
            return await self.run(lambda: self._exchange(body, json_length, sent_s), within_s, kills=True)
        finally:
            self._ending = asyncio.get_running_loop().call_later(self._idle_s, self._end)

    def close(self) -> None:
        """Ends the process and the thread."""
        if self._ending is not None:
            self._ending.cancel()
        self._kill()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _exchange(self, body: Body, json_length: int, sent_s: float) -> tuple[memoryview, int]:
        try:
            process = self._process = self._running() or _start()
            assert process.stdin is not None
            assert process.stdout is not None
            waited_us = int(1e6 * (time.monotonic() - sent_s))
            send(process.stdin, (json_length, len(body), waited_us), (body,))
            is_right, length, head_length = receive(process.stdout, 3)
            # Its pages are made as they are written, while others hold the interpreter's lock.
            answer = np.empty(length, np.uint8).data
            if process.stdout.readinto(answer) < length:  # type: ignore[attr-defined]
                raise EOFError
        except (OSError, EOFError, ValueError) as error:
            if self._kill() == -signal.SIGALRM:
                raise late(time.monotonic() - sent_s) from error
            raise Busy(
                "the process that reads large JSON requests ended. Try again, or send tensors as bytes.",
                retry_after_s=1.0,
            ) from error
        if is_right != 1:
            raise (BodyTooLarge if is_right else InputError)(str(answer, "utf-8"))
        return answer, head_length

    def _running(self) -> subprocess.Popen[bytes] | None:
        return self._process if self._process is not None and self._process.poll() is None else None

    def _end(self) -> None:
        if not self.num_waiting:
            self._thread.submit(self._kill)

    def _kill(self) -> int | None:
        """Ends the process; how it ended, None if there was none."""
        process, self._process = self._process, None
        if process is None:
            return None
        process.kill()
        code = process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:  # what it was still to be told
                    continue
        return code


def late(seconds: float) -> DeadlineExceeded:
    """A request that was not read in time.

    Args:
        seconds: What it had.
    """
    return DeadlineExceeded(
        f"the request was not read within {seconds:.3f} s, for it is large. Send tensors as bytes, or fewer examples at once."
    )


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "edgewise.service.json_tensors"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
