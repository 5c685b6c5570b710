"""Runs child processes that end with their parent, because their standard input closes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgewise.core.errors import EdgewiseError

READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 5.0
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")


class Child:
    """Runs one process that prints a JSON ready line when it serves, e.g. an agent or the links.

    Attributes:
        name: For messages.
        ready: The fields of its ready line.
    """

    def __init__(self, name: str, arguments: Sequence[str], log_file: Path) -> None:
        self.name = name
        self.ready: dict[str, Any] = {}
        self._arguments = list(arguments)
        self._log_file = log_file
        self._process: asyncio.subprocess.Process | None = None
        self._drain: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """Returns the process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Returns whether it runs."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> dict[str, Any]:
        """Starts the process and waits until it is ready.

        Returns:
            The fields of its ready line.

        Raises:
            EdgewiseError: If it ended or printed no ready line; with the tail of its log.
        """
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        with self._log_file.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *self._arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env={**os.environ, **_ONE_THREAD},
                start_new_session=True,
            )
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                self.ready = await self._wait_ready()
        except TimeoutError:
            await self.kill()
            raise EdgewiseError(f"{self.name} was not ready within {READY_TIMEOUT_S:.0f} s.{self._tail()}") from None
        self._drain = asyncio.create_task(self._keep_draining())
        return self.ready

    async def _wait_ready(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            with contextlib.suppress(ValueError):
                message = json.loads(line)
                if isinstance(message, dict) and message.get("event", "ready") == "ready":
                    return message
        code = await self._process.wait()
        raise EdgewiseError(f"{self.name} ended with code {code} before it was ready.{self._tail()}")

    async def _keep_draining(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        with self._log_file.open("ab") as log:
            async for line in self._process.stdout:
                log.write(line)

    def send_signal(self, number: signal.Signals) -> None:
        """Sends a signal, e.g. SIGSTOP."""
        if self.running:
            os.kill(self.pid, number)

    async def kill(self) -> None:
        """Kills the process and waits for its end."""
        self.send_signal(signal.SIGKILL)
        await self._end()

    async def stop(self) -> None:
        """Closes its standard input and sends SIGTERM; SIGKILL after `STOP_TIMEOUT_S`."""
        if not self.running:
            return await self._end()
        assert self._process is not None
        if self._process.stdin is not None:
            self._process.stdin.close()
        self.send_signal(signal.SIGCONT)
        self.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._process.wait()
        except TimeoutError:
            self.send_signal(signal.SIGKILL)
        await self._end()

    async def _end(self) -> None:
        if self._process is not None:
            await self._process.wait()
        if self._drain is not None:
            await self._drain
            self._drain = None

    def _tail(self) -> str:
        with contextlib.suppress(OSError):
            lines = self._log_file.read_text(errors="replace").strip().splitlines()[-8:]
            return " The end of its log:\n  " + "\n  ".join(lines) if lines else ""
        return ""
