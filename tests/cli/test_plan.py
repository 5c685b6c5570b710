"""`edgewise profile` and `edgewise plan` on a user's own ONNX file."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgewise.api.tier_profiles import links_of, stretched
from edgewise.cli.main import run
from edgewise.core.ids import NodeId, Tier
from edgewise.planning.profile import Fingerprint, GroupCost, Profile, SegmentCost
from edgewise.simulation.emulated.fleet_file import FleetFile
from tests.inference.tiny import rescaling_graph, two_exit_graph

FAST = ["--budget", "100 ms"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    (folder / "tiny.onnx").write_bytes(two_exit_graph().model_bytes)
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(20, 1, 8, 8)).astype(np.float32)
    np.savez(folder / "inputs.npz", x=inputs)
    np.savez(folder / "labelled.npz", x=inputs, y=rng.integers(0, 10, 20))
    return folder


def plan_words(folder: Path, *more: str, data: str = "inputs.npz") -> list[str]:
    return ["plan", str(folder / "tiny.onnx"), "--data", str(folder / data), *FAST, *more]


def test_without_labels_the_accuracy_is_called_agreement(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(plan_words(folder)) == 0
    shown = capsys.readouterr().out
    assert "agreement with the whole model on 20 examples without labels" in shown
    assert "recommended, level" in shown


def test_seven_levels_are_printed_and_untrained_ones_say_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(plan_words(folder, "--json", data="labelled.npz")) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [row["level"] for row in answer["levels"]] == list(range(7))
    assert [row["feasible"] for row in answer["levels"]][4:] == [False] * 3
    assert answer["accuracy_means"].startswith("accuracy on 20 labelled examples; whether")


def test_a_policy_that_keeps_raw_inputs_is_kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "policy.toml").write_text('raw_may_reach = "device"\n')
    assert run(plan_words(folder, "--policy", str(folder / "policy.toml"), "--json")) == 0
    levels = json.loads(capsys.readouterr().out)["levels"]
    assert levels[0]["feasible"] is False
    assert all(not cut["carries_raw"] for row in levels if row["plan"] for cut in row["plan"]["handovers"])


def test_a_policy_that_cannot_be_met_names_the_limit(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "hard.toml").write_text("max_latency_s = 1e-9\n")
    assert run(plan_words(folder, "--policy", str(folder / "hard.toml"))) == 1
    assert "error [plan.infeasible]: no plan meets the policy: max_latency_s" in capsys.readouterr().err


def test_a_typo_in_the_fleet_file_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "fleet.toml").write_text("[devices]\ndilatoin = 3.0\n")
    assert run(plan_words(folder, "--fleet", str(folder / "fleet.toml"))) == 1
    assert "devices.dilatoin is not a setting. Did you mean 'dilation'?" in capsys.readouterr().err


def test_a_profile_from_another_machine_is_used(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edge = str(folder / "edge.json")
    assert run(["profile", str(folder / "tiny.onnx"), *FAST, "--tier", "edge", "--node", "edge-7", "--out", edge]) == 0
    assert "measured cuts" in capsys.readouterr().out
    written = msgspec.json.decode(Path(edge).read_bytes(), type=Profile)
    assert (written.node, written.tier) == ("edge-7", "edge")
    assert run(plan_words(folder, "--profile", edge)) == 0


def test_a_file_that_is_no_profile_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(plan_words(folder, "--profile", str(folder / "tiny.onnx"))) == 1
    assert "is not a profile" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["profile", "plan", "serve"])
def test_a_corrupt_model_is_refused(folder: Path, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "bad.onnx").write_bytes(b"not a model")
    data = ["--data", str(folder / "inputs.npz")] if verb == "plan" else []
    assert run([verb, str(folder / "bad.onnx"), *data]) == 1
    assert "error [input.graph]" in capsys.readouterr().err


def test_a_stretched_profile_multiplies_compute_alone() -> None:
    print_ = Fingerprint(two_exit_graph().digest, "ort", 1, "cpu", 1.0, 0.0)
    here = Profile(
        NodeId("local"), Tier.DEVICE, print_, (GroupCost("g0", 1.0, 2.0),), (SegmentCost(0, 0, 1.0, 2.0, 0.5, 9),),
        {"int8": 0.25}, 0.125, call_s=0.5,
    )  # fmt: skip
    slow = stretched(here, Tier.EDGE, 4.0, 15.0)
    assert slow.groups == (GroupCost("g0", 4.0, 8.0),)
    assert slow.segments == (SegmentCost(0, 0, 4.0, 8.0, 2.0, 9),)
    assert (slow.codecs, slow.overhead_s, slow.fingerprint.dilation) == ({"int8": 0.25}, 0.125, 4.0)
    assert slow.call_s == 2.0


def test_links_are_those_of_the_fleet_file() -> None:
    first, second = links_of(FleetFile())
    assert (first.bytes_per_s, first.rtt_s) == (2.5e6, 0.005)
    assert (second.bytes_per_s, second.rtt_s) == (6.25e6, 0.02)


def test_another_planner_is_asked_too_and_its_plan_goes_over_two_edges(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(plan_words(folder, "--planner", "pipeline", "--json")) == 0
    other = json.loads(capsys.readouterr().out)["other"]
    assert [(s["site"]["tier"], s["site"]["ordinal"]) for s in other["stages"]][-2:] == [("edge", 0), ("edge", 1)]
    assert run(plan_words(folder, "--planner", "pipelin")) == 1
    assert "Did you mean 'pipeline'" in capsys.readouterr().err


def test_a_model_of_two_tasks_is_planned_with_both_unless_exits_are_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "tasks.onnx").write_bytes(two_exit_graph(named=False).model_bytes)
    words = ["plan", str(folder / "tasks.onnx"), "--data", str(folder / "inputs.npz"), *FAST, "--json"]
    for more, answered in (([], [["early", "end"]]), (["--exits", "early,end"], None)):
        assert run([*words, *more]) == 0
        plan = json.loads(capsys.readouterr().out)["recommendation"]["plan"]
        assert answered is None or [gate["tensors"] for gate in plan["gates"]] == answered
        assert {gate["tensors"][-1] for gate in plan["gates"]} <= {"early", "end"}


def test_what_is_assumed_is_printed_with_where_it_comes_from(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    declared = folder / "speeds.toml"
    declared.write_text(
        '[devices]\nspeed = "2 MFLOP/s"\nlink = { rate = "1 Mbit/s" }\n[cloud]\nspeed = "900000 GFLOP/s"\n'
    )
    assert run(plan_words(folder, "--fleet", str(declared), data="labelled.npz")) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "assumed, policy: no limits" in shown
    flops = sum(group.flops for group in two_exit_graph().condensed.groups)
    assert f"device: 2 MFLOP/s, declared; the whole model takes {flops / 2e6 * 1e3:.3g} ms" in shown
    assert "cloud: 900000 GFLOP/s, declared" in shown
    assert "as fast as this machine can" in shown
    assert f"links as {declared} says: device–edge 1 Mbit/s, 5 ms" in shown
    assert "whether the model was trained on them is not known" in shown
    assert run(plan_words(folder)) == 0
    assert "by default; give a fleet file to say otherwise" in capsys.readouterr().out


def test_agreement_is_not_shown_like_accuracy(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(plan_words(folder)) == 0
    shown = capsys.readouterr().out
    assert "accuracy" not in shown.replace("agreement, not accuracy", "").replace("not accuracy", "")


def test_int8_and_other_files_are_candidates(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = folder / "small.onnx"
    small.write_bytes(two_exit_graph(seed=7).model_bytes)
    written = folder / "int8.onnx"
    assert run(plan_words(folder, "--variant", str(small), "--int8", str(written), "--json", data="labelled.npz")) == 0
    names = [row["name"] for row in json.loads(capsys.readouterr().out)["one_node"]]
    assert names[-2:] == ["int8 on device", "small on device"]
    assert run(["profile", str(written), *FAST]) == 0
    capsys.readouterr()
    (folder / "other.onnx").write_bytes(rescaling_graph().model_bytes)
    assert run(plan_words(folder, "--variant", str(folder / "other.onnx"))) == 1
    assert "A variant answers the same requests" in capsys.readouterr().err
