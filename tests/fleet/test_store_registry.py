from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from edgewise.core.errors import GateRefused, StoreError
from edgewise.fleet.store.registry import Registry
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


def test_a_damaged_record_is_named(tmp_path: Path, registry: Registry) -> None:
    registry.add(version("a"))
    with sqlite3.connect(tmp_path / "registry.sqlite") as raw:
        raw.execute("UPDATE versions SET record = ?", (b"\x80",))
    raw.close()
    with pytest.raises(StoreError, match="the record of version 1 is damaged"):
        registry.get(1)
