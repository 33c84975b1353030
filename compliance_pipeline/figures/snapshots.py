"""Published snapshots, which reports and pages read: Parquet files of an hour each, never changed, named by a manifest.

The warehouse's file can't be read while a run writes to it, and a page that waits for a run is no page. So each hour in
which something changed is written anew beside, and becomes visible all at once, when a new manifest is renamed into
place. Cost follows the hours that changed, never what is stored.
"""

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from hashlib import sha256
from importlib.resources import files
from math import ceil, log
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from compliance_pipeline.intake.hours import hour_of, partition_hour
from compliance_pipeline.warehouse.warehouse import Warehouse

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from compliance_pipeline.intake.inbox import Inbox, InboxItem

FACTS = ("interactions", "violations")
"""Made of one hour of the warehouse, by sql/snapshot/<table>.sql."""
COPIES = ("stage_times", "findings", "verdicts", "remediations", "evidence")
"""An hour of the warehouse's table as it is: what a recording's page shows."""
ROLLUPS = ("coverage", "latency")
"""Made of the hour's facts, by sql/snapshot/<table>.sql."""
TABLES = FACTS + COPIES + ROLLUPS
CURRENT = "current.json"
HOURS_AT_ONCE = 24
"""The warehouse is held while so many are read: a backfill of a year doesn't keep runs waiting."""
KEPT_FOR = timedelta(minutes=15)
"""Files that no manifest names any more stay for so long: somebody may be reading them."""


@cache
def sql(name: str) -> str:
    return files(__package__).joinpath("sql", f"{name}.sql").read_text("utf-8")


EMPTY = datetime(1970, 1, 1, tzinfo=UTC)
"""An hour without rows, so that a window without hours has columns."""


GROWTH = 1.0206
"""Of a bucket of `latency` to the next: what is told for one is at most 1.02% off (DDSketch)."""


def bucket_of(seconds: float) -> int:
    """As sql/snapshot/latency.sql has it."""
    return ceil(log(max(seconds, 0.001)) / log(GROWTH))


def seconds_of(bucket: int) -> float:
    return 2 * GROWTH**bucket / (1 + GROWTH)


class NoSnapshot(Exception):
    """Nothing was published yet."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a snapshot is made of.

    number: counts up. change_no: the warehouse's changes up to this one are in it. data_to: the time when it was read.
    hours: of each hour, the tables' files, relative to the folder. retired: files of snapshots before, and since when.
    """

    number: int
    change_no: int
    data_to: datetime
    hours: Mapping[datetime, Mapping[str, str]]
    retired: Mapping[str, datetime] = field(default_factory=dict)

    def dumps(self) -> str:
        return json.dumps(
            {
                "number": self.number,
                "change_no": self.change_no,
                "data_to": self.data_to.isoformat(),
                "hours": {hour.isoformat(): dict(its) for hour, its in sorted(self.hours.items())},
                "retired": {name: at.isoformat() for name, at in self.retired.items()},
            }
        )

    @classmethod
    def loads(cls, text: str) -> "Manifest":
        said = json.loads(text)
        hours = {datetime.fromisoformat(hour): its for hour, its in said["hours"].items()}
        retired = {name: datetime.fromisoformat(at) for name, at in said["retired"].items()}
        return cls(said["number"], said["change_no"], datetime.fromisoformat(said["data_to"]), hours, retired)

    @classmethod
    def current(cls, folder: Path) -> "Manifest":
        """Raises NoSnapshot."""
        try:
            return cls.loads((folder / CURRENT).read_text())
        except FileNotFoundError:
            raise NoSnapshot("nothing was published yet: `compliance report --publish` does, and each run") from None


@dataclass(frozen=True, slots=True)
class Published:
    """hours: written anew, newest first. manifest: of the snapshot that is current now."""

    manifest: Manifest
    hours: tuple[datetime, ...]


def folder_of(home: Path) -> Path:
    return home / "snapshots"


