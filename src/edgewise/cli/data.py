"""`edgewise data`: who holds what, and how skewed it is, before anything is trained on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from edgewise.cli.output import AsJson, Output
from edgewise.core.errors import DataError, InputError
from edgewise.core.files import naming


def command(
    task: Annotated[str, typer.Argument(help="A task file, or 'digits'.")],
    settings: Annotated[str, typer.Option("--settings", help="JSON passed to the task.")] = "{}",
    holdout: Annotated[
        Path | None, typer.Option("--holdout", help="Write the examples no client holds here, for a coordinator.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Audit how a task's data is split over its clients.

    --holdout writes an npz for `edgewise coordinator --holdout`; its arrays x and y are the gate's examples once more,
    so that `edgewise infer` and `edgewise plan` read it too.

    Example:
      edgewise data digits --settings '{"clients": 6, "alpha": 0.1}'
    """
    from edgewise.datasets.audit import audit
    from edgewise.models.data_check import DataCheck
    from edgewise.models.task import clients_of

    out = Output(as_json)
    loaded = open_task(task, parse_settings(settings))
    clients = clients_of(loaded)
    check = DataCheck(loaded)
    held = {client: check.data(client) for client in clients}
    found = audit(
        {c: h.examples.targets for c, h in held.items()},
        {c: h.examples.inputs for c, h in held.items()},
        {c: h.notes for c, h in held.items()},
    )
    out.line(f"task {loaded.name!r}")
    out.line(str(found))
    sizes = None if holdout is None else write_holdout(loaded, holdout)
    if sizes is not None:
        out.line(f"wrote {holdout}: {sizes[0]} examples to calibrate on, {sizes[1]} for the gate; no client holds them")
    out.result({"task": loaded.name, "audit": found, "warnings": found.warnings, "holdout": sizes})


def write_holdout(task: Any, path: Path) -> tuple[int, int]:
    """Writes what a coordinator judges versions on.

    Args:
        task: The task.
        path: An npz.

    Returns:
        Number of examples for calibration and for the gate.

    Raises:
        DataError: If the task keeps nothing back.
    """
    import numpy as np

    from edgewise.fleet.serving.holdout import arrays_of
    from edgewise.models.data_check import DataCheck

    parts = task.held_out()
    if parts is None:
        raise DataError(
            f"task {task.name!r} keeps no examples back: its test_data() gives fewer than two. Return some that no client holds."
        )
    calibration, gate = (DataCheck(task).check(part).examples for part in parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    trees = {"calibration_x": calibration.inputs, "calibration_y": calibration.targets}
    trees |= {"gate_x": gate.inputs, "gate_y": gate.targets, "x": gate.inputs, "y": gate.targets}
    arrays = {key: array for name, tree in trees.items() for key, array in arrays_of(name, tree).items()}
    with naming(path), path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    return len(calibration), len(gate)


def parse_settings(text: str) -> dict[str, Any]:
    """Reads `--settings`.

    Args:
        text: A JSON object.

    Returns:
        Its entries.

    Raises:
        InputError: If it is something else.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InputError(f"--settings is not JSON: {error}. Write it like '{{\"seed\": 1}}'.") from error
    if not isinstance(value, dict):
        raise InputError(f"--settings takes a JSON object, found {text!r}. Write it like '{{\"seed\": 1}}'.")
    return value


def open_task(task: str, settings: dict[str, Any]) -> Any:
    """Loads a task by file, or the built-in `digits`.

    Args:
        task: What the user wrote.
        settings: Passed to the task.

    Returns:
        The task.
    """
    from edgewise.models.task import load_task
    from edgewise.training.tasks.digits_task import DigitsTask

    return DigitsTask(**settings) if task == "digits" else load_task(task, **settings)
