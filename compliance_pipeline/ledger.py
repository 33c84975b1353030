"""The ledger: an append-only, hash-chained audit trail in the operational database.

An entry's content is the canonical JSON (sorted names, no spaces, ASCII) of its fields, `at` as microseconds since
1970 and `details` as the JSON text that is stored. content_digest = SHA-256 of that;
hash = SHA-256 of the previous entry's hash and content_digest, both in hexadecimal, one after the other.
Seals over it, and checking all of it, are audit's.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Any

import sqlalchemy as sa

from compliance_pipeline import database
from compliance_pipeline.database import UtcTime, metadata

GENESIS = "0" * 64
"""The hash before the first entry."""
CONTENT = ("seq", "key", "at", "kind", "recording_id", "actor", "correlation_id", "run_id", "details")
"""The columns that content_digest covers."""

AT_ONCE = 500
"""Entries of one transaction: receivers wait for it."""

_LOCK = 0x6C6564676572  # any constant, the same in every process

Detail = str | int | float | bool | None | list[Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """What happened, once: a second entry with the same `key` is not written. No sensitive data in `details`.

    kind: event_received, fetched, verdict, action, play, export, review, hold, purge, shred, promotion or key_rotated.
    """

    key: str
    kind: str
    actor: str
    recording_id: str | None = None
    correlation_id: str | None = None
    run_id: str | None = None
    details: Mapping[str, Detail] = field(default_factory=dict)


ledger_table = sa.Table(
    "ledger",
    metadata,
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=False),
    sa.Column("key", sa.Text, nullable=False, unique=True),
    sa.Column("at", UtcTime, nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("recording_id", sa.String(128), index=True),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("correlation_id", sa.Text),
    sa.Column("run_id", sa.Text),
    sa.Column("details", sa.Text, nullable=False),
    sa.Column("content_digest", sa.String(64), nullable=False),
    sa.Column("previous_hash", sa.String(64), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
)
seals_table = sa.Table(
    "ledger_seals",
    metadata,
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=False),
    sa.Column("hash", sa.String(64), nullable=False),
    sa.Column("at", UtcTime, nullable=False),
    sa.Column("signature", sa.Text, nullable=False),
)
_row = ledger_table.c


def _only_grows(table: sa.Table) -> None:
    """Triggers that refuse changes: against mistakes. Whoever can drop them is found out by chain and seals."""
    name = table.name
    statements = [
        (
            "sqlite",
            f"CREATE TRIGGER {name}_no_{verb.lower()} BEFORE {verb} ON {name} "
            f"BEGIN SELECT RAISE(ABORT, 'the {name} table only grows'); END",
        )
        for verb in ("UPDATE", "DELETE")
    ]
    statements += [
        (
            "postgresql",
            f"CREATE OR REPLACE FUNCTION {name}_only_grows() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION 'the {name} table only grows'; END $$",
        ),
        (
            "postgresql",
            f"CREATE TRIGGER {name}_only_grows BEFORE UPDATE OR DELETE OR TRUNCATE ON {name} "
            f"FOR EACH STATEMENT EXECUTE FUNCTION {name}_only_grows()",
        ),
    ]
    for dialect, statement in statements:
        sa.event.listen(table, "after_create", sa.DDL(statement).execute_if(dialect=dialect))  # type: ignore[no-untyped-call]


_only_grows(ledger_table)
_only_grows(seals_table)


canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode
"""JSON text that is the same for the same value. Raises TypeError or ValueError for what JSON can't hold."""


def content_digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of an entry's CONTENT columns as they are stored; `at` in microseconds, `details` as text."""
    return sha256(canonical({name: content[name] for name in CONTENT}).encode()).hexdigest()


def chain_hash(previous_hash: str, digest: str) -> str:
    return sha256(f"{previous_hash}{digest}".encode()).hexdigest()


def lock(connection: sa.Connection) -> None:
    """Keep others from writing to the ledger until the transaction ends: on SQLite its writer has that anyway.

    Taken after all other locks of the transaction: whoever holds it waits for nobody.
    """
    if connection.dialect.name != "sqlite":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))


def head(connection: sa.Connection) -> tuple[int, str]:
    """Number and hash of the last entry; (0, GENESIS) of an empty ledger."""
    last = connection.execute(sa.select(_row.seq, _row.hash).order_by(_row.seq.desc()).limit(1)).one_or_none()
    return (last.seq, last.hash) if last else (0, GENESIS)


def append(connection: sa.Connection, entries: Sequence[Entry], now: datetime) -> int:
    """Add what is new of `entries`, in their order; how many that was.

    In the caller's transaction, which must be a writer's (database.writer) and do nothing that locks after this.
    """
    if not entries:
        return 0
    lock(connection)
    known: set[str] = set()
    for keys in database.few(entry.key for entry in entries):
        known.update(connection.scalars(sa.select(_row.key).where(_row.key.in_(keys))))
    seq, previous = head(connection)
    at = UtcTime().process_bind_param(now, connection.dialect)
    rows: list[dict[str, Any]] = []
    for entry in entries:
        if entry.key in known:
            continue
        known.add(entry.key)
        seq += 1
        content: dict[str, Any] = {
            "seq": seq,
            "key": entry.key,
            "at": at,
            "kind": entry.kind,
            "recording_id": entry.recording_id,
            "actor": entry.actor,
            "correlation_id": entry.correlation_id,
            "run_id": entry.run_id,
            "details": canonical(dict(entry.details)),
        }
        digest = content_digest(content)
        hashed = chain_hash(previous, digest)
        rows.append(content | {"at": now, "content_digest": digest, "previous_hash": previous, "hash": hashed})
        previous = hashed
    if rows:
        connection.execute(sa.insert(ledger_table), rows)
    return len(rows)


def record(engine: sa.Engine, entries: Sequence[Entry], now: datetime) -> int:
    """`append` in short transactions of their own; makes the table where it is missing."""
    if not entries:
        return 0
    database.ensure(engine, ledger_table)
    recorded = 0
    for first in range(0, len(entries), AT_ONCE):
        with database.writer(engine).begin() as connection:
            recorded += append(connection, entries[first : first + AT_ONCE], now)
    return recorded
