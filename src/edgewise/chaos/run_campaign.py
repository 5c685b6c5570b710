"""Runs one campaign from its seed to what it found; the same seed does the same, callback by callback.

report = run_campaign(draw_campaign(7))
print(report.broken)     # sentences; empty where everything held
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import shutil
import tempfile
from collections import Counter, deque
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from edgewise.chaos import invariants
from edgewise.chaos.campaign import Campaign
from edgewise.chaos.campaign_report import CampaignReport
from edgewise.chaos.cells import places_of
from edgewise.chaos.faults import FAULTS, Fault, begin
from edgewise.chaos.repairs import PATIENCE_S, Repairs
from edgewise.chaos.virtual_fleet import VirtualFleet
from edgewise.chaos.virtual_loop import StandsStill, VirtualLoop
from edgewise.core.errors import EdgewiseError
from edgewise.core.ids import ClientId, RunId
from edgewise.fleet.messages import SubmitRun
from edgewise.fleet.operator.operator import RunFiles
from edgewise.fleet.operator.submission import run_files, run_spec
from edgewise.models.task import load_task
from edgewise.models.task_code import code_digest

RUN = RunId("campaign")
JOB_SEED = 7
LIVENESS_S = 120.0
"""When all faults are over, a run ends within so many virtual seconds,"""
LOST_FRAME_S = 250.0
"""or so many where a frame may have vanished: its sender waits for its own time-out, and perhaps once more."""
SETTLING_S = 60.0
MOST_STEPS = 60_000
_LOOK_EVERY_S = 0.25


def run_campaign(campaign: Campaign) -> CampaignReport:
    """Runs a campaign.

    Args:
        campaign: Which.

    Returns:
        What it came to.
    """
    same = undisturbed(msgspec.json.encode(campaign.undisturbed)) if campaign.faults else None
    folder = Path(tempfile.mkdtemp(prefix="edgewise-chaos-", dir=_memory()))
    loop = VirtualLoop(random.Random(f"order {campaign.seed}"))
    with _quiet():
        asyncio.set_event_loop(loop)
        scene = _Scene(campaign, loop, folder)
        try:
            report = loop.run_until_complete(scene.play())
        except StandsStill as error:
            report = CampaignReport(
                seed=campaign.seed, broken=(str(error),), virtual_s=loop.time(), num_steps=loop.num_steps
            )
        finally:
            asyncio.set_event_loop(None)
            loop.discard()
            shutil.rmtree(folder, ignore_errors=True)
    if report.state != "completed" or same is None:
        return report
    return msgspec.structs.replace(report, broken=report.broken + tuple(invariants.check_model(campaign, report, same)))


@cache
def undisturbed(campaign: bytes) -> CampaignReport:
    """What a job comes to without faults; remembered.

    Args:
        campaign: `Campaign.undisturbed` of one, as JSON.

    Returns:
        Its report.
    """
    return run_campaign(msgspec.json.decode(campaign, type=Campaign))


class _Scene:
    def __init__(self, campaign: Campaign, loop: VirtualLoop, folder: Path) -> None:
        self.campaign, self.loop, self.folder = campaign, loop, folder
        self.fleet = VirtualFleet(
            folder,
            loop,
            random.Random(f"chance {campaign.seed}"),
            edge_of=campaign.edge_of,
            inline_bytes=campaign.inline_bytes,
            long_work=campaign.long_work,
            task_file=campaign.task_file,
            settings=_settings(campaign),
        )
        self.waiting: dict[tuple[str, int], list[Fault]] = {}
        self.due: deque[Fault] = deque()
        self.is_beginning = False
        self.aimed: dict[str, dict[Fault, int]] = {}
        for fault in campaign.faults:
            if fault.during:
                self.aimed.setdefault(fault.of or fault.node, {})[fault] = fault.moment
            else:
                self.waiting.setdefault((fault.of or fault.node, fault.moment), []).append(fault)
        self.going_on: list[Fault] = []
        self.cells: Counter[str] = Counter()
        self.loses_frames = any(FAULTS[f.kind].loses_frames for f in campaign.faults)
        self.last_over_s = self.begun_s = 0.0
        self.over_s: dict[Fault, float] = {}
        self.repairs = Repairs(self.fleet)
        self.fleet.quorum = campaign.quorum

    async def play(self) -> CampaignReport:
        broken: list[str] = []
        try:
            async with self.fleet:
                try:
                    await self._run()
                except _Broken as error:
                    broken.append(str(error))
                self.fleet.on_moment = lambda _: (
                    None
                )  # nodes that are told to stop are not started again: no fault begins
                report = self._report(broken)
                broken += invariants.check_run(self.campaign, self.fleet, report, self.over_s)
        except EdgewiseError as error:
            broken.append(f"the fleet does not start or stop: {error}")
            report = self._report(broken)
        broken += invariants.check_end(self.fleet, self.folder)
        return msgspec.structs.replace(report, broken=tuple(broken), trace=self.fleet.trace.hexdigest())

    async def _run(self) -> None:
        self.fleet.run = RUN
        self.fleet.moments.clear()
        self.fleet.on_moment = self._moment
        for node in self.campaign.nodes:
            self._have_begin(self.waiting.pop((node, 0), []))
        submitting = self.loop.create_task(self._submit())
        try:
            while not self._is_over():
                await asyncio.sleep(_LOOK_EVERY_S)
                await self._check_goes_on()
        finally:
            submitting.cancel()
        self.waiting.clear()
        patience_s = SETTLING_S + (LOST_FRAME_S if self.loses_frames else 0.0)
        end = self.loop.time() + patience_s
        self._bring_back()
        while (self.going_on or self._is_settling()) and self.loop.time() < end:
            await asyncio.sleep(_LOOK_EVERY_S)
            self._bring_back()
            self._check_steps()
            if self.going_on:
                end = self.loop.time() + patience_s  # an aimed fault may begin late
        if left := invariants.unsettled(self.fleet):
            raise _Broken(f"the run has ended, {left} has not heard of it after {patience_s:.0f} s")
        if left := invariants.unseen(self.fleet):
            raise _Broken(f"all faults are over, {left} after {patience_s:.0f} s")

    def _bring_back(self) -> None:
        """Who left comes back when the run is over, also who left only then."""
        for name in sorted(self.fleet.away):
            self.fleet.spawn(self.fleet.start_again(name), f"start {name} again")
        self.fleet.away.clear()

    def _is_settling(self) -> bool:
        fleet = self.fleet
        return bool(self.loop.time() < fleet.leases_end_s or invariants.unsettled(fleet) or invariants.unseen(fleet))

    async def _submit(self) -> None:
        request, files = _request(self.campaign)
        while self.fleet.live is None:
            try:
                await self.fleet.operator.submit(request, files)
            except EdgewiseError as error:
                self.fleet.tell(f"not submitted: {error.code}")
                await asyncio.sleep(1.0)

    def _is_over(self) -> bool:
        live = self.fleet.live
        return live is not None and live.status.state != "running"

    async def _check_goes_on(self) -> None:
        if self.fleet.unable:
            raise _Broken(self.fleet.unable[0])
        self._check_steps()
        if self.going_on:
            self.last_over_s = self.loop.time()
            return
        live, rounds_s = self.fleet.live, self.campaign.rounds * (self.campaign.deadline_s or 0.0)
        if live is None:
            self.begun_s = self.loop.time()
        still_s = self.loop.time() - max(self.last_over_s, self.begun_s)
        # Who waits for a lost frame waits for its own time-out; no round waits for that beyond its deadline.
        is_patient = self.loses_frames and (live is None or not rounds_s)
        if self.fleet.flipped and still_s > PATIENCE_S and (wrong := await self.repairs.help()) is not None:
            if wrong:
                raise _Broken(wrong)
            self.last_over_s = self.loop.time()
        elif still_s > (LOST_FRAME_S if is_patient else LIVENESS_S + rounds_s):
            why = "its coordinator does not know it" if live is None else live.status.cause
            raise _Broken(f"all faults are over for {still_s:.0f} s and the run goes on: {why}")

    def _check_steps(self) -> None:
        if self.loop.num_steps > MOST_STEPS:
            going_on = "; ".join(map(str, self.going_on)) or "none"
            raise _Broken(f"{self.loop.num_steps} callbacks and it goes on; faults that are not over: {going_on}")

    def _moment(self, node: str) -> None:
        due = self.waiting.pop((node, self.fleet.moments[node]), [])
        if self.aimed.get(node):
            due = [*due, *self._aimed_now(self.aimed[node])]
        self._have_begin(due)

    def _have_begin(self, due: list[Fault]) -> None:
        for fault in due:  # what it meets is said now: another that is due as well may change that
            for place in places_of(self.fleet, fault):
                self.cells[f"{place}/{fault.kind}"] += 1
        self.due += due
        if self.is_beginning:  # what a fault does to a node is a moment of that node, too: one begins after the other
            return
        self.is_beginning = True
        try:
            while self.due:
                self._begin(self.due.popleft())
        finally:
            self.is_beginning = False

    def _aimed_now(self, aimed: dict[Fault, int]) -> list[Fault]:
        """Those that have had all their moments in the place they are aimed at."""
        for fault in aimed:
            aimed[fault] -= fault.during in places_of(self.fleet, fault)
        now = [fault for fault, left in aimed.items() if left <= 0]
        for fault in now:
            del aimed[fault]
        return now

    def _begin(self, fault: Fault) -> None:
        self.fleet.tell(f"begin {fault}")
        self.going_on.append(fault)
        begin(self.fleet, fault, self._over)

    def _over(self, fault: Fault) -> None:
        self.fleet.tell(f"over {fault}")
        self.going_on.remove(fault)
        self.over_s[fault] = self.loop.time()

    def _report(self, broken: list[str]) -> CampaignReport:
        live = self.fleet.live
        status = None if live is None else live.status
        return CampaignReport(
            seed=self.campaign.seed,
            broken=tuple(broken),
            state="" if status is None else status.state,
            virtual_s=self.loop.time(),
            num_steps=self.loop.num_steps,
            cells=dict(sorted(self.cells.items())),
            model="" if status is None else str(status.model),
            files=invariants.files_of(self.fleet),
            flipped=tuple("/".join(flipped) for flipped in self.fleet.flipped),
            rounds=tuple(clients for _, clients in sorted(self.fleet.witness.rounds.items())),
        )


class _Broken(Exception):
    """An invariant does not hold, so that a campaign cannot go on."""


def _settings(campaign: Campaign) -> dict[str, Any]:
    return dict(campaign.settings) if campaign.task else {"hidden": 2, "clients": campaign.clients}


def _request(campaign: Campaign) -> tuple[SubmitRun, RunFiles]:
    task, layout, files = _files(campaign.task_file, repr(_settings(campaign)), campaign.task)
    spec = run_spec(campaign.algorithm, layout, protocol=campaign.protocol, seed=JOB_SEED, name=RUN)
    request = SubmitRun(
        spec=spec,
        task=task.name,
        num_rounds=campaign.rounds,
        layout=msgspec.msgpack.encode(layout),
        quorum=campaign.quorum,
        round_deadline_s=campaign.deadline_s,
        clients=tuple(map(ClientId, campaign.clients)),
        task_code=code_digest(task),
        register=False,
    )
    return request, files


@cache
def _files(task_file: str, settings: str, _: str) -> Any:
    import ast

    task = load_task(task_file, **ast.literal_eval(settings))
    layout, files = run_files(task, seed=JOB_SEED, needs_graph=False)
    return task, layout, RunFiles(None, files.model)


def _memory() -> str | None:
    """A folder in memory, where there is one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Has nothing logged: refusals and losses are what a campaign is about."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
