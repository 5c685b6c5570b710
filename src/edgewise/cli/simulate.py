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
    weights: Annotated[
        Path | None,
        typer.Option("--weights", help="Write the trained tensors here, .npz or .safetensors, also where ONNX fails."),
    ] = None,
    journal: Annotated[
        Path | None,
        typer.Option("--journal", help="Keep here what clients did; after a kill the same command goes on from it."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a training job in virtual time, without processes or network.

    Example:
      edgewise simulate job.toml --set training.rounds=3
    """
    from edgewise.cli.model_files import ModelFiles
    from edgewise.core.config import load_toml
    from edgewise.core.files import check_writable
    from edgewise.models.saved_weights import check_weights_path
    from edgewise.simulation.simulate import SimulationOptions, simulate
    from edgewise.training.job import JobFile, check_job
    from edgewise.training.protocols.messages import OutcomeKind

    out = Output(as_json)
    if weights is not None:
        check_weights_path(weights)
    for path in () if dry_run else filter(None, (model, weights, journal)):
        check_writable(path)
    file = check_job(load_toml(job, JobFile, change or ()))
    task = print_audit(out, file, job.parent)
    if dry_run:
        out.line(f"algorithm {file.algorithm().spec}")
        out.result({"job": file, "algorithm": str(file.algorithm().spec)})
        return
    files = ModelFiles(out, task, model, weights)
    with out.progress("round", file.training.rounds) as advance:
        options = SimulationOptions(on_round=lambda record: advance(_words(record)), journal=journal)
        run = simulate(file, folder=str(job.parent), options=options)
    print_run(out, file, run.record)
    files.write(run.vector, file, len(run.record.rounds))
    out.result(run.record)
    if files.cause or run.record.outcome.kind is not OutcomeKind.COMPLETED:
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
    from edgewise.models.data_check import DataCheck
    from edgewise.models.task import clients_of
    from edgewise.training.job import make_task

    task = make_task(file.task.file, file.task.settings, folder=folder)
    clients = clients_of(task)
    check = DataCheck(task)
    held = {str(client): check.data(client) for client in clients}
    out.line(str(audit({c: h.examples.targets for c, h in held.items()}, notes={c: h.notes for c, h in held.items()})))
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

    scores = {name: value for name, value in record.metrics.items() if name != "loss"}
    first = "accuracy" if "accuracy" in scores else next(iter(scores), "")
    said = {TRAINING_LOSS: record.client_metrics.get("loss"), first: scores.get(first)}
    return ", ".join(f"{name} {value:.4f}" for name, value in said.items() if value is not None)
