"""A long benchmark goes on from its last finished piece, whoever killed it."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from benchmarks.kept import Kept, digest_of, do_pieces

PIECES = {"a": 1, "b": 2, "c": 3}


def squared(number: int) -> dict[str, int]:
    return {"square": number * number}


def killed_at_three(number: int) -> dict[str, int]:
    if number == 3:
        raise KeyboardInterrupt
    return squared(number)


def never(_: int) -> None:
    raise AssertionError("it is done already")


def test_what_is_finished_is_not_done_again(tmp_path: Path) -> None:
    file, told = tmp_path / "out/kept.jsonl", io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        do_pieces(Kept(file, "x"), PIECES, killed_at_three, 1, what="numbers", told=told)
    with file.open("a") as cut:
        cut.write('{"piece": "c", "resu')  # killed while it wrote
    assert list(Kept(file, "x").found) == ["a", "b"]
    found = do_pieces(Kept(file, "x"), PIECES, squared, 1, what="numbers", told=told)
    assert found == [{"square": 1}, {"square": 4}, {"square": 9}]
    assert told.getvalue().splitlines()[-1].startswith("3 of 3 numbers, 0.0 min, about 0.0 left")
    assert do_pieces(Kept(file, "x"), PIECES, never, 1, what="numbers") == found


def test_what_another_program_made_is_done_again(tmp_path: Path) -> None:
    file, program = tmp_path / "kept.jsonl", tmp_path / "program.py"
    program.write_text("1")
    before = digest_of([program], 3000)
    Kept(file, before).add("a", 1)
    program.write_text("2")
    assert digest_of([program], 3000) != before != digest_of([program], 10_000)
    assert Kept(file, digest_of([program], 3000)).found == {}
    assert Kept(file, before).found == {}  # it began anew


def test_processes_do_the_same_in_any_order(tmp_path: Path) -> None:
    found = do_pieces(Kept(None, ""), PIECES, squared, 2, what="numbers", told=io.StringIO())
    assert found == [{"square": 1}, {"square": 4}, {"square": 9}]
