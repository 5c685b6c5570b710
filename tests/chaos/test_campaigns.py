"""Campaigns are the same whenever they are run, those that once broke something hold, and every planted bug can be planted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgewise.chaos import many_campaigns
from edgewise.chaos.campaign import CARRIED, Campaign, draw_campaign, load_campaign
from edgewise.chaos.campaign_report import CampaignReport
from edgewise.chaos.cells import PROTOCOLS, all_places, impossible_cells, possible_cells
from edgewise.chaos.faults import FAULTS, Fault
from edgewise.chaos.many_campaigns import Tally, run_many, run_one
from edgewise.chaos.run_campaign import run_campaign
from edgewise.chaos.shrink import shrink
from edgewise.cli.main import run
from edgewise.core.errors import InputError
from edgewise.training.protocols import PROTOCOLS as REGISTERED
from tests.chaos.run_mutants import mutants, mutated

FOUND = json.loads((Path(__file__).parent / "found_campaigns.json").read_text())


@pytest.mark.parametrize("seed", [4, 1189])
def test_a_seed_does_the_same_again_and_another_something_else(seed: int) -> None:
    first, again = (run_campaign(draw_campaign(seed)) for _ in range(2))
    assert first == again
    assert first.num_steps > 300
    assert run_campaign(draw_campaign(seed + 1)).trace != first.trace


@pytest.mark.parametrize("found", FOUND, ids=lambda found: found["says"][:60])
def test_what_a_campaign_once_found_is_mended(found: dict) -> None:
    report = run_campaign(msgspec.convert(found["campaign"], Campaign))
    assert report.broken == (), found["says"]


def test_a_failing_campaign_is_made_as_small_as_what_breaks_it() -> None:
    campaign = msgspec.structs.replace(draw_campaign(0), long_work=True, rounds=3)
    kinds = ("cut", "kill", "slow", "power", "freeze", "lose")
    campaign = msgspec.structs.replace(
        campaign, faults=tuple(Fault(kind, "cloud", place + 1, 5.0) for place, kind in enumerate(kinds))
    )

    def breaks(candidate: Campaign) -> CampaignReport:
        fatal = {"kill", "freeze"} <= {fault.kind for fault in candidate.faults}
        return CampaignReport(seed=candidate.seed, broken=("it stands still",) if fatal else ())

    smallest, report = shrink(campaign, run=breaks)
    assert [fault.kind for fault in smallest.faults] == ["kill", "freeze"]
    assert all(fault.seconds <= 0.02 for fault in smallest.faults)
    assert (smallest.rounds, smallest.long_work, report.broken) == (1, False, ("it stands still",))


def test_every_cell_is_possible_for_a_reason_and_those_never_hit_are_named() -> None:
    assert {place.role for place in all_places()} >= {
        "client",
        "gossip client",
        "edge",
        "buffered coordinator",
        "cloud",
    }
    assert set(PROTOCOLS) == set(CARRIED) == set(REGISTERED)
    assert len(possible_cells()) + sum(impossible_cells().values()) == len(all_places()) * len(FAULTS)
    assert {"client/over/blob flipped", "cloud/down/forge"} <= set(possible_cells())
    assert not {"edge/down/kill", "edge/serving/leave", "gossip client/idle/kill"} & set(possible_cells())
    tally = Tally()
    tally.add(CampaignReport(seed=0, broken=(), cells={"client/working/kill": 2}))
    assert set(possible_cells()) - set(tally.missing) == {"client/working/kill"}
    _, phases, rows = next(table for table in tally.tables() if table[0] == "client")
    row = dict(zip(phases, next(row for row in rows if row[0] == "kill")[1:], strict=True))
    assert row == {"new": 0, "idle": 0, "working": 2, "reporting": 0, "over": 0}


@pytest.mark.parametrize("place", ["synchronous coordinator/waiting", "client/new", "cloud/starting", "edge/over"])
def test_an_aimed_fault_meets_its_place(place: str) -> None:
    campaigns = (draw_campaign(seed) for seed in range(3000))
    aimed = [c for c in campaigns if c.faults[-1].during == place and c.faults[-1].moment == 1 and len(c.faults) < 4]
    reports = [run_campaign(campaign) for campaign in aimed[:8]]
    hits = [
        f"{place}/{campaign.faults[-1].kind}" in report.cells for campaign, report in zip(aimed, reports, strict=False)
    ]
    assert any(hits)
    assert not any(report.broken for report in reports)


@pytest.mark.parametrize("name", mutants())
def test_a_planted_bug_still_applies(name: str) -> None:
    compile(mutated(mutants()[name]), name, "exec")


def test_a_campaign_is_read_back_as_it_was_printed_and_anything_else_refused(tmp_path: Path) -> None:
    campaign, file = draw_campaign(7), tmp_path / "campaign.json"
    for printed in (campaign, {"campaign": campaign, "report": None}, {"smallest": [campaign], "failed": [7]}):
        file.write_bytes(msgspec.json.encode(printed))
        assert load_campaign(file) == campaign
    file.write_text('{"seed": "seven"}')
    with pytest.raises(
        InputError, match=r"is no campaign: .* Give a file that `edgewise chaos --json --seed N` has printed"
    ):
        load_campaign(file)


def test_seeds_that_fail_are_printed_before_the_long_work_of_making_them_small(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed: list[str] = []

    def fails(seeds: range, **_: Any) -> Tally:
        tally = Tally()
        for seed in seeds:
            tally.add(CampaignReport(seed=seed, broken=("it stands still", "a file is left") if seed % 2 else ()))
        return tally

    def made_small(campaign: Campaign, *, is_to_shrink: bool) -> tuple[Campaign, CampaignReport]:
        printed.append(capsys.readouterr().out)
        return campaign, CampaignReport(seed=campaign.seed, broken=("it stands still",))

    monkeypatch.setattr(many_campaigns, "run_many", fails)
    monkeypatch.setattr(many_campaigns, "run_one", made_small)
    assert run(["chaos", "--campaigns", "4", "--from", "10"]) == 1
    tally, *seeds = printed[0].strip().splitlines()
    assert "2 with a broken invariant" in tally
    assert seeds == ["seed 11: it stands still", "seed 13: it stands still"]
    assert len(printed) == 2


@pytest.mark.slow
def test_campaigns_go_on_in_new_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(many_campaigns, "PER_PROCESS", 1)
    monkeypatch.setattr(many_campaigns, "CHUNK", 1)
    seeds: list[int] = []
    tally = run_many(range(27, 30), jobs=1, on_report=lambda report: seeds.append(report.seed))
    assert (seeds, tally.num, tally.failed) == ([27, 28, 29], 3, [])


@pytest.mark.slow
def test_campaigns_of_other_processes_have_the_same_trace() -> None:
    reports: list[CampaignReport] = []
    tally = run_many(range(4, 6), jobs=1, on_report=reports.append)
    assert (tally.num, tally.failed) == (2, [])
    assert sum(tally.cells.values()) > 0
    with_hashes_of_its_own = {report.seed: report.trace for report in reports}
    assert run_one(draw_campaign(4))[1].trace == with_hashes_of_its_own[4]
