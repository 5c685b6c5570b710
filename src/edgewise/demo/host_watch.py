"""What the machine itself did while requests were served: evidence for whoever asks why one of them was late."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from types import TracebackType

import msgspec

LOOK_EVERY_S = 0.02
_STAT = Path("/proc/stat")
_STEAL, _NUM_FIELDS = 7, 8


class HostSample(msgspec.Struct, frozen=True):
    """One look at the machine.

    Attributes:
        time_s: When, `time.monotonic`.
        late_s: How much later than asked this process woke.
        stolen: Ticks that the host of a virtual machine took so far, all processors.
        ticks: All ticks so far.
    """

    time_s: float
    late_s: float
    stolen: int
    ticks: int


class HostWatch:
    """Looks at the machine every `LOOK_EVERY_S` while its block runs.

    Attributes:
        samples: In order.
    """

    def __init__(self) -> None:
        self.samples: list[HostSample] = []
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> HostWatch:
        self._task = asyncio.create_task(self._look())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _look(self) -> None:
        while True:
            due = time.monotonic() + LOOK_EVERY_S
            await asyncio.sleep(LOOK_EVERY_S)
            now = time.monotonic()
            self.samples.append(HostSample(now, max(0.0, now - due), *_processor_ticks()))

    def between(self, start_s: float, end_s: float) -> str:
        """What was seen in a span of time.

        Args:
            start_s: `time.monotonic`.
            end_s: Its end.

        Returns:
            Part of a sentence, with the numbers.
        """
        inside = [s for s in self.samples if start_s - LOOK_EVERY_S <= s.time_s <= end_s + LOOK_EVERY_S]
        if not inside:
            return "this client itself did not run meanwhile"
        late_ms = 1e3 * max(sample.late_s for sample in inside)
        ticks = inside[-1].ticks - inside[0].ticks
        stolen = (
            f", the host took {(inside[-1].stolen - inside[0].stolen) / ticks:.0%} of the processors" if ticks else ""
        )
        return f"this client woke up to {late_ms:.0f} ms late meanwhile{stolen}, load {_load()}"


def _load() -> str:
    try:
        return f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    except OSError:
        return "unknown"


def _processor_ticks() -> tuple[int, int]:
    """(stolen, all) since the machine started; (0, 0) where it does not say."""
    try:
        fields = [int(word) for word in _STAT.read_text().split("\n", 1)[0].split()[1 : 1 + _NUM_FIELDS]]
    except (OSError, ValueError):
        return 0, 0
    return (fields[_STEAL], sum(fields)) if len(fields) == _NUM_FIELDS else (0, 0)
