"""The served warehouse: what the file promises, promised to many machines; a client or the server may die anywhere."""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from datetime import UTC, timedelta, timezone
from pathlib import Path
from typing import Any, cast

import duckdb
import httpx
import pandas as pd
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from compliance_pipeline import database, reviews, warehouse_cli
from compliance_pipeline.figures.snapshots import Manifest, publish
from compliance_pipeline.intake.inbox import Inbox, inbox_table
from compliance_pipeline.sandbox.calls import Kind
from compliance_pipeline.settings import Settings
from compliance_pipeline.warehouse.served import ServedWarehouse, Session, packed, unpacked
from compliance_pipeline.warehouse.server import Unsafe, checked_secret
from compliance_pipeline.warehouse.tables import Row
from compliance_pipeline.warehouse.warehouse import (
    MARTS,
    Warehouse,
    WarehouseBusy,
    WarehouseError,
    WarehouseUnavailable,
    insert_new,
    warehouse_of,
)
from compliance_pipeline_tests.figures.history import OBJECTIVE, History
from compliance_pipeline_tests.warehouse.rows import HOUR, NEXT_HOUR, ONE_OF_EACH, recording, stage
from compliance_pipeline_tests.workshop import recording as calls_recording
from compliance_pipeline_tests.workshop import workshop

SECRET = "correct-horse-battery-staple-0123456789"
SERVE = """
import resource, signal, sys
from pathlib import Path
from compliance_pipeline.warehouse import server
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[5]),) * 2)
server.IDLE_S, server.KEPT_S, server.OPEN_S = float(sys.argv[4]), float(sys.argv[6]), 0.5
sys.exit(not server.serve(Path(sys.argv[1]), "127.0.0.1", int(sys.argv[2]), sys.argv[3]))
"""


NO_LIMIT = -1


class Server:
    """`compliance warehouse serve` in a process."""

    def __init__(self, path: Path, idle_s: float = 30.0, limit: int = NO_LIMIT, kept_s: float = 60.0) -> None:
        self.path, self.given = path, (idle_s, limit, kept_s)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        self.log = (self.path.parent / "server.log").open("a")
        self.process = launch(SERVE, self.path, self.port, SECRET, *self.given, stderr=self.log)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)
        self.log.close()

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        self.log.close()

    def warehouse(self, seconds: float = 20.0) -> ServedWarehouse:
        return ServedWarehouse(self.url, SECRET, seconds)


@contextmanager
def served(path: Path, idle_s: float = 30.0, limit: int = NO_LIMIT, kept_s: float = 60.0) -> Iterator[Server]:
    server = Server(path, idle_s, limit, kept_s)
    try:
        yield server
    finally:
        server.end()


