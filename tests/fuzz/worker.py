"""One child process of a campaign: inputs of one target, each within its bounds; what fails is told with its input."""

from __future__ import annotations

import resource
import signal
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgewise.core.errors import EdgewiseError
from tests.fuzz.target import Check, ServerFault, Target, input_of

SMALLER_S = 3.0
"""Time that is spent on making a failing input smaller."""


REPORT_S = 1.0
MOST_TEXT = 300


@dataclass(slots=True)
class Value:
    """A number of this process; one that is shared has the same word."""

    value: int


@dataclass(frozen=True, slots=True)
class Watch:
    """What a watching process shares with its child.

    Attributes:
        place: The input that is on.
        is_over: Whether to stop before the next.
    """

    place: Any
    is_over: Any


class Hang(BaseException):
    """An input that took longer than its target allows."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An input that was neither taken nor refused.

    Attributes:
        target: Its target.
        index: Its number in the campaign.
        kind: `uncaught`, `hang`, `memory`, `5xx`, or `died` with the process.
        what: The exception and the function that raised it; equal ones are one fault.
        text: What the exception said.
        data: A small input that fails alike.
    """

    target: str
    index: int
    kind: str
    what: str
    text: str
    data: bytes


@dataclass(slots=True)
class Tally:
    """What became of some inputs.

    Attributes:
        num: How many there were.
        outcomes: How many by outcome: an answer's word, or a refusal's type.
        failures: By `what`, the first of each.
        num_failed: How many failed, by `what`.
        seconds: What it took.
        grown_bytes: By how much the process has grown.
    """

    num: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: dict[str, Failure] = field(default_factory=dict)
    num_failed: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    grown_bytes: int = 0

    def add(self, other: Tally) -> None:
        """Adds another part of the same target."""
        self.num += other.num
        self.outcomes.update(other.outcomes)
        self.failures = {**other.failures, **self.failures}
        self.num_failed.update(other.num_failed)
        self.seconds += other.seconds
        self.grown_bytes = max(self.grown_bytes, other.grown_bytes)

    @property
    def num_failures(self) -> int:
        """Inputs that failed."""
        return sum(self.num_failed.values())


Report = Callable[[Tally], object]


def run_block(
    target: Target, seed: int, start: int, stop: int, *, watch: Watch | None = None, report: Report | None = None
) -> Tally:
    """Gives inputs to a target; call it in a process of its own, for its memory is bounded meanwhile.

    Args:
        target: What is fuzzed.
        seed: Of the campaign.
        start: First input.
        stop: First that is not given.
        watch: What a watching process shares with this one.
        report: Told about once a second what came of the inputs since.

    Returns:
        What became of those that were not reported.
    """
    tally, seeds, watch = Tally(), target.seeds(), watch or Watch(Value(0), Value(0))
    with target.check() as check:
        check(seeds[0])  # what is imported at first use is not one input's fault
        began, before = time.monotonic(), _resident_bytes()
        with _bounds(target), warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            for index in range(start, stop):
                watch.place.value = index
                _give(target, check, seeds, seed, index, tally)
                if watch.is_over.value:
                    break
                if report is not None and time.monotonic() - began > REPORT_S:
                    _close(tally, began, before)
                    report(tally)
                    tally, began = Tally(), time.monotonic()
        _close(tally, began, before)
    return tally


def _close(tally: Tally, began: float, before: int) -> None:
    tally.seconds, tally.grown_bytes = time.monotonic() - began, max(0, _resident_bytes() - before)


def _give(target: Target, check: Check, seeds: Sequence[bytes], seed: int, index: int, tally: Tally) -> None:
    data = input_of(target, seeds, seed, index)
    outcome = outcome_of(target, check, data)
    tally.num += 1
    if isinstance(outcome, str):
        tally.outcomes[outcome] += 1
        return
    kind, what, text = outcome
    tally.num_failed[what] += 1
    if what not in tally.failures:
        small = smaller(target, check, data, outcome)
        tally.failures[what] = Failure(target.name, index, kind, what, text[:MOST_TEXT], small)


def outcome_of(target: Target, check: Check, data: bytes) -> str | tuple[str, str, str]:
    """What becomes of one input: a word, or (kind, what, text) of a failure."""
    try:
        signal.setitimer(signal.ITIMER_PROF, target.seconds)
        try:
            return check(data)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    except EdgewiseError as error:
        return type(error).__name__
    except MemoryError as error:
        return "memory", f"MemoryError {_line(error.__traceback__)}", str(error)
    except Hang as error:
        return "hang", f"hang {_line(error.__traceback__)}", f"more than {target.seconds:g} s of CPU time"
    except ServerFault as error:
        return "5xx", "ServerFault", str(error)
    except Exception as error:
        return "uncaught", f"{type(error).__name__} {_line(error.__traceback__)}", str(error)


def smaller(target: Target, check: Check, data: bytes, outcome: tuple[str, str, str]) -> bytes:
    """An input that fails at the same place, with pieces taken out as long as it does."""
    end, size = time.monotonic() + SMALLER_S, len(data) // 2
    while size and outcome[0] != "hang":
        at = 0
        while at < len(data):
            if time.monotonic() > end:
                return data
            shorter = data[:at] + data[at + size :]
            again = outcome_of(target, check, shorter)
            if not isinstance(again, str) and again[:2] == outcome[:2]:
                data = shorter
            else:
                at += size
        size //= 2
    return data


def _line(trace: Any) -> str:
    """The last line of the library on the way to an error, else the last line at all."""
    frames: Sequence[traceback.FrameSummary] = traceback.extract_tb(trace)
    own = [frame for frame in frames if "/edgewise/" in frame.filename] or frames
    return f"at {Path(own[-1].filename).name} {own[-1].name}" if own else ""


@contextmanager
def _bounds(target: Target) -> Iterator[None]:
    def expire(*_: Any) -> None:
        raise Hang

    former = signal.signal(signal.SIGPROF, expire)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_address_bytes() + target.memory_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGPROF, former)


def _address_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
