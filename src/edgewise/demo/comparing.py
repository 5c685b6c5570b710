"""Stage 5, second half: the plan beside the best other ways, on the same inputs in turn; one headline comes of it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from edgewise.demo.other_questions import OpenFleet
from edgewise.demo.planning import QUESTIONS
from edgewise.demo.scenario import PRIVATE, TASK, Demo
from edgewise.demo.streaming import take
from edgewise.demo.ways import Way, ask_in_turn, deploy_ways, gain_of, way_rows
from edgewise.inference.gain import Gain, MeasuredGain
from edgewise.planning.levels import Recommendation
from edgewise.planning.plan import Plan
from edgewise.service.report import Baseline, WayRow
from edgewise.service.report.convert import planner_answer

MOST_WAYS = 3
WAY_COLUMNS = ("way", "predicted mean ms", "mean ms", "p50 ms", "p95 ms", "accuracy", "answered", "")


def others_to_measure(said: Recommendation) -> list[Plan]:
    """The best other ways: of a shared plan the best on one node first, of one node's the best shared plan."""
    first = next((p for p in said.others if p.collaborates != said.collaborate), None)
    rest = [p for p in said.others if p is not first]
    return [*([first] if first is not None else []), *rest][: MOST_WAYS - 1]


async def compare(demo: Demo, said: Recommendation) -> None:
    """Measures the plan in force and the best other ways; the gain over the first of them is the demo's headline."""
    plans = [said.plan, *others_to_measure(said)]
    ways = await deploy_ways(demo.operator, plans, demo.graphs, [Way(TASK, said.plan)])
    parts = demo.task.parts.stream
    inputs, targets = take(parts.inputs, parts.targets, demo.settings.compared)
    ports = [demo.fleet.children[device].ready["http_port"] for device in demo.fleet.devices]
    await ask_in_turn(ports, ways, inputs, targets, gap_s=demo.settings.gap_s)
    rows = way_rows(ways, said.plan, PRIVATE, lambda plan: demo.search_of(plan).table)
    demo.show.table("The plan and the best other ways, on the same inputs in turn", WAY_COLUMNS, [*map(_cells, rows)])
    answers = list(demo.report.answers)
    answers[0] = planner_answer(QUESTIONS[0], said, rows)
    demo.change(answers=tuple(answers), baselines=_with_measured(demo, rows))
    gain = gain_of(ways[0], ways[1]) if len(ways) > 1 else None
    if gain is not None:
        demo.change(
            plan=msgspec.structs.replace(
                demo.report.plan,
                gain_over=ways[1].plan.name,
                gain_mean=_interval(gain.mean),
                gain_p95=_interval(gain.p95),
                gain_pairs=gain.num_pairs,
            )
        )
        demo.happened("serving", f"{said.plan.name} beside {ways[1].plan.name}: {in_words(gain)}", "plan")


def in_words(gain: MeasuredGain) -> str:
    """A gain with its interval, p95 beside the mean."""
    parts = [
        f"{name} {g.fraction:+.0%} (95%: {g.low:+.0%} to {g.high:+.0%})"
        for name, g in (("mean", gain.mean), ("p95", gain.p95))
    ]
    return f"measured gain of the {', of the '.join(parts)}, {gain.num_pairs} inputs"


async def compare_elsewhere(demo: Demo, answers: Sequence[Recommendation], elsewhere: OpenFleet) -> None:
    """Measures the answers to the two other questions, where raw inputs may travel and the link may be slow."""
    measured = await elsewhere.measure(answers)
    told = list(demo.report.answers)
    for number, rows in enumerate(measured, 1):
        demo.show.table(f"Measured: {QUESTIONS[number]}", WAY_COLUMNS, [*map(_cells, rows)])
        told[number] = planner_answer(QUESTIONS[number], answers[number], rows)
        best = {True: "is", False: "is not", None: "is not known to be"}[told[number].is_measured_best]
        demo.happened("serving", f"{QUESTIONS[number]}: {answers[number].plan.name} {best} the measured best", "plan")
    demo.change(answers=tuple(told))


def _interval(gain: Gain) -> tuple[float, float, float]:
    return gain.fraction, gain.low, gain.high


def _with_measured(demo: Demo, rows: Sequence[WayRow]) -> tuple[Baseline, ...]:
    """The plain ways that were measured too: those of the same variant on the same node, run to the end."""
    found: dict[tuple[str, tuple[str, ...]], str] = {
        ("float32", ("device",)): "device only",
        ("int8", ("device",)): "int8 on device",
    }
    by_name = {found[row.variant, row.tiers]: row for row in rows if (row.variant, row.tiers) in found}
    return tuple(
        msgspec.structs.replace(b, measured_p50_ms=by_name[b.name].p50_ms, measured_mean_ms=by_name[b.name].mean_ms)
        if b.name in by_name
        else b
        for b in demo.report.baselines
    )


def _cells(row: WayRow) -> tuple[str, ...]:
    numbers = (row.predicted_mean_ms, row.mean_ms, row.p50_ms, row.p95_ms)
    mark = "recommended" if row.recommended else "" if row.allowed else "not allowed"
    accuracy = "–" if row.accuracy is None else f"{row.accuracy:.3f}"
    texts = ["–" if n is None else f"{n:.1f}" for n in numbers]
    return (row.name, *texts, accuracy, f"{row.answered}/{row.requests}", mark)
