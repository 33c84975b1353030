"""The warehouse: keyed and append-only, one writer at a time, and nothing committed is ever lost."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import get_args

import duckdb
import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from compliance_pipeline.warehouse.tables import RecordingRow, Row
from compliance_pipeline.warehouse.warehouse import KEYS, MARTS, Warehouse, WarehouseBusy, WarehouseDamaged, sql
from compliance_pipeline_tests.warehouse.rows import HOUR, NEXT_HOUR, ONE_OF_EACH, finding, recording, stage


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    return Warehouse(tmp_path / "warehouse.duckdb")


@pytest.mark.parametrize("row_type", get_args(Row), ids=lambda row_type: row_type.table)
def test_a_table_has_the_columns_of_its_row_in_the_same_order(warehouse: Warehouse, row_type: type[Row]) -> None:
    columns = warehouse.select(f"DESCRIBE {row_type.table}")
    assert [column["column_name"] for column in columns] == [field.name for field in fields(row_type)]


@pytest.mark.parametrize("row", ONE_OF_EACH, ids=lambda row: row.table)
def test_a_row_comes_back_as_it_went_in(warehouse: Warehouse, row: Row) -> None:
    assert warehouse.append([row]) == 1
    assert warehouse.select(f"FROM {row.table}") == [asdict(row)]


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
times = st.integers(0, 7_000_000_000_000_000).map(lambda us: HOUR + timedelta(microseconds=us))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    return Warehouse(tmp_path_factory.mktemp("any") / "warehouse.duckdb")


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.builds(
            replace,
            st.just(recording()),
            recording_id=texts,
            queue=st.none() | texts,
            participants=st.lists(texts, max_size=3),
            started_at=st.none() | times,
            available_at=times,
        ),
        max_size=8,
        unique_by=lambda row: row.recording_id,
    )
)
def test_rows_of_any_text_time_and_list_come_back_as_they_went_in(shared: Warehouse, rows: list[RecordingRow]) -> None:
    warehouse = shared
    with warehouse.write() as connection:
        connection.execute("DELETE FROM recordings")
    assert warehouse.append(rows) == len(rows)
    stored = {row["recording_id"]: row for row in warehouse.select("FROM recordings")}
    assert stored == {row.recording_id: asdict(row) for row in rows}


def test_appending_a_known_key_changes_nothing_and_returns_zero(warehouse: Warehouse) -> None:
    assert warehouse.append([recording(queue="first")]) == 1
    assert warehouse.append([recording(queue="second")]) == 0
    assert warehouse.append([recording(queue="third"), recording("rec-2")]) == 1
    assert [row["queue"] for row in warehouse.select("FROM recordings ORDER BY recording_id")] == ["first", "billing"]


@pytest.mark.parametrize("row", ONE_OF_EACH, ids=lambda row: row.table)
def test_a_key_that_comes_again_in_one_append_or_the_next_is_one_row(warehouse: Warehouse, row: Row) -> None:
    assert warehouse.append([row, row]) == 1
    assert warehouse.append([row]) == 0
    assert warehouse.select(f"FROM {row.table}") == [asdict(row)]


def test_the_tables_without_an_index_are_those_whose_keys_the_writer_sees_to(warehouse: Warehouse) -> None:
    warehouse.append([recording()])
    assert {
        row["table_name"] for row in warehouse.select("SELECT table_name FROM duckdb_tables() WHERE index_count = 0")
    } == KEYS.keys()


def test_what_an_engine_found_before_goes_where_it_screened_anew_and_nothing_else_does(warehouse: Warehouse) -> None:
    later = [finding(number, partition_hour=NEXT_HOUR) for number in ("rec-3", "rec-4")]
    warehouse.append([finding(), finding("rec-2"), finding(engine_version="engine-2"), *later])
    again = [finding(finding_no=7), finding("rec-3", finding_no=8, partition_hour=NEXT_HOUR)]
    assert warehouse.append(again, instead_of=[("rec-1", "engine-1"), ("rec-3", "engine-1")]) == 2
    stored = warehouse.select("SELECT recording_id, engine_version, finding_no FROM findings ORDER BY ALL")
    assert [tuple(row.values()) for row in stored] == [
        ("rec-1", "engine-1", 7),
        ("rec-1", "engine-2", 0),
        ("rec-2", "engine-1", 0),
        ("rec-3", "engine-1", 8),
        ("rec-4", "engine-1", 0),
    ]


def test_appending_nothing_does_not_even_make_the_file(warehouse: Warehouse) -> None:
    assert warehouse.append([]) == 0
    assert not warehouse.path.exists()


def test_an_append_to_several_tables_is_one_transaction(warehouse: Warehouse) -> None:
    broken = replace(stage(), channel=None)  # type: ignore[arg-type]
    with pytest.raises(duckdb.ConstraintException):
        warehouse.append([recording(), broken])
    assert warehouse.select("FROM recordings") == []


def test_a_block_that_raises_is_rolled_back_and_the_warehouse_goes_on(warehouse: Warehouse) -> None:
    warehouse.append([recording()])
    with suppress(KeyboardInterrupt), warehouse.write() as connection:
        connection.execute("DELETE FROM recordings")
        raise KeyboardInterrupt
    assert len(warehouse.select("FROM recordings")) == 1
    assert warehouse.append([recording("rec-2")]) == 1


def test_a_block_that_goes_on_after_a_statement_failed_is_not_taken_for_stored(warehouse: Warehouse) -> None:
    def goes_on() -> None:
        with warehouse.write() as connection:
            connection.execute("INSERT INTO changed_hours VALUES ($hour, 1)", {"hour": HOUR})
            with suppress(duckdb.ConversionException):
                connection.execute("SELECT 'x'::INTEGER")

    with pytest.raises(duckdb.TransactionException):
        goes_on()
    assert warehouse.select("FROM changed_hours") == []


def test_what_follows_an_append_is_of_its_transaction(warehouse: Warehouse) -> None:
    with pytest.raises(duckdb.CatalogException):
        warehouse.append([recording()], then=("DELETE FROM no_such_table", {}))
    assert warehouse.select("FROM recordings") == []
    warehouse.append([recording()], then=("UPDATE recordings SET queue = $queue", {"queue": "other"}))
    assert warehouse.select("SELECT queue FROM recordings") == [{"queue": "other"}]


def test_reads_together_are_one_open(warehouse: Warehouse) -> None:
    warehouse.append([recording()])
    opens: list[bool] = []

    class Counted(Warehouse):
        @contextmanager
        def read(self) -> Iterator[duckdb.DuckDBPyConnection]:
            opens.append(True)
            with super().read() as connection:
                yield connection

    counted = Counted(warehouse.path)
    with counted.together():
        assert len(counted.select("FROM recordings")) == counted.describe("recordings", HOUR).rows == 1
        with counted.together():
            assert len(counted.select("FROM recordings")) == 1
    assert len(opens) == 1
    counted.select("FROM recordings")
    assert len(opens) == 2


def test_work_that_can_wait_leaves_the_warehouse_to_others_for_longer_than_it_had_it(warehouse: Warehouse) -> None:
    warehouse.append([recording()])
    waits = Warehouse(warehouse.path)
    waits.select("FROM recordings")
    took: list[float] = []
    for waits.gives_way in (False, True):
        began = time.monotonic()
        with waits.read():
            time.sleep(0.2)
        took.append(time.monotonic() - began)
    assert took[0] >= 0.2
    assert took[1] >= 0.6


def test_times_come_back_in_utc_wherever_the_machine_stands(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    warehouse.append([recording()])
    [row] = warehouse.select("SELECT available_at, partition_hour::VARCHAR AS shown FROM recordings")
    assert row == {"available_at": HOUR, "shown": "2026-03-01 12:00:00+00"}


def test_the_first_read_of_an_older_warehouse_adds_the_tables_that_it_lacks(warehouse: Warehouse) -> None:
    with duckdb.connect(warehouse.path) as connection:
        connection.execute("CREATE TABLE something_else (x INTEGER)")
    assert warehouse.select("FROM recordings") == []


WRITE = """
import sys
from pathlib import Path
from compliance_pipeline.warehouse.warehouse import Warehouse
from compliance_pipeline_tests.warehouse.rows import recording
writer, batches, size = (int(arg) for arg in sys.argv[2:])
for batch in range(batches):
    rows = [recording(f"{writer}-{batch}-{row}") for row in range(size)]
    assert Warehouse(Path(sys.argv[1])).append(rows) == size
    print(batch, flush=True)
