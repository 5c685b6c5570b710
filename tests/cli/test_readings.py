"""`edgewise infer` prints what a model says: labels as labels, several outputs by name, detections as rows."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewise.cli.infer import ask_all, client_of, show_answers, summarise
from edgewise.cli.output import Output
from edgewise.cli.readings import ModelFacts, class_output, facts_of, found_rows, in_short, said_class
from edgewise.core.errors import InputError
from edgewise.inference.serving_node import local_server
from edgewise.models.graph.graph import Graph, graph_from
from edgewise.service.open_inference import serve_http
from tests.inference.tiny import images, two_exit_graph
from tests.service.onnx_kinds import BOXES, TEXTS, Kind, X, kinds

KINDS = kinds()


def asked(graph: Graph, file: Path, output: str = "") -> list[Any]:
    async def run() -> list[Any]:
        node = await local_server(graph, name="my model (1) é")
        endpoint = await serve_http(node)
        try:
            name, answers, _ = await ask_all(Output(), client_of(endpoint.url), "", file, 100, 1.0, output=output)
            show_answers(Output(), name, answers)
            return answers
        finally:
            await endpoint.close()
            await node.close()

    return asyncio.run(run())


def shown(kind: Kind, folder: Path, output: str = "", **arrays: Any) -> list[Any]:
    np.savez(folder / "data.npz", **{k: a.astype(str) if a.dtype == object else a for k, a in arrays.items()})
    return asked(graph_from(kind.model), folder / "data.npz", output)


@pytest.mark.parametrize(
    ("kind", "labels", "right"), [("string_labels", ["no", "yes"], 0.5), ("zip_map", ["no", "no"], 1.0)]
)
def test_labels_are_printed_as_labels(
    kind: str, labels: list[str], right: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = shown(KINDS[kind], tmp_path, x=np.float32([[2, 1], [2, 1]]), y=np.array(labels))
    assert [answer.predicted for answer in answers] == ["no", "no"]
    assert summarise(answers)["accuracy"] == right
    text = capsys.readouterr().out
    assert "class" in text
    assert (" no " in text, "no (0.7" in text) == (True, kind == "zip_map")  # a ZipMap's scores know their labels


def test_whole_numbers_as_labels_are_no_indices(tmp_path: Path) -> None:
    answers = shown(KINDS["zip_map_of_numbers"], tmp_path, x=np.float32([[2, 1], [1, 2]]), y=np.array([3, 5]))
    assert [answer.predicted for answer in answers] == [3, 5]
    assert summarise(answers)["accuracy"] == 1.0


def test_several_outputs_are_printed_by_name_and_no_class_is_made_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = shown(KINDS["rank_0"], tmp_path, x=X, by=np.array(2, "f4"), y=np.array([0, 1]))
    assert [answer.outputs["energy"] for answer in answers] == [float(np.float32(2 * row.sum())) for row in X]
    assert {answer.predicted for answer in answers} == {None}
    assert summarise(answers)["accuracy"] is None
    head = next(line for line in capsys.readouterr().out.splitlines() if "example" in line)
    assert ("energy" in head, "class" in head) == (True, False)


def test_the_class_is_taken_from_the_output_that_is_asked_for(tmp_path: Path) -> None:
    arrays = {"x": X, "by": np.array(2, "f4"), "y": (-X).argmax(1)}
    assert summarise(shown(KINDS["rank_0"], tmp_path, "y", **arrays))["accuracy"] == 1.0
    with pytest.raises(InputError, match=r"the model has no output 'z'\. Known: energy, y\."):
        shown(KINDS["rank_0"], tmp_path, "z", **arrays)


def test_detections_are_a_table_with_a_row_each_also_where_there_are_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = np.float32([[0.9, 0.1, 0.8, 0.2], [0.1] * 4]).reshape(2, 1, 4)
    answers = shown(KINDS["varying_sizes"], tmp_path, boxes=np.repeat(BOXES, 2, axis=0), scores=scores)
    assert [len(answer.found) for answer in answers] == [2, 0]
    assert answers[0].found[1] == {"picked[0]": 0, "picked[1]": 0, "picked[2]": 2}
    text = capsys.readouterr().out
    assert [words in text for words in ("0: 2 found", "picked[2]", "1: 0 found")] == [True] * 3


def test_the_end_of_a_model_with_exits_says_the_class(tmp_path: Path) -> None:
    graph, x = two_exit_graph(), images(4)
    np.savez(tmp_path / "data.npz", x=x)
    answers = asked(graph, tmp_path / "data.npz")
    assert [a.predicted for a in answers] == [int(np.argmax(a.outputs["end"])) for a in answers]
    nameless = two_exit_graph(named=False)
    assert {answer.predicted for answer in asked(nameless, tmp_path / "data.npz")} == {None}


@pytest.mark.parametrize("kind", ["strings", "sampling_rate", "symbolic_axes", "fixed_batch"])
def test_inputs_of_every_form_are_read_and_answers_are_json(kind: str, tmp_path: Path) -> None:
    arrays = {
        "strings": {"word": TEXTS},
        "sampling_rate": {"x": np.ones((2, 6), "f4"), "sr": np.array(16000)},
        "symbolic_axes": {"x": np.ones((2, 3, 5), "f4")},
        "fixed_batch": {"x": np.stack([X, X, X])},
    }[kind]
    answers = shown(KINDS[kind], tmp_path, **arrays)
    assert len(answers) == {"strings": 3, "fixed_batch": 3}.get(kind, 2)
    json.dumps([answer.outputs for answer in answers])


def test_boxes_scores_and_classes_of_one_length_are_rows() -> None:
    outputs = {"boxes": np.zeros((1, 3, 4), "f4"), "scores": np.zeros((1, 3), "f4"), "kinds": np.zeros((1, 3), int)}
    rows = found_rows(outputs, ModelFacts())
    assert rows is not None
    assert [list(row) for row in rows] == [["boxes[0]", "boxes[1]", "boxes[2]", "boxes[3]", "scores", "kinds"]] * 3
    assert class_output(outputs, ModelFacts()) == ""


def test_what_varies_or_stands_beside_an_answer_is_not_called_found() -> None:
    config = {
        "input": [{"dims": [2, -1]}],
        "output": [
            {"name": "y", "dims": [2, -1]},
            {"name": "rows", "dims": [-1, 6]},
            {"name": "one", "dims": [1, -1, 6]},
        ],
    }
    assert facts_of(config).varying == {"rows", "one"}
    anchors = {"anchors": np.zeros((2, 2), "f4"), "y": np.zeros((1, 2), "f4")}
    assert found_rows(anchors, ModelFacts()) is None


def test_the_best_of_scores_that_are_no_numbers_is_no_class() -> None:
    assert said_class(np.float32([[np.nan, np.inf]])) is None
    assert said_class(np.float32([[-np.inf, np.inf]])) == 1
    assert in_short(np.float32([np.nan, 1]), ["a", "b"]) == "[nan, 1]"
