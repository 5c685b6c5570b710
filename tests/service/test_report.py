"""The report: what is written is read back, the page needs nothing else, unknown numbers say why."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from edgewise.core.errors import InputError
from edgewise.service.report import (
    InferenceKpis,
    Kpis,
    PlanSection,
    Report,
    TrainingKpis,
    explained,
    kpi_rows,
    read_report,
    unknown_numbers,
    write_report,
)
from edgewise.service.report.page import render_page
from edgewise.service.report.picture import write_picture
from tests.service.made_up import made_up_report

WANTED = {
    "kpis.training": "loss accuracy rounds seconds uplink_bytes downlink_bytes wan_bytes energy_j energy_source "
    "raw_bytes_off_device",
    "kpis.inference": "latency_ms accuracy energy_j_per_request energy_source bytes_per_request "
    "raw_inputs_off_device_fraction peak_memory_bytes",
    "kpis.inference.latency_ms": "p50 p95 p99",
    "plan": "level tiers margin_fraction predicted_p50_ms measured_p50_ms median_abs_error_fraction levels",
    "plan.levels.0": "level tiers training_domain feasible reason predicted_p50_ms predicted_p95_ms device_energy_j "
    "egress_bytes accuracy",
    "codec": "uncoded_bytes coded_bytes accuracy_uncoded accuracy_coded",
    "faults": "requests answered_by_deadline plan_switches lost failover_ms returned_home shares",
    "loop": "accuracy_before accuracy_drifted accuracy_after bad_version_refused rolled_back monitors drift_kind",
    "loop.monitors.0": "monitor statistic threshold seen found waits_for price",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(made_up_report(), folder)
    return folder


@pytest.mark.parametrize(("place", "fields"), WANTED.items())
def test_report_json_has_the_promised_fields(folder: Path, place: str, fields: str) -> None:
    value = json.loads((folder / "report.json").read_text())
    for part in place.split("."):
        value = value[int(part)] if part.isdigit() else value[part]
    assert set(fields.split()) <= set(value)


def test_there_are_seven_levels(folder: Path) -> None:
    assert [level.level for level in read_report(folder).plan.levels] == list(range(7))


def test_a_report_is_read_back_as_it_was_written(folder: Path) -> None:
    assert read_report(folder) == explained(made_up_report(), {})
    assert read_report(folder / "report.json") == read_report(folder)


def test_the_page_is_the_same_for_the_same_report(folder: Path) -> None:
    assert (folder / "index.html").read_text() == render_page(read_report(folder))


def test_the_page_asks_for_nothing_from_anywhere(folder: Path) -> None:
    page = (folder / "index.html").read_text()
    assert not re.search(r"<(script|link|img|iframe)\b", page)
    addresses = set(re.findall(r"https?://[^\s\"'<>]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # names, never fetched
    assert not re.search(r"@import|url\((?!#)", page)


def test_the_page_is_well_formed_with_unique_ids(folder: Path) -> None:
    open_tags, ids = [], []

    class Checker(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            ids.extend(value for name, value in attrs if name == "id")
            if tag not in ("meta", "br"):
                open_tags.append(tag)

        def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            ids.extend(value for name, value in attrs if name == "id")

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    Checker().feed((folder / "index.html").read_text())
    assert open_tags == []
    assert len(ids) == len(set(ids))


def test_the_page_takes_plot_colours_from_its_style(folder: Path) -> None:
    page = (folder / "index.html").read_text()
    assert "var(--s1)" in page
    assert not re.search(r"#0[0-9]0[0-9]0[0-9]|#0a000", page)


def test_the_page_escapes_text(folder: Path) -> None:
    page = (folder / "index.html").read_text()
    assert "after &lt;drift&gt;" in page
    for shown in (
        "what changed: concept",
        "234",
        "96 labels",
        "480 requests",
        "nothing found",
        "labels to train with",
        "no labels",
    ):
        assert shown in page
    assert "<drift>" not in page


def test_an_empty_report_has_a_page(tmp_path: Path) -> None:
    page = write_report(Report(), tmp_path).read_text()
    assert "<svg" not in page
    assert "not measured in this run" in page


def test_unknown_numbers_are_null_with_a_reason(tmp_path: Path) -> None:
    report = explained(Report(), {"kpis.training.energy_j": "no energy model", "faults": "no fault was injected"})
    write_report(report, tmp_path)
    read = read_report(tmp_path)
    assert read.kpis.training.energy_j is None
    assert read.unknown["kpis.training.energy_j"] == "no energy model"
    assert read.unknown["faults.failover_ms"] == "no fault was injected"
    assert set(read.unknown) == set(unknown_numbers(read))


def test_a_number_that_is_not_a_number_is_unknown(tmp_path: Path) -> None:
    write_report(Report(plan=PlanSection(measured_p50_ms=float("nan"))), tmp_path)
    assert "plan.measured_p50_ms" in read_report(tmp_path).unknown


def test_infeasible_levels_need_no_reason_per_number() -> None:
    report = made_up_report()
    levels = tuple(
        msgspec.structs.replace(level, predicted_p50_ms=None, feasible=level.level == 4) for level in report.plan.levels
    )
    changed = msgspec.structs.replace(report, plan=msgspec.structs.replace(report.plan, levels=levels))
    assert [p for p in unknown_numbers(changed) if p.startswith("plan.levels")] == ["plan.levels.4.predicted_p50_ms"]


def test_there_are_twelve_kpis_six_of_each_half() -> None:
    halves = [row.half for row in kpi_rows(made_up_report())]
    assert halves == ["training"] * 6 + ["inference"] * 6


def test_kpi_rows_say_what_was_modelled_and_why_a_number_is_missing() -> None:
    report = explained(made_up_report(), {"kpis.training.energy_j": "no energy model was given"})
    rows = {row.name: row for row in kpi_rows(report)}
    assert (rows["Energy per request"].text, rows["Energy per request"].source) == ("12.3 mJ", "modelled")
    assert (rows["Energy"].text, rows["Energy"].source) == ("–", "no energy model was given")
    assert rows["Communication"].text == "412.00 kB up, 1.58 MB down, 620.00 kB WAN"


def test_kpi_rows_write_a_known_zero_as_a_number() -> None:
    report = Report(kpis=Kpis(TrainingKpis(raw_bytes_off_device=0), InferenceKpis(raw_inputs_off_device_fraction=0.0)))
    texts = {row.name: row.text for row in kpi_rows(report)}
    assert texts["Privacy: raw bytes off the devices"] == "0 B"
    assert texts["Privacy: requests whose raw input left the device"] == "0.0%"


def test_reading_a_folder_without_a_report_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no report at .* Run `edgewise demo`"):
        read_report(tmp_path)


def test_reading_something_else_says_so(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text('{"kpis": 3}')
    with pytest.raises(InputError, match=r"is not a report: Expected `object`, got `int` - at `\$.kpis`"):
        read_report(tmp_path)


def test_the_picture_is_a_png_of_the_promised_size(tmp_path: Path) -> None:
    data = write_picture(made_up_report(), tmp_path / "images" / "run.png", dpi=50).read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")) == (500, 480)
