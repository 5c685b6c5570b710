"""`edgewise data`: who holds what, and how skewed it is, before anything is trained on it."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from edgewise.cli.output import AsJson, Output
from edgewise.core.errors import InputError


def command(
    task: Annotated[str, typer.Argument(help="A task file, or 'digits'.")],
    settings: Annotated[str, typer.Option("--settings", help="JSON passed to the task.")] = "{}",
    as_json: AsJson = False,
) -> None:
    """Audit how a task's data is split over its clients.

    Example:
      edgewise data digits --settings '{"clients": 6, "alpha": 0.1}'
    """
    from edgewise.datasets.audit import audit

    out = Output(as_json)
    loaded = open_task(task, parse_settings(settings))
    examples = {client: loaded.data(client) for client in loaded.clients()}
    found = audit({c: e.targets for c, e in examples.items()}, {c: e.inputs for c, e in examples.items()})
    out.line(f"task {loaded.name!r}")
    out.line(str(found))
    out.result({"task": loaded.name, "audit": found, "warnings": found.warnings})


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
    from edgewise.training.tasks.digits import DigitsTask

    return DigitsTask(**settings) if task == "digits" else load_task(task, **settings)
