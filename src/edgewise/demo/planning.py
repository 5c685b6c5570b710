"""Stage 4: ask the planner three questions about everything that could be served; `candidates.py` has measured it."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from edgewise.core.ids import Tier
from edgewise.core.units import format_rate
from edgewise.demo.candidates import measured_candidates
from edgewise.demo.scenario import OPEN, OWN_DOMAIN, SLOW_BYTES_PER_S, Demo
from edgewise.demo.training_domains import OtherDomains
from edgewise.fleet.serving.fleet_planning import DEADLINE_FACTOR, LEAST_DEADLINE_S
from edgewise.planning.baselines import baselines
from edgewise.planning.explain import LEVEL_COLUMNS, explain, level_cells
from edgewise.planning.levels import Recommendation, plan_levels, recommend, single_node_plans
from edgewise.planning.plan import Plan
from edgewise.planning.search import Search
from edgewise.service.report import PlanSection
from edgewise.service.report.convert import baseline_rows, level_rows, planner_answer, waterfall_ms

ALONE_MARGIN = 1.25
QUESTIONS = (
    "raw inputs never leave the device",
    "no policy",
    f"raw inputs never leave the device, link at {format_rate(SLOW_BYTES_PER_S)}",
)


async def plan_all(demo: Demo, others: OtherDomains) -> list[Recommendation]:
    """Profiles, asks, prints; the first answer is the demo's plan.

    Args:
        demo: With its first version.
        others: Training of the models that other levels would serve, and of the narrower one.

    Returns:
        The answers to the three questions.
    """
    demo.happened("planning", "models of the other training domains and a narrower one are trained, to be compared")
    await others.wait()
    demo.search, *demo.variants = await measured_candidates(demo, others.narrow())
    evidence = {OWN_DOMAIN: demo.trained.evidence, **await others.evidence()}
    answers = ask(demo.search, demo.variants)
    recommended = answers[0]
    demo.plan = recommended.plan
    demo.deadline_s = deadline_of(demo.search_of(demo.plan), demo.plan)
    rows = plan_levels(demo.search, evidence)
    compared = baselines(demo.search, demo.variants)
    demo.show.table("Seven levels under 'raw inputs never leave the device'", LEVEL_COLUMNS, level_cells(rows))
    demo.show.table(
        "The whole model on one node, and its variants",
        ("way", "mean ms", "accuracy", "allowed"),
        [(b.name, *_cells(b.plan.predicted if b.plan else None), b.reason or "yes") for b in compared],
    )
    demo.show.table(
        "Three answers",
        ("question", "answer", "mean ms", "p95 ms", "accuracy", "gain of the mean over one node"),
        [
            (
                question,
                said.plan.name,
                f"{said.plan.predicted.latency_mean_s * 1e3:.1f}",
                f"{said.plan.predicted.latency_p95_s * 1e3:.1f}",
                f"{said.plan.predicted.accuracy:.3f}",
                f"{said.gain_fraction:.0%}",
            )
            for question, said in zip(QUESTIONS, answers, strict=True)
        ],
    )
    for line in explain(demo.plan):
        demo.show.line(f"  {line}")
    demo.happened("planning", f"plan: {demo.plan.name}; {recommended.reason}")
    predicted = recommended.plan.predicted
    demo.change(
        answers=tuple(planner_answer(q, a) for q, a in zip(QUESTIONS, answers, strict=True)),
        baselines=baseline_rows(compared),
        plan=PlanSection(
            recommended.level,
            tuple(str(t) for t in recommended.plan.tiers),
            recommended.margin_fraction,
            predicted.latency_p50_s * 1e3,
            levels=level_rows(rows, recommended.plan),
            name=recommended.plan.name,
            predicted_p95_ms=predicted.latency_p95_s * 1e3,
            device_energy_j=predicted.device_energy_j,
            egress_bytes=predicted.egress_bytes,
            accuracy=predicted.accuracy,
            predicted_mean_ms=predicted.latency_mean_s * 1e3,
            assumed=demo.assumed,
            waterfall=waterfall_ms(recommended.plan),
        ),
    )
    return answers


def deadline_of(search: Search, plan: Plan) -> float:
    """How long a request may take along a plan.

    Args:
        search: Of the plan's graph.
        plan: The plan.

    Returns:
        Three times its predicted 95th percentile, at least `LEAST_DEADLINE_S`; where it is shared, with the time on top that
        the device needs to answer alone afterwards. With less, a device begins its own tail while answers are only a little
        late, and the next request waits for it.
    """
    p95_s = plan.predicted.latency_p95_s
    alone = [p.predicted.latency_p95_s for p in single_node_plans(search) if p.tiers == (Tier.DEVICE,)]
    own_s = ALONE_MARGIN * min(alone) if plan.collaborates and alone else 0.0
    return max(LEAST_DEADLINE_S, DEADLINE_FACTOR * p95_s + own_s)


def ask(search: Search, variants: list[Search]) -> list[Recommendation]:
    """Puts the three questions.

    Args:
        search: Of the model, under the demo's policy and with its links as measured.
        variants: Of the other graphs that could be served.

    Returns:
        The answers, as in `QUESTIONS`.
    """

    return [
        recommend(search, variants),
        recommend(replace(search, policy=OPEN), variants),
        recommend(slowed(search), [slowed(each) for each in variants]),
    ]


def slowed(search: Search) -> Search:
    """A search with the slow link between device and edge."""
    first, *rest = search.table.links
    links = (msgspec.structs.replace(first, bytes_per_s=SLOW_BYTES_PER_S), *rest)
    return replace(search, table=replace(search.table, links=links))


def _cells(predicted: object) -> tuple[str, str]:
    mean_s, accuracy = getattr(predicted, "latency_mean_s", None), getattr(predicted, "accuracy", None)
    return ("–", "–") if mean_s is None or accuracy is None else (f"{mean_s * 1e3:.1f}", f"{accuracy:.3f}")
