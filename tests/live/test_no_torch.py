"""A node without torch profiles, plans, serves and infers: a chain with exits, SqueezeNet, a residual and a branched graph.

Run as `make no-torch`, `EDGEWISE_NO_TORCH_PYTHON` names an interpreter whose environment has no torch; without it, the
same programs run in this environment with torch's import blocked.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = [pytest.mark.live, pytest.mark.slow]

BLOCKED = "import sys; sys.modules['torch'] = None; "
RUN = "from edgewise.cli.main import main; main()"


def interpreter() -> str:
    return os.environ.get("EDGEWISE_NO_TORCH_PYTHON", sys.executable)


def command(words: Sequence[str]) -> list[str]:
    return [interpreter(), "-c", BLOCKED + RUN, *words]


def edgewise(*words: str) -> dict[str, Any]:
    done = subprocess.run(command([*words, "--json"]), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def digits_network(folder: Path) -> Path:
    from edgewise.models.export import export_template
    from edgewise.training.tasks.digits_task import DigitsTask

    (folder / "digits.onnx").write_bytes(export_template(DigitsTask())[0])
    return folder / "digits.onnx"


def toy_network(folder: Path, kind: str) -> Path:
    from edgewise.models.export import export_template
    from edgewise.models.zoo import branched
    from edgewise.training.tasks.digits_task import DigitsTask

    class ToyTask(DigitsTask):
        def model(self) -> Any:
            return getattr(branched, kind)()

    (folder / f"{kind}.onnx").write_bytes(export_template(ToyTask())[0])
    return folder / f"{kind}.onnx"


def squeezenet(data_folder: Path) -> Path:
    return data_folder / "onnx" / "SqueezeNet_fp16.onnx"


@pytest.fixture(params=["digits", "ResidualToy", "InceptionToy", "squeezenet"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """ONNX bytes; only making the toys needs torch, and that happens in the test's own process."""
    if request.param == "squeezenet":
        return squeezenet(request.getfixturevalue("data_folder"))
    if request.param == "digits":
        return digits_network(tmp_path)
    return toy_network(tmp_path, request.param)


@pytest.fixture
def data(model: Path, tmp_path: Path) -> Path:
    is_large = model.stem.startswith("Squeeze")
    shape = (2, 3, 224, 224) if is_large else (8, 1, 8, 8)
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).random(shape).astype("f2" if is_large else "f4"))
    return tmp_path / "data.npz"


def test_the_programs_cannot_import_torch() -> None:
    code = "import importlib.util; assert importlib.util.find_spec('torch') is None"
    if "EDGEWISE_NO_TORCH_PYTHON" not in os.environ:
        code = BLOCKED + "\ntry: import torch\nexcept ModuleNotFoundError: pass\nelse: raise SystemExit(1)"
    assert subprocess.run([interpreter(), "-c", code], timeout=60).returncode == 0


def test_a_model_is_profiled_planned_served_and_answered(model: Path, data: Path) -> None:
    profile = edgewise("profile", str(model), "--data", str(data), "--budget", "500 ms")
    groups_s = sum(g["seconds"] for g in profile["groups"])
    assert groups_s + profile["call_s"] == pytest.approx(profile["segments"][0]["seconds"])
    plan = edgewise("plan", str(model), "--data", str(data), "--budget", "500 ms")
    assert plan["recommendation"]["plan"]["stages"]
    serving = subprocess.Popen(
        command(["serve", str(model), "--port", "0", "--name", "own", "--json"]), stdout=subprocess.PIPE, text=True
    )
    try:
        assert serving.stdout is not None
        url = json.loads(serving.stdout.readline())["url"]
        answers = edgewise("infer", "--source", str(data), "--url", url, "--model", "own")["answers"]
    finally:
        serving.terminate()
        serving.communicate(timeout=10)
    assert [answer["predicted"] for answer in answers] == whole_model(model, data)


def whole_model(model: Path, data: Path) -> list[int]:
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    name, last = session.get_inputs()[0].name, session.get_outputs()[-1].name
    return [int(session.run([last], {name: x[None]})[0].argmax()) for x in np.load(data)["x"]]