def publish(warehouse: Warehouse, inbox: "Inbox", folder: Path, objective_s: float, now: datetime) -> Published:
    """Write the hours that changed since the current snapshot, and make a new one current. One publisher at a time.

    Killed at any point it leaves the snapshot before as it is. Done again with nothing new it changes nothing but
    `data_to`. The number goes up only when a figure may have changed.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with FileLock(folder / "publish.lock"):
        try:
            before = Manifest.current(folder)
        except NoSnapshot:
            before = Manifest(0, 0, EMPTY, {})
        changed, change_no = warehouse.changed_hours(before.change_no)
        open_hours = [hour_of(key) for key in inbox.hours_changed(before.data_to)]
        hours = sorted({*changed, *open_hours, *({EMPTY} - before.hours.keys())}, reverse=True)
        written: dict[datetime, dict[str, str]] = {}
        for first in range(0, len(hours), HOURS_AT_ONCE):
            some = hours[first : first + HOURS_AT_ONCE]
            items = {hour: inbox.items(partition_hour(hour)) for hour in some if hour != EMPTY}
            with warehouse.read() as connection:
                for hour in some:
                    written[hour] = _write_hour(connection, folder, hour, items.get(hour, ()), objective_s)
        changed_now = tuple(hour for hour in hours if before.hours.get(hour) != written[hour])
        named = {name for its in written.values() for name in its.values()}
        gone = {name for hour in changed_now for name in before.hours.get(hour, {}).values()} - named
        manifest = _clean_up(folder, before, now)
        manifest = replace(
            manifest,
            number=before.number + bool(changed_now),
            change_no=change_no,
            data_to=now,
            hours={**before.hours, **written},
            retired={**manifest.retired, **dict.fromkeys(gone, now)},
        )
        _replace(folder / CURRENT, manifest.dumps().encode())
    return Published(manifest, changed_now)


def _write_hour(
    connection: "DuckDBPyConnection",
    folder: Path,
    hour: datetime,
    items: "Sequence[InboxItem]",
    objective_s: float,
) -> dict[str, str]:
    """The hour's files by table. A file is named by what is in it, so the same content is the same file."""
    known = [_known(item) for item in items if item.state != "listed"] or [_NOBODY]
    where = folder / f"{hour:%Y-%m-%d}"
    where.mkdir(exist_ok=True)
    made: dict[str, str] = {}

    def keep(table: str, query: str, parameters: Mapping[str, Any]) -> None:
        part = where / f".{hour:%H}-{table}-{secrets.token_hex(4)}.part"
        try:
            connection.execute(f"COPY ({query}) TO '{_quoted(part)}' (FORMAT parquet, COMPRESSION zstd)", parameters)
            name = f"{hour:%Y-%m-%d}/{hour:%H}-{table}-{sha256(part.read_bytes()).hexdigest()[:16]}.parquet"
            _sync(part)
            part.replace(folder / name)
        finally:
            part.unlink(missing_ok=True)
        made[table] = name

    keep("interactions", sql("snapshot/interactions"), {"hour": hour, "inbox": known})
    keep("violations", sql("snapshot/violations"), {"hour": hour})
    for table in COPIES:
        keep(table, f"FROM {table} WHERE partition_hour = $hour ORDER BY ALL", {"hour": hour})
    of = [str(folder / made["interactions"])]
    keep("coverage", sql("snapshot/coverage"), {"interactions": of, "objective_s": objective_s})
    keep("latency", sql("snapshot/latency"), {"interactions": of})
    return made


_NOBODY = dict.fromkeys(
    (
        "recording_id",
        "available_at",
        "received_at",
        "source",
        "channel",
        "direction",
        "queue",
        "agent",
        "state",
        "reason",
    ),
    None,
) | {"found_by_sweep": False, "duplicates": 0, "attempts": 0}


def _known(item: "InboxItem") -> dict[str, Any]:
    event = item.recording_event
    return {
        "recording_id": item.recording_id,
        "available_at": item.available_at,
        "received_at": item.received_at,
        "source": item.source,
        "channel": str(event.channel),
        "direction": event.direction and str(event.direction),
        "queue": event.queue,
        "agent": event.agent,
        "state": str(item.state),
        "reason": item.reason,
        "found_by_sweep": item.found_by_sweep,
        "duplicates": item.duplicates,
        "attempts": item.attempts,
    }


def _replace(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    part.write_bytes(content)
    _sync(part)
    part.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")


def _clean_up(folder: Path, manifest: Manifest, now: datetime) -> Manifest:
    """Remove what was retired long enough ago that nobody reads it; what a killed publisher left goes with its day."""
    due = [name for name, at in manifest.retired.items() if at < now - KEPT_FOR]
    for name in due:
        (folder / name).unlink(missing_ok=True)
        for left in (folder / name).parent.glob(".*.part"):
            if datetime.fromtimestamp(left.stat().st_mtime, UTC) < now - KEPT_FOR:
                left.unlink(missing_ok=True)
    return replace(manifest, retired={name: at for name, at in manifest.retired.items() if name not in due})


class Snapshot:
    """One published state, as SQL sees it. Threads may share it; it stays readable for KEPT_FOR after the next one."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        import duckdb

        self.folder, self.manifest = folder, manifest
        self._database = duckdb.connect(config={"threads": 2, "memory_limit": "256MB"})
        self._database.execute("SET TimeZone = 'UTC'; SET parquet_metadata_cache = true")

    @classmethod
    def current(cls, folder: Path) -> "Snapshot":
        """Raises NoSnapshot."""
        return cls(folder, Manifest.current(folder))

    def rows(self, query: str, start: datetime, end: datetime, **parameters: Any) -> list[dict[str, Any]]:
        """The rows of a query over `read_parquet($table)` of TABLES, whose files are those of hours in [start, end).

        A file holds a whole hour: the query asks for $start and $end itself.
        """
        if "$start" in query:
            parameters |= {"start": start, "end": end}
        first = start.replace(minute=0, second=0, microsecond=0)
        hours = [EMPTY, *(hour for hour in self.manifest.hours if first <= hour < end)]
        for table in TABLES:
            if f"read_parquet(${table})" in query:
                parameters[table] = [str(self.folder / self.manifest.hours[hour][table]) for hour in hours]
        with self._database.cursor() as cursor:
            result = cursor.execute(query, parameters)
            names = [column[0] for column in result.description or ()]
            return [dict(zip(names, row, strict=True)) for row in result.fetchall()]

    def close(self) -> None:
        self._database.close()
