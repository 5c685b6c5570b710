"""`edgewise infer`: which model is asked, where an endpoint serves one or several."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from edgewise.cli.infer import ask_all, client_of
from edgewise.cli.output import Output
from edgewise.core.errors import InputError, RemoteError
from edgewise.core.ids import NodeId, Revision
from edgewise.inference.serving_node import ServingNode, device_only_plan
from edgewise.planning.plan import ActivePlan
from edgewise.service.open_inference import serve_http
from tests.inference.tiny import images, two_exit_graph

GRAPH = two_exit_graph()


def asked(folder: Path, served: tuple[str, ...], model: str = "") -> tuple[str, int]:
    """The model's name and how many answers came, from an endpoint that serves these."""
    np.save(folder / "inputs.npy", images(3))

    async def run() -> tuple[str, int]:
        node = ServingNode(NodeId("device-1"))
        for index, name in enumerate(served, 1):
            made = node.deploy(name)
            await made.prepare(ActivePlan(Revision(index), device_only_plan(GRAPH), index), GRAPH)
            made.activate(Revision(index))
        endpoint = await serve_http(node.models)
        try:
            url = f"http://127.0.0.1:{endpoint.port}"
            name, answers, taken = await ask_all(Output(), client_of(url), model, folder / "inputs.npy", 2, 1.0)
            assert taken is None
            assert {a.parameters["model_version"] for a in answers} == {served.index(name) + 1}
            return name, len(answers)
        finally:
            await endpoint.close()
            await node.close()

    return asyncio.run(run())


def test_the_only_model_needs_no_name(tmp_path: Path) -> None:
    assert asked(tmp_path, ("digits",)) == ("digits", 2)


def test_of_several_the_named_one_is_asked(tmp_path: Path) -> None:
    assert asked(tmp_path, ("digits", "faces"), "faces") == ("faces", 2)


def test_several_and_none_named_are_listed(tmp_path: Path) -> None:
    text = r"several models are served there: digits, faces\. Say which, with --model NAME"
    with pytest.raises(InputError, match=text):
        asked(tmp_path, ("digits", "faces"))


def test_an_endpoint_that_serves_nothing_yet_says_so(tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match="the endpoint serves no model yet"):
        asked(tmp_path, ())


def test_a_name_that_is_not_served_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match="the endpoint has no model 'face'"):
        asked(tmp_path, ("digits", "faces"), "face")
