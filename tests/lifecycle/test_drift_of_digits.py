"""The tutorial's drift is found with every plan: its own job, its own stream, watched at each exit."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewise.core.ids import NodeId
from edgewise.datasets.shifts import drifted
from edgewise.fleet.serving.drift_watch import ALARM
from edgewise.fleet.serving.example_collector import BATCH
from edgewise.fleet.serving.versions import outputs_of
from edgewise.inference.gates.exit import confidence
from edgewise.lifecycle.drift import AnswerObserved, DriftAnswer, drift_detector, step
from edgewise.models.export import export_template
from edgewise.models.graph.weights import with_weights
from edgewise.simulation.simulate import SimulationOptions, simulate_rounds
from edgewise.training.algorithms import make_algorithm
from edgewise.training.tasks.digits_task import DigitsTask

PAGE = (Path(__file__).resolve().parents[2] / "docs/tutorials/two-terminals.md").read_text()
EXITS = {"first": 0, "last": -1}
NUM_DRIFTED = int(re.search(r"--source drifted.npz --limit (\d+)", PAGE)[1])  # type: ignore[index]


class Digits:
    """What the tutorial's first version answers, by part and exit: of the drifted stream what its page makes of it."""

    def __init__(self) -> None:
        job = tomllib.loads(re.search(r"job.toml <<'TOML'\n(.*?)TOML", PAGE, re.S)[1])  # type: ignore[index]
        task = DigitsTask(**job["task"]["settings"])
        options = SimulationOptions(engine="sequential", evaluate_every=0, test_data=task.test_data())
        algorithm = make_algorithm(job["training"]["algorithm"])
        vector = simulate_rounds(task, algorithm, rounds=job["training"]["rounds"], options=options).vector
        template, layout = export_template(task)
        graph, parts = with_weights(template, layout, vector), task.parts
        inputs = {
            "calibration": parts.calibration.inputs,
            "clean": np.concatenate((parts.stream.inputs, parts.gate.inputs)),
            "asked": parts.gate.inputs[:40],
            "drifted": drifted(parts.stream.inputs, rng=np.random.default_rng(0))[:NUM_DRIFTED],
        }
        self.logits = {name: outputs_of(graph, np.asarray(x)) for name, x in inputs.items()}

    def answers(self, part: str, exit: str) -> list[DriftAnswer]:
        logits = self.logits[part][EXITS[exit]]
        return list(map(DriftAnswer, confidence(logits).tolist(), logits.argmax(axis=1).tolist()))

    def alarm_after(self, exit: str, stream: list[DriftAnswer], seed: int) -> tuple[int | None, float]:
        """After how many answers of a stream an alarm comes, and the evidence there or at its end."""
        rng = np.random.default_rng(seed)
        state: Any = drift_detector({0: self.answers("calibration", exit)}, rng=rng, threshold=ALARM)
        for index, (sure, predicted) in enumerate(stream):
            state, alarms = step(state, AnswerObserved(NodeId("device-1"), sure, 0, float(index), predicted), rng)
            if alarms:
                return index + 1, state.statistic
        return None, state.statistic


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits()


@pytest.mark.parametrize("exit", EXITS)
def test_the_tutorials_drift_is_found_at_either_exit(digits: Digits, exit: str) -> None:
    asked, new = 2 * digits.answers("asked", exit), digits.answers("drifted", exit)
    found, _ = digits.alarm_after(exit, asked + new, 0)
    assert found is not None
    assert len(asked) < found <= len(asked) + NUM_DRIFTED - BATCH  # the last few are not told before a batch is full


@pytest.mark.parametrize("exit", EXITS)
@pytest.mark.parametrize("seed", range(4))
def test_two_thousand_clean_requests_are_no_alarm(digits: Digits, exit: str, seed: int) -> None:
    clean = digits.answers("clean", exit)
    stream = [clean[index] for index in np.random.default_rng(seed).integers(0, len(clean), 2000)]
    assert digits.alarm_after(exit, stream, seed)[0] is None
