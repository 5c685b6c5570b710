"""A campaign on all cores: blocks of inputs to child processes, which are watched; what fails is written down and told apart.

What was done stands in a file after every block, so that a campaign of the same seed goes on where it was stopped.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from tests.fuzz import of_certificates, of_codecs, of_files, of_frames, of_models, of_requests
from tests.fuzz.target import Target, input_of
from tests.fuzz.worker import Failure, Tally, Watch, run_block

TARGETS: dict[str, Target] = {
    target.name: target
    for kind in (of_frames, of_codecs, of_requests, of_files, of_models, of_certificates)
    for target in kind.TARGETS
}
MOST_IN_A_BLOCK = 50_000
LEAST_BLOCKS = 8
STILL_S = 60.0
"""An input that a child does not leave for so long, though it takes no CPU time, hangs."""


@dataclass(frozen=True, slots=True, order=True)
class Block:
    """Some inputs of a target.

    Attributes:
        place: Where in the campaign, in 0 to 1, so that all targets come forward alike.
        target: Its name.
        start: First input.
        stop: First that is not its own.
    """

    place: float
    target: str
    start: int
    stop: int


class Done(msgspec.Struct):
    """What is on disk of a campaign."""

    seed: int
    blocks: list[tuple[str, int, int]] = []
    num: dict[str, int] = {}
    outcomes: dict[str, dict[str, int]] = {}
    failed: dict[str, dict[str, int]] = {}
    seconds: dict[str, float] = {}
    grown_bytes: dict[str, int] = {}


@dataclass(slots=True)
class Campaign:
    """A campaign.

    Attributes:
        seed: Says all its inputs.
        num_inputs: Of all targets.
        folder: For failing inputs and what was done.
        names: Targets; all of them if empty.
        workers: Child processes.
        seconds: When it is cut; None lets it end.
        progress: Told now and then in a line.
    """

    seed: int
    num_inputs: int
    folder: Path
    names: Sequence[str] = ()
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    seconds: float | None = None
    progress: Callable[[str], object] = lambda _: None
    tallies: dict[str, Tally] = field(default_factory=dict)
    is_cut: bool = False

    def run(self) -> None:
        """Runs it; what came of it is in `tallies`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        done = self._read()
        waiting = sorted(b for b in self.blocks() if (b.target, b.start, b.stop) not in {tuple(x) for x in done.blocks})
        context, is_over = mp.get_context("spawn"), mp.get_context("spawn").RawValue("b", 0)
        children = [_Child(context, is_over) for _ in range(min(self.workers, len(waiting)))]
        began = told = time.monotonic()
        try:
            while waiting or any(child.block for child in children):
                for child in children:
                    if child.block is None and waiting and not is_over.value:
                        child.begin(waiting.pop(0), self.seed)
                    for block in self._hear(child):
                        done.blocks.append((block.target, block.start, block.stop))
                        self._write(done)
                now = time.monotonic()
                if self.seconds is not None and now - began > self.seconds and not is_over.value:
                    is_over.value, self.is_cut, waiting = 1, True, []
                if now - told > 10.0:
                    told = now
                    self.progress(self.line(now - began))
        finally:
            for child in children:
                child.end()
        self._write(done)

    def blocks(self) -> list[Block]:
        """All its blocks; the same for the same seed, number and targets."""
        chosen = [TARGETS[name] for name in self.names] or list(TARGETS.values())
        whole, found = sum(target.share for target in chosen), []
        for target in chosen:
            num = max(1, round(self.num_inputs * target.share / whole))
            parts = max(LEAST_BLOCKS, -(-num // MOST_IN_A_BLOCK))
            edges = [num * n // parts for n in range(parts + 1)]
            found += [
                Block((n + 0.5) / parts, target.name, edges[n], edges[n + 1])
                for n in range(parts)
                if edges[n] < edges[n + 1]
            ]
        return found

    def line(self, seconds: float) -> str:
        """How far it is, in a line."""
        num = sum(tally.num for tally in self.tallies.values())
        failed = sum(tally.num_failures for tally in self.tallies.values())
        return f"{num:,} of {self.num_inputs:,} inputs in {seconds:,.0f} s, {failed:,} failed"

    def _hear(self, child: _Child) -> list[Block]:
        """What a child reports; the block that it has ended, if it has."""
        ended: list[Block] = []
        for block, tally, is_last in child.hear():
            self.tallies.setdefault(block.target, Tally()).add(tally)
            for failure in tally.failures.values():
                self._keep(failure)
            if is_last:
                ended.append(block)
        if (lost := child.lost()) is not None:
            block, index, kind, text = lost
            target = TARGETS[block.target]
            data = input_of(target, target.seeds(), self.seed, index)
            failure = Failure(target.name, index, kind, f"{kind} {text}", text, data)
            self.tallies.setdefault(block.target, Tally()).add(
                Tally(num=1, failures={failure.what: failure}, num_failed={failure.what: 1})  # type: ignore[arg-type]
            )
            self._keep(failure)
            child.begin(Block(block.place, block.target, index + 1, block.stop), self.seed, whole=block)
        return ended

    def _keep(self, failure: Failure) -> None:
        file = self.file_of(failure)
        if not file.exists():
            file.write_bytes(failure.data)

    def file_of(self, failure: Failure) -> Path:
        """Where a failing input is kept; the name says of which target."""
        return self.folder / f"{failure.target.replace(' ', '-')}.{self.seed}.{failure.index}.input"

    def _state(self) -> Path:
        names = "-".join(sorted(self.names)).replace(" ", "_") or "all"
        return self.folder / f"done-{self.seed}-{self.num_inputs}-{names[:80]}.json"

    def _read(self) -> Done:
        try:
            done = msgspec.json.decode(self._state().read_bytes(), type=Done)
        except FileNotFoundError:
            return Done(self.seed)
        for name, num in done.num.items():
            tally = self.tallies[name] = Tally(num=num, seconds=done.seconds[name], grown_bytes=done.grown_bytes[name])
            tally.outcomes.update(done.outcomes[name])
            tally.num_failed.update(done.failed[name])
        return done

    def _write(self, done: Done) -> None:
        done.num = {name: tally.num for name, tally in self.tallies.items()}
        done.outcomes = {name: dict(tally.outcomes) for name, tally in self.tallies.items()}
        done.failed = {name: dict(tally.num_failed) for name, tally in self.tallies.items()}
        done.seconds = {name: tally.seconds for name, tally in self.tallies.items()}
        done.grown_bytes = {name: tally.grown_bytes for name, tally in self.tallies.items()}
        new = self._state().with_suffix(".new")
        new.write_bytes(msgspec.json.encode(done))
        new.replace(self._state())


PART, WHOLE, CUT = "part", "whole", "cut"
"""What a tally tells of: some inputs more, the last of a block, the last before the time was up."""


class _Child:
    """A child process that works at one block after the other."""

    def __init__(self, context: Any, is_over: Any) -> None:
        self._context, self._is_over = context, is_over
        self._process: Any = None
        self.block: Block | None = None
        self._part: Block | None = None

    def begin(self, part: Block, seed: int, *, whole: Block | None = None) -> None:
        """Gives it a block, or what is left of one."""
        self.block, self._part = whole or part, part
        if self._process is None or not self._process.is_alive():
            self._place = self._context.RawValue("q", part.start)
            self._pipe, theirs = self._context.Pipe()
            watch = (self._place, self._is_over)
            self._process = self._context.Process(target=_work, args=(theirs, *watch), daemon=True)
            self._process.start()
            theirs.close()
        self._place.value, self._seen, self._moved_at = part.start, part.start, time.monotonic()
        self._pipe.send((part.target, seed, part.start, part.stop))

    def hear(self) -> list[tuple[Block, Tally, bool]]:
        """What it has reported, and whether its block ended with it; waits a moment for it."""
        found: list[tuple[Block, Tally, bool]] = []
        try:
            while self.block is not None and self._pipe.poll(0.05):
                tally, how = self._pipe.recv()
                self._moved_at = time.monotonic()
                found.append((self.block, tally, how == WHOLE))
                if how != PART:
                    self.block = None
        except (EOFError, ConnectionResetError):
            pass
        return found

    def lost(self) -> tuple[Block, int, str, str] | None:
        """Whether the process died or hangs over an input: (block, input, kind, text)."""
        if self.block is None:
            return None
        now, place = time.monotonic(), self._place.value
        if place != self._seen:
            self._seen, self._moved_at = place, now
        if not self._process.is_alive() and not self._pipe.poll(0):
            return self.block, place, "died", f"with exit code {self._process.exitcode}"
        if now - self._moved_at > STILL_S + 10 * TARGETS[self.block.target].seconds:
            self.end()
            return self.block, place, "hang", f"for {now - self._moved_at:.0f} s"
        return None

    def end(self) -> None:
        """Ends the process."""
        if self._process is not None and self._process.is_alive():
            self._process.kill()
            self._process.join()
        if self._process is not None:
            self._pipe.close()


def _work(pipe: Any, place: Any, is_over: Any) -> None:
    """The child: blocks in, tallies out. What is fuzzed may say what it likes on standard output."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    while True:
        try:
            name, seed, start, stop = pipe.recv()
        except EOFError:
            return
        watch = Watch(place, is_over)
        last = run_block(TARGETS[name], seed, start, stop, watch=watch, report=lambda tally: pipe.send((tally, PART)))
        pipe.send((last, CUT if is_over.value and start != stop else WHOLE))
        if is_over.value:
            pipe.close()
            return
