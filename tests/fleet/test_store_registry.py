from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from edgewise.core.errors import GateRefused, StoreDamaged, StoreError
from edgewise.fleet.store.registry import Registry
from edgewise.fleet.store.seal_chain import seal_of
from edgewise.models.version import GateResult, ModelVersion


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    made = Registry.open(tmp_path / "registry.sqlite")
    yield made
    made.close()


def version(graph: str, task: str = "digits") -> ModelVersion:
    return ModelVersion(0, graph=graph, weights="w" + graph, task=task, data={"client-0": 10})  # type: ignore[arg-type]


def gate(passed: bool) -> GateResult:
    return GateResult(passed, 300, 9, 1, 4.4, 2.0, "it lost 4.4 points, allowed are 2.")


def test_versions_are_numbered_from_one_and_come_back_whole(registry: Registry) -> None:
    added = registry.add(version("a")), registry.add(version("b", "har"))
    assert [v.number for v in added] == [1, 2]
    assert registry.versions() == added
    assert registry.versions("har") == added[1:]
    assert registry.get(1) == added[0]


def test_promotion_and_rollback_walk_the_history(registry: Registry) -> None:
    for graph in "abc":
        registry.promote(registry.add(version(graph)).number)
    served = [registry.current("digits"), registry.rollback("digits"), registry.rollback("digits")]
    assert [v.number for v in served if v] == [3, 2, 1]
    assert [(p.number, p.cause) for p in registry.history("digits")] == [
        (1, "promote"), (2, "promote"), (3, "promote"), (2, "rollback"), (1, "rollback"),
    ]  # fmt: skip


def test_after_a_rollback_the_next_promotion_goes_on_from_there(registry: Registry) -> None:
    for graph in "abc":
        registry.add(version(graph))
    for number in (1, 2):
        registry.promote(number)
    registry.rollback("digits")
    registry.promote(3)
    assert registry.rollback("digits").number == 1


def test_promoting_the_current_version_again_adds_no_step_to_go_back(registry: Registry) -> None:
    for graph in "ab":
        registry.promote(registry.add(version(graph)).number)
    registry.promote(2)
    assert registry.rollback("digits").number == 1


def test_tasks_have_their_own_current_version(registry: Registry) -> None:
    registry.promote(registry.add(version("a")).number)
    assert registry.current("har") is None
    assert registry.history("har") == ()


def test_there_is_nothing_to_roll_back_to_at_first(registry: Registry) -> None:
    registry.promote(registry.add(version("a")).number)
    with pytest.raises(StoreError, match="'digits' has no earlier version to return to; 1 served so far"):
        registry.rollback("digits")


def test_a_version_that_failed_its_gate_is_not_promoted(registry: Registry) -> None:
    number = registry.add(version("bad")).number
    registry.set_gate(number, gate(False))
    with pytest.raises(GateRefused, match=r"version 1 of 'digits' did not pass its gate: it lost 4.4 points"):
        registry.promote(number)
    assert registry.current("digits") is None
    registry.set_gate(number, gate(True))
    assert registry.promote(number).gate == gate(True)


def test_a_record_may_gain_evidence_but_not_become_another_model(registry: Registry) -> None:
    added = registry.add(version("a"))
    registry.update(msgspec.structs.replace(added, training_domain="edge"))
    assert registry.get(1).training_domain == "edge"
    with pytest.raises(StoreError, match="version 1 is another model"):
        registry.update(msgspec.structs.replace(added, graph="b"))


def test_a_version_that_failed_its_gate_is_promoted_with_a_note_that_the_history_keeps(registry: Registry) -> None:
    number = registry.add(version("bad")).number
    registry.set_gate(number, gate(False))
    registry.promote(number, note="it lost 4.4 points")
    assert [(p.number, p.note) for p in registry.history("digits")] == [(1, "it lost 4.4 points")]


def test_a_file_from_before_there_were_notes_is_read_and_gets_them(tmp_path: Path, registry: Registry) -> None:
    registry.promote(registry.add(version("a")).number)
    registry.close()
    with sqlite3.connect(tmp_path / "registry.sqlite") as raw:
        raw.execute("ALTER TABLE promotions DROP COLUMN note")
    raw.close()
    again = Registry.open(tmp_path / "registry.sqlite")
    again.promote(1, note="planned anew")
    assert [p.note for p in again.history("digits")] == ["", "planned anew"]
    again.close()


def test_an_unknown_version_is_an_error(registry: Registry) -> None:
    with pytest.raises(StoreError, match="the registry has no version 7"):
        registry.promote(7)


def test_the_current_version_survives_a_restart(tmp_path: Path, registry: Registry) -> None:
    registry.promote(registry.add(version("a")).number)
    registry.close()
    again = Registry.open(tmp_path / "registry.sqlite")
    current = again.current("digits")
    assert current is not None
    assert (current.number, current.graph) == (1, "a")
    again.close()


