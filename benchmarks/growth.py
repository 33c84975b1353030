"""Histories of any size in an inbox, a warehouse and a snapshot; and what the product's steps cost over them.

An hour has the same number of recordings in each; the larger history is longer. Made in bulk by SQL, not by the
pipeline: the ledger holds one entry of each recording here, not the three and more that it really has.
"""

import json
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import md5
from pathlib import Path
from secrets import token_urlsafe
from subprocess import Popen
from typing import Any, NamedTuple
from uuid import uuid4

import sqlalchemy as sa

from compliance_pipeline.contracts.event import Channel, EventType
from compliance_pipeline.figures.snapshots import Manifest, make_current, publish
from compliance_pipeline.intake.hours import partition_hour
from compliance_pipeline.intake.inbox import Inbox, _payload, inbox_table
from compliance_pipeline.objective import Objective
from compliance_pipeline.stack import free_port, wait_for_port
from compliance_pipeline.warehouse.served import ServedWarehouse
from compliance_pipeline.warehouse.tables import (
    FindingRow,
    MediaRow,
    RecordingRow,
    Row,
    ScreeningRow,
    StageTimeRow,
    VerdictRow,
)
from compliance_pipeline.warehouse.warehouse import MARTS, Warehouse
from compliance_pipeline_tests.intake.samples import incoming

PER_HOUR = 1_000
LAST_HOUR = datetime(2028, 1, 1, 12, tzinfo=UTC)
NOW = LAST_HOUR + timedelta(minutes=59)
HOUR = partition_hour(LAST_HOUR)
BATCH = 100
REPEATS = 5
LEASE = timedelta(minutes=1)
OBJECTIVE = Objective(30.0)
POLICY, ENGINE = "default 1 0a1b2c3d", "builtin-1+digits-1+gate-1+lexicon-1"
_OF_A_VIOLATION = (
    "violation_type",
    "rule_id",
    "severity",
    "confidence_score",
    "timestamp_offset_ms",
    "evidence_snippet",
    "unscreenable_reason",
)
_WAREHOUSE = Path(__file__).with_name("growth_warehouse.sql").read_text("utf-8").split(";\n")
MARTS_OF: dict[str, dict[str, Any]] = {
    mart: OBJECTIVE.parameters if mart == "latency_by_hour" else {} for mart in MARTS
}
_SLICE = 500_000
_MICROSECONDS = (LAST_HOUR - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)

_INBOX = """
WITH RECURSIVE numbered(i) AS (SELECT :first UNION ALL SELECT i + 1 FROM numbered WHERE i + 1 < :last),
made AS (
    SELECT i, md5(i) AS id, :end - i * 3600000000 / :per_hour AS at FROM numbered
)
INSERT INTO inbox (recording_id, source, event, state, partition_hour, payload, correlation_id, ended_at, available_at,
    received_at, attempts, duplicates, updated_at, found_by_sweep, claimed_by, claimed_at)
SELECT id, 'guide', :event, 'done', strftime('%Y-%m-%d-%H:00', at / 1000000, 'unixepoch'),
    replace(:payload, 'the-id', id), 'msg_' || id, at - 12000000, at, at, 1, 0, at + 4000000, 0, id, at FROM made
"""
_LEDGER = """
INSERT INTO ledger SELECT seq, 'event/' || recording_id || '/' || event, received_at, 'event_received',
    recording_id, 'guide', correlation_id, NULL, '{"available_at":"2027-12-31T12:00:00+00:00",' ||
    '"event":"recording:recording:available"}',
    printf('%064x', seq), printf('%064x', seq - 1), printf('%064x', seq) FROM inbox WHERE seq > :after
"""