"""


def launch(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


def test_several_processes_that_write_at_once_lose_nothing(warehouse: Warehouse) -> None:
    writers, batches, size = 3, 4, 75
    processes = [launch(WRITE, warehouse.path, writer, batches, size) for writer in range(writers)]
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    stored = {row["recording_id"] for row in warehouse.select("SELECT recording_id FROM recordings")}
    assert stored == {f"{w}-{b}-{r}" for w in range(writers) for b in range(batches) for r in range(size)}


KILLED = """
import os, signal, sys
from pathlib import Path
from compliance_pipeline.warehouse.warehouse import Warehouse
from compliance_pipeline_tests.warehouse.rows import recording
warehouse = Warehouse(Path(sys.argv[1]))
warehouse.append([recording("committed")])
with warehouse.write() as connection:
    connection.execute("INSERT INTO recordings SELECT 'lost-' || i, * EXCLUDE (i, recording_id) "
                       "FROM recordings, range(20000) AS t(i)")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_writer_killed_within_a_transaction_loses_only_that_transaction(warehouse: Warehouse) -> None:
    process = launch(KILLED, warehouse.path)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert [row["recording_id"] for row in warehouse.select("FROM recordings")] == ["committed"]
    assert warehouse.append([recording("after")]) == 1


def test_a_writer_killed_at_any_moment_loses_nothing_that_it_reported(warehouse: Warehouse) -> None:
    reported: set[str] = set()
    for writer in range(2):
        process = launch(WRITE, warehouse.path, writer, 10_000, 20)
        assert process.stdout is not None
        for _ in range(5 + writer):
            reported.add(f"{writer}-{process.stdout.readline().strip()}")
        process.send_signal(signal.SIGKILL)
        reported |= {f"{writer}-{line.strip()}" for line in process.stdout if line.strip()}
        process.wait(10)
        process.stdout.close()
    rows = warehouse.select(
        "SELECT regexp_replace(recording_id, '-[0-9]+$', '') AS batch, count(*) AS rows FROM recordings GROUP BY 1"
    )
    assert {row["rows"] for row in rows} == {20}, "a batch is there as a whole or not at all"
    assert len(reported) >= 11
    assert reported <= {row["batch"] for row in rows}


