"""Pieces of a long benchmark, each done once: killed at any moment, it goes on from the last one; a line says how far it is."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO


def digest_of(files: Iterable[Path], *settings: Any) -> str:
    """What results depend on: the text of programs, and settings."""
    found = hashlib.sha256(repr(settings).encode())
    for file in files:
        found.update(file.read_bytes())
    return found.hexdigest()


class Kept:
    """A file with a line for each finished piece.

    Args:
        path: Where; None keeps nothing.
        made_by: Of the programs; pieces that others made are left out, and the file begins anew.
    """

    def __init__(self, path: Path | None, made_by: str) -> None:
        self.found: dict[str, Any] = {}
        self._path = path
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = list(_lines(path)) if path.exists() else []
        if lines and lines[0] == {"made_by": made_by}:
            self.found = {line["piece"]: line["result"] for line in lines[1:]}
        rows = [{"piece": piece, "result": result} for piece, result in self.found.items()]
        path.write_text("".join(f"{json.dumps(row)}\n" for row in [{"made_by": made_by}, *rows]))

    def add(self, piece: str, result: Any) -> None:
        """Keeps a piece."""
        self.found[piece] = result
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps({"piece": piece, "result": result}) + "\n")


def do_pieces(
    kept: Kept,
    pieces: Mapping[str, Any],
    work: Callable[[Any], Any],
    processes: int,
    *,
    what: str,
    told: TextIO = sys.stderr,
) -> list[Any]:
    """Does what is not done yet, and keeps each piece as it comes.

    Args:
        kept: The file.
        pieces: What to do, by name.
        work: Does a piece; its result can be written as JSON. It is pickled to other processes.
        processes: How many work at once; 1 is this one.
        what: Named in the progress line.
        told: Where that is printed.

    Returns:
        The results of all pieces, in order.
    """
    missing = [name for name in pieces if name not in kept.found]
    num_before, started_s = len(pieces) - len(missing), time.monotonic()
    with _mapped(processes) as mapped:
        done = mapped(_Named(work), [(name, pieces[name]) for name in missing])
        for num, (name, result) in enumerate(done, 1):
            kept.add(name, result)
            gone_s = time.monotonic() - started_s
            left_s = gone_s / num * (len(missing) - num)
            text = f"{num_before + num} of {len(pieces)} {what}, {gone_s / 60:.1f} min, about {left_s / 60:.1f} left"
            print(text, file=told, flush=True)
    return [kept.found[name] for name in pieces]


class _Named:
    """Work on a piece, with the piece's name beside its result; can be pickled."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self._work = work

    def __call__(self, named: tuple[str, Any]) -> tuple[str, Any]:
        return named[0], self._work(named[1])


@contextmanager
def _mapped(processes: int) -> Iterator[Callable[..., Iterable[Any]]]:
    if processes == 1:
        yield map
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield pool.imap_unordered


def _lines(path: Path) -> Iterator[Any]:
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except ValueError:  # killed in the middle of it
            return
