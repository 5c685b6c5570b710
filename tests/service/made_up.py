"""A report with made-up values, for tests of the page only."""

from __future__ import annotations

import numpy as np

from edgewise.models.version import GateResult
from edgewise.service.report import (
    AuditRow,
    Baseline,
    CodecSection,
    FaultsSection,
    InferenceKpis,
    Kpis,
    LabelRow,
    LatencyMs,
    LevelEntry,
    LoopSection,
    MonitorRow,
    PhaseRow,
    PlannerAnswer,
    PlanSection,
    Report,
    RequestRow,
    ResourceRow,
    RoundRow,
    SplitSizes,
    TimelineEntry,
    TrainingKpis,
    VersionRow,
)


def made_up_report() -> Report:
    """Every part filled; no number in it was measured."""
    training = TrainingKpis(
        loss=0.21,
        accuracy=0.958,
        rounds=12,
        seconds=9.4,
        uplink_bytes=412_000,
        downlink_bytes=1_580_000,
        wan_bytes=620_000,
        energy_j=None,
        energy_source="modelled",
        raw_bytes_off_device=0,
    )
    inference = InferenceKpis(
        latency_ms=LatencyMs(18.2, 41.0, 55.3),
        accuracy=0.951,
        energy_j_per_request=0.0123,
        energy_source="modelled",
        bytes_per_request=540.0,
        raw_inputs_off_device_fraction=0.0,
        peak_memory_bytes=148_000_000,
    )
    return Report(
        title="Digits on one cloud, two edges, eight devices",
        kpis=Kpis(training, inference),
        plan=PlanSection(
            4, ("device", "edge"), 0.34, 19.0, 18.2, 0.071, _levels(), "split device|edge int8 exit 0.80", 43.0, 10, 140
        ),
        codec=CodecSection(1_640_000, 412_000, 0.961, 0.958, "error_feedback(int8())"),
        faults=FaultsSection(
            120,
            120,
            3,
            0,
            24.0,
            True,
            {"full plan": 0.52, "device exit": 0.31, "another edge": 0.17},
            129.0,
            (
                PhaseRow("fault-free", 10, 25, 150, 150, 0.953, 18.2, 41.0, {"full plan": 1.0}),
                PhaseRow("slow link", 25, 31, 60, 60, 0.931, 26.0, 80.0, {"full plan": 0.6, "device exit": 0.4}),
                PhaseRow("edge killed", 31, 37, 60, 60, 0.92, 22.0, 61.0, {"device exit": 0.2, "another edge": 0.8}),
            ),
        ),
        loop=LoopSection(
            0.953, 0.806, 0.921, True, True, 31, "e-detector(threshold=10000)", (LabelRow("feedback", 96, 96, 1.0),),
            (MonitorRow("harm", 234.5, 100.0, 96, "drift: for 40 labels", "labels to train with"), MonitorRow("change", 0.7, 100.0, 480)),
            "concept",
        ),
        split=SplitSizes(1000, 250, 360, 187, 200),
        audit=tuple(AuditRow(f"device-{i}", 120, tuple(range(i, i + 10)), i < 7) for i in range(8)),
        rounds=tuple(
            RoundRow(run, r, 2.3 * 0.75**r, 1 - 0.9 * 0.7**r, 34_000 if run == "first" else 136_000, 131_000, 0.7, 6)
            for run in ("first", "uncoded")
            for r in range(1, 13)
        ),
        answers=(
            PlannerAnswer("Raw inputs never leave the device", "split device|edge", ("device", "edge"), 4, True, 19, 43, 0.95, 220, 0.34, "The narrow cut is 4x smaller."),
            PlannerAnswer("No policy", "raw to edge", ("edge",), 2, False, 12.0, 14.0, 0.96, 64, 0.0, "A digit is 64 bytes."),
            PlannerAnswer("64 kbit/s", "all on device", ("device",), 6, False, 29, 31, 0.94, 0, 0.0, "Do not collaborate."),
        ),
        baselines=(Baseline("raw to edge", False, "raw inputs may not leave the device", 12.0, 14.0), Baseline("int8 on device", True, "", 29.0, 31.0, 30.1, 0.02, 0.0, 0.94)),
        versions=(
            VersionRow(1, "first training", "ab" * 32, 0, 0.958, None, "replaced"),
            VersionRow(2, "after <drift>", "cd" * 32, 1, 0.956, GateResult(True, 360, 2, 3, 1.1, 2.0, "passed: of 360 pairs …"), "serving"),
            VersionRow(3, "deliberately bad", "ef" * 32, 2, 0.31, GateResult(False, 360, 240, 4, 69.0, 2.0, "refused: …"), "refused"),
        ),
        requests=_requests(),
        timeline=(
            TimelineEntry(0.0, "training", "12 rounds over 6 devices and 2 edges"),
            TimelineEntry(10.0, "serving", "version 1 serves on 8 devices"),
            TimelineEntry(25.0, "serving", "link device-1|edge-1 drops to 1 Mbit/s", "fault"),
            TimelineEntry(25.8, "serving", "plan epoch 2: all on device", "plan"),
            TimelineEntry(31.0, "serving", "edge-1 killed (SIGKILL)", "fault"),
            TimelineEntry(41.5, "drift", "confidence drift since 38.2 s, 31 requests ago"),
            TimelineEntry(44.0, "retraining", "second federated run from version 1"),
            TimelineEntry(51.0, "gate", "version 2 passed; version 3 refused"),
            TimelineEntry(52.5, "rollout", "device by device: completed"),
        ),
        resources=(ResourceRow("cloud", "cloud", 3.2, 181_000_000, 96.0), ResourceRow("device-1", "device", 2.1, 148_000_000, 10.5)),
        energy_parameters={"device": {"active_power_w": 4.0, "joules_per_byte_up": 2e-7}},
        meta={"edgewise": "0.1.0", "seed": "7"},
    )  # fmt: skip