def launch(code: str, *arguments: object, stderr: Any = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(tmp_path_factory.mktemp("served") / "warehouse.duckdb") as one:
        yield one


@pytest.fixture
def warehouse(server: Server) -> ServedWarehouse:
    """Empty."""
    it = server.warehouse()
    with it.write() as connection:
        for row in ONE_OF_EACH:
            connection.execute(f"DELETE FROM {row.table}")
    return it


def ids(warehouse: Warehouse) -> set[str]:
    return {row["recording_id"] for row in warehouse.select("SELECT recording_id FROM recordings")}


@pytest.mark.parametrize("row", ONE_OF_EACH, ids=lambda row: row.table)
def test_a_row_comes_back_as_it_went_in(warehouse: ServedWarehouse, row: Row) -> None:
    assert warehouse.append([row]) == 1
    assert warehouse.append([row]) == 0
    assert warehouse.select(f"FROM {row.table}") == [asdict(row)]


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**127), 2**127)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8"))
    | st.binary()
    | st.datetimes()
    | st.datetimes(
        timezones=st.just(UTC) | st.integers(-720, 720).map(lambda minutes: timezone(timedelta(minutes=minutes)))
    )
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.uuids(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(values)
def test_any_value_comes_over_the_wire_as_it_is(value: object) -> None:
    assert unpacked(packed(value)) == value


def test_a_query_answers_as_that_of_a_file_does(warehouse: ServedWarehouse) -> None:
    query = """
        SELECT 1::HUGEINT * 170141183460469231731687303715884105727 AS huge, 1.50::DECIMAL(9, 2) AS money,
            DATE '2026-03-01' AS day, TIME '12:30:01.5' AS clock, INTERVAL '1 hour 2 seconds' AS span,
            '6ba7b810-9dad-11d1-80b4-00c04fd430c8'::UUID AS id, '\\x00\\xFF'::BLOB AS raw, 'ä"\\0' AS words,
            [1, NULL, 3] AS list, {'a': 1, 'b': ['x']} AS struct, MAP {'k': 0.5} AS map, NULL AS nothing,
            TIMESTAMPTZ '2026-03-01 12:00:00.123456+02' AS moment, TIMESTAMP '2026-03-01 12:00:00' AS naive,
            'infinity'::DOUBLE AS most, $given AS given
        FROM range(3)
    """
    parameters = {"given": [{"at": HOUR, "queue": None}, {"at": NEXT_HOUR, "queue": "billing"}]}
    with duckdb.connect() as here:
        here.execute("SET TimeZone = 'UTC'")
        expected = here.execute(query, parameters).fetchall()
        frame = here.execute(query, parameters).df()
        empty = here.execute(f"FROM ({query}) WHERE false", parameters).df()
    with warehouse.read() as connection:
        assert connection.execute(query, parameters).fetchall() == expected
        assert connection.execute(query, parameters).fetchone() == expected[0]
        assert connection.fetchmany(5) == expected[1:]
        assert connection.fetchone() is None
        pd.testing.assert_frame_equal(connection.execute(query, parameters).df(), frame)
        pd.testing.assert_frame_equal(connection.execute(f"FROM ({query}) WHERE false", parameters).df(), empty)


def test_more_rows_than_are_sent_at_a_time_come_whole_and_in_order(warehouse: ServedWarehouse) -> None:
    with warehouse.read() as connection:
        for count in (0, 1, 9_999, 10_000, 10_001, 25_000):
            rows = connection.execute("SELECT * FROM range($count)", {"count": count}).fetchall()
            assert rows == [(number,) for number in range(count)]


def test_a_frame_that_was_registered_can_be_inserted_from(warehouse: ServedWarehouse) -> None:
    rows = [asdict(recording(f"rec-{number}", queue=None if number % 2 else "q")) for number in range(100)]
    frame = pd.DataFrame(rows)
    with warehouse.write() as connection:
        connection.register("frame", frame)
        connection.execute("INSERT INTO recordings BY NAME FROM frame")
    with warehouse.write() as connection:
        connection.register("frame", frame)
        connection.unregister("frame")
        assert connection.execute("FROM duckdb_views() WHERE view_name = 'frame'").fetchall() == []
    with warehouse.write() as connection:
        connection.register("frame", frame)
        assert insert_new(connection, "recordings", "FROM frame", {}, [HOUR]) == 0
    assert warehouse.select("FROM recordings ORDER BY recording_id") == sorted(
        rows, key=lambda row: row["recording_id"]
    )


def test_an_error_of_duckdb_is_the_same_error_here_and_leaves_nothing(warehouse: ServedWarehouse) -> None:
    with pytest.raises(duckdb.ConstraintException):
        warehouse.append([recording(), replace(stage(), channel=None)])  # type: ignore[arg-type]
    with pytest.raises(duckdb.ParserException):
        warehouse.select("SELECT nonsense from from")
    with pytest.raises(duckdb.Error), warehouse.read() as connection:
        connection.execute("DELETE FROM recordings")
    assert ids(warehouse) == set()


def test_what_duckdb_aborted_is_not_committed_without_a_word(warehouse: ServedWarehouse) -> None:
    warehouse.append([recording()])
    with pytest.raises(duckdb.TransactionException), warehouse.write() as connection:  # noqa: PT012 - its end raises
        connection.execute("DELETE FROM recordings")
        with suppress(duckdb.CatalogException):
            connection.execute("FROM nothing")
    assert ids(warehouse) == {"rec-1"}


def test_a_block_that_raises_is_rolled_back_and_the_warehouse_goes_on(warehouse: ServedWarehouse) -> None:
    warehouse.append([recording()])
    with suppress(KeyboardInterrupt), warehouse.write() as connection:
        connection.execute("DELETE FROM recordings")
        raise KeyboardInterrupt
    assert len(ids(warehouse)) == 1


def test_marts_hours_and_columns_are_those_of_the_file(warehouse: ServedWarehouse, tmp_path: Path) -> None:
    file = Warehouse(tmp_path / "warehouse.duckdb")
    before = warehouse.changed_hours(0)[1]
    for each in (file, warehouse):
        each.append([row for row in ONE_OF_EACH if hasattr(row, "partition_hour")])
        each.refresh_marts(HOUR, {mart: OBJECTIVE.parameters if mart == "latency_by_hour" else {} for mart in MARTS})
    assert warehouse.describe("verdicts", HOUR) == file.describe("verdicts", HOUR)
    assert HOUR in warehouse.changed_hours(before)[0]


def test_a_reader_waits_for_nobody_and_sees_what_was_committed_when_it_began(warehouse: ServedWarehouse) -> None:
    warehouse.append([recording("before")])
    with warehouse.write() as writing:
        writing.execute("DELETE FROM recordings")
        began = time.monotonic()
        with warehouse.read() as reading:
            assert reading.execute("SELECT recording_id FROM recordings").fetchall() == [("before",)]
            assert time.monotonic() - began < 2
    assert ids(warehouse) == set()


def test_a_reader_may_keep_tables_of_its_own_and_nobody_else_sees_them(warehouse: ServedWarehouse) -> None:
    with warehouse.read() as one, warehouse.read() as other:
        one.execute("CREATE TEMP TABLE mine AS SELECT 1 AS x")
        assert one.execute("INSERT INTO mine VALUES (2)").fetchall() == [(1,)]
        with pytest.raises(duckdb.CatalogException):
            other.execute("FROM mine")


def test_a_warehouse_in_use_is_reported_as_busy_with_what_to_do(server: Server, warehouse: ServedWarehouse) -> None:
    with warehouse.write(), pytest.raises(WarehouseBusy, match=r"in use for over 0.2 s. Run the step again"):
        server.warehouse(0.2).append([recording()])
    assert ids(warehouse) == set()


WRITE = """
import sys
from compliance_pipeline.warehouse.served import ServedWarehouse
from compliance_pipeline_tests.warehouse.rows import recording
url, secret, writer, batches, size = sys.argv[1:]
warehouse = ServedWarehouse(url, secret, 30)
for batch in range(int(batches)):
    rows = [recording(f"{writer}-{batch}-{row}") for row in range(int(size))]
    assert warehouse.append(rows) in (0, int(size))
    print(f"{writer}-{batch}", flush=True)
"""


def test_several_processes_that_write_at_once_lose_nothing(server: Server, warehouse: ServedWarehouse) -> None:
    processes = [launch(WRITE, server.url, SECRET, writer, 10, 50) for writer in range(3)]
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert ids(warehouse) == {f"{w}-{b}-{r}" for w in range(3) for b in range(10) for r in range(50)}


HOLD = """
import sys
from compliance_pipeline.warehouse.served import ServedWarehouse
with ServedWarehouse(sys.argv[1], sys.argv[2]).write() as connection:
    connection.execute("DELETE FROM recordings")
    print("deleted", flush=True)
    connection.execute(sys.argv[3])
    sys.stdin.read()
"""
ENDLESS = "SELECT count(*) FROM range(1000000000) a, range(1000000000) b WHERE a.range % 7 = b.range % 11"


@pytest.mark.parametrize("statement", ["SELECT 1", ENDLESS], ids=["between statements", "in a statement"])
def test_a_client_killed_in_a_transaction_is_rolled_back_and_holds_up_nobody(
    server: Server, warehouse: ServedWarehouse, statement: str
) -> None:
    warehouse.append([recording()])
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, server.url, SECRET, statement], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"deleted\n"
        time.sleep(0.2)
        process.kill()
    began = time.monotonic()
    assert warehouse.append([recording("next")]) == 1
    assert time.monotonic() - began < 5
    assert ids(warehouse) == {"rec-1", "next"}


