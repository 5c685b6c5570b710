"""One headline and four answers, from the report's numbers alone; what the page marks, and at which width it can be read."""

from __future__ import annotations

import re
from importlib.resources import files

import msgspec
import pytest

from edgewise.core.ids import Tier
from edgewise.planning.choose import make_search
from edgewise.planning.levels import plan_levels, recommend
from edgewise.planning.policy import Policy
from edgewise.service.report import Conclusion, ExitShareRow, Report, WayRow, conclusions
from edgewise.service.report.conclusions import QUESTIONS, headline
from edgewise.service.report.convert import level_rows, measured_best, planner_answer
from edgewise.service.report.page import render_page
from edgewise.service.report.tables import NUM_COLOURS, stage_paint
from tests.planning.scenario import FAST, WAN, evidence, graph, profiles
from tests.service.made_up import made_up_report

CERTAIN, UNCERTAIN = (0.36, 0.33, 0.38), (0.02, -0.01, 0.05)


def planned(**fields: object) -> Report:
    report = made_up_report()
    return msgspec.structs.replace(report, plan=msgspec.structs.replace(report.plan, **fields))


@pytest.mark.parametrize(
    ("fields", "verdict", "below"),
    [
        ({"gain_mean": CERTAIN, "gain_over": "int8 on device"}, "+36%", "against int8 on device; 95%: +33% to +38%"),
        ({"gain_mean": UNCERTAIN, "gain_over": "int8 on device"}, "no certain gain", "-1% to +5%"),
        ({"gain_mean": None}, "collaborate", "was not measured"),
        ({"tiers": ("device",), "gain_mean": CERTAIN, "gain_over": "split"}, "do not collaborate", "sharing (split)"),
    ],
)
def test_there_is_one_headline_the_measured_gain_of_the_mean_or_not_to_collaborate(fields, verdict, below):
    said = headline(planned(**fields))
    assert said is not None
    assert said[0] == verdict
    assert below in said[1]
    page = render_page(planned(**fields))
    assert page.index(f"<b>{verdict}</b>") < page.index("<nav>"), "it is the first thing the page says"


def test_a_report_without_a_plan_has_no_headline_and_says_what_nobody_looked_at():
    assert headline(Report()) is None
    assert [(c.verdict, c.holds) for c in conclusions(Report())] == [("not asked", None)] * 4
    assert "Four answers" not in render_page(Report())


def test_the_page_ends_with_the_four_answers():
    report = planned(gain_mean=CERTAIN, gain_over="int8 on device")
    found = conclusions(report)
    assert tuple(c.question for c in found) == QUESTIONS
    assert [c.verdict for c in found] == ["yes", "collaborate", "yes", "yes"]
    assert "95.8%" in found[0].answer
    assert "120 of 120" in found[2].answer
    assert "80.6% on drifted inputs, noticed after 31 requests; 92.1%" in found[3].answer
    page = render_page(msgspec.structs.replace(report, conclusions=found))
    assert page.rindex("<section") == page.index('<section id="conclusions">')


def test_an_answer_that_does_not_hold_is_no_yes():
    report = made_up_report()
    change = msgspec.structs.replace
    lost = change(report, faults=change(report.faults, lost=1, answered_by_deadline=119))
    assert (conclusions(lost)[2].verdict, conclusions(lost)[2].holds) == ("not always", False)
    unnoticed = change(report, loop=change(report.loop, drift_delay_requests=None))
    assert (conclusions(unnoticed)[3].verdict, conclusions(unnoticed)[3].holds) == ("not this time", False)
    leaked = change(report, kpis=change(report.kpis, training=change(report.kpis.training, raw_bytes_off_device=7)))
    assert conclusions(leaked)[0] == Conclusion(QUESTIONS[0], "no", conclusions(leaked)[0].answer, False)


def test_the_readme_asks_the_four_questions():
    from pathlib import Path

    readme = " ".join((Path(__file__).parents[2] / "README.md").read_text().split())
    assert all(question in readme for question in QUESTIONS)


