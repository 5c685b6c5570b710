"""Local steps in bf16 beside float32, in turns: python -m benchmarks.precision [--short]

Three models of one client, `sgd(precision="bf16")` against `sgd()`: processor time of the same steps, and how far the update
of one epoch in bf16 is from that in float32. It pays where the processor computes in bf16; there is no bar, the table says it.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.report import close, print_row, spread
from edgewise.core.seeds import Seeds
from edgewise.models.flat import initial_vector
from edgewise.models.task import Examples, Task
from edgewise.training.local import make_engine, sgd

EXAMPLES, BATCH = 128, 32


def convolutions() -> nn.Module:
    """Three convolutions on 32 x 32 pictures."""
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
    )


def wide() -> nn.Module:
    """Three wide layers."""
    return nn.Sequential(nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10))


def narrow() -> nn.Module:
    """Two narrow layers: what a small device trains."""
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


MODELS = {"convolutions": (convolutions, (3, 32, 32)), "wide": (wide, (1024,)), "narrow": (narrow, (64,))}


class Shown(Task):
    """One client with random examples."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.make, self.input_shape = MODELS[name]

    def model(self) -> Any:
        return self.make()

    def loss(self, outputs: Any, targets: Any) -> Any:
        return nn.functional.cross_entropy(outputs, targets)

    def clients(self) -> Any:
        return ["a"]

    def data(self, client: str) -> Examples:
        rng = np.random.default_rng(0)
        return Examples.of(rng.normal(size=(EXAMPLES, *self.input_shape)).astype("f4"), rng.integers(0, 10, EXAMPLES))


def measured(name: str, repetitions: int) -> tuple[dict[str, list[float]], float]:
    """Processor seconds of an epoch by precision, and the relative distance of the two updates."""
    task = Shown(name)
    engine, start, held = make_engine("sequential", task), initial_vector(task, Seeds(0)), task.data("a")
    seconds: dict[str, list[float]] = {"float32": [], "bf16": []}
    updates = {}
    for repetition in range(repetitions + 1):  # the first warms up
        for precision, spans in seconds.items():
            before = time.process_time()
            work = sgd(0.01, batch_size=BATCH, precision=precision)
            updates[precision] = engine.work_one(work, {"model": start}, {}, held, Seeds(0)).sent["model"]
            spans += [time.process_time() - before] if repetition else []
    gap = np.linalg.norm(updates["bf16"] - updates["float32"]) / np.linalg.norm(updates["float32"])
    return seconds, float(gap)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true")
    arguments, figures = parser.parse_args(), {}
    torch.set_num_threads(1)
    for name in MODELS:
        seconds, gap = measured(name, 3 if arguments.short else 15)
        for precision, spans in seconds.items():
            print_row(f"{name}, {precision}", [1000 * span for span in spans], "ms an epoch")
        ratio = spread(seconds["float32"]).median / spread(seconds["bf16"]).median
        print(f"  {name}: bf16 is {ratio:.2f} times as fast; its update is {100 * gap:.1f} % away")
        figures[name] = {"float32_over_bf16": ratio, "relative_distance": gap}
    close("precision", figures, [])


if __name__ == "__main__":
    main()
