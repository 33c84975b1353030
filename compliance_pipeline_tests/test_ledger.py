import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest
import sqlalchemy as sa

from compliance_pipeline import database, ledger
from compliance_pipeline.ledger import GENESIS, Entry, append, ledger_table, record
from compliance_pipeline_tests.intake.conftest import inbox_url, postgres_uri

__all__ = ["inbox_url", "postgres_uri"]
NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.fixture
def engine(inbox_url: str) -> Iterator[sa.Engine]:
    engine = database.connect(inbox_url)
    yield engine
    engine.dispose()


def entry(key: str = "verdict/rec-1", **fields: object) -> Entry:
    return Entry(key, "verdict", "pipeline", "rec-1", "msg-1", "run-1", **fields)  # type: ignore[arg-type]


def rows(engine: sa.Engine) -> list[sa.Row[tuple[object, ...]]]:
    with engine.connect() as connection:
        return list(connection.execute(sa.select(ledger_table).order_by(ledger_table.c.seq)))


def test_entries_are_numbered_from_one_and_each_holds_the_hash_of_the_one_before(engine: sa.Engine) -> None:
    assert record(engine, [entry("a", details={"b": 1, "a": ["é"]}), entry("b")], NOON) == 2
    assert record(engine, [entry("c")], NOON) == 1
    stored = rows(engine)
    assert [row.seq for row in stored] == [1, 2, 3]
    assert [row.previous_hash for row in stored] == [GENESIS, stored[0].hash, stored[1].hash]
    # By the words of the module, with nothing of its code.
    content = {
        "seq": 1, "key": "a", "at": 1772366400000000, "kind": "verdict", "recording_id": "rec-1", "actor": "pipeline",
        "correlation_id": "msg-1", "run_id": "run-1", "details": '{"a":["\\u00e9"],"b":1}',
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    assert stored[0].content_digest == digest
    assert stored[0].hash == hashlib.sha256((GENESIS + digest).encode()).hexdigest()


def test_an_entry_whose_key_is_there_already_is_skipped(engine: sa.Engine) -> None:
    assert record(engine, [entry("a", details={"said": "first"}), entry("a"), entry("b")], NOON) == 2
    assert record(engine, [entry("b"), entry("a"), entry("c")], NOON) == 1
    assert [row.key for row in rows(engine)] == ["a", "b", "c"]
    assert record(engine, [], NOON) == 0


def test_more_entries_than_a_query_takes_are_still_written_once(engine: sa.Engine) -> None:
    many = [entry(f"key-{number}") for number in range(1300)]
    assert record(engine, many[:1200], NOON) == 1200
    assert record(engine, many, NOON) == 100


def test_what_is_rolled_back_leaves_no_gap(engine: sa.Engine) -> None:
    record(engine, [entry("a")], NOON)
    with database.writer(engine).begin() as connection:
        append(connection, [entry("b")], NOON)
        connection.rollback()
    record(engine, [entry("c")], NOON)
    assert [(row.seq, row.key) for row in rows(engine)] == [(1, "a"), (2, "c")]


@pytest.mark.parametrize("table", ["ledger", "ledger_seals"])
@pytest.mark.parametrize("statement", ["UPDATE {} SET seq = seq", "DELETE FROM {}"])
def test_the_database_refuses_to_change_or_delete_entries(engine: sa.Engine, table: str, statement: str) -> None:
    record(engine, [entry("a")], NOON)
    with engine.begin() as connection:
        connection.execute(sa.insert(ledger.seals_table), [{"seq": 1, "hash": "h", "at": NOON, "signature": "s"}])
    with pytest.raises(sa.exc.DBAPIError, match="only grows"), database.writer(engine).begin() as connection:
        connection.exec_driver_sql(statement.format(table))


def test_details_that_json_can_not_hold_are_refused_whole(engine: sa.Engine) -> None:
    with pytest.raises(ValueError, match="JSON"):
        record(engine, [entry("a"), entry("b", details={"score": float("nan")})], NOON)
    assert rows(engine) == []


APPEND = """
import sys
import time
from datetime import datetime, UTC
from compliance_pipeline import database
from compliance_pipeline.ledger import Entry, record
engine = database.connect(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for batch in range(25):
    entries = [Entry(f"{sys.argv[2]}-{batch}-{n}", "action", "test") for n in range(4)]
    entries.append(Entry(f"shared-{batch}", "action", "test"))
    record(engine, entries, datetime.now(UTC))
    time.sleep(0.005)  # SQLite's lock is not fair: without a pause, one process may get it every time
"""


def test_processes_that_append_at_once_make_one_chain(engine: sa.Engine, inbox_url: str) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", APPEND, inbox_url, f"process-{number}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for number in range(4)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
    assert [process.returncode for process in processes] == [0] * 4
    stored = rows(engine)
    assert [row.seq for row in stored] == list(range(1, 4 * 25 * 4 + 25 + 1))
    assert [row.previous_hash for row in stored[1:]] == [row.hash for row in stored[:-1]]
    writers = [str(row.key).rsplit("-", 2)[0] for row in stored if not str(row.key).startswith("shared")]
    assert sum(a != b for a, b in pairwise(writers)) > 3, "they did not compete"


def test_an_engine_of_an_earlier_version_gets_the_table(tmp_path: Path) -> None:
    engine = database.connect(f"sqlite:///{tmp_path / 'old.db'}")
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE inbox (seq INTEGER)")
    assert record(engine, [entry()], NOON) == 1
    engine.dispose()
