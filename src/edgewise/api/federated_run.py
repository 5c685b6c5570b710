"""`simulate`: rounds of federated training in virtual time, of a user's own task or a job file; and what came out of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgewise.api.shown import Drawing, draw, html_table, text_table
from edgewise.core.errors import InputError, RunEndedEarly
from edgewise.core.units import format_bytes

if TYPE_CHECKING:
    from torch import nn

    from edgewise.core.layout import Vector
    from edgewise.models.graph.graph import Graph
    from edgewise.models.task import Task
    from edgewise.simulation.record import RunRecord, SimulatedRound
    from edgewise.training.algorithm import FederatedAlgorithm
    from edgewise.training.job import JobFile

TRAINING_LOSS = "training loss"
"""Mean over the participants of the loss on their own examples, of the model they were sent."""


@dataclass(frozen=True)
class FederatedRun:
    """A simulated run and its model. It shows itself as a table of rounds; `plan` and `serve` take it as a model.

    Attributes:
        task: What was learned.
        record: Every round: metrics, bytes, virtual seconds, who was missing and why.
        vector: float32[d], the model.
        caution: What the model lacks because clients keep a part to themselves; "" where it is whole.
    """

    task: Task
    record: RunRecord
    vector: Vector
    caution: str = ""

    @property
    def metrics(self) -> dict[str, float]:
        """Of the last evaluated model, on the task's test data."""
        return self.record.metrics

    @cached_property
    def graph(self) -> Graph:
        """The model as an ONNX graph with named exits."""
        from edgewise.models.graph.graph import Graph

        return Graph.load(self._onnx)

    @cached_property
    def _onnx(self) -> bytes:
        from edgewise.models.export import export_template
        from edgewise.models.graph.weights import with_weights

        template, layout = export_template(self.task)
        return with_weights(template, layout, self.vector)

    def module(self) -> nn.Module:
        """The task's torch module with the trained weights, in evaluation mode."""
        from edgewise.models.flat import load_vector

        return load_vector(self.task.model(), self.vector).eval()

    def save(self, path: str | Path) -> Path:
        """Writes the model as ONNX, for `edgewise plan`, `edgewise serve` and any other runtime.

        Args:
            path: Where to.

        Returns:
            The path.
        """
        from edgewise.core.files import write_atomic

        write_atomic(Path(path), self._onnx)
        return Path(path)

    def table(self) -> list[dict[str, Any]]:
        """The rounds as rows, e.g. for `pandas.DataFrame`."""
        return round_rows(self.record)

    def plot(self) -> Drawing:
        """Training loss and the test metrics by round."""
        return draw(self._paint, (8, 3.6))

    def _paint(self, axes: Any) -> None:
        from edgewise.service.report.plots import LIGHT

        rounds = self.record.rounds
        axes.plot(
            [r.round for r in rounds], [r.client_metrics.get("loss") for r in rounds],
            color=LIGHT.ink, linestyle=":", label=TRAINING_LOSS,
        )  # fmt: skip
        judged = [r for r in rounds if r.metrics]
        for index, name in enumerate(n for n in self.record.metrics if n != "loss"):
            colour = LIGHT.series[index % len(LIGHT.series)]
            axes.plot([r.round for r in judged], [r.metrics.get(name) for r in judged], "o-", color=colour, label=name)
        axes.set_xlabel("round")
        axes.set_title(f"{self.record.task}: {self.record.protocol}, {len(rounds)} rounds")
        axes.legend()

    def __str__(self) -> str:
        rows = self.table()
        table = text_table(list(rows[0]), [list(row.values()) for row in rows]) if rows else "no round closed"
        return "\n".join([table, *self._notes])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = self.table() or [{"round": "none closed"}]
        return html_table(list(rows[0]), [list(row.values()) for row in rows], " ".join(self._notes))

    @property
    def _notes(self) -> list[str]:
        record = self.record
        words = (
            f"{record.task}: {record.protocol}, engine {record.engine}, seed {record.seed}; "
            f"{record.outcome.sentence} {record.outcome.cure}".rstrip()
        )
        sent = f"uplink {format_bytes(record.uplink_bytes)}, downlink {format_bytes(record.downlink_bytes)}"
        return [words, f"{sent}, {record.virtual_s:.4g} virtual s.", *filter(None, [self.caution])]


def round_rows(record: RunRecord) -> list[dict[str, Any]]:
    """Rounds as rows: who took part, the training loss, the metrics on test data, what it cost.

    Args:
        record: Of a run.

    Returns:
        One row a round, all with the same keys.
    """
    exits = sum(name.startswith("accuracy_exit_") for name in record.metrics)
    # One loss is enough, and it has its name; the last exit's accuracy is `accuracy`.
    same = {"loss", f"accuracy_exit_{exits - 1}"}
    names = [name for name in record.metrics if name not in same]
    return [
        {
            "round": r.round,
            "updates": f"{r.participants} of {r.participants + len(r.missing)}",
            TRAINING_LOSS: r.client_metrics.get("loss", float("nan")),
            **{name: r.metrics.get(name, float("nan")) for name in names},
            "uplink": format_bytes(r.uplink_bytes),
            "virtual s": r.virtual_s,
        }
        for r in record.rounds
    ]


