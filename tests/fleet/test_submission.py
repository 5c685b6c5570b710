"""A job file as a request to a fleet: who takes part, what they hold, what is sent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgewise.core.errors import InputError, TaskError
from edgewise.core.ids import ClientId, Generation, NodeId, Tier
from edgewise.fleet.messages import Capability, HardExamples, NodeInfo, NodeRow, hard_examples_of
from edgewise.fleet.operator.submission import audit_of, make_request, participants
from edgewise.models.export import export_template
from edgewise.models.graph.weights import weights_of, with_weights
from edgewise.testing import TinyTask
from edgewise.training.job import JobFile, TaskTable, TrainingTable


def row(client: str, state: str = "alive", task: str = "tiny", **fields: Any) -> NodeRow:
    can = Capability(1, 2**30, 1e9, 1.0, 3.0, "3.11")
    node = NodeId(f"device-{client}")
    given = {"client": ClientId(client), "task": task, "num_examples": 20, **fields}
    return NodeRow(NodeInfo(node, Tier.DEVICE, Generation(1), "PEM", NodeId("cloud"), can, **given), state)


def job(**training: Any) -> JobFile:
    return JobFile(TaskTable("tiny"), TrainingTable(**training))


HELD = participants([row("b"), row("a"), row("c", "gone"), row("d", task="other")], "tiny")


def test_who_is_alive_and_has_the_task_takes_part() -> None:
    assert [info.client for info in HELD] == ["a", "b"]


def test_without_anybody_it_says_what_is_installed_where() -> None:
    said = r"no live node .* has task 'tiny' installed; installed is 'other' on device-d \(alive\), 'tiny' on device-a \(gone\)"
    with pytest.raises(InputError, match=said):
        participants([row("d", task="other"), row("a", "gone")], "tiny")


def test_the_audit_is_made_from_counts_alone() -> None:
    held = [
        row("a", num_examples=4, label_counts={"0": 4}).info,
        row("b", num_examples=4, label_counts={"1": 4}).info,
        row("c", num_examples=0).info,
    ]
    found = audit_of(held)
    assert found.examples == {"a": 4, "b": 4, "c": 0}
    assert found.empty_clients == ("c",)
    # Shares (1, 0) against (1/2, 1/2): half the absolute differences is 1/2, for every example.
    assert found.label_skew == 0.5


def test_targets_that_are_no_labels_are_counted_only() -> None:
    found = audit_of([row("a", num_examples=3).info])
    assert (found.num_examples, found.label_counts) == (3, {})


@pytest.mark.parametrize(("quorum", "needed"), [(0, 2), (1, 1), (2, 2)])
def test_a_quorum_travels_as_it_is_and_is_the_whole_cohort_by_default(quorum: int, needed: int) -> None:
    request, _ = make_request(job(quorum=quorum, round_deadline="30 s", rounds=3), TinyTask(), HELD)
    assert (request.quorum, request.round_deadline_s, request.num_rounds) == (needed, 30.0, 3)
    assert request.clients == ("a", "b")


def test_who_holds_nothing_is_left_out_and_is_not_waited_for() -> None:
    request, _ = make_request(job(), TinyTask(), [*HELD, row("z", num_examples=0).info])
    assert (request.clients, request.quorum) == (("a", "b"), 2)
    with pytest.raises(InputError, match="none of the 1 nodes with task 'tiny' holds examples"):
        make_request(job(), TinyTask(), [row("z", num_examples=0).info])


def test_a_drawn_cohort_is_all_that_a_round_needs() -> None:
    request, _ = make_request(job(clients_per_round=1), TinyTask(), HELD)
    assert request.quorum == 1  # one of two


def test_more_updates_than_clients_is_refused() -> None:
    with pytest.raises(InputError, match=r"training\.quorum is 3, only 2 nodes hold data of task 'tiny'\. Lower it"):
        make_request(job(quorum=3), TinyTask(), HELD)


def test_a_new_model_travels_and_a_continued_one_does_not() -> None:
    request, files = make_request(job(seed=5), TinyTask(), HELD)
    assert files.model is not None
    assert (files.model.shape, files.model.dtype) == ((request.spec.num_entries,), np.float32)
    assert (request.spec.seed, request.spec.protocol, request.spec.run) == (5, {"name": "synchronous"}, "")
    assert make_request(job(), TinyTask(), HELD, start_version=2)[1].model is None


def test_a_template_travels_without_weights_and_takes_them_up_again() -> None:
    _, layout = export_template(TinyTask(hidden=512))
    files = make_request(job(), TinyTask(hidden=512), HELD)[1]
    assert len(files.template) < layout.size
    vector = np.arange(layout.size, dtype=np.float32)
    assert weights_of(with_weights(files.template, layout, vector), layout).tobytes() == vector.tobytes()


def test_hard_examples_are_said_in_the_run_itself() -> None:
    def of(**options: Any) -> HardExamples | None:
        return hard_examples_of(make_request(job(), TinyTask(), HELD, **options)[0].spec)

    assert [of(labels=labels) for labels in ("", "feedback")] == [None, HardExamples({"name": "feedback"})]
    request, _ = make_request(job(), TinyTask(), HELD, labels="teacher(reads='device')", teacher_version=3)
    taught = hard_examples_of(request.spec)
    assert taught is not None
    assert (taught.labels["reads"], request.teacher_version) == ("device", 3)


def test_a_model_that_does_not_build_is_told_with_its_place() -> None:
    class Broken(TinyTask):
        def model(self) -> Any:
            raise ValueError("no such layer")

    with pytest.raises(
        TaskError, match=r"task 'tiny' makes no model: ValueError: no such layer \(test_submission.py:\d+\)"
    ):
        make_request(job(), Broken(), HELD)
