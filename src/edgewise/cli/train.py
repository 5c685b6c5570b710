"""`edgewise train`: a job on the devices of a running fleet, where the data is."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgewise.cli.operator_options import AsOperator, InFleet, ToFleet, operator_of
from edgewise.cli.output import AsJson, Output
from edgewise.cli.running import run_async
from edgewise.core.errors import ConfigError, InputError
from edgewise.core.ids import RunId
from edgewise.core.units import format_bytes

if TYPE_CHECKING:
    from edgewise.fleet.messages import RoundRecord, RunStatus
    from edgewise.fleet.operator.operator import Operator
    from edgewise.models.task import Task
    from edgewise.models.version import ModelVersion
    from edgewise.training.job import JobFile

WAITS_S = 10.0
"""After so long without a closed round, the follower is told what the round waits for."""


def command(
    job: Annotated[Path | None, typer.Argument(help="TOML: the task and how it is trained.")] = None,
    connect: ToFleet = "",
    identity: AsOperator = "",
    fleet: InFleet = "",
    change: Annotated[list[str] | None, typer.Option("--set", help="Override a key, e.g. training.rounds=3.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved job, train nothing.")] = False,
    start_version: Annotated[int, typer.Option("--start-version", min=0, help="Go on from this version.")] = 0,
    collected: Annotated[
        bool, typer.Option("--collected", help="Also on the hard examples that devices kept and have labels for.")
    ] = False,
    labels: Annotated[
        str,
        typer.Option("--labels", help="Who labels them: feedback, or teacher (the model in force). Says --collected."),
    ] = "",
    teacher: Annotated[int, typer.Option("--teacher", min=0, help="This version labels them, on the devices.")] = 0,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            help="Write the trained tensors here, .npz or .safetensors, also where ONNX fails or the run ends early.",
        ),
    ] = None,
    name: Annotated[str, typer.Option("--name", help="The run's name; by default the task's and a number.")] = "",
    follow: Annotated[str, typer.Option("--follow", help="Look at this run again, start none.")] = "",
    cancel: Annotated[str, typer.Option("--cancel", help="Stop this run; its rounds so far stay.")] = "",
    as_json: AsJson = False,
) -> None:
    """Train a model on the devices of a running fleet.

    ctrl-C stops looking, not the run.

    Example:
      edgewise train job.toml --connect tls/127.0.0.1:7447 --identity nodes/operator
    """
    from edgewise.core.files import check_writable
    from edgewise.models.saved_weights import check_weights_path

    out, known = Output(as_json), follow or cancel
    source = source_of(collected, labels, teacher)
    if (job is None) == (not known):
        raise InputError("say what to train, a job file, or which run to look at, --follow RUN or --cancel RUN.")
    read = None if job is None else read_job(job, change or [])
    if read is not None and dry_run:
        print_job(out, *read)
        return
    if weights is not None:
        check_weights_path(weights)
        check_writable(weights)
    session = TrainingSession(out, known, weights)

    async def speak() -> RunStatus:
        async with operator_of(connect, identity, fleet) as operator:
            if cancel:
                return await session.cancel(operator)
            return await session.train(
                operator, read, start_version=start_version, name=name, labels=source, teacher_version=teacher
            )

    try:
        ended = run_async(speak())
    except KeyboardInterrupt:
        kept = "" if weights is None else f" --weights {weights}"
        raise typer.Exit(session.left(f"--connect {connect} --identity {identity}{kept}")) from None
    if not cancel and ended.state != "completed":
        raise typer.Exit(1)


def source_of(collected: bool, labels: str, teacher: int) -> str:
    """Words of the label source that the options ask for.

    Args:
        collected: Whether hard examples join.
        labels: Who labels them; "" for whoever the other options imply.
        teacher: Version that labels them on the devices; 0 for none.

    Returns:
        The words; "" trains without hard examples.

    Raises:
        InputError: If there is no such source, or the options contradict each other.
    """
    from edgewise.lifecycle.labels import label_source

    if not labels:
        labels = "teacher(reads='device')" if teacher else "feedback" if collected else ""
    source = label_source(labels) if labels else None
    if teacher and source is not None and source.spec.params.get("reads") != "device":
        raise InputError(
            f"version {teacher} labels on the devices, {source.spec} asks elsewhere. "
            "Say --teacher alone, or --labels \"teacher(reads='device')\"."
        )
    return "" if source is None else str(source.spec)


def read_job(path: Path, changes: list[str]) -> tuple[JobFile, Task]:
    """Reads a job file and loads its task.

    Args:
        path: The file.
        changes: As from `--set`.

    Returns:
        The job, and its task.

    Raises:
        ConfigError: If the file is wrong; names file, line and dotted key.
        TaskError: If the task cannot be used.
    """
    from edgewise.core.config import load_toml
    from edgewise.training.job import JobFile, check_job, make_task

    job = load_toml(path, JobFile, changes)
    try:
        check_job(job)  # what does not exist or does not fit is told before anybody is asked
    except ConfigError as error:
        raise ConfigError(f"{path} {error.message}") from error
    return job, make_task(job.task.file, job.task.settings, folder=path.parent)


def print_job(out: Output, job: JobFile, task: Task) -> None:
    """Prints a job with every default filled in.

    Args:
        out: Where to.
        job: As read.
        task: Its task.
    """
    import msgspec

    words = job.algorithm().spec
    out.line(f"task {task.name}")
    out.line(f"algorithm {words}")
    for key, value in msgspec.to_builtins(job.training).items():
        if key != "algorithm":
            out.line(f"training.{key} = {value!r}")
    out.result({"task": task.name, "job": job, "algorithm": str(words)})


class TrainingSession:
    """One look at a fleet that trains.

    Attributes:
        run: The run.
        submitted: Set when a new run is taken.

    Args:
        out: Where to print.
        run: The run, if it is known already.
        weights: Where the tensors of its last closed round go, however it ends; None for nowhere.
    """

    def __init__(self, out: Output, run: str = "", weights: Path | None = None) -> None:
        self.out = out
        self.weights = weights
        self.run = RunId(run)
        self.submitted = asyncio.Event()

    async def train(self, operator: Operator, read: tuple[JobFile, Task] | None, **options: Any) -> RunStatus:
        """Submits a run, unless it is known, and follows it to its end.

        Args:
            operator: Connection to the fleet.
            read: Job and task; None to follow only.
            **options: `start_version`, `name`, `labels` and `teacher_version`, as for `make_request`.

        Returns:
            Its terminal state.
        """
        rounds = 0
        if read is not None:
            await self._submit(operator, *read, options)
            rounds = read[0].training.rounds
        status = await self._follow(operator, rounds)
        versions = (await operator.versions()).versions if status.version else ()
        print_end(self.out, status, next((v for v in versions if v.number == status.version), None))
        await self._write(operator, rounds)
        return status

    async def cancel(self, operator: Operator) -> RunStatus:
        """Stops the run.

        Args:
            operator: Connection to the fleet.

        Returns:
            How it stands.
        """
        await operator.cancel(self.run)
        async for status in operator.watch(self.run):
            if status.state != "running":
                break
        print_end(self.out, status, None)
        await self._write(operator, 0)
        return status

    def left(self, where: str) -> int:
        """Says how to look again, after ctrl-C.

        Args:
            where: Options that lead to the fleet.

        Returns:
            The exit code.
        """
        if self.run:
            again = f"edgewise train --follow {self.run} {where}"
            self.out.event("left", run=self.run, state="goes on", look_again=again)
        return 130

    async def _submit(self, operator: Operator, job: JobFile, task: Task, options: dict[str, Any]) -> None:
        from edgewise.fleet.operator.submission import audit_of, make_request, participants

        held = participants((await operator.nodes()).nodes, task.name)
        found = audit_of(held)
        self.out.line(str(found))
        request, files = make_request(job, task, held, **options, needs_graph=self.weights is None)
        if files.no_template:
            self.out.line(f"caution: this run will make no version: {files.no_template}")
            if self.out.as_json:
                self.out.event("no_version", cause=files.no_template)
        self.run = await operator.submit(request, files)
        self.submitted.set()
        if self.out.as_json:
            self.out.event("audit", audit=found, warnings=found.warnings)
        self.out.event(
            "submitted", run=self.run, task=task.name, clients=len(request.clients), rounds=request.num_rounds
        )

    async def _write(self, operator: Operator, num_rounds: int) -> None:
        import msgspec

        from edgewise.cli.model_files import say_own, write_weights
        from edgewise.core.layout import Layout

        if self.weights is None:
            return
        model, vector = await operator.trained(self.run)
        layout, rounds = msgspec.msgpack.decode(model.layout, type=Layout), (model.rounds_done, num_rounds)
        is_written = write_weights(self.out, self.weights, layout, vector, rounds)
        if is_written:
            say_own(self.out, self.weights, model.own)
        if self.out.as_json:
            written = str(self.weights) if is_written else ""
            self.out.event("weights", run=self.run, path=written, rounds=model.rounds_done)

    async def _follow(self, operator: Operator, num_rounds: int) -> RunStatus:
        shown, waits, moved_s = 0, "", time.monotonic()
        with self.out.progress(f"{self.run}: round", num_rounds or 1) as advance:
            async for status in operator.watch(self.run, on_unreachable=self._away):
                for done in status.rounds[shown:]:
                    self._round(done, advance if num_rounds else None)
                    moved_s = time.monotonic()
                shown = len(status.rounds)
                waited = time.monotonic() - moved_s > WAITS_S and status.state == "running"
                if waited and status.cause not in ("", waits):
                    self.out.event("waiting", run=self.run, cause=status.cause)
                    waits = status.cause
        return status

    def _round(self, done: RoundRecord, advance: Any) -> None:
        own = "".join(f" {name} {value:.4f}" for name, value in done.metrics.items() if name != "accuracy")
        words = (
            f"loss {done.loss:.4f} accuracy {done.accuracy:.4f}{own} updates {done.num_updates} {done.seconds:.2f} s"
        )
        if self.out.as_json:
            self.out.event("round", **{"run": self.run, **_fields(done)})
        elif advance is None:
            self.out.line(f"round {done.round} {words}")
        else:
            advance(words)
        for client, cause in done.missing.items():
            self.out.line(f"  without {client}: {cause}")

    def _away(self, cause: str) -> None:
        self.out.event("coordinator_away", run=self.run, cause=cause)


def print_end(out: Output, status: RunStatus, version: ModelVersion | None) -> None:
    """Prints how a run ended, and what became of it.

    Args:
        out: Where to.
        status: Its state.
        version: What it made; None if nothing.
    """
    last = status.rounds[-1] if status.rounds else None
    moved = sum(r.uplink_bytes for r in status.rounds), sum(r.downlink_bytes for r in status.rounds)
    gate = None if version is None else version.gate
    out.line(f"{status.state}: {status.cause}".rstrip())
    if last is not None:
        out.line(f"uplink {format_bytes(moved[0])}, downlink {format_bytes(moved[1])}")
    if version is not None and last is not None:
        judged = (
            "accuracy unknown, the coordinator has no --holdout"
            if not version.evidence
            else (f"accuracy {last.accuracy:.3f} on held-out data")
        )
        passed = f"no gate: {_why_no_gate(version)}" if gate is None else gate.reason
        out.line(f"version {version.number}: {judged}; {passed}")
    caution = "" if version is None else version.caution
    if caution:
        out.line(f"caution: {caution}")
    if out.as_json:
        out.event(
            "ended",
            run=status.run,
            state=status.state,
            cause=status.cause,
            version=status.version,
            accuracy=None if last is None else last.accuracy,
            rounds=len(status.rounds),
            gate=gate,
            uplink_bytes=moved[0],
            downlink_bytes=moved[1],
            caution=caution,
        )


def _why_no_gate(version: ModelVersion) -> str:
    if version.evidence:
        return f"it is the first of {version.task!r}"
    return f"no held-out data compares it with another; in place of one that serves {version.task!r} it needs --ungated"


def _fields(done: RoundRecord) -> dict[str, Any]:
    import msgspec

    return {name: getattr(done, name) for name in msgspec.structs.asdict(done)}
