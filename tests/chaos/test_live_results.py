"""What campaigns of real processes leave behind is small, in order, and where the next session goes on."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from edgewise.chaos.live import live_campaign
from edgewise.chaos.live.live_requests import RequestStream
from edgewise.chaos.live.live_results import LiveResult, add_result, code_ran, read_results, shown, summed_up
from edgewise.chaos.live.live_schedule import BESIDE, draw
from edgewise.service.client import Reply

KEPT = Path(__file__).parent / "live_campaigns.jsonl"
ONE = LiveResult(
    seed=7, commit="abc", run="gossip", num_rounds=2, ended="completed", beside="retrain", did="done", num_faults=3,
    requests={"answered": 40, "refused": 2}, seconds=12.5,
)  # fmt: skip


def at(seed: int, *broken: str) -> LiveResult:
    return msgspec.structs.replace(ONE, seed=seed, broken=broken)


def test_a_seed_that_is_run_again_takes_the_place_of_its_former_result(tmp_path: Path) -> None:
    file = tmp_path / "live.jsonl"
    for result in (at(7, "a request is lost"), at(3), at(7)):
        add_result(file, result)
    assert list(read_results(file).values()) == [at(3), at(7)]
    assert [len(line) < 250 for line in file.read_text().splitlines()] == [True, True]


def test_only_what_is_missing_or_was_broken_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, run = tmp_path / "live.jsonl", []

    async def runs(seeds: list[int], _: Path, on_result: object) -> None:
        run.extend(seeds)
        for seed in seeds:
            on_result(at(seed))  # type: ignore[operator]

    monkeypatch.setattr(live_campaign, "run_campaigns", runs)
    add_result(file, at(1))
    add_result(file, at(2, "a request is lost"))
    assert live_campaign.run_kept(range(4), file) == [at(seed) for seed in range(4)]
    assert run == [0, 2, 3]
    assert live_campaign.run_kept(range(4), file) == [at(seed) for seed in range(4)]
    assert run == [0, 2, 3]


def test_results_are_told_with_what_was_done_and_how_to_do_it_again() -> None:
    told = "\n".join(shown(at(7, "2 requests are lost")))
    assert "seed 7: BROKEN in 12 s; gossip, 2 rounds completed; retrain (done); 40 answered, 2 refused" in told
    assert told.count("    fault  ") == len(draw(7).faults)
    assert "again  edgewise chaos --live --seed 7" in told
    together = list(summed_up([at(1), at(2, "late")]))
    assert (
        "2 campaigns of real processes in 25 s, half of them in 12 s or less, 0 in more than 60 s, 1 with a broken invariant; 2 on abc"
        in together
    )
    assert "requests: 80 answered, 4 refused" in together


def test_a_campaign_does_each_thing_an_operator_does_and_drifts_only_where_it_retrains() -> None:
    drawn = [draw(seed) for seed in range(100)]
    assert {schedule.beside for schedule in drawn} == set(BESIDE)
    assert all((schedule.beside == "retrain") == (schedule.degrees != 0.0) for schedule in drawn)


def test_the_campaigns_in_this_repository_say_on_what_they_ran_whether_they_held_or_not() -> None:
    rows = read_results(KEPT)
    assert rows
    assert list(rows) == sorted(rows)
    assert [row.seed for row in rows.values() if not row.commit] == []
    assert code_ran()


def test_a_request_that_waited_over_a_whole_freeze_was_sent_to_a_device_that_was_down() -> None:
    scene: Any = SimpleNamespace(
        down=set(), times_down=Counter[str](), task=SimpleNamespace(name="digits"), port=lambda _: 1
    )

    async def infer(*_: Any, **__: Any) -> Reply:
        scene.times_down["device-1"] += 1  # frozen, and thawed before it answers
        return Reply(parameters={"model_version": 1})

    client: Any = SimpleNamespace(port=1, infer=infer)
    stream = RequestStream("s", np.zeros((1, 1, 8, 8), np.float32))
    asyncio.run(stream._one(scene, client, "device-1", 0, "s-1", {}))
    assert [request.outcome for request in stream.requests] == ["answered by a device that was down"]
