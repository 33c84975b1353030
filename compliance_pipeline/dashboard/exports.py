"""The violations of a view as a file: the rows that its pages show, masked values only. The ledger knows each one."""

import csv
import io
import json
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from uuid import uuid4

import sqlalchemy as sa
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from compliance_pipeline import ledger, reviews
from compliance_pipeline.asgi import Rejected
from compliance_pipeline.clock import Clock
from compliance_pipeline.dashboard.access import Role, current_user, needs, refuse_other_sites
from compliance_pipeline.dashboard.api import instant
from compliance_pipeline.dashboard.pages import Board, board_of, view_of
from compliance_pipeline.dashboard.view import DIMENSIONS, View
from compliance_pipeline.figures.chosen import whole
from compliance_pipeline.figures.figures import Filter, violations_table
from compliance_pipeline.plain_text import NotPlain, refuse_sensitive

if TYPE_CHECKING:
    from compliance_pipeline.figures.snapshots import Snapshot

COLUMNS = {
    "available_at": "TIMESTAMPTZ",
    "recording_id": "VARCHAR",
    "rule_id": "VARCHAR",
    "violation_type": "VARCHAR",
    "severity": "VARCHAR",
    "verdict": "VARCHAR",
    "review": "VARCHAR",
    "reviewed_at": "TIMESTAMPTZ",
    "queue": "VARCHAR",
    "channel": "VARCHAR",
    "direction": "VARCHAR",
    "agent": "VARCHAR",
    "detector": "VARCHAR",
    "speaker": "VARCHAR",
    "start_ms": "BIGINT",
    "confidence": "DOUBLE",
    "masked": "VARCHAR",
    "hits": "INTEGER",
    "has_clip": "BOOLEAN",
    "flagged_s": "DOUBLE",
    "judged_at": "TIMESTAMPTZ",
    "actions": "VARCHAR",
    "policy_version": "VARCHAR",
    "engine_version": "VARCHAR",
}
"""Of both formats, with DuckDB's types; figures/sql/export.sql says what they are."""
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""A spreadsheet takes what begins so for a formula: such a text gets an apostrophe before it, in CSV only."""
_NULL = "\\N"
AT_ONCE = timedelta(days=1)
"""Rows of so much time are in memory together."""


_one_at_a_time = threading.Lock()


def pieces(chosen: Filter) -> Iterator[Filter]:
    """The filter's window in stretches of AT_ONCE, the newest first. Of a longer one whole hours, like its figures."""
    start, end = whole(chosen)
    while end > start:
        first = max(start, end - AT_ONCE)
        yield replace(chosen, start=first, end=end)
        end = first


def cell(value: Any) -> str:
    """A value as CSV has it: times in ISO 8601 UTC."""
    text = _written(value)
    return f"'{text}" if isinstance(value, str) and text.startswith(FORMULA) else text


def _written(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, datetime):
        return instant(value)
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def _rows(engine: sa.Engine, snapshot: "Snapshot", chosen: Filter) -> Iterator[Sequence[dict[str, Any]]]:
    """As the list shows them: with what was decided since the snapshot."""
    for piece in pieces(chosen):
        rows = violations_table(snapshot, piece)
        found = reviews.state(engine, {row["recording_id"] for row in rows})
        for row in rows:
            if review := reviews.decided(found, row["recording_id"], row["rule_id"]):
                row |= {"review": str(review.decision), "reviewed_at": review.at}
        yield rows


def write_csv(batches: Iterator[Sequence[dict[str, Any]]], out: IO[bytes]) -> int:
    """How many rows were written."""
    text = io.TextIOWrapper(out, "utf-8", newline="", write_through=True)
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    written = 0
    for row in chain.from_iterable(batches):
        writer.writerow([cell(row[name]) for name in COLUMNS])
        written += 1
    text.detach()
    return written


