"""What commands print: text and tables for people, one JSON value (or one line per event) with `--json`.

Results go to stdout, progress and errors to stderr. On a terminal progress is a Rich bar, elsewhere plain lines.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


class Output:
    """Prints one command's results in the form the user asked for.

    Args:
        as_json: Whether `--json` was given.
    """

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json

    def line(self, text: str = "") -> None:
        """Prints a line for people; nothing with `--json`."""
        if not self.as_json:
            print(text, flush=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Prints a table for people; nothing with `--json`.

        Args:
            title: Printed above.
            columns: Headings; numbers are aligned right.
            rows: Cells, turned to text with `str`.
        """
        if self.as_json:
            return
        from rich.console import Console
        from rich.table import Table

        table = Table(title=title, title_justify="left", show_edge=False, header_style="bold")
        for index, column in enumerate(columns):
            numeric = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
            table.add_column(column, justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(_cell(value) for value in row))
        Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160, markup=False).print(table)

    def result(self, value: Any) -> None:
        """Prints the command's value with `--json`; nothing otherwise.

        Args:
            value: Structs, dataclasses, dictionaries, numpy numbers and arrays, paths.
        """
        if self.as_json:
            print(to_json(value), flush=True)

    def event(self, name: str, **fields: Any) -> None:
        """Prints one thing that happened in a long-running command, as a line of JSON or text.

        Args:
            name: What happened, e.g. `node_joined`.
            **fields: What belongs to it.
        """
        if self.as_json:
            print(to_json({"event": name, **fields}), flush=True)
        else:
            print(" ".join([name.replace("_", " "), *(f"{key}={value}" for key, value in fields.items())]), flush=True)

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Callable[[str], None]]:
        """Shows how far a piece of work is.

        Args:
            description: What is being done.
            total: Number of steps.

        Yields:
            A function to call after each step with a short text (may be empty).
        """
        if self.as_json:
            yield lambda text: None
        elif sys.stderr.isatty():
            with _bar(description, total) as advance:
                yield advance
        else:
            yield _plain_progress(description, total)


@contextmanager
def _bar(description: str, total: int) -> Iterator[Callable[[str], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total, note="")
        yield lambda text: bar.update(task, advance=1, note=text)


def _plain_progress(description: str, total: int) -> Callable[[str], None]:
    done = 0

    def advance(text: str) -> None:
        nonlocal done
        done += 1
        # At most about ten lines in a log file, whatever the total.
        if done == total or done % max(1, total // 10) == 0:
            print(f"{description} {done}/{total} {text}".rstrip(), file=sys.stderr, flush=True)

    return advance


def print_error(code: str, message: str, fields: Mapping[str, Any], *, as_json: bool, exit_code: int = 1) -> int:
    """Prints an error to stderr: a sentence with its code, or the envelope of the API with `--json`.

    Args:
        code: Stable name of the kind, e.g. `plan.infeasible`.
        message: What was wrong, what was needed, what to do.
        fields: What a caller can read.
        as_json: Whether `--json` was given.
        exit_code: Handed back, so that a handler is one line.

    Returns:
        `exit_code`.
    """
    if as_json:
        print(to_json({"code": code, "message": message, "fields": dict(fields)}), file=sys.stderr, flush=True)
    else:
        print(f"error [{code}]: {message}", file=sys.stderr, flush=True)
    return exit_code


def to_json(value: Any) -> str:
    """Writes any value of ours as JSON; NaN becomes null.

    Args:
        value: Structs, dataclasses, dictionaries, numpy numbers and arrays, paths.
    """
    return msgspec.json.encode(value, enc_hook=_plain).decode()


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    for name in ("tolist", "to_dict"):
        if hasattr(value, name):
            return getattr(value, name)()
    return str(value)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
