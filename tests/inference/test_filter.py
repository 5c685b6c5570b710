"""A frame-difference filter in front of the session, on a fixed camera."""

from __future__ import annotations

import asyncio
import os
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgewise.inference.evidence import filter_evidence, run_graph
from edgewise.inference.gates.frame_difference import difference, frame_difference
from edgewise.inference.session import AnswerSource
from edgewise.planning.moves.filters import filters
from edgewise.planning.plan import FILTERED, Plan, Prediction
from edgewise.planning.plan import Path as Way
from edgewise.service.open_inference import describe_counts
from edgewise.service.report.convert import request_row, shares_of
from tests.inference.loopback_world import world
from tests.inference.tiny import images, split_plan, two_exit_graph

GRAPH = two_exit_graph()
NOISE = 0.01
FOLDER = Path(os.environ.get("EDGEWISE_DATA", "")) / "video"
PREDICTED = Prediction(0.012, 0.012, 0.015, 0.9, 1.0, 1200.0, 0.0, (Way(1, 1.0, 0.012, 0.015),))


def camera(num: int = 60, every: int = 12) -> np.ndarray:
    """float32[num, 1, 8, 8]: a fixed scene with sensor noise that changes every so many frames."""
    rng = np.random.default_rng(0)
    scenes = np.repeat(rng.normal(size=(num // every, 1, 8, 8)), every, axis=0)
    return (scenes + rng.normal(0, NOISE, scenes.shape)).astype(np.float32)


def filtered_plan(every: int = 30) -> tuple[Plan, float]:
    """The split plan behind a filter, and the share that the evidence says it answers."""
    frames = camera()
    rows = filter_evidence(frames, run_graph(GRAPH.whole, {"x": frames}, ["end"])[0], thresholds=(0.1,), every=every)
    (plan,) = filters(rows, GRAPH)(split_plan(GRAPH))
    return plan, rows[0].filtered_fraction


def test_an_unchanged_frame_is_answered_without_any_stage() -> None:
    async def run() -> None:
        async with world("edge-1") as made:
            plan, fraction = filtered_plan()
            await made.install(plan)
            served = [await made.server.infer({"x": frame[None]}) for frame in camera()]
            sources = [s.observation.source for s in served]
            assert sources[:2] == [AnswerSource.PLAN, AnswerSource.FILTER]
            # 5 scenes: their first frames are computed, all others answered as the first of their scene was.
            assert sources.count(AnswerSource.PLAN) == made.hosts["edge-1"].answered == 5
            assert fraction == 55 / 60
            for index, answer in enumerate(served):
                assert np.array_equal(answer.outputs["end"], served[index // 12 * 12].outputs["end"])
            seen = served[1].observation
            assert (seen.exit_index, seen.served_by, seen.payload_bytes, seen.cause) == (FILTERED, (), (), "")
            await asyncio.sleep(0)  # the last one is told of after its answer
            gate = made.server.active.plan.filters[0]
            shares = shares_of([request_row(s.observation, scheduled_s=0.0) for s in served])
            said = describe_counts("tiny", made.server)
            assert (said["inference_count"], said["execution_count"]) == (60, 5)
            assert said["share_of_requests"]["filter"] == pytest.approx(gate.end_fraction)
            assert shares == {"filter": pytest.approx(fraction), "full plan": pytest.approx(1 - fraction)}

    asyncio.run(run())


def test_every_nth_frame_is_computed_though_nothing_changed() -> None:
    async def run() -> None:
        async with world("edge-1") as made:
            plan, fraction = filtered_plan(every=4)
            await made.install(plan)
            for frame in camera():
                await made.server.infer({"x": frame[None]})
            assert made.hosts["edge-1"].answered == 15
            assert fraction == 45 / 60

    asyncio.run(run())


def test_two_cameras_are_told_apart_by_their_streams() -> None:
    async def run() -> None:
        async with world("edge-1") as made:
            plan, _ = filtered_plan()
            await made.install(plan)
            one, two = made.server.stream("one"), made.server.stream("two")
            for _ in range(3):
                for stream, frame in ((one, images(seed=1)), (two, images(seed=2))):
                    await stream.infer({"x": frame})
            assert made.hosts["edge-1"].answered == 2

    asyncio.run(run())


def test_an_answer_that_fell_back_is_not_what_later_frames_get() -> None:
    async def run() -> None:
        async with world("edge-1") as made:
            plan, _ = filtered_plan()
            await made.install(plan)
            made.fabric.cut("edge-1")
            first = await made.server.infer({"x": images()})
            made.fabric.heal("edge-1")
            made.server.peer_returned("edge-1")
            second = await made.server.infer({"x": images()})
            assert (first.observation.source, second.observation.source) == ("device_exit", "plan")

    asyncio.run(run())


def test_the_filter_stands_in_the_plan_with_its_share_and_the_cost_of_what_passes() -> None:
    before = msgspec.structs.replace(split_plan(GRAPH), predicted=PREDICTED)
    frames = camera()
    rows = filter_evidence(frames, np.zeros((60, 2)), thresholds=(0.1,))
    (plan,) = filters(rows, GRAPH)(before)
    gate = plan.filters[0]
    assert (gate.end_fraction, gate.threshold, gate.tensors) == (55 / 60, pytest.approx(0.1), ("x",))
    assert [g.reach_fraction for g in plan.gates] == [1.0, pytest.approx(5 / 60), pytest.approx(5 / 60)]
    assert plan.predicted.egress_bytes == pytest.approx(1200 * 5 / 60)
    assert plan.predicted.latency_mean_s == pytest.approx(0.012 * 5 / 60)
    assert [p.fraction for p in plan.predicted.paths] == [pytest.approx(55 / 60), pytest.approx(5 / 60)]
    assert list(filters((), GRAPH)(before)) == []


def test_a_filter_that_agrees_too_rarely_is_not_offered() -> None:
    rng = np.random.default_rng(0)
    rows = filter_evidence(camera(), rng.normal(size=(60, 10)), thresholds=(0.1,))
    assert rows[0].agreement < 0.5
    assert list(filters(rows, GRAPH, min_agreement=0.98)(split_plan(GRAPH))) == []


@pytest.mark.skipif(not (FOLDER / "car_gray.npz").is_file(), reason="EDGEWISE_DATA names no folder with video/")
@pytest.mark.parametrize("clip", ["bottle", "car"])
def test_on_a_real_camera_the_share_of_the_first_half_holds_in_the_second(clip: str) -> None:
    with np.load(FOLDER / f"{clip}_gray.npz") as stored:
        frames = next(stored[name] for name in stored if stored[name].ndim == 3)[:, None].astype(np.float32)
    first, second = np.array_split(frames, 2)
    threshold = float(np.median([difference({"x": b}, {"x": a}, 8) for a, b in pairwise(first)]))
    shares = [
        filter_evidence(half, np.zeros((len(half), 2)), (threshold,), cells=8)[0].filtered_fraction
        for half in (first, second)
    ]
    assert 0.02 < shares[0] < 0.98
    assert abs(shares[0] - shares[1]) < 0.35


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_frame_that_is_no_number_is_never_answered_from_another(bad: float) -> None:
    good, broken = images(), images()
    broken[0, 0, 3, 3] = bad
    for cells in (1, 4):
        assert difference({"x": broken}, {"x": good}, cells) == np.inf
        assert difference({"x": good}, {"x": broken}, cells) == np.inf
        assert difference({"x": broken}, {"x": broken}, cells) == np.inf


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint32, np.float64])
def test_large_numbers_are_told_apart(dtype: type) -> None:
    assert difference({"x": np.array([2**24 + 1], dtype)}, {"x": np.array([2**24], dtype)}) == 1.0


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.bool_])
def test_a_difference_of_small_whole_numbers_does_not_wrap_around(dtype: type) -> None:
    assert difference({"x": np.array([0], dtype)}, {"x": np.array([1], dtype)}) == 1.0


def test_whoever_writes_into_an_answer_does_not_change_the_next() -> None:
    rule, answer = frame_difference(0.1), {"end": np.ones(3, np.float32)}
    assert rule.learn is not None
    state = rule.learn({"x": images()}, answer, None)
    for _ in range(3):
        answer["end"][:] = 7.0
        found, state = rule.ask({"x": images()}, state)
        assert found is not None
        assert found["end"].tolist() == [1.0, 1.0, 1.0]
        answer = found
