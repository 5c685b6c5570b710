from __future__ import annotations

import asyncio
import sys
import time

import numpy as np
import pytest

from edgewise.core.errors import InputError, PlanInfeasible
from edgewise.core.provenance import RAW, origins_of, traced
from edgewise.inference import stages
from edgewise.inference.dilated_time import MEASUREMENTS, undisturbed_s, wait_precisely
from edgewise.inference.serving_node import device_only_plan
from edgewise.inference.stages import (
    LoadedStage,
    build_stages,
    make_session,
    make_stage,
)
from edgewise.planning.plan import ENTRY, EXIT, Gate, Plan, Site
from tests.inference.tiny import E, images, rescaling_graph, split_plan, two_exit_graph


def test_head_and_tail_give_the_wholes_bits() -> None:
    graph, x = two_exit_graph(), images(2)
    head, tail = make_stage(graph, ["x"], ["a"]), make_stage(graph, ["a"], ["end"])
    made, _ = tail.run(head.run({"x": x})[0])
    assert made["end"].tobytes() == make_session(graph.whole).run(["end"], {"x": x})[0].tobytes()


def test_stages_of_one_piece_share_a_session_which_does_not_keep_its_bytes() -> None:
    first, again = (make_stage(two_exit_graph(), ["x"], ["end"]) for _ in range(2))
    assert first._session is again._session
    assert make_stage(two_exit_graph(), ["x"], ["a"])._session is not first._session
    data = two_exit_graph().whole
    before = sys.getrefcount(data)
    session = make_session(data)
    assert (sys.getrefcount(data), len(session.get_outputs())) == (before, 2)
    # Its arena would be locked for every other run while a large one's memory goes back: 40 ms for a batch of 60 MiB.
    assert not session.get_session_options().enable_cpu_mem_arena


def burning(seconds: float) -> object:
    """A computation that takes so many of the processor's seconds."""

    def compute(feeds: object) -> list[np.ndarray]:
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass
        return [np.zeros((1, 10), np.float32)]

    return compute


@pytest.mark.live
def test_dilation_multiplies_what_inputs_of_a_size_take(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = make_stage(two_exit_graph(), ["x"], ["end"], dilation=5.0)
    for size, seconds in ((1, 0.004), (2, 0.009)):
        monkeypatch.setattr(stage, "compute", burning(seconds))
        best = min(stage.run({"x": images(size)})[1] for _ in range(12))
        assert 5 * seconds <= best < 5 * seconds * 1.3


@pytest.mark.live
def test_dilation_does_not_multiply_what_other_processes_took(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = make_stage(two_exit_graph(), ["x"], ["end"], dilation=50.0)

    def compute(feeds: object) -> list[np.ndarray]:
        time.sleep(0.02)  # as if another process had the processor: 50 times that would be a second
        return [np.zeros((1, 10), np.float32)]

    monkeypatch.setattr(stage, "compute", compute)
    assert 0.02 <= min(stage.run({"x": images()})[1] for _ in range(3)) < 0.2


@pytest.mark.live
def test_a_slow_run_is_hidden_in_the_dilated_time_and_not_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = make_stage(two_exit_graph(), ["x"], ["end"], dilation=50.0)
    monkeypatch.setattr(stage, "compute", burning(0.001))
    assert min(stage.run({"x": images()})[1] for _ in range(9)) >= 0.05
    monkeypatch.setattr(
        stage, "compute", burning(0.02)
    )  # a cold cache, a busy neighbour: 50 times that would be a second
    assert 0.05 <= min(stage.run({"x": images()})[1] for _ in range(5)) < 0.5


def test_undisturbed_is_the_least_burst_of_what_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """As often as its processor's time allows, however long other processes hold the processor meanwhile."""
    clock = iter(np.cumsum([1e-5 * t for burst in (9, 3, 5) for t in [1, burst] * 7]).tolist())
    monkeypatch.setattr(time, "thread_time", lambda: next(clock))
    monkeypatch.setattr(time, "perf_counter", iter(range(0, 10**6, 60)).__next__)
    assert undisturbed_s(lambda: None) == pytest.approx(3e-5)


def test_a_dilated_stage_that_was_measured_in_a_busy_moment_is_measured_again_while_it_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A neighbour on the processor made one of eight emulated devices half as slow again, for as long as it served."""
    measured, waits = iter([1.5e-3, 1.4e-3, 1e-3, *[1.2e-3] * 99]), list[float]()
    monkeypatch.setattr(stages, "undisturbed_s", lambda run: next(measured))
    monkeypatch.setattr(stages, "wait_precisely", waits.append)
    monkeypatch.setattr(stages.time, "perf_counter", lambda: 7.0)  # no time passes but by waiting
    stage = make_stage(two_exit_graph(), ["x"], ["end"], dilation=200.0)
    for _ in range(20):
        stage.run({"x": images()})
    assert waits == pytest.approx([0.28, *[0.2] * 19])
    assert len(list(measured)) == 99 - (MEASUREMENTS - 3)


@pytest.mark.live
def test_the_precise_wait_is_never_short_and_rarely_long() -> None:
    late = []
    for _ in range(20):
        started = time.perf_counter()
        wait_precisely(0.003)
        late.append(time.perf_counter() - started - 0.003)
    assert min(late) >= 0
    assert np.median(late) < 0.001


def test_a_dilation_below_one_is_refused() -> None:
    with pytest.raises(InputError, match=r"dilation is 0\.5, it must be >= 1"):
        make_stage(two_exit_graph(), ["x"], ["end"], dilation=0.5)


def test_outputs_behind_trained_weights_are_new_and_others_keep_their_origin() -> None:
    graph = rescaling_graph()
    x = traced(np.ones((1, 4), np.float32), RAW)
    rescaled, _ = make_stage(graph, ["x"], ["y"]).run({"x": x})
    product, _ = make_stage(graph, ["y"], ["z"]).run(rescaled)
    assert origins_of(rescaled["y"]) == {RAW}
    assert origins_of(product["z"]) == frozenset()


def test_what_was_not_traced_stays_untraced() -> None:
    made, _ = make_stage(rescaling_graph(), ["x"], ["y"]).run({"x": np.ones((1, 4), np.float32)})
    assert origins_of(made["y"]) == frozenset()


@pytest.mark.parametrize(("exit_on_device", "has_tail"), [(True, False), (False, True)])
def test_a_device_without_an_own_exit_gets_a_local_tail(exit_on_device: bool, has_tail: bool) -> None:
    graph = two_exit_graph()
    built = asyncio.run(build_stages(graph, split_plan(graph, exit_on_device=exit_on_device), ENTRY))
    assert (built.tail is not None) == has_tail
    edge = asyncio.run(build_stages(graph, split_plan(graph), Site(E)))
    assert edge.tail is None
    ((_, loaded),) = edge.stages
    assert loaded.outputs == ("end",)


def test_plans_that_cannot_run_are_refused() -> None:
    graph = two_exit_graph()
    with pytest.raises(PlanInfeasible, match="has no exit, so it never answers"):
        asyncio.run(build_stages(graph, Plan("empty", graph.digest, ()), ENTRY))
    with pytest.raises(PlanInfeasible, match="plan 'empty' has no stage, so it computes nothing"):
        asyncio.run(
            build_stages(graph, Plan("empty", graph.digest, (), (), (Gate(EXIT, "edge", 0.0, index=0),)), ENTRY)
        )
    stages = asyncio.run(build_stages(graph, device_only_plan(graph), ENTRY)).stages
    assert [isinstance(loaded, LoadedStage) for _, loaded in stages] == [True]
