"""`edgewise simulate`: a job in virtual time, with the parts and step functions of the live fleet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgewise.cli.output import AsJson, Output
from edgewise.core.units import format_bytes

if TYPE_CHECKING:
    from edgewise.simulation.record import RunRecord, SimulatedRound
    from edgewise.training.job import JobFile


def command(
    job: Annotated[Path, typer.Argument(help="TOML: the task, how it is trained, what the virtual clock charges.")],
    change: Annotated[list[str] | None, typer.Option("--set", help="Override a key, e.g. training.rounds=3.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved job and the audit, train nothing.")
    ] = False,
    model: Annotated[Path | None, typer.Option("--out", help="Write the trained model here, as ONNX.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run a training job in virtual time, without processes or network.

    Example:
      edgewise simulate job.toml --set training.rounds=3
    """
    from edgewise.core.config import load_toml
    from edgewise.core.files import check_writable, write_atomic
    from edgewise.models.export import export_template
    from edgewise.models.graph.weights import with_weights
    from edgewise.models.version import caution_of
    from edgewise.simulation.simulate import SimulationOptions, simulate
    from edgewise.training.job import JobFile, check_job
    from edgewise.training.local import own_patterns
    from edgewise.training.protocols.messages import OutcomeKind

    out = Output(as_json)
    file = check_job(load_toml(job, JobFile, change or ()))
    task = print_audit(out, file, job.parent)
    if dry_run:
        out.line(f"algorithm {file.algorithm().spec}")
        out.result({"job": file, "algorithm": str(file.algorithm().spec)})
        return
    if model is not None:
        check_writable(model)
    with out.progress("round", file.training.rounds) as advance:
        options = SimulationOptions(on_round=lambda record: advance(_words(record)))
        run = simulate(file, folder=str(job.parent), options=options)
    print_run(out, file, run.record)
    if model is not None:
        template, layout = export_template(task)
        write_atomic(model, with_weights(template, layout, run.vector))
        out.line(f"wrote {model}")
        if caution := caution_of(f"the model in {model}", own_patterns(file.algorithm().exchanges[-1].local)):
            out.line(f"caution: {caution}")
    out.result(run.record)
    if run.record.outcome.kind is not OutcomeKind.COMPLETED:
        raise typer.Exit(1)


def print_audit(out: Output, file: JobFile, folder: Path) -> Any:
    """Prints who holds what, before anything is trained.

    Args:
        out: Where to.
        file: The job.
        folder: What its task file is relative to.

    Returns:
        The task.
    """
    from edgewise.datasets.audit import audit
    from edgewise.models.task import user_code
    from edgewise.training.job import make_task

    task = make_task(file.task.file, file.task.settings, folder=folder)
    with user_code(f"task {task.name!r} gives no data"):
        targets = {str(client): task.data(client).targets for client in task.clients()}
    out.line(str(audit(targets)))
    return task


def print_run(out: Output, file: JobFile, record: RunRecord) -> None:
    """Prints a run as a table of rounds.

    Args:
        out: Where to.
        file: The job, whose own words name the algorithm.
        record: What happened.
    """
    from edgewise.api.federated_run import round_rows
    from edgewise.core.spec import Spec

    rows = round_rows(record)
    words = Spec.of(file.training.algorithm)
    if rows:
        out.table(
            f"{record.task}: {words.name}, {record.protocol}", list(rows[0]), [list(row.values()) for row in rows]
        )
    out.line(f"{words}, engine {record.engine}, seed {record.seed}")
    out.line(f"{record.outcome.sentence} {record.outcome.cure}".rstrip())
    out.line(f"uplink {format_bytes(record.uplink_bytes)}, downlink {format_bytes(record.downlink_bytes)}")


def _words(record: SimulatedRound) -> str:
    from edgewise.api.federated_run import TRAINING_LOSS

    said = {TRAINING_LOSS: record.client_metrics.get("loss"), "accuracy": record.metrics.get("accuracy")}
    return ", ".join(f"{name} {value:.4f}" for name, value in said.items() if value is not None)