def test_a_server_killed_at_any_moment_loses_nothing_that_it_acknowledged(tmp_path: Path) -> None:
    server = Server(tmp_path / "warehouse.duckdb")
    rng, acknowledged, broken_off = random.Random(7), set[str](), 0
    try:
        for attempt in range(4):
            writer = launch(WRITE, server.url, SECRET, attempt, 10_000, 20, stderr=subprocess.PIPE)
            assert writer.stdout is not None
            acknowledged |= {writer.stdout.readline().strip() for _ in range(5)}
            time.sleep(rng.random() / 10)
            server.kill()
            time.sleep(0.5)
            broken_off += writer.poll() is not None
            writer.kill()
            said, complaint = writer.communicate(timeout=10)
            acknowledged |= set(said.split())
            assert not complaint or "WarehouseUnavailable" in complaint, complaint
            server.start()
        rows = server.warehouse().select(
            "SELECT regexp_replace(recording_id, '-[0-9]+$', '') AS batch, count(*) AS rows FROM recordings GROUP BY 1"
        )
    finally:
        server.end()
    assert {row["rows"] for row in rows} == {20}, "a batch is there as a whole or not at all"
    assert len(acknowledged) >= 20
    assert acknowledged <= {row["batch"] for row in rows}
    assert broken_off, "no writer was in a transaction when its server was killed: this shows little"