DAMAGES = {
    "content": ("UPDATE versions SET record = CAST(replace(CAST(record AS BLOB), 'x', 'x') || x'00' AS BLOB) WHERE number = 2", {2}, "was changed on disk"),
    "task": ("UPDATE versions SET task = 'other' WHERE number = 2", {2}, "was changed on disk"),
    "seal": ("UPDATE versions SET seal = 'f' WHERE number = 2", {2}, "was changed on disk"),
    "gone": ("DELETE FROM versions WHERE number = 2", {2}, "is missing"),
    "last gone": ("DELETE FROM versions WHERE number = 3", {3}, "is missing"),
    "swapped": ("UPDATE versions SET record = (SELECT record FROM versions WHERE number = 1) WHERE number = 2", {2}, "was changed"),
    "added": ("INSERT INTO versions SELECT 4, task, record, former, seal FROM versions WHERE number = 1", {4}, "was not written by Edgewise"),
    "unsealed": ("UPDATE versions SET seal = '', former = '' WHERE number = 2", {2}, "was changed on disk"),
}  # fmt: skip


@pytest.mark.parametrize("damage", sorted(DAMAGES))
def test_a_row_that_is_not_as_it_was_written_is_named_and_all_others_stand(damage, tmp_path, registry):
    statement, numbers, what = DAMAGES[damage]
    for graph in "abc":
        registry.add(version(graph))
    registry.close()
    with sqlite3.connect(tmp_path / "registry.sqlite") as raw:
        raw.execute(statement)
    raw.close()
    again = Registry.open(tmp_path / "registry.sqlite")
    assert set(again.damaged) == numbers
    (number,) = numbers
    assert [v.number for v in again.versions()] == [n for n in (1, 2, 3) if n != number]
    with pytest.raises(
        StoreDamaged, match=f"the row of version {number} in .*registry.sqlite' {what}.*edgewise restore"
    ):
        again.get(number)
    with pytest.raises(StoreDamaged):
        again.set_gate(number, gate(True))
    added = again.add(version("d"))
    assert added.number == (5 if damage == "added" else 4)
    assert again.get(added.number) == added
    again.set_gate(1, gate(True))  # does not bless what is broken
    assert set(again.damaged) == numbers
    again.close()


def test_a_digest_changed_with_its_own_seal_is_found_by_the_row_after_it(tmp_path, registry):
    for graph in "abc":
        registry.add(version(graph))
    registry.close()
    forged = msgspec.msgpack.encode(msgspec.structs.replace(version("evil"), number=2))
    with sqlite3.connect(tmp_path / "registry.sqlite") as raw:
        (former,) = raw.execute("SELECT former FROM versions WHERE number = 2").fetchone()
        seal = seal_of(former, 2, b"digits\x1f" + forged)
        raw.execute("UPDATE versions SET record = ?, seal = ? WHERE number = 2", (forged, seal))
    raw.close()
    again = Registry.open(tmp_path / "registry.sqlite")
    assert set(again.damaged) == {2}
    again.close()


def test_rows_without_seals_are_sealed_once_as_another_edgewise_wrote_them(tmp_path, registry):
    for graph in "abc":
        registry.promote(registry.add(version(graph)).number)
    kept = registry.versions(), registry.history("digits")
    registry.close()
    with sqlite3.connect(tmp_path / "registry.sqlite") as raw:  # as format 2 was
        for table in ("versions", "promotions"):
            raw.execute(f"ALTER TABLE {table} DROP COLUMN seal")
            raw.execute(f"ALTER TABLE {table} DROP COLUMN former")
        raw.execute("DROP TABLE heads")
        raw.execute("PRAGMA user_version=2")
    raw.close()
    with pytest.raises(StoreError, match=r"was written by an earlier Edgewise\. Start its node once"):
        Registry.open(tmp_path / "registry.sqlite", read_only=True)
    again = Registry.open(tmp_path / "registry.sqlite")
    assert (again.versions(), again.history("digits")) == kept
    assert again.damaged == {} == again.damaged_history
    again.close()
    with sqlite3.connect(tmp_path / "registry.sqlite") as raw:
        assert raw.execute("PRAGMA user_version").fetchone() == (3,)
        raw.execute("UPDATE versions SET task = 'x' WHERE number = 3")
    raw.close()
    reopened = Registry.open(tmp_path / "registry.sqlite")
    assert set(reopened.damaged) == {3}
    reopened.close()


def test_a_changed_history_is_named_and_nothing_is_rolled_back_by_it(tmp_path, registry):
    for graph in "abc":
        registry.promote(registry.add(version(graph)).number)
    registry.close()
    with sqlite3.connect(tmp_path / "registry.sqlite") as raw:
        raw.execute("UPDATE promotions SET number = 1 WHERE place = 2")
    raw.close()
    again = Registry.open(tmp_path / "registry.sqlite")
    assert again.damaged_history == {2: "was changed on disk"}
    with pytest.raises(StoreDamaged, match="change 2 of what serves was changed on disk"):
        again.rollback("digits")
    again.close()
