from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgewise.core.errors import StoreError
from edgewise.fleet.store.database import Database
from edgewise.fleet.store.events import EventLog
from edgewise.fleet.store.registry import Registry


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "events.sqlite"


@pytest.fixture
def log(path: Path) -> Iterator[EventLog]:
    made = EventLog.open(path)
    yield made
    made.close()


def test_events_come_back_in_order_with_indices_from_one(log: EventLog) -> None:
    assert [log.append("run-1", "A", b"1"), log.append("run-2", "A", b"x"), log.append("run-1", "B", b"2")] == [1, 1, 2]
    assert [(e.index, e.kind, e.payload) for e in log.read("run-1")] == [(1, "A", b"1"), (2, "B", b"2")]
    assert log.runs() == ("run-1", "run-2")


def test_reading_after_an_index_leaves_out_what_is_known(log: EventLog) -> None:
    log.append_many("run", [("E", bytes([i])) for i in range(5)])
    assert [entry.index for entry in log.read("run", after=3)] == [4, 5]
    assert log.read("run", after=5) == []
    assert log.read("nobody's") == []


def test_a_batch_is_one_transaction_with_the_last_index(log: EventLog) -> None:
    assert log.append_many("run", [("E", b"")] * 50) == 50
    assert log.append_many("run", []) == 50


def test_a_reopened_log_continues_where_it_was(path: Path, log: EventLog) -> None:
    log.append("run", "E", b"1")
    log.close()
    again = EventLog.open(path)
    assert again.append("run", "E", b"2") == 2
    assert [entry.payload for entry in again.read("run")] == [b"1", b"2"]
    again.close()