def make_inbox(path: Path, recordings: int, said: Callable[[int], None] = lambda _: None) -> None:
    """So many settled recordings, the newest last. said: told how many there are so far."""
    inbox = Inbox(f"sqlite:///{path}")
    inbox.create()
    inbox.close()
    payload = json.dumps(_payload(incoming("the-id", at=LAST_HOUR, channel=Channel.VOICE, direction="inbound").event))
    connection = sqlite3.connect(path, isolation_level=None)
    connection.create_function("md5", 1, lambda i: md5(str(i).encode(), usedforsecurity=False).hexdigest())
    connection.executescript("PRAGMA synchronous=OFF; PRAGMA cache_size=-1500000; PRAGMA wal_autocheckpoint=50000")
    for last in range(recordings, 0, -_SLICE):
        first = max(0, last - _SLICE)
        (after,) = connection.execute("SELECT coalesce(max(seq), 0) FROM inbox").fetchone()
        connection.execute("BEGIN")
        values = {
            "event": EventType.AVAILABLE.value,
            "first": first,
            "last": last,
            "end": _MICROSECONDS + 3_599_000_000,
            "per_hour": PER_HOUR,
        }
        connection.execute(_INBOX, {**values, "payload": payload})
        connection.execute(_LEDGER, {"after": after})
        connection.execute("COMMIT")
        said(recordings - first)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def make_warehouse(path: Path, recordings: int, said: Callable[[int], None] = lambda _: None) -> None:
    warehouse = Warehouse(path)
    for last in range(recordings, 0, -_SLICE):
        first = max(0, last - _SLICE)
        with warehouse.write() as connection:
            connection.execute("SET preserve_insertion_order = true")
            for statement in _WAREHOUSE:
                if statement.strip():
                    named = {"first": first, "last": last, "per_hour": PER_HOUR, "end": LAST_HOUR}
                    connection.execute(statement, {k: v for k, v in named.items() if f"${k}" in statement})
        said(recordings - first)


@dataclass
class History:
    """One size: its stores, and the bytes that they had before anything was added."""

    recordings: int
    folder: Path
    inbox: Inbox
    warehouse: Warehouse
    sizes: dict[str, int]


def rows_of(recording_id: str) -> list[Row]:
    """What a run stores of a call without a violation."""
    key: dict[str, Any] = {"recording_id": recording_id, "partition_hour": LAST_HOUR}
    by = {**key, "engine_version": ENGINE}
    times: dict[str, Any] = {
        "available_at": NOW,
        "received_at": NOW,
        "recorded_at": NOW,
        "started_at": NOW,
        "ended_at": NOW,
    }
    said: dict[str, Any] = {"channel": "voice", "correlation_id": f"msg-{recording_id}"}
    nothing: dict[str, Any] = dict.fromkeys(_OF_A_VIOLATION)
    return [
        RecordingRow(
            **key, **times, **said, source="guide", direction="inbound", queue="billing", participants=["tok_1"]
        ),
        ScreeningRow(
            **by,
            **said,
            direction="inbound",
            queue="billing",
            started_at=NOW,
            called_time_zone=None,
            words_known=True,
            words_timed=True,
            speakers=["agent", "customer"],
            annotations=[],
            duration_ms=300_000,
            unscreenable_reason=None,
            screened_at=NOW,
        ),
        VerdictRow(
            **by,
            **said,
            **nothing,
            policy_version=POLICY,
            verdict="NO_VIOLATION",
            recommended_action="NONE",
            undetermined_rules=[],
            judged_at=NOW,
            run_id="run",
        ),
        MediaRow(
            **by,
            size_bytes=4_800_000,
            sha256="0" * 64,
            container="wav",
            codec="pcm_mulaw",
            audio_channels=2,
            duration_ms=300_000,
            complete=True,
            fetched_at=NOW,
        ),
        *(
            FindingRow(
                **by,
                finding_no=number,
                kind="phrase",
                detector="phrases",
                speaker="agent",
                start_ms=1_000,
                end_ms=2_000,
                confidence=0.97,
                masked="",
                phrase="recording_notice",
            )
            for number in range(4)
        ),
        *(
            StageTimeRow(**key, stage=stage, channel="voice", started_at=NOW, ended_at=NOW, seconds=1.0)
            for stage in ("platform", "delivery", "queue", "start", "batch", "fetch", "analysis", "judged")
        ),
    ]


def _take_back(inbox: Inbox, warehouse: Warehouse, recordings: int) -> None:
    """What was added to a history since it was made, so that the last hour of each has as many again."""
    with inbox.engine.begin() as connection:
        connection.execute(sa.delete(inbox_table).where(inbox_table.c.seq > recordings))
    with warehouse.write() as connection:
        for table in {row.table for row in rows_of("")}:
            # Those made in bulk have ids without a dash.
            added = "partition_hour = $hour AND contains(recording_id, '-')"
            connection.execute(f"DELETE FROM {table} WHERE {added}", {"hour": LAST_HOUR})


def _warm(path: Path) -> None:
    """Into the operating system's cache, as on a machine in use: an event's pages of the indexes by id lie anywhere."""
    with path.open("rb") as content:
        while content.read(1 << 24):
            pass


