"""The tutorial's drift is found with every plan: its own job, its own stream, watched at each exit."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewise.datasets.shifts import drifted
from edgewise.fleet.serving.example_collector import BATCH
from edgewise.fleet.serving.versions import outputs_of
from edgewise.inference.gates.exit import confidence
from edgewise.lifecycle.change import DriftAnswer, Seen, change_monitor, step
from edgewise.lifecycle.covariates import covariates
from edgewise.models.export import export_template
from edgewise.models.graph.weights import with_weights
from edgewise.simulation.simulate import SimulationOptions, simulate_rounds
from edgewise.training.algorithms import make_algorithm
from edgewise.training.tasks.digits_task import DigitsTask

PAGE = (Path(__file__).resolve().parents[2] / "docs/tutorials/two-terminals.md").read_text()
EXITS = {"first": 0, "last": -1, "first, answers alone": 0}
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
        self.looks = {name: [covariates(example) for example in np.asarray(x)] for name, x in inputs.items()}

    def answers(self, part: str, exit: str) -> list[Seen]:
        logits = self.logits[part][EXITS[exit]]
        found = map(DriftAnswer, confidence(logits).tolist(), logits.argmax(axis=1).tolist())
        looks = self.looks[part] if exit != "first, answers alone" else [()] * len(logits)
        return [Seen({0: answer}, look) for answer, look in zip(found, looks, strict=True)]

    def alarm_after(self, exit: str, stream: list[Seen], seed: int) -> tuple[int | None, float]:
        """After how many answers of a stream an alarm comes, and the evidence there or at its end."""
        rng = np.random.default_rng(seed)
        state: Any = change_monitor(self.answers("calibration", exit), rng=rng)
        for index, seen in enumerate(stream):
            state, alarms = step(state, seen, float(index), rng)
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