def test_any_thread_may_append(log: EventLog) -> None:
    threads = [threading.Thread(target=lambda: [log.append("run", "E", b"") for _ in range(10)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [entry.index for entry in log.read("run")] == list(range(1, 41))


def test_a_second_writer_is_refused_and_named(path: Path, log: EventLog) -> None:
    with pytest.raises(StoreError, match=f"is being written by process {os.getpid()}; a log has one writer"):
        EventLog.open(path)


def test_a_reader_may_look_while_the_writer_runs(path: Path, log: EventLog) -> None:
    log.append("run", "E", b"1")
    reader = EventLog.open(path, read_only=True)
    assert [entry.payload for entry in reader.read("run")] == [b"1"]
    with pytest.raises(StoreError, match="readonly database"):
        reader.append("run", "E", b"2")
    reader.close()


def test_log_and_registry_share_one_file(path: Path) -> None:
    database = Database.open(path)
    assert EventLog(database).append("run", "E", b"1") == 1
    assert Registry(database).versions() == ()
    database.close()


def test_every_append_is_flushed_to_the_disk(path: Path, log: EventLog) -> None:
    with log._database.transaction() as connection:
        pragmas = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")]
    assert pragmas == ["wal", 2]  # 2 is FULL: the WAL is synced at each commit


CRASHING = """
import sys
from edgewise.fleet.store.events import EventLog
log = EventLog.open(sys.argv[1], crash_after=int(sys.argv[2]))
for number in range(4):
    log.append("run", "E", bytes([number]))
    print("acknowledged", number, flush=True)
"""


@pytest.mark.live
@pytest.mark.parametrize("crash_after", [1, 3])
def test_the_kill_hook_kills_after_the_disk_and_before_the_acknowledgement(path: Path, crash_after: int) -> None:
    words = [sys.executable, "-c", CRASHING, str(path), str(crash_after)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.count("acknowledged") == crash_after - 1
    log = EventLog.open(path)  # the killed process holds no lock
    assert [entry.payload for entry in log.read("run")] == [bytes([i]) for i in range(crash_after)]
    log.close()


def test_a_full_disk_is_named_and_loses_nothing(log: EventLog) -> None:
    log.append("run", "E", b"kept")
    with log._database.transaction() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
    with pytest.raises(StoreError, match=r"is full \(database or disk is full\)\. Free some space"):
        log.append("run", "E", bytes(100_000))
    with log._database.transaction() as connection:
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages + 1000}")
    assert log.append("run", "E", bytes(100_000)) == 2
    assert log.read("run")[0].payload == b"kept"


@pytest.mark.live
def test_a_disk_that_takes_no_more_bytes_is_a_store_error(path: Path) -> None:
    code = "\n".join(
        [
            "import resource, signal, sys",
            "from edgewise.core.errors import StoreError",
            "from edgewise.fleet.store.events import EventLog",
            "log = EventLog.open(sys.argv[1])",
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)",
            "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))",
            "try:",
            "    log.append('run', 'E', bytes(1_000_000))",
            "except StoreError as error:",
            "    print(error)",
        ]
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert "the store" in done.stdout
    assert "takes nothing" in done.stdout


def test_a_file_that_is_no_database_is_named(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a database at all, but long enough to be looked at" * 40)
    with pytest.raises(StoreError, match=r"file is not a database\. It is another kind of file"):
        EventLog.open(path)
    path.unlink()
    EventLog.open(path).close()  # the refused open left no lock


def test_a_changed_event_is_found_when_read(path: Path, log: EventLog) -> None:
    log.append_many("run", [("E", b"one"), ("E", b"two")])
    log.close()
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE events SET payload = ? WHERE number = 2", (b"TWO",))
    raw.close()
    again = EventLog.open(path)
    with pytest.raises(StoreError, match=r"event 2 of run 'run' in .* is missing or damaged") as caught:
        again.read("run")
    assert caught.value.fields["index"] == 2
    again.close()


def test_a_missing_event_is_found_when_read(path: Path, log: EventLog) -> None:
    log.append_many("run", [("E", b"one"), ("E", b"two")])
    log.close()
    with sqlite3.connect(path) as raw:
        raw.execute("DELETE FROM events WHERE number = 1")
    raw.close()
    again = EventLog.open(path)
    with pytest.raises(StoreError, match="event 1 of run 'run'"):
        again.read("run")
    again.close()


def test_a_file_another_program_holds_is_named(path: Path, log: EventLog) -> None:
    holder = sqlite3.connect(path)
    holder.execute("BEGIN IMMEDIATE")
    with log._database.transaction() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout=10")
    with pytest.raises(StoreError, match=r"is locked \(database is locked\)\. Close the program that holds it"):
        log.append("run", "E", b"")
    holder.rollback()
    holder.close()
    assert log.append("run", "E", b"") == 1


def test_a_newer_format_is_refused(path: Path, log: EventLog) -> None:
    log.close()
    with sqlite3.connect(path) as raw:
        raw.execute("PRAGMA user_version=99")
    raw.close()
    with pytest.raises(StoreError, match=r"has format 99, this Edgewise reads up to 3. Update Edgewise"):
        EventLog.open(path)


def test_reading_a_store_that_is_not_there_is_an_error(path: Path) -> None:
    with pytest.raises(StoreError, match="there is no store at"):
        EventLog.open(path, read_only=True)


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match=r"the store .* failed"):
        EventLog.open(tmp_path / "file" / "events.sqlite")


def test_importing_the_store_does_not_import_the_database_library() -> None:
    code = "import sys, edgewise.fleet.store.events; sys.exit('sqlalchemy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_a_state_folder_of_0_1_0_is_refused_with_what_to_do(path: Path, log: EventLog) -> None:
    log.close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version=1")
    with pytest.raises(StoreError, match=r"was written by Edgewise 0\.1\.0, .* Give this node a new state folder"):
        EventLog.open(path)


def test_a_snapshot_takes_the_place_of_what_was_before_and_indexes_go_on(path: Path, log: EventLog) -> None:
    log.append_many("run-9", [("a", b"1"), ("b", b"2")])
    assert log.compact("run-9", "snapshot", b"3", num_events=2) == 4
    assert log.append("run-9", "c", b"4") == 5
    log.close()
    again = EventLog.open(path)
    assert [(e.index, e.kind, e.payload) for e in again.read("run-9")] == [(4, "snapshot", b"3"), (5, "c", b"4")]
    assert "run-9" in again.runs()
    again.forget("run-9")
    assert "run-9" not in again.runs()
    assert again.append("run-9", "d", b"5") == 1
    again.close()