@contextmanager
def history(folder: Path, recordings: int, said: Callable[[str], None] = lambda _: None) -> Iterator[History]:
    """Made where `folder` does not hold it yet."""
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / "made"
    if not made.exists():
        make_inbox(folder / "inbox.db", recordings, lambda done: said(f"inbox {done:,} of {recordings:,}"))
        make_warehouse(
            folder / "warehouse.duckdb", recordings, lambda done: said(f"warehouse {done:,} of {recordings:,}")
        )
        sizes = {
            "inbox and ledger": (folder / "inbox.db").stat().st_size,
            "warehouse": (folder / "warehouse.duckdb").stat().st_size,
        }
        made.write_text(json.dumps(sizes))
    inbox, warehouse = Inbox(f"sqlite:///{folder / 'inbox.db'}"), Warehouse(folder / "warehouse.duckdb")
    inbox.create()
    _take_back(inbox, warehouse, recordings)
    _, newest = warehouse.changed_hours(0)
    snapshots = folder / "snapshots"
    snapshots.mkdir(exist_ok=True)
    # All but the last day's hours count as published: a first publication of the rest would take hours.
    make_current(snapshots, Manifest(1, newest - 24, NOW + timedelta(hours=1), OBJECTIVE, {}))
    publish(warehouse, inbox, snapshots, OBJECTIVE, NOW + timedelta(hours=1))
    sizes = json.loads(made.read_text())
    _warm(folder / "inbox.db")
    found = History(recordings, folder, inbox, warehouse, sizes)
    try:
        yield found
    finally:
        inbox.close()


class Took(NamedTuple):
    """Milliseconds by the wall clock, and of CPU."""

    wall: float
    cpu: float


def _timed(do: Callable[[], object]) -> Took:
    cpu, wall = time.process_time(), time.perf_counter()
    do()
    return Took(1000 * (time.perf_counter() - wall), 1000 * (time.process_time() - cpu))


def one_round(of: History) -> dict[str, Took]:
    """Each step, once."""
    ids, took = [str(uuid4()) for _ in range(BATCH)], dict[str, Took]()
    inbox, warehouse = of.inbox, of.warehouse
    events = [incoming(one, EventType.AVAILABLE, NOW, f"msg-{one}") for one in ids]
    took["receiver: store 100 events"] = _timed(lambda: inbox.store(events, NOW))
    took["sensor: look 20 times for what is due"] = _timed(lambda: [inbox.pending(NOW) for _ in range(20)])
    took["claim 100"] = _timed(lambda: inbox.claim(HOUR, "run", NOW, LEASE, BATCH))
    rows = [row for one in ids for row in rows_of(one)]
    took["warehouse: append 100 recordings"] = _timed(lambda: warehouse.append(rows))
    named = {"hour": LAST_HOUR, "ids": ids}
    judged = "SELECT recording_id FROM verdicts WHERE partition_hour = $hour AND recording_id IN (SELECT unnest($ids))"
    took["warehouse: which of 100 are judged"] = _timed(lambda: warehouse.select(judged, named))
    took["settle 100"] = _timed(lambda: inbox.done(ids, "run", NOW))
    took["marts of an hour"] = _timed(lambda: warehouse.refresh_marts(LAST_HOUR, MARTS_OF))
    took["publish an hour"] = _timed(
        lambda: publish(warehouse, inbox, of.folder / "snapshots", OBJECTIVE, NOW + timedelta(hours=1))
    )
    return took


@contextmanager
def served(folder: Path) -> Iterator[tuple[ServedWarehouse, Popen[bytes]]]:
    """The history's warehouse behind `compliance warehouse serve`, which opens it once."""
    port, secret = free_port(), token_urlsafe(48)
    command = "from compliance_pipeline.cli import app; app()"
    server = Popen(
        [sys.executable, "-c", command, "warehouse", "serve", "--port", str(port)],
        env=os.environ | {"COMPLIANCE_HOME": str(folder), "COMPLIANCE_WAREHOUSE_SECRET": secret},
    )
    try:
        wait_for_port(port, 60)
        yield ServedWarehouse(f"http://127.0.0.1:{port}", secret), server
    finally:
        server.terminate()
        server.wait()


def served_round(warehouse: ServedWarehouse, server: Popen[bytes]) -> dict[str, Took]:
    """Each step, in the mean of REPEATS."""

    def took(do: Callable[[], object]) -> Took:
        before = _cpu_ms(server)
        wall, cpu = _timed(lambda: [do() for _ in range(REPEATS)])
        return Took(wall / REPEATS, (cpu + _cpu_ms(server) - before) / REPEATS)

    def append() -> None:
        warehouse.append([row for _ in range(BATCH) for row in rows_of(str(uuid4()))])

    return {
        "append 100 recordings, served": took(append),
        "marts of an hour, served": took(lambda: warehouse.refresh_marts(LAST_HOUR, MARTS_OF)),
    }


def _cpu_ms(process: Popen[bytes]) -> float:
    user, system = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return 1000 * (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
