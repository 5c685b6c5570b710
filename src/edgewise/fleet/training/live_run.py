"""One run at the coordinator: what the log keeps of it, what it is while it runs, how it stands for people."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from edgewise.core.errors import InputError
from edgewise.core.ids import Digest, NodeId, RunId
from edgewise.core.layout import Layout
from edgewise.fleet.messages import BlobRef, RoundRecord, RunRow, RunStatus, SubmitRun, TrainedModel
from edgewise.fleet.store.retention import Hold
from edgewise.fleet.training.presence import view_of
from edgewise.fleet.training.role_driver import RoleDriver
from edgewise.fleet.training.run_bytes import RunBytes
from edgewise.training.algorithm import MODEL
from edgewise.training.algorithms import make_algorithm
from edgewise.training.local import own_patterns
from edgewise.training.protocols.messages import FORMER_RUNS, FormerRun, OutcomeKind, RoundSummary, RunConfig
from edgewise.training.protocols.protocol import RunView
from edgewise.transport.bulk.blobs import FolderBlobs


class Submitted(msgspec.Struct, frozen=True, kw_only=True):
    """A run as the log keeps it.

    Attributes:
        request: What was asked for.
        config: The protocol's.
        template: Digest of the template graph; "" where the model cannot be exported.
        parent: Version it starts from; 0 for none.
        first: Its first event, encoded: who was there when it was submitted, also if the process ends right after.
    """

    request: SubmitRun
    config: RunConfig
    template: Digest
    parent: int
    first: bytes

    @property
    def run(self) -> RunId:
        """Its id."""
        return self.config.run

    @property
    def layout(self) -> Layout:
        """Of its model."""
        return msgspec.msgpack.decode(self.request.layout, type=Layout)


class RoundClosed(msgspec.Struct, frozen=True):
    """What people are told of a closed round, kept beside the protocol's own events.

    Attributes:
        run: Its id.
        record: The round.
    """

    run: RunId
    record: RoundRecord


class Registered(msgspec.Struct, frozen=True):
    """A run is over and done with.

    Attributes:
        run: Its id.
        version: The version it made; 0 if none.
        failure: Why it made none though it should; "" where nothing is wrong.
    """

    run: RunId
    version: int
    failure: str = ""


@dataclass(slots=True)
class LiveRun:
    """A run with its driver.

    Attributes:
        submitted: What was asked for.
        driver: Folds its events.
        rounds: Closed rounds, for people.
        version: The version it made; 0 if none yet.
        failure: Why it could make no version.
        registered: Whether its end is in the log.
        opened_s: When the current round began.
        waiting: What the round waits for; "" while it goes on.
        retries: How often missing clients were asked again in this round.
        recording: Evaluates and keeps the record of the last closed round.
        submitted_s: When it was submitted, seconds since 1970.
        stores: Says which stores it waits for, and why; "" for none.
        ending: Why it was told to end; the store takes that only later. "" otherwise.
        damage: What of its record on disk cannot be read any more; such a run is looked at, not driven. "" for nothing.
        lost: Blob that its record lacks; "" where that is not what is wrong.
        packed: The closed rounds of a run that is over and done with, in place of `rounds`.
        num_done: How many they are.
    """

    submitted: Submitted
    driver: RoleDriver
    rounds: list[RoundRecord] = field(default_factory=list)
    version: int = 0
    failure: str = ""
    registered: bool = False
    opened_s: float = field(default_factory=lambda: asyncio.get_running_loop().time())
    waiting: str = ""
    retries: int = 0
    recording: asyncio.Task[None] | None = None
    submitted_s: float = field(default_factory=time.time)
    stores: Callable[[], str] = field(default=str)
    ending: str = ""
    damage: str = ""
    lost: Digest = Digest("")
    packed: bytes = b""
    num_done: int = 0

    @property
    def records(self) -> list[RoundRecord]:
        """Its closed rounds, for people, also once they are packed."""
        if not self.packed:
            return self.rounds
        return msgspec.msgpack.decode(zlib.decompress(self.packed), type=list[RoundRecord])

    @property
    def done(self) -> int:
        """How many rounds have closed."""
        return self.num_done if self.packed else 0 if self.view is None else len(self.view.rounds)

    def settle(self) -> None:
        """Packs what only a look back wants, once the run is over and done with: a coordinator keeps all of its runs.

        A kilobyte for each round becomes some ten bytes. The state of a run that can go on stays whole.
        """
        view = self.view
        if self.packed or self.damage or self.ending or not self.registered or view is None or view.outcome is None:
            return
        self.num_done = len(view.rounds)
        self.packed, self.rounds = zlib.compress(msgspec.msgpack.encode(self.rounds)), []
        self.driver.moved = RunBytes()  # it is in the records
        if view.outcome.kind is OutcomeKind.COMPLETED and not self.failure:
            self.driver.state = without_rounds(self.driver.state)

    @property
    def view(self) -> RunView | None:
        """The run as its protocol shows it; None before it has begun."""
        return view_of(self.driver)

    @property
    def status(self) -> RunStatus:
        """How it stands, for people: one terminal state with its cause, else what it waits for."""
        run, view, rounds = self.submitted.run, self.view, tuple(self.records)
        if self.damage:
            return RunStatus(run, *self._of_damage(), rounds, self.version)
        if self.ending and not self.registered:
            model = Digest("") if view is None else view.model
            return RunStatus(run, str(OutcomeKind.CANCELLED), self.ending, rounds, self.version, model)
        if view is None:
            return RunStatus(run, "running", self.stores() or self.waiting or "not started", rounds, self.version)
        if view.outcome is None:
            return RunStatus(run, "running", self._waits_for(view), rounds, self.version, view.model)
        if self.failure:
            return RunStatus(run, str(OutcomeKind.FAILED), self.failure, rounds, 0, view.model)
        # Terminal only once its end is in the log: before, rounds and version may still be on their way here.
        cause = f"{view.outcome.sentence} {view.outcome.cure}".strip()
        state = str(view.outcome.kind) if self.registered else "running"
        cause = cause if self.registered else f"{cause} {self.stores()}".strip()
        return RunStatus(run, state, cause, rounds, self.version, view.model)

    def _of_damage(self) -> tuple[str, str]:
        """State and cause of a run whose record cannot be read."""
        text = f"its record cannot be read: {self.damage}"
        if not self.registered:
            return "running" if self.lost else str(OutcomeKind.FAILED), text
        if not self.version:
            return str(OutcomeKind.FAILED), f"{self.failure} {text}".strip()
        return str(OutcomeKind.COMPLETED), f"{text} Version {self.version}, which it made, is not touched."

    @property
    def held(self) -> Hold:
        """Blobs that it still needs; once it is over and done with, those that a look at it, or going on with it, wants."""
        run, view, config = self.submitted.run, self.view, self.submitted.config
        former = () if config.former is None else (section.blob.digest for section in config.former.sections.values())
        begins = (digest for digest in (self.submitted.template, config.initial_model, *former) if digest)
        if view is None or view.outcome is None or not self.registered:
            return Hold(f"run {run}", self.driver.held.union(begins))
        needs = self.driver.role.needs(self.driver.state)
        if view.outcome.kind is OutcomeKind.COMPLETED and not self.failure:
            ends = frozenset((view.model, *needs)) - {config.initial_model}  # its server's sections, too
            return Hold(f"model of run {run}", ends, False, self.driver.let_go)
        return Hold(f"run {run}, ended early", frozenset((*needs, *begins)), False, self.driver.let_go)

    @property
    def row(self) -> RunRow:
        """The run as one line of the list of all."""
        status, config = self.status, self.submitted.config
        last = status.rounds[-1] if status.rounds else None
        return RunRow(
            run=status.run,
            task=self.submitted.request.task,
            protocol=str(config.spec.protocol.get("name", "")),
            state=status.state,
            cause=status.cause,
            rounds_done=len(status.rounds),
            num_rounds=config.num_rounds,
            loss=float("nan") if last is None else last.loss,
            accuracy=float("nan") if last is None else last.accuracy,
            version=status.version,
            submitted_s=self.submitted_s,
        )

    def going_on(self, name: str) -> tuple[SubmitRun, Digest, FormerRun | None]:
        """What a new run does that goes on where this one ended early.

        Rounds are numbered on, so that its draws are those of an undisturbed run; what clients and server keep between rounds
        stands.

        Args:
            name: Of the new run; "" lets the coordinator name it.

        Returns:
            The request, the digest of the model it starts from, and what it goes on with; None where no round has closed.

        Raises:
            InputError: If the run goes on, or has done all it was to do.
        """
        run, status, config = self.submitted.run, self.status, self.submitted.config
        if self.damage:
            raise InputError(f"run {run!r} cannot go on: {status.cause}")
        if status.state == "running" or (self.ending and not self.registered):
            raise InputError(
                f"run {run!r} has not ended: {status.cause or 'it goes on'}. Look at it: edgewise train --follow {run}"
            )
        done = self.done
        if done >= config.num_rounds:
            raise InputError(
                f"run {run!r} has done all of its {config.num_rounds} rounds. Go on from its version: edgewise train JOB "
                f"--start-version {status.version or 'N'}"
            )
        view = self.view
        former = None
        if view is not None and done:
            former = FormerRun(sections=view.sections, records=view.records, rounds=view.rounds)
        runs = (run, *config.spec.extra.get(FORMER_RUNS, ()))
        spec = msgspec.structs.replace(config.spec, run=RunId(name), extra={**config.spec.extra, FORMER_RUNS: runs})
        request = msgspec.structs.replace(
            self.submitted.request, spec=spec, num_rounds=config.num_rounds, clients=config.clients
        )
        return request, former.sections[MODEL].blob.digest if former is not None else config.initial_model, former

    def trained(self, blobs: FolderBlobs, holder: NodeId) -> TrainedModel:
        """The model of its last closed round, while it goes on and however it ended.

        Args:
            blobs: Where models are.
            holder: Who gives them.

        Returns:
            What is known of it.

        Raises:
            InputError: If the model is not here any more.
        """
        view, config = self.view, self.submitted.config
        done = self.done
        digest = config.initial_model if view is None or not done else view.model
        if self.damage or not blobs.claim(digest):
            raise InputError(f"the model of run {config.run!r} is not here any more. Export the version that it made.")
        own = own_patterns(make_algorithm(config.spec.algorithm).exchanges[-1].local)
        ref = BlobRef(digest, blobs.size(digest), holder)
        return TrainedModel(ref, self.submitted.request.layout, done, own)

    def _waits_for(self, view: RunView) -> str:
        stores, awaited = self.stores(), self.waiting
        if not awaited and view.outstanding:
            awaited = f"round {view.round} waits for {', '.join(view.outstanding)}"
        return f"{awaited}: {stores}" if awaited and stores else awaited or stores


def without_rounds(state: Any) -> Any:
    """A state of any protocol's coordinator with the last of its closed rounds alone.

    Args:
        state: It has `rounds`, or a `run` that has them.
    """
    if hasattr(state, "rounds"):
        return msgspec.structs.replace(state, rounds=state.rounds[-1:])
    return msgspec.structs.replace(state, run=without_rounds(state.run)) if hasattr(state, "run") else state


def with_former(rounds: Iterable[RoundSummary], known: Iterable[RoundRecord], moved: RunBytes) -> list[RoundRecord]:
    """Records of closed rounds: those that are known, e.g. of a former run, and of the others what their summaries say.

    Args:
        rounds: As the protocol knows them.
        known: Records.
        moved: What the run's log says of bytes.
    """
    records = {record.round: record for record in known}
    return [
        records.get(summary.round)
        or record_of(summary, accuracy=float("nan"), seconds=0.0, moved=moved.of(summary.round))
        for summary in rounds
    ]


def record_of(summary: RoundSummary, *, accuracy: float, seconds: float, moved: tuple[int, int]) -> RoundRecord:
    """A closed round as people and reports see it.

    Args:
        summary: The protocol's.
        accuracy: Of its model on held-out data; NaN without.
        seconds: How long it took; 0 if the process ended as it was closed.
        moved: Payloads, up and down.

    Returns:
        The record.
    """
    missing = {str(c): cause for c, cause in summary.missing.items()}
    return RoundRecord(
        summary.round,
        summary.metrics.get("loss", float("nan")),
        accuracy,
        len(summary.num_examples),
        missing,
        seconds,
        *moved,
    )