def write_parquet(batches: Iterator[Sequence[dict[str, Any]]], out: IO[bytes]) -> int:
    """How many rows were written. By way of a file of text, which DuckDB reads faster than it takes rows from Python;
    it lies in a folder of our own, which goes with the call."""
    import duckdb

    written = 0
    with tempfile.TemporaryDirectory(prefix="export-") as folder:
        lines, made = Path(folder, "violations.csv"), Path(folder, "violations.parquet")
        with lines.open("w", encoding="utf-8", newline="") as text:
            writer = csv.writer(text, lineterminator="\n")
            for row in chain.from_iterable(batches):
                writer.writerow([_NULL if row[name] is None else _written(row[name]) for name in COLUMNS])
                written += 1
        with duckdb.connect(config={"threads": 1, "memory_limit": "256MB", "temp_directory": folder}) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            connection.execute(
                "COPY (FROM read_csv($lines, columns = $columns, header = false, auto_detect = false, delim = ',', "
                "quote = '\"', escape = '\"', nullstr = $null, new_line = '\\n', parallel = false)) "
                f"TO '{made}' (FORMAT parquet, COMPRESSION zstd)",
                {"lines": str(lines), "columns": COLUMNS, "null": _NULL},
            )
        with made.open("rb") as parquet:
            while chunk := parquet.read(2**20):
                out.write(chunk)
    return written


FORMATS = {
    "csv": (write_csv, "text/csv; charset=utf-8"),
    "parquet": (write_parquet, "application/vnd.apache.parquet"),
}


def name_of(chosen: Filter, kind: str) -> str:
    """violations-20260301T1200Z-20260302T1200Z.csv"""
    return f"violations-{chosen.start:%Y%m%dT%H%MZ}-{chosen.end:%Y%m%dT%H%MZ}.{kind}"


def refuse_sensitive_filter(chosen: Filter) -> None:
    """Raises NotPlain: the ledger keeps what was filtered by."""
    refuse_sensitive(" ".join(value for values in _filtered_by(chosen).values() for value in values), "the filter")


def _filtered_by(chosen: Filter) -> dict[str, list[str]]:
    return {name: list(values) for name in DIMENSIONS if (values := getattr(chosen, name))}


def write(
    out: IO[bytes], kind: str, snapshot: "Snapshot", chosen: Filter, engine: sa.Engine, who: str, clock: Clock
) -> int:
    """The whole file, then its entry in the ledger; how many rows it has."""
    of_kind, _ = FORMATS[kind]
    rows = of_kind(_rows(engine, snapshot, chosen), out)
    details: dict[str, ledger.Detail] = {
        "format": kind,
        "rows": rows,
        "from": chosen.start.isoformat(),
        "to": chosen.end.isoformat(),
        "filter": json.dumps(_filtered_by(chosen), sort_keys=True),
        "snapshot": snapshot.manifest.number,
    }
    ledger.record(engine, [ledger.Entry(f"export/{uuid4().hex}", "export", who, details=details)], clock())
    return rows


def export(request: Request) -> Response:
    """The whole file is made before the first byte goes out: what the ledger says was exported is what was sent."""
    refuse_other_sites(request)
    board, kind = board_of(request), request.url.path.rpartition(".")[2]
    snapshot = board.snapshot()
    view = view_of(request, snapshot)
    try:
        refuse_sensitive_filter(view.chosen)
    except NotPlain as error:
        raise Rejected(400, "sensitive_filter", str(error)) from None
    if not _one_at_a_time.acquire(blocking=False):
        busy = "another file is being made, and one is made at a time: try again in a few seconds"
        raise Rejected(503, "busy", busy, headers={"Retry-After": "5"})
    try:
        return _made(request, board, snapshot, view, kind)
    finally:
        _one_at_a_time.release()


def _made(request: Request, board: Board, snapshot: "Snapshot", view: View, kind: str) -> Response:
    _, media_type = FORMATS[kind]
    out = tempfile.TemporaryFile()  # noqa: SIM115  has no name: gone when it is closed, whatever happens
    try:
        rows = write(out, kind, snapshot, view.chosen, board.engine, current_user(request).name, board.clock)
        length = out.tell()
        out.seek(0)
    except BaseException:
        out.close()
        raise
    headers = {
        "Content-Disposition": f'attachment; filename="{name_of(view.chosen, kind)}"',
        "Content-Length": str(length),
        "X-Rows": str(rows),
    }
    return StreamingResponse(_chunks(out), headers=headers, media_type=media_type, background=BackgroundTask(out.close))


def _chunks(made: IO[bytes]) -> Iterator[bytes]:
    with made:
        while chunk := made.read(2**16):
            yield chunk


routes = [Route(f"/export.{kind}", needs(Role.VIEWER)(export)) for kind in FORMATS]