def simulate(
    task: Task | JobFile | str | Path,
    algorithm: FederatedAlgorithm | str | Mapping[str, Any] | None = None,
    *,
    rounds: int | None = None,
    clients_per_round: int | None = None,
    protocol: str | Mapping[str, Any] | None = None,
    batch_norm: str | None = None,
    seed: int | None = None,
    on_round: Callable[[SimulatedRound], None] | None = None,
) -> FederatedRun:
    """Trains in virtual time, with the very step functions of the live fleet, without processes or network.

    Args:
        task: A `Task`, e.g. an `InMemoryTask`; or the path of a job file, whose words hold where nothing else is said here.
        algorithm: Parts, e.g. `fed_avg(local=sgd(0.05, epochs=2))`, or their words as in a job file; default `fed_avg`.
        rounds: Rounds to do; default 10.
        clients_per_round: Size of a uniformly drawn cohort; 0, the default, takes everyone or what the algorithm says.
        protocol: `synchronous` (default), `hierarchical`, `gossip`, or a table, e.g. `{"name": "buffered", …}`.
        batch_norm: `averaged` (default), `local` or `frozen`, as in a job file.
        seed: Draws first weights, cohorts and batches; default 0.
        on_round: Called with each closed round, e.g. to show progress.

    Returns:
        The run.

    Raises:
        RunEndedEarly: If it closed fewer rounds than asked for, with the cause; its `run` has the last good model.
        TaskError: If the task cannot be used.
        ConfigError: If a number is out of range.
        InputError: If a word is unknown, or `task` is none.
        MisfitError: If the protocol does not carry the algorithm.

    Example:
        >>> import numpy as np, torch
        >>> from edgewise import InMemoryTask, simulate, split_examples
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(240, 4)).astype("float32"); y = x[:, :3].argmax(1)
        >>> task = InMemoryTask(lambda: torch.nn.Linear(4, 3), split_examples(x[:200], y[:200], 4), test=(x[200:], y[200:]))
        >>> run = simulate(task, rounds=20)
        >>> len(run.record.rounds), run.metrics["accuracy"] > 0.8
        (20, True)
    """
    from edgewise.models.version import caution_of
    from edgewise.simulation.simulate import SimulationOptions
    from edgewise.simulation.simulate import simulate as run_job
    from edgewise.training.algorithm import FederatedAlgorithm
    from edgewise.training.batch_norm import with_batch_norm
    from edgewise.training.job import check_job, make_task
    from edgewise.training.local import own_patterns
    from edgewise.training.protocols.messages import OutcomeKind
    from edgewise.training.select import uniform

    job, own, folder = _job_of(task)
    parts = algorithm if isinstance(algorithm, FederatedAlgorithm) else None
    given = {
        "algorithm": None if parts is not None else algorithm,
        "rounds": rounds,
        "clients_per_round": clients_per_round,
        "protocol": protocol,
        "batch_norm": batch_norm,
        "seed": seed,
    }
    changed = {key: value for key, value in given.items() if value is not None}
    job = check_job(msgspec.structs.replace(job, training=msgspec.structs.replace(job.training, **changed)))
    if parts is not None and job.training.clients_per_round:
        parts = replace(parts, select=uniform(job.training.clients_per_round))
    parts = job.algorithm() if parts is None else with_batch_norm(parts, job.training.batch_norm)
    own = own or make_task(job.task.file, job.task.settings, folder=folder)
    done = run_job(job, options=SimulationOptions(on_round=on_round), task=own, algorithm=parts)
    caution = caution_of("the model of this run", own_patterns(parts.exchanges[-1].local))
    run, outcome = FederatedRun(own, done.record, done.vector, caution), done.record.outcome
    if outcome.kind is not OutcomeKind.COMPLETED:
        num = len(done.record.rounds)
        raise RunEndedEarly(
            f"{outcome.sentence} {outcome.cure} Closed rounds: {num} of {job.training.rounds}; what there is, is the "
            f"error's `run`{', with the untrained model' * (not num)}.",
            run,
            kind=str(outcome.kind),
            rounds=num,
        )
    return run


def _job_of(task: Any) -> tuple[JobFile, Task | None, Path]:
    from edgewise.core.config import load_toml
    from edgewise.models.task import Task
    from edgewise.training.job import JobFile, TaskTable

    if isinstance(task, Task):
        return JobFile(TaskTable(task.name)), task, Path()
    if isinstance(task, JobFile):
        return task, None, Path()
    if isinstance(task, str | Path):
        return load_toml(task, JobFile), None, Path(task).parent
    what = f"the class {task.__name__}, not yet made" if isinstance(task, type) else f"a {type(task).__name__}"
    raise InputError(f"simulate takes a Task or the path of a job file, found {what}. Give e.g. an InMemoryTask.")
