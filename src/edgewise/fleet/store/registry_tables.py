"""The registry's tables, and how their rows seal each other. What is asked of them is in `registry.py`."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from edgewise.fleet.store.seal_chain import SealedRow, chained

if TYPE_CHECKING:
    from sqlalchemy import Column, Connection, MetaData, Table


def seal_all(connection: Connection, name: str, rows: list[SealedRow]) -> None:
    """Seals every row of a table, as one that has none yet."""
    former, t = "", table_of(name)
    for row in rows:
        (sealed,) = chained([row.content], former=former, first=row.number)
        seals = {"former": former, "seal": sealed.seal}
        connection.execute(t.update().where(_key(t) == row.number).values(**seals))
        former = sealed.seal
    set_head(connection, name, rows[-1].number, former)


def reseal_versions(connection: Connection, number: int, broken: dict[int, str]) -> None:
    """Seals a version's new record, and those after it upon it up to one that is broken: that stays so."""
    t, former = table_of("versions"), None
    length, _ = head_of(connection, "versions")
    for row in sealed_rows(connection, "versions"):
        if row.number < number:
            continue
        if row.number in broken:
            return
        (sealed,) = chained([row.content], former=row.former if former is None else former, first=row.number)
        seals = {"former": sealed.former, "seal": sealed.seal}
        connection.execute(t.update().where(t.c.number == row.number).values(**seals))
        former = sealed.seal
    assert former is not None
    set_head(connection, "versions", length, former)


def sealed_rows(connection: Connection, name: str) -> list[SealedRow]:
    """The rows of `versions` or `promotions` in order, each with its seal."""
    from sqlalchemy import select

    t = table_of(name)
    rows = connection.execute(select(t).order_by(_key(t))).all()
    if name == "versions":
        return [SealedRow(row.number, row.former, row.seal, version_content(row.task, row.record)) for row in rows]
    return [
        SealedRow(
            row.place, row.former, row.seal, change_content(row.task, row.number, row.cause, row.time_s, row.note)
        )
        for row in rows
    ]


def version_content(task: str, record: bytes) -> bytes:
    """What a version's row says."""
    return f"{task}\x1f".encode() + record


def change_content(task: str, number: int, cause: str, time_s: float, note: str) -> str:
    """What a row of the history says."""
    return "\x1f".join((task, str(number), cause, repr(time_s), note))


def _key(table: Table) -> Column[Any]:
    return table.c.number if table.name == "versions" else table.c.place


def head_of(connection: Connection, name: str) -> tuple[int, str]:
    """How many rows of a table were written, and the seal of the last."""
    from sqlalchemy import select

    heads = table_of("heads")
    row = connection.execute(select(heads).where(heads.c.name == name)).first()
    return (0, "") if row is None else (row.length, row.seal)


def set_head(connection: Connection, name: str, length: int, seal: str) -> None:
    """Notes how many rows of a table were written, and the seal of the last."""
    heads = table_of("heads")
    connection.execute(heads.delete().where(heads.c.name == name))
    connection.execute(heads.insert(), {"name": name, "length": length, "seal": seal})


def table_of(name: str) -> Table:
    """One of the tables."""
    return registry_tables().tables[name]


@cache
def registry_tables() -> MetaData:
    """All tables."""
    from sqlalchemy import Column, Float, Integer, LargeBinary, MetaData, String, Table

    tables = MetaData()
    Table(
        "versions",
        tables,
        Column("number", Integer, primary_key=True),
        Column("task", String, nullable=False, index=True),
        Column("record", LargeBinary, nullable=False),
        *_seals(),
    )
    Table(
        "promotions",
        tables,
        Column("place", Integer, primary_key=True),
        Column("task", String, nullable=False, index=True),
        Column("number", Integer, nullable=False),
        Column("cause", String, nullable=False),
        Column("time_s", Float, nullable=False),
        Column("note", String, nullable=False, server_default=""),
        *_seals(),
    )
    Table("pruned", tables, Column("number", Integer, primary_key=True), Column("time_s", Float, nullable=False))
    Table(
        "heads",
        tables,
        Column("name", String, primary_key=True),
        Column("length", Integer, nullable=False),
        Column("seal", String, nullable=False),
    )
    return tables


def _seals() -> tuple[Column[str], Column[str]]:
    from sqlalchemy import Column, String

    return (
        Column("former", String, nullable=False, server_default=""),
        Column("seal", String, nullable=False, server_default=""),
    )