def _levels() -> tuple[LevelEntry, ...]:
    falls = [
        ("device compute", 6.0),
        ("device→edge", 9.0),
        ("edge compute", 4.0),
        ("edge→cloud", 24.0),
        ("cloud compute", 1.0),
    ]
    tiers = [("cloud",), ("edge", "cloud"), ("edge",), ("device",), ("device", "edge"), ("edge",), ("device",)]
    domains = ["cloud"] * 4 + ["federated", "edge", "device"]
    return tuple(
        LevelEntry(
            level,
            tiers[level],
            domains[level],
            level > 2 and level != 5,
            "split at conv3" if level == 4 else "" if level in (3, 6) else "raw inputs may not leave the device",
            19.0 + level,
            43.0,
            0.012,
            220.0,
            0.95,
            tuple((n, ms * (1 + level % 3)) for n, ms in falls[: 2 + level % 4]),
            level == 4,
        )
        for level in range(7)
    )  # fmt: skip


def _requests() -> tuple[RequestRow, ...]:
    rng = np.random.default_rng(3)
    rows = []
    for index in range(460):
        arrival = 10 + 0.1 * index
        phase = (
            "fault-free"
            if arrival < 25
            else "slow link"
            if arrival < 31
            else "edge killed"
            if arrival < 37
            else "drifted"
            if arrival < 53
            else "recovered"
        )
        exit_index = int(rng.random() < 0.4)
        predicted = (8.0, 21.0)[exit_index]
        by = (
            "full plan"
            if phase not in ("slow link", "edge killed") or rng.random() < 0.5
            else "device exit"
            if phase == "slow link"
            else "another edge"
        )
        wait = 3.0 if by == "another edge" else 1.0
        right = rng.random() < (0.8 if phase == "drifted" else 0.95)
        rows.append(
            RequestRow(
                arrival,
                wait * predicted * float(rng.lognormal(0, 0.08)),
                predicted,
                exit_index,
                phase,
                by,
                bool(right),
                index < 10,
            )
        )
    return tuple(rows)  # fmt: skip