def test_only_the_plan_itself_is_marked_not_its_level():
    search = make_search(
        graph(), profiles(), [FAST, WAN], Policy(raw_may_reach=Tier.DEVICE), evidence(), codecs=("none", "int8")
    )
    said = recommend(search)
    edge_trained = plan_levels(search, {"edge": evidence(0.70)})
    assert edge_trained[said.level].feasible
    rows = level_rows(edge_trained, said.plan)
    assert not any(row.recommended for row in rows)
    page = render_page(
        planned(levels=rows, name=said.plan.name, waterfall=(("device compute", 4.0), ("a stage of its own", 9.0)))
    )
    assert "a stage of its own: 9.00 ms" in page
    assert page.count('class="chosen"><td><b>plan</b>') == 1
    own = level_rows([edge_trained[0], msgspec.structs.replace(edge_trained[5], plan=said.plan)], said.plan)
    assert [row.recommended for row in own] == [False, True]


def way(gain: tuple[float, float, float] | None, *, allowed: bool = True, recommended: bool = False) -> WayRow:
    return WayRow("w", "float32", ("device",), allowed, recommended, 10, 10, 1.0, 9.0, gain=gain)


def test_the_measured_best_is_one_that_no_allowed_way_is_certainly_faster_than():
    best, slower, tie, faster = way(None, recommended=True), (-0.3, -0.4, -0.2), (0.03, -0.02, 0.08), (0.1, 0.05, 0.2)
    assert measured_best([best, way(slower), way(tie), way(faster, allowed=False)]) is True
    assert measured_best([best, way(slower), way(faster)]) is False
    assert measured_best([best]) is None
    search = make_search(graph(), profiles(), [FAST, WAN], Policy(), evidence())
    row = planner_answer("?", recommend(search), [best, way(slower)])
    assert row.is_measured_best is True
    assert "measured best" in render_page(msgspec.structs.replace(made_up_report(), answers=(row,)))


def test_predictions_stand_beside_the_whole_stream_with_shares_and_exits_as_the_model_names_them():
    shares = (ExitShareRow(0, 0.678, 0.41), ExitShareRow(1, 0.322, 0.59))
    page = render_page(
        planned(predicted_mean_ms=12.2, measured_mean_ms=15.5, mean_error_fraction=0.213, p50_error_fraction=0.484,
                p95_error_fraction=0.1, exit_shares=shares, share_error_points=26.8)
    )  # fmt: skip
    assert "leave at exit 0" in page
    assert "leave at exit 2" not in page
    assert "26.8 points" in page
    assert "left at exit 0" in page
    assert "left at exit 2" not in page


def test_no_two_stages_look_alike():
    paints = [stage_paint(index) for index in range(5 * NUM_COLOURS)]
    assert len(set(paints)) == len(paints)


def test_nothing_on_the_page_needs_more_than_a_phones_width():
    css = files("edgewise.service.report").joinpath("page.css").read_text("utf-8")
    narrow = 320
    scrolls = re.findall(r"(\.scroll|figure) \{[^}]*overflow-x: auto", css)
    assert {".scroll", "figure"} <= set(scrolls), "tables and plots scroll in their own boxes"
    for selector, body in re.findall(r"([^{}]+)\{([^{}]*)\}", css):
        if "svg" in selector or ".reason" in selector or "td" in selector or ".fallbox" in selector:
            continue  # inside a box that scrolls
        bare = re.sub(r"(?:min|minmax)\((?:[^()]|\([^()]*\))*\)", "", body.replace("minmax(min(100%", "min(("))
        wide = [float(n) for n in re.findall(r"(?<!max-)width:\s*([\d.]+)px", bare)]
        wide += [float(n) for n in re.findall(r"minmax\(([\d.]+)px", body)]
        assert all(n <= narrow for n in wide), (selector, wide)
