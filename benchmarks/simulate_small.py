"""Job S beside pfl-research in one run: clients simulated per second: python -m benchmarks.simulate_small

Job S: MLP 64-64-10 (4,810 parameters) on scikit-learn's digits, 100 clients (Dirichlet 0.5), 20 per round, one epoch,
batch 16, SGD 0.1, FedAvg. Both run the same clients in processes of their own, one thread each, in turns; a process
measures from the end of its first round to the end of its last. pfl is installed by `make bench-peers`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import Bar, close, print_row, spread

NUM_CLIENTS, COHORT, FACTOR = 100, 20, 3.0
ROOT = Path(__file__).resolve().parent.parent
PEER = ROOT / ".venvs" / "pfl" / "bin" / "python"
THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def write_clients(path: Path) -> None:
    """Divides the digits once; both sides read this file."""
    from edgewise.core.seeds import Seeds
    from edgewise.datasets.digits_data import load_digits
    from edgewise.datasets.split import dirichlet

    parts = load_digits(0, train=1437, calibration=358, gate=1, stream=1)
    split = dirichlet(parts.train.targets, NUM_CLIENTS, alpha=0.5, rng=Seeds(0).at("split").rng())
    arrays: dict[str, Any] = {"test_x": parts.calibration.inputs, "test_y": parts.calibration.targets}
    for i, indices in enumerate(split):
        arrays[f"x_{i}"], arrays[f"y_{i}"] = parts.train.inputs[indices], parts.train.targets[indices]
    flat = {name: a.reshape(len(a), -1) if a.ndim == 4 else a for name, a in arrays.items()}
    np.savez(path, **{name: np.asarray(a) for name, a in flat.items()})


def ours(path: Path, rounds: int, engine: str = "") -> dict[str, Any]:
    """Runs Job S in this process."""
    from edgewise.core.ids import ClientId
    from edgewise.models.task import Examples, Task
    from edgewise.models.zoo.dense_stack import mlp
    from edgewise.simulation.simulate import SimulationOptions, simulate_rounds
    from edgewise.training.algorithms import make_algorithm

    arrays = np.load(path)

    class JobS(Task):
        name, input_shape, num_classes, objective = "job-s", (64,), 10, "cross_entropy"

        @cached_property
        def held(self) -> dict[str, Examples]:
            return {f"{i}": Examples.of(arrays[f"x_{i}"], arrays[f"y_{i}"]) for i in range(NUM_CLIENTS)}

        def model(self) -> Any:
            return mlp()

        def loss(self, outputs: Any, targets: Any) -> Any:
            from torch.nn.functional import cross_entropy

            return cross_entropy(outputs, targets)

        def clients(self) -> Any:
            return [ClientId(str(i)) for i in range(NUM_CLIENTS)]

        def data(self, client: str) -> Examples:
            return self.held[client]

        def test_data(self) -> Examples:
            return Examples.of(arrays["test_x"], arrays["test_y"])

    times: list[tuple[float, float]] = []
    words = {
        "name": "fed_avg",
        "select": {"name": "uniform", "cohort_size": COHORT},
        "local": {"name": "sgd", "learning_rate": 0.1, "epochs": 1, "batch_size": 16},
    }
    options = SimulationOptions(
        engine, evaluate_every=0, on_round=lambda _: times.append((time.perf_counter(), time.process_time()))
    )
    run = simulate_rounds(JobS(), make_algorithm(words), rounds=rounds, options=options)
    seconds, cpu_seconds = (end - start for start, end in zip(times[0], times[-1], strict=True))
    measured = {"seconds": seconds, "cpu_seconds": cpu_seconds, "clients": COHORT * (rounds - 1)}
    return measured | {"accuracy": run.record.metrics["accuracy"], "engine": run.record.engine}


def turn(command: list[str]) -> dict[str, Any]:
    """Runs one side in its own process and reads its last line."""
    environment = {**os.environ, **THREADS}
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def rates(turns: list[dict[str, Any]], clock: str) -> list[float]:
    """Clients per second of each turn, by that clock."""
    return [measured["clients"] / measured[clock] for measured in turns]


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="3 turns of 100 rounds instead of 7 of 300")
    parser.add_argument("--json", action="store_true", help="only the closing JSON line")
    parser.add_argument("--one", metavar="NPZ", help="run our side once on these clients, as a turn does")
    parser.add_argument("--rounds", type=int, default=0, help="rounds of a turn")
    args = parser.parse_args()
    rounds = args.rounds or (100 if args.short else 300)
    if args.one:
        print(json.dumps(ours(Path(args.one), rounds)))
        return
    turns = take_turns(rounds, 3 if args.short else 7)
    if not args.json:
        for name, measured in turns.items():
            print_row(f"{name}, Job S", rates(measured, "seconds"), "clients/s")
            print_row(f"{name}, Job S, by CPU time", rates(measured, "cpu_seconds"), "clients/CPU s")
    figures: dict[str, Any] = {"rounds": rounds, "engine": turns["edgewise"][-1]["engine"]}
    for name, measured in turns.items():
        figures[f"{name}_clients_per_s"] = spread(rates(measured, "seconds"))
        figures[f"{name}_clients_per_cpu_s"] = spread(rates(measured, "cpu_seconds"))
        figures[f"{name}_accuracy"] = spread([m["accuracy"] for m in measured]).median
    if "pfl-research" not in turns:
        close("simulate_small", figures | {"pfl-research": "not installed: run make bench-peers"}, [])
        return
    # Each turn of ours against the peer's right after it: both meet the same load of a shared machine.
    pairs = {
        clock: [a / b for a, b in zip(*(rates(turns[name], clock) for name in turns), strict=True)]
        for clock in ("seconds", "cpu_seconds")
    }
    ratio = spread(pairs["seconds"]).median
    figures |= {"ratio": spread(pairs["seconds"]), "ratio_by_cpu_time": spread(pairs["cpu_seconds"])}
    what = "clients per second of Job S, times those of pfl-research"
    close("simulate_small", figures, [Bar(what, f">= {FACTOR}", round(ratio, 2), ratio >= FACTOR)])


def take_turns(rounds: int, num_turns: int) -> dict[str, list[dict[str, Any]]]:
    """Lets both sides work on the same clients, one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clients.npz"
        write_clients(path)
        one = [sys.executable, "-m", "benchmarks.simulate_small", "--one", str(path), "--rounds", str(rounds)]
        sides = {"edgewise": one}
        if PEER.exists():
            sides["pfl-research"] = [str(PEER), str(ROOT / "benchmarks/peers/pfl_job_s.py"), str(path), str(rounds)]
        turns: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
        for _ in range(num_turns):
            for name, command in sides.items():
                turns[name].append(turn(command))
        return turns


if __name__ == "__main__":
    main()