def test_a_warehouse_in_use_is_reported_as_busy_with_what_to_do(warehouse: Warehouse) -> None:
    impatient = Warehouse(warehouse.path, lock_timeout_s=0.2)
    with warehouse.write(), ExpectedBusy(impatient):
        pass
    assert impatient.select("FROM recordings") == []


class ExpectedBusy:
    """Asks a warehouse from another thread while the block runs, and checks what it says."""

    def __init__(self, warehouse: Warehouse) -> None:
        self.warehouse = warehouse

    def __enter__(self) -> None:
        said: list[str] = []

        def ask() -> None:
            for attempt in (lambda: self.warehouse.append([recording()]), lambda: self.warehouse.select("SELECT 1")):
                try:
                    attempt()
                except WarehouseBusy as error:
                    said.append(str(error))

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        assert len(said) == 2
        for message in said:
            assert "warehouse.duckdb was in use for over 0.2 s" in message
            assert "run the step again" in message
            assert str(self.warehouse.path.parent) not in message

    def __exit__(self, *_: object) -> None:
        pass


HOLD = """
import sys, duckdb
connection = duckdb.connect(sys.argv[1])
print("open", flush=True)
sys.stdin.read()
"""


def test_a_notebook_that_has_the_file_open_without_our_lock_is_busy_too_and_waited_for(warehouse: Warehouse) -> None:
    warehouse.append([recording()])
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(warehouse.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"open\n"
    with pytest.raises(WarehouseBusy, match="a notebook"):
        Warehouse(warehouse.path, lock_timeout_s=0.3).append([recording("rec-2")])
    closing = threading.Timer(0.3, process.stdin.close)
    closing.start()
    assert warehouse.append([recording("rec-2")]) == 1
    process.wait(10)
    process.stdout.close()


def test_what_is_no_lock_of_duckdb_is_not_called_busy(tmp_path: Path) -> None:
    path = tmp_path / "warehouse.duckdb"
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(WarehouseDamaged, match="restore your backup"):
        Warehouse(path).select("SELECT 1")


def test_the_lock_is_given_back_after_every_use(warehouse: Warehouse) -> None:
    warehouse.append([recording()])
    warehouse.select("SELECT 1")
    with pytest.raises(duckdb.Error):
        warehouse.select("SELECT nonsense")
    with FileLock(f"{warehouse.path}.lock", timeout=0):
        assert os.path.exists(warehouse.path)  # noqa: PTH110


def test_a_file_of_an_earlier_version_gets_the_newer_columns_and_keeps_its_rows(warehouse: Warehouse) -> None:
    warehouse.append([recording()])
    with duckdb.connect(warehouse.path) as earlier:
        earlier.execute("ALTER TABLE recordings DROP COLUMN direction; UPDATE schema_digest SET digest = 'earlier'")
    later = Warehouse(warehouse.path)
    later.append([recording("rec-2", direction="inbound")])
    assert later.select("SELECT recording_id, direction FROM recordings ORDER BY recording_id") == [
        {"recording_id": recording().recording_id, "direction": None},
        {"recording_id": "rec-2", "direction": "inbound"},
    ]


def test_a_warehouse_whose_tables_had_other_keys_gets_those_of_now_and_keeps_its_rows(warehouse: Warehouse) -> None:
    warehouse.append(ONE_OF_EACH)
    before = {row.table: warehouse.select(f"FROM {row.table}") for row in ONE_OF_EACH}
    with warehouse.write() as earlier:
        # A version in between had added these to rows that were there.
        earlier.execute("ALTER TABLE findings ALTER located DROP NOT NULL")
        earlier.execute("ALTER TABLE findings ALTER spans DROP NOT NULL")
        earlier.execute("UPDATE findings SET located = NULL, spans = NULL")
    with warehouse.write() as earlier:
        earlier.execute("ALTER TABLE recordings ADD PRIMARY KEY (recording_id)")
        earlier.execute("ALTER TABLE stage_times ADD PRIMARY KEY (recording_id, stage)")
        earlier.execute("ALTER TABLE findings ADD PRIMARY KEY (recording_id, engine_version, finding_no)")
        earlier.execute("CREATE TABLE evidence_of_before AS FROM evidence; DROP TABLE evidence")
        earlier.execute("ALTER TABLE evidence_of_before RENAME TO evidence")
        earlier.execute("ALTER TABLE evidence ADD PRIMARY KEY (recording_id, engine_version, finding_no)")
        earlier.execute("UPDATE schema_digest SET digest = 'earlier'")
    later = Warehouse(warehouse.path)
    before["findings"] = [row | {"located": False, "spans": []} for row in before["findings"]]
    assert {row.table: later.select(f"FROM {row.table}") for row in ONE_OF_EACH} == before
    keys = (
        "SELECT table_name, constraint_column_names AS names FROM duckdb_constraints() "
        "WHERE constraint_type = 'PRIMARY KEY'"
    )
    with duckdb.connect() as fresh:
        fresh.execute(sql("schema"))
        assert later.select(f"{keys} ORDER BY ALL") == [
            {"table_name": table, "names": names} for table, names in fresh.execute(f"{keys} ORDER BY ALL").fetchall()
        ]


def test_every_table_and_every_column_says_what_it_is(warehouse: Warehouse) -> None:
    tables = warehouse.select("SELECT table_name, comment FROM duckdb_tables()")
    assert {*MARTS, *(row.table for row in ONE_OF_EACH)} <= {table["table_name"] for table in tables}
    assert [table["table_name"] for table in tables if not table["comment"]] == []
    for table in tables:
        name = table["table_name"]
        silent = "SELECT column_name FROM duckdb_columns() WHERE table_name = $name AND comment IS NULL"
        assert warehouse.select(silent, {"name": name}) == []


def test_many_threads_of_one_process_may_use_it_at_once(warehouse: Warehouse) -> None:
    threads = [
        threading.Thread(target=lambda n=n: [warehouse.append([recording(f"{n}-{i}")]) for i in range(5)])
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warehouse.select("SELECT count(*) AS rows FROM recordings") == [{"rows": 20}]


def test_an_unknown_mart_is_refused_before_anything_is_deleted(warehouse: Warehouse) -> None:
    warehouse.append([recording()])
    with pytest.raises(ValueError, match="no such mart: recordings"):
        warehouse.refresh_marts(HOUR, {"recordings": {}})
    assert len(warehouse.select("FROM recordings")) == 1
