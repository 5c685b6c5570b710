"""From other parts' values to rows of the report: milliseconds, words, and no number that is not one."""

from __future__ import annotations

import pytest

from edgewise.core.ids import Digest, NodeId, RequestId, Revision, Tier
from edgewise.datasets.audit import SplitAudit
from edgewise.inference.observation import Observation
from edgewise.inference.session import AnswerSource
from edgewise.ledger.energy import Energy
from edgewise.ledger.resources import Resources
from edgewise.lifecycle.loop import TimelineNote
from edgewise.planning import levels
from edgewise.planning.baselines import BaselineRow
from edgewise.planning.plan import Path, Plan, Prediction, Site, Stage
from edgewise.service.report.convert import (
    WORDS,
    audit_rows,
    baseline_rows,
    level_rows,
    planner_answer,
    request_row,
    resource_rows,
    shares_of,
    timeline_entries,
)

PATHS = (
    Path(0, 0.7, 0.008, 0.010, (("device compute", 0.008),)),
    Path(1, 0.3, 0.021, 0.030, (("device compute", 0.006), ("device→edge", 0.015))),
)
PLAN = Plan(
    "split",
    Digest("0" * 64),
    tuple(Stage(tier, Digest("g"), (), (), Site(tier)) for tier in (Tier.DEVICE, Tier.EDGE)),
    predicted=Prediction(0.012, 0.009, 0.03, 0.95, 0.02, 220.0, 0.0, PATHS),
)


def observed(source: AnswerSource = AnswerSource.PLAN, exit_index: int | None = 1) -> Observation:
    return Observation(RequestId("r"), Revision(1), 1, PLAN.digest, source, exit_index, "", 10.5, 0.02, 0.1)


def test_levels_get_milliseconds_their_plans_name_and_the_longest_waterfall() -> None:
    row = level_rows([levels.level_row(4, PLAN)], recommended=PLAN)[0]
    assert (row.tiers, row.reason, row.recommended) == (("device", "edge"), "split", True)
    assert (row.predicted_p50_ms, row.predicted_p95_ms) == (9.0, 30.0)
    assert dict(row.waterfall) == pytest.approx({"device compute": 6.0, "device→edge": 15.0})


def test_an_infeasible_level_has_no_numbers_but_a_reason() -> None:
    row = level_rows([levels.LevelRow(0, (Tier.CLOUD,), "cloud", False, "raw inputs may not leave")])[0]
    assert (row.predicted_p50_ms, row.accuracy, row.waterfall, row.reason) == (
        None,
        None,
        (),
        "raw inputs may not leave",
    )


def test_baselines_keep_what_is_not_allowed() -> None:
    rows = baseline_rows(
        [BaselineRow("device only", PLAN, True), BaselineRow("PNG", None, False, "no")], {"device only": 9.5}
    )
    assert (rows[0].predicted_p50_ms, rows[0].measured_p50_ms) == (9.0, 9.5)
    assert (rows[1].allowed, rows[1].reason, rows[1].predicted_p50_ms) == (False, "no", None)


def test_an_answer_of_the_planner_says_level_and_margin() -> None:
    answer = planner_answer("no policy?", levels.Recommendation(PLAN, 4, 0.3, True, "split gains 30%"))
    assert (answer.level, answer.margin_fraction, answer.collaborates) == (4, 0.3, True)


def test_a_requests_latency_counts_from_its_scheduled_arrival() -> None:
    row = request_row(observed(), scheduled_s=10.4, start_s=10.0, plan=PLAN, phase="calm", right=True)
    assert row.arrival_s == pytest.approx(0.4)
    assert row.latency_ms == pytest.approx(120.0)  # 100 ms late, 20 ms served
    assert (row.predicted_ms, row.by, row.right) == (21.0, "full plan", True)


def test_only_the_plans_own_answers_have_a_prediction() -> None:
    assert request_row(observed(AnswerSource.DEVICE_EXIT, 0), scheduled_s=10.5, plan=PLAN).predicted_ms is None


def test_a_request_nobody_answered_has_no_latency() -> None:
    row = request_row(observed(AnswerSource.NONE, None), scheduled_s=10.5, plan=PLAN)
    assert (row.latency_ms, row.by) == (None, "nobody")


def test_every_source_has_words() -> None:
    assert set(WORDS) == set(AnswerSource)


def test_shares_sum_to_one() -> None:
    rows = [
        request_row(observed(s), scheduled_s=10.5)
        for s in (AnswerSource.PLAN, AnswerSource.PLAN, AnswerSource.OTHER_EDGE)
    ]
    assert shares_of(rows) == pytest.approx({"full plan": 2 / 3, "another edge": 1 / 3})
    assert shares_of([]) == {}


def test_the_loops_notes_move_to_the_reports_clock() -> None:
    assert timeline_entries([TimelineNote(105.0, "serving", "x")], 100.0)[0].time_s == 5.0


def test_resources_without_known_energy_say_nothing_of_it() -> None:
    used = [Resources(NodeId("a"), Tier.DEVICE, 1.0, 9), Resources(NodeId("b"), Tier.EDGE, 2.0, 8)]
    rows = resource_rows(used, {NodeId("a"): Energy(joules=3.0, source="measured")})
    assert [(r.energy_j, r.energy_source) for r in rows] == [(3.0, "measured"), (None, "modelled")]


def test_audit_rows_have_a_count_for_every_label() -> None:
    audit = SplitAudit(
        examples={"a": 3, "b": 0}, label_counts={"a": {0: 1, 2: 2}}, label_skew=0.1, empty_clients=("b",)
    )
    rows = audit_rows(audit, infers_only=["b"])
    assert [(r.labels, r.trains) for r in rows] == [((1, 0, 2), True), ((0, 0, 0), False)]