class Between:
    """A network between clients and a server, which counts their connections and can lose all that they say."""

    def __init__(self, server: Server) -> None:
        self.server, self.made, self.open, self.lost = server, 0, 0, False
        self._listening = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    def warehouse(self, seconds: float = 20.0) -> ServedWarehouse:
        return ServedWarehouse(f"http://127.0.0.1:{self._listening.getsockname()[1]}", SECRET, seconds)

    def _accept(self) -> None:
        while True:
            client, _ = self._listening.accept()
            try:
                server = socket.create_connection(("127.0.0.1", self.server.port))
            except OSError:
                client.close()
                continue
            self.made += 1
            self.open += 1
            threading.Thread(target=self._pass_on, args=(client, server, self.made), daemon=True).start()
            threading.Thread(target=self._pass_on, args=(server, client, self.made), daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket, number: int) -> None:
        of_client = other.getpeername()[1] == self.server.port
        with suppress(OSError), one:
            while said := one.recv(2**16):
                if not (self.lost and number == 1):
                    other.sendall(said)
            other.shutdown(socket.SHUT_WR)
        self.open -= of_client


def test_a_socket_serves_one_transaction_after_another_and_none_after_a_failure(
    server: Server, warehouse: ServedWarehouse
) -> None:
    between = Between(server)
    mine = between.warehouse()
    mine.append([recording()])
    for _ in range(5):
        assert ids(mine) == {"rec-1"}
        assert mine.append([recording("rec-2")]) in (0, 1)
        with mine.write(), pytest.raises(WarehouseBusy):
            server.warehouse(0.1).append([recording("rec-3")])
        mine.append([recording("rec-1"), recording("rec-2")])
        with mine.write() as connection:
            connection.execute("DELETE FROM recordings WHERE recording_id = 'rec-2'")
    assert between.made == 1
    with suppress(KeyboardInterrupt), mine.read() as connection:
        connection.execute("SELECT 1")
        raise KeyboardInterrupt
    with suppress(duckdb.CatalogException), mine.write() as connection:
        connection.execute("DELETE FROM recordings")
        connection.execute("FROM nothing")
    assert ids(mine) == {"rec-1"}
    assert between.made == 3


def test_an_answer_that_nobody_waited_for_is_not_taken_for_that_of_the_next_transaction(
    warehouse: ServedWarehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    with warehouse.read() as connection, monkeypatch.context() as hurried:
        hurried.setattr("compliance_pipeline.warehouse.served.STATEMENT_S", 0.2)
        with pytest.raises(WarehouseUnavailable):
            connection.execute("SELECT sum(a.range * b.range) FROM range(20000) a, range(20000) b")
    time.sleep(1)
    assert warehouse.select("SELECT 'mine' AS x") == [{"x": "mine"}]


def test_a_transaction_that_ended_can_say_no_more_on_its_socket(warehouse: ServedWarehouse) -> None:
    with warehouse.write() as connection:
        connection.execute("SELECT 1")
    with warehouse.write(), pytest.raises(WarehouseError, match="has ended"):
        connection.execute("DELETE FROM recordings")


def test_one_warehouse_serves_many_threads_and_each_transaction_has_a_socket_of_its_own(
    server: Server, warehouse: ServedWarehouse
) -> None:
    between, seen = Between(server), list[bool]()

    def work(mine: ServedWarehouse, thread: int) -> None:
        for turn in range(10):
            mine.append([recording(f"{thread}-{turn}")])
            with mine.read() as connection:
                query = "SELECT $thread, count(*) FROM recordings WHERE starts_with(recording_id, $thread)"
                rows = connection.execute(query, {"thread": f"{thread}-"}).fetchall()
                seen.append(rows == [(f"{thread}-", turn + 1)])

    mine = between.warehouse()
    threads = [threading.Thread(target=work, args=(mine, thread)) for thread in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert seen == [True] * 60
    assert len(ids(warehouse)) == 60
    assert 1 < between.made <= 6
    assert between.open == between.made
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        del mine, threads
        wait_until(lambda: between.open == 0)
    assert said == []


def wait_until(is_so: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("end", [Server.kill, Server.end])
def test_a_server_started_again_between_two_transactions_is_not_noticed(
    tmp_path: Path, end: Callable[[Server], None]
) -> None:
    server = Server(tmp_path / "warehouse.duckdb")
    try:
        warehouse = server.warehouse()
        with warehouse.read(), warehouse.read():
            warehouse.append([recording("before")])
        end(server)
        server.start()
        assert warehouse.append([recording("after")]) == 1
        assert ids(warehouse) == {"before", "after"}
    finally:
        server.end()


def test_a_socket_that_was_idle_for_too_long_or_is_dead_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compliance_pipeline.warehouse.served.CONNECT_S", 0.5)
    with served(tmp_path / "warehouse.duckdb") as server:
        between = Between(server)
        warehouse = between.warehouse(5)
        warehouse.append([recording()])
        between.lost, began = True, time.monotonic()
        assert ids(warehouse) == {"rec-1"}
        assert time.monotonic() - began < 4
        assert between.made == 2
    with served(tmp_path / "warehouse.duckdb", kept_s=0.3) as server:
        between = Between(server)
        warehouse = between.warehouse(5)
        for made in (1, 2):
            assert warehouse.append([recording()]) == 0
            assert between.made == made
            time.sleep(0.6)
        counts = httpx.get(f"{server.url}/metrics").text
        assert 'sessions_total{end="committed"} 2.0' in counts
        assert 'end="idle"' not in counts


def test_a_forked_child_has_sockets_of_its_own_and_leaves_those_of_its_parent(
    server: Server, warehouse: ServedWarehouse
) -> None:
    with warehouse.read(), warehouse.read():
        pass
    warehouse.append([recording("before")])
    with warehouse.write() as connection:
        connection.execute("UPDATE recordings SET recording_id = 'after'")
        if not (child := os.fork()):
            try:
                fine = ids(warehouse) == {"before"}
                with suppress(WarehouseUnavailable):
                    connection.execute("DELETE FROM recordings")
                    fine = False
                os._exit(not fine)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert ids(warehouse) == {"after"}


FORK = """
import os, sys, time
from compliance_pipeline.warehouse.served import ServedWarehouse
with ServedWarehouse(sys.argv[1], sys.argv[2]).write() as connection:
    connection.execute("DELETE FROM recordings")
    if child := os.fork():
        print(child, flush=True)
    time.sleep(60)
"""


def test_a_client_killed_in_a_transaction_is_rolled_back_also_while_a_child_of_it_lives(
    server: Server, warehouse: ServedWarehouse
) -> None:
    warehouse.append([recording()])
    parent = launch(FORK, server.url, SECRET)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        parent.kill()
        parent.wait(10)
        began = time.monotonic()
        assert warehouse.append([recording("next")]) == 1
        assert time.monotonic() - began < 5
        assert ids(warehouse) == {"rec-1", "next"}
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_client_waits_for_a_server_that_is_started_again(tmp_path: Path) -> None:
    server = Server(tmp_path / "warehouse.duckdb")
    server.warehouse().append([recording("before")])
    server.kill()
    threading.Timer(0.5, server.start).start()
    try:
        assert server.warehouse().append([recording("after")]) == 1
        assert ids(server.warehouse()) == {"before", "after"}
    finally:
        server.end()


def test_a_server_that_cannot_be_reached_is_named_with_what_to_do() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        with pytest.raises(WarehouseUnavailable, match=f"127.0.0.1:{port} could not be reached.*warehouse serve"):
            ServedWarehouse(f"http://127.0.0.1:{port}", SECRET, 0.3).select("SELECT 1")
    with pytest.raises(WarehouseError, match="must begin with http"):
        ServedWarehouse("warehouse:8095", SECRET)


def test_a_session_that_says_nothing_is_rolled_back_and_the_next_may_write(tmp_path: Path) -> None:
    with served(tmp_path / "warehouse.duckdb", idle_s=0.5) as server:
        warehouse = server.warehouse()
        warehouse.append([recording()])
        with pytest.raises(WarehouseUnavailable), warehouse.write() as silent:  # noqa: PT012 - also its end raises
            silent.execute("DELETE FROM recordings")
            assert server.warehouse().append([recording("meanwhile")]) == 1
        assert ids(warehouse) == {"rec-1", "meanwhile"}


@pytest.mark.parametrize("secret", ["", "wrong", SECRET[:-1], SECRET + "x", "ä" * 40])
def test_without_the_secret_nothing_is_answered(server: Server, secret: str) -> None:
    with pytest.raises((WarehouseError, UnicodeError)) as refused:
        ServedWarehouse(server.url, secret, 0.5).select("FROM recordings")
    assert not isinstance(refused.value, WarehouseBusy)
    assert SECRET not in str(refused.value)
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    key = {"Sec-WebSocket-Key": b64encode(os.urandom(16)).decode()}
    for query in ("mode=read", "mode=write&wait=1", ""):
        assert httpx.get(f"{server.url}/session?{query}", headers=upgrade | key).status_code == 403


def test_whoever_has_the_secret_has_the_warehouse_and_no_other_file(warehouse: ServedWarehouse, tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n")
    for query in (
        f"FROM read_csv('{other}')",
        f"FROM '{other}'",
        f"COPY (SELECT 1) TO '{tmp_path / 'made.csv'}'",
        f"ATTACH '{tmp_path / 'made.duckdb'}' AS made",
        f"EXPORT DATABASE '{tmp_path / 'made'}'",
        f"FROM read_text('{other}')",
        f"FROM glob('{tmp_path}/*')",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SET lock_configuration = false",
    ):
        with pytest.raises((duckdb.PermissionException, duckdb.InvalidInputException)):
            warehouse.select(query)
    with pytest.raises(duckdb.CatalogException):
        warehouse.select("FROM asked")  # a variable of the server's
    assert not (tmp_path / "made.csv").exists()
    assert not (tmp_path / "made.duckdb").exists()


def test_a_file_is_served_by_one_process_and_opened_by_nobody_else(server: Server) -> None:
    second = launch(SERVE, server.path, server.port + 1, SECRET, 30, NO_LIMIT, 60, stderr=subprocess.PIPE)
    _, complaint = second.communicate(timeout=30)
    assert second.returncode != 0
    assert "is in use by another process" in complaint
    with pytest.raises(WarehouseBusy):
        Warehouse(server.path, lock_timeout_s=0.2).select("SELECT 1")


def test_a_server_that_is_stopped_leaves_a_file_that_opens_at_once(tmp_path: Path) -> None:
    with served(tmp_path / "warehouse.duckdb") as server:
        server.warehouse().append([recording()])
    assert ids(Warehouse(server.path, lock_timeout_s=1)) == {"rec-1"}
    assert not Path(f"{server.path}.wal").exists()


def test_its_health_and_counts_can_be_read_without_the_secret(server: Server, warehouse: ServedWarehouse) -> None:
    warehouse.append([recording()])
    assert httpx.get(f"{server.url}/healthz").json() == {"status": "alive"}
    assert httpx.get(f"{server.url}/readyz").json() == {"status": "ready"}
    counts = httpx.get(f"{server.url}/metrics").text
    assert 'compliance_warehouse_sessions_total{end="committed"}' in counts
    assert "compliance_warehouse_writers 0.0" in counts


def test_nothing_that_is_stored_or_asked_is_in_its_log(tmp_path: Path) -> None:
    with served(tmp_path / "warehouse.duckdb") as server:
        warehouse = server.warehouse()
        warehouse.append([recording("planted-4111111111111111")])
        with pytest.raises(duckdb.ConstraintException), warehouse.write() as connection:
            connection.execute("INSERT INTO recordings BY NAME SELECT * REPLACE (NULL AS source) FROM recordings")
        with pytest.raises(WarehouseError), warehouse.write() as connection:
            cast(Session, connection)._ask({"register": "planted", "columns": [("planted", "planted", ["planted"])]})
    said = (tmp_path / "server.log").read_text()
    assert "planted" not in said
    assert SECRET not in said


def test_a_snapshot_of_a_served_warehouse_is_file_by_file_that_of_the_same_warehouse_as_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compliance_pipeline.warehouse.served.COPIED_AT_ONCE", 7)
    end = HOUR + timedelta(minutes=30)
    history = History(random.Random(3), HOUR - timedelta(days=2), end, recordings=40, hours=3)
    file, inbox = Warehouse(tmp_path / "warehouse.duckdb"), Inbox(f"sqlite:///{tmp_path / 'inbox.db'}")
    inbox.create()
    database.ensure(inbox.engine, reviews.reviews)
    with database.writer(inbox.engine).begin() as connection:
        connection.execute(inbox_table.insert(), history.waiting)
        connection.execute(reviews.reviews.insert(), history.decided)
    file.append([*history.rows, *ONE_OF_EACH])
    publish(file, inbox, tmp_path / "of-file", OBJECTIVE, end)
    with served(file.path) as server:
        publish(server.warehouse(), inbox, tmp_path / "of-served", OBJECTIVE, end)
    inbox.close()
    of_file, of_served = files_of(tmp_path / "of-file"), files_of(tmp_path / "of-served")
    assert len(of_file) > 30
    assert of_served == of_file


def files_of(folder: Path) -> dict[str, bytes]:
    assert Manifest.current(folder).days
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*-*")
        if path.is_file() and path.parent != folder
    }


def test_a_disk_that_is_full_refuses_what_does_not_fit_and_keeps_what_was_acknowledged(tmp_path: Path) -> None:
    """fault: no file of the server's may grow beyond 3 MB; invariant: acknowledged is stored, a batch whole or not."""
    stored, refused = set[str](), 0
    with served(tmp_path / "warehouse.duckdb", limit=3_000_000) as server:
        warehouse = server.warehouse()
        while refused < 2 and len(stored) < 50_000:
            batch = [recording(f"{len(stored) + refused}-{row}", queue=f"{row}" * 60) for row in range(1_000)]
            try:
                warehouse.append(batch)
            except duckdb.Error:
                refused += 1
            else:
                stored |= {row.recording_id for row in batch}
            assert ids(warehouse) == stored
        assert server.process.poll() is None
        assert "read" in httpx.get(f"{server.url}/readyz").text
    assert refused == 2
    assert stored
    with served(server.path) as server:
        assert server.warehouse().append([recording("after")]) == 1
        assert ids(server.warehouse()) == {*stored, "after"}


class Dying(ServedWarehouse):
    """Its server is killed before the commit of the `write`th transaction, and started again."""

    def __init__(self, server: Server, write: int) -> None:
        super().__init__(server.url, SECRET, 30)
        self._server, self._left = server, write

    @contextmanager
    def write(self) -> "Iterator[duckdb.DuckDBPyConnection]":
        with super().write() as connection:
            yield connection
            self._left -= 1
            if not self._left:
                self._server.kill()
                self._server.start()


def test_a_run_over_a_served_warehouse_ends_as_over_a_file_also_when_its_server_is_killed_in_between(
    tmp_path: Path,
) -> None:
    recordings = [calls_recording(kind) for kind in (Kind.CHAT_CARD, Kind.CHAT_CVV, Kind.CHAT_CLEAN)]
    with workshop(tmp_path / "file") as shop:
        shop.announce(*recordings)
        shop.run()
        expected = shop.end_state()
    (tmp_path / "server").mkdir()
    failed = 0
    with served(tmp_path / "server" / "warehouse.duckdb") as server:
        given: dict[str, Any] = {"warehouse_url": server.url, "warehouse_secret": SECRET}
        with workshop(tmp_path / "served", **given) as shop:
            assert isinstance(shop.warehouse, ServedWarehouse)
            shop.announce(*recordings)
            batch = shop.batch()
            for write in (1, 2, 3):
                shop.pipeline.warehouse = Dying(server, write)
                try:
                    shop.run(batch)
                except WarehouseUnavailable:
                    failed += 1
            shop.pipeline.warehouse = server.warehouse()
            shop.run(batch)
            assert shop.end_state() == expected
    assert failed == 3
    assert not (tmp_path / "served" / "warehouse.duckdb").exists()


def test_the_settings_say_which_warehouse_is_meant(tmp_path: Path) -> None:
    here = Settings(home=tmp_path, warehouse_url=None)
    assert type(warehouse_of(here)) is Warehouse
    there = Settings(home=tmp_path, warehouse_url="http://127.0.0.1:8095", warehouse_secret=SECRET)
    assert type(warehouse_of(there)) is ServedWarehouse
    assert there.warehouse_shared_secret == SECRET
    assert here.warehouse_shared_secret == (tmp_path / "secrets" / "warehouse").read_text()


def test_it_is_not_served_to_other_machines_without_a_secret() -> None:
    for host in ("0.0.0.0", "::", "10.0.0.1", "warehouse.internal", ""):
        with pytest.raises(Unsafe, match="COMPLIANCE_WAREHOUSE_SECRET"):
            checked_secret(host, None, lambda: SECRET)
        assert checked_secret(host, SECRET, lambda: "") == SECRET
    for host in ("127.0.0.1", "localhost", "::1", "127.0.0.2"):
        assert checked_secret(host, None, lambda: SECRET) == SECRET
    with pytest.raises(Unsafe, match="32 characters"):
        checked_secret("127.0.0.1", "short", lambda: SECRET)


def test_the_command_says_why_it_does_not_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPLIANCE_HOME", str(tmp_path))
    app = typer.Typer()
    app.add_typer(warehouse_cli.app, name="warehouse")
    said = CliRunner().invoke(app, ["warehouse", "serve", "--host", "0.0.0.0"])
    assert said.exit_code == 1
    assert "COMPLIANCE_WAREHOUSE_SECRET" in said.output
    (tmp_path / "warehouse.duckdb").write_bytes(b"no database" * 1000)
    said = CliRunner().invoke(app, ["warehouse", "serve", "--port", "1"])
    assert said.exit_code == 1
    assert "is damaged" in said.output
