"""Published snapshots, which reports and pages read: Parquet files that never change, named by a manifest.

The warehouse's file can't be read while a run writes to it, and a page that waits for a run is no page. So each hour in
which something changed is written anew beside, its day's rollups with it, and all becomes visible at once, when a new
manifest is renamed into place. Cost follows the hours that changed and their days, never what is stored.
"""

import json
import secrets
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import cache, lru_cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from compliance_pipeline import private_file, reviews
from compliance_pipeline.contracts.event import CANARY, EventType
from compliance_pipeline.intake.hours import hour_of, partition_hour
from compliance_pipeline.objective import Objective
from compliance_pipeline.warehouse.warehouse import Warehouse

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from compliance_pipeline.intake.inbox import Inbox, InboxItem

FACTS = ("interactions", "violations")
"""Made of one hour of the warehouse, by sql/snapshot/<table>.sql."""
COPIES = ("stage_times", "findings", "verdicts", "remediations", "evidence", "sweeps")
"""An hour of the warehouse's table as it is: what a recording's page shows."""
HOURLY = ("coverage", "latency", "breaches", "rules", "undetermined", "losses", "actions", "completeness")
"""Rollups by hour, made of an hour's files by sql/snapshot/<table>.sql, in one file a day."""
DAILY = ("percentiles", "latency_days", "agents", "agent_rules")
"""Rollups made of all hours of a UTC day."""
ROLLUPS = HOURLY + DAILY
TABLES = FACTS + COPIES + ROLLUPS
CURRENT = "current.json"
HOURS_AT_ONCE = 24
"""The warehouse is held while so many are read: a backfill of a year doesn't keep runs waiting."""
LATE_BY = timedelta(minutes=1)
LOCK_SECONDS = 20.0
KEPT_FOR = timedelta(minutes=15)
"""Files that no manifest names any more stay for so long: somebody may be reading them."""
EMPTY = datetime(1970, 1, 1, tzinfo=UTC)
"""An hour without rows, so that a window without hours has columns."""


@cache
def sql(name: str) -> str:
    return files(__package__).joinpath("sql", f"{name}.sql").read_text("utf-8")


@cache
def layout() -> str:
    """Digest of how snapshots are made: one of another version is made anew."""
    return sha256("\n".join([*TABLES, *(sql(f"snapshot/{table}") for table in FACTS + ROLLUPS)]).encode()).hexdigest()


class NoSnapshot(Exception):
    """Nothing was published yet."""


@dataclass(frozen=True, slots=True)
class Day:
    """The files of a day by table, relative to the folder: those of each hour, and the rollups."""

    hours: Mapping[datetime, Mapping[str, str]]
    rollups: Mapping[str, str]
    open: int = 0
    """Violations that nobody has decided on."""

    @property
    def names(self) -> set[str]:
        return {name for its in self.hours.values() for name in its.values()} | set(self.rollups.values())

    def dumps(self) -> str:
        hours = {hour.isoformat(): dict(its) for hour, its in sorted(self.hours.items())}
        return json.dumps({"hours": hours, "rollups": dict(self.rollups), "open": self.open})

    @staticmethod
    @lru_cache(maxsize=1024)
    def read(path: Path) -> "Day":
        """Kept in memory: what a path names never changes."""
        said = json.loads(path.read_text())
        hours = {datetime.fromisoformat(hour): its for hour, its in said["hours"].items()}
        return Day(hours, said["rollups"], said["open"])


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a snapshot is made of.

    number: counts up. change_no: the warehouse's changes up to this one are in it. data_to: the time when it was read.
    objective: by which `in_time` was counted. days: of each UTC day, the file that names its files. retired: files of
    snapshots before, and since when. layout: of the code that made it.
    """

    number: int
    change_no: int
    data_to: datetime
    objective: Objective | None = None
    days: Mapping[date, str] = field(default_factory=dict)
    retired: Mapping[str, datetime] = field(default_factory=dict)
    layout: str = field(default_factory=lambda: layout())

    def dumps(self) -> str:
        return json.dumps(
            {
                "number": self.number,
                "change_no": self.change_no,
                "data_to": self.data_to.isoformat(),
                "objective": self.objective and asdict(self.objective),
                "days": {day.isoformat(): name for day, name in sorted(self.days.items())},
                "retired": {name: at.isoformat() for name, at in self.retired.items()},
                "layout": self.layout,
            }
        )

    @classmethod
    def loads(cls, text: str) -> "Manifest":
        said = json.loads(text)
        return cls(
            said["number"],
            said["change_no"],
            datetime.fromisoformat(said["data_to"]),
            said["objective"] and Objective(**said["objective"]),
            {date.fromisoformat(day): name for day, name in said["days"].items()},
            {name: datetime.fromisoformat(at) for name, at in said["retired"].items()},
            said["layout"],
        )

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Raises FileNotFoundError."""
        return cls.loads((folder / CURRENT).read_text())

    @classmethod
    def current(cls, folder: Path) -> "Manifest":
        """One that is whole, and made by this version. Raises NoSnapshot."""
        try:
            manifest = cls.read(folder)
        except FileNotFoundError:
            raise NoSnapshot(
                "nothing was published yet: the snapshot sensor does so soon, `compliance report --publish` at once"
            ) from None
        if manifest.data_to == EMPTY or manifest.layout != layout():
            raise NoSnapshot("the figures are being counted for the first time, or anew after an upgrade")
        return manifest


@dataclass(frozen=True, slots=True)
class Published:
    """hours: written anew, newest first. manifest: of the snapshot that is current now."""

    manifest: Manifest
    hours: tuple[datetime, ...]


def folder_of(home: Path) -> Path:
    return home / "snapshots"


def publish(warehouse: Warehouse, inbox: "Inbox", folder: Path, objective: Objective, now: datetime) -> Published:
    """Write the hours that changed since the current snapshot, and make a new one current. One publisher at a time.

    A long backlog is published in parts, so that a publisher that is killed has not worked for nothing; `data_to` moves
    with the last. Done again with nothing new it changes nothing but `data_to`. The number goes up only when a figure
    may have changed. Raises filelock.Timeout where another one is at work for longer than LOCK_SECONDS.
    """
    begun = monotonic()

    def clock() -> datetime:
        return now + timedelta(seconds=int(monotonic() - begun))

    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    renewed: set[datetime] = set()
    with FileLock(folder / "publish.lock", timeout=LOCK_SECONDS):
        data_to = clock()
        before = _before(folder, data_to)
        changed, newest = warehouse.changed_hours(before.change_no)
        if newest < before.change_no:
            # The warehouse was restored from a backup: hours of the snapshot may not be there any more.
            before = _begin_anew(folder, before, data_to)
            changed, newest = warehouse.changed_hours(0)
        backlog = list(changed)
        while len(backlog) > HOURS_AT_ONCE:
            last = changed[backlog[HOURS_AT_ONCE - 1]]
            some = {hour for hour in backlog if changed[hour] <= last}
            backlog = [hour for hour in backlog if hour not in some]
            days, gone = _publish_hours(warehouse, inbox, folder, before, objective, some, renewed)
            before = _replace(folder, before, objective, days, gone, last, clock(), data_to=before.data_to)
        # What was written in a transaction that took its time, or before the clock was set back.
        since = min(before.data_to, data_to) - LATE_BY
        said = {*inbox.hours_changed(since), *reviews.hours_changed(inbox.engine, since)}
        hours = {*backlog, *map(hour_of, said)} | ({EMPTY} if EMPTY.date() not in before.days else set())
        days, gone = _publish_hours(warehouse, inbox, folder, before, objective, hours, renewed)
        manifest = _replace(folder, before, objective, days, gone, newest, clock(), data_to=data_to)
    return Published(manifest, tuple(sorted(renewed, reverse=True)))


def _before(folder: Path, now: datetime) -> Manifest:
    try:
        before = Manifest.read(folder)
    except FileNotFoundError:
        return Manifest(0, 0, EMPTY)
    return before if before.layout == layout() else _begin_anew(folder, before, now)


def _begin_anew(folder: Path, before: Manifest, now: datetime) -> Manifest:
    files = set(before.days.values()).union(*(Day.read(folder / name).names for name in before.days.values()))
    return Manifest(before.number, 0, EMPTY, retired={**before.retired, **dict.fromkeys(files, now)})


def _publish_hours(
    warehouse: Warehouse,
    inbox: "Inbox",
    folder: Path,
    before: Manifest,
    objective: Objective,
    hours: set[datetime],
    renewed: set[datetime],
) -> tuple[dict[date, str], set[str]]:
    """The days with these hours written anew, and the files that are no longer named. Adds to `renewed`."""
    written = _write_hours(warehouse, inbox, folder, sorted(hours, reverse=True))
    days, gone = dict(before.days), set[str]()
    all_again = objective != before.objective
    for day in sorted(days.keys() | written.keys() if all_again else written.keys()):
        old = Day.read(folder / days[day]) if day in days else Day({}, {})
        some = {hour: its for hour, its in written.get(day, {}).items() if old.hours.get(hour) != its}
        again = {**old.hours, **some} if all_again else some
        if again:
            new = roll_up(folder, day, old, some, again, objective)
            gone |= old.names | ({days[day]} if day in days else set())
            days[day] = write_day(folder, day, new)
            gone -= new.names | {days[day]}
            renewed.update(some)
    return days, gone


def _replace(
    folder: Path,
    before: Manifest,
    objective: Objective,
    days: Mapping[date, str],
    gone: set[str],
    change_no: int,
    now: datetime,
    *,
    data_to: datetime,
) -> Manifest:
    changed = {day: name for day, name in days.items() if before.days.get(day) != name}
    named = set(changed.values()).union(*(Day.read(folder / name).names for name in changed.values()))
    retired = {name: at for name, at in before.retired.items() if name not in named}
    due = {name for name, at in retired.items() if at < now - KEPT_FOR}
    for name in due:
        (folder / name).unlink(missing_ok=True)
    for day in changed:
        _remove_left(folder, day, named | retired.keys() | gone, now - KEPT_FOR)
    kept = {name: at for name, at in retired.items() if name not in due}
    manifest = Manifest(
        before.number + bool(changed), change_no, data_to, objective, days, {**dict.fromkeys(gone, now), **kept}
    )
    make_current(folder, manifest)
    return manifest


def _write_hours(
    warehouse: Warehouse, inbox: "Inbox", folder: Path, hours: Sequence[datetime]
) -> dict[date, dict[datetime, dict[str, str]]]:
    written: defaultdict[date, dict[datetime, dict[str, str]]] = defaultdict(dict)
    for first in range(0, len(hours), HOURS_AT_ONCE):
        some = hours[first : first + HOURS_AT_ONCE]
        keys = {hour: partition_hour(hour) for hour in some if hour != EMPTY}
        items = {hour: inbox.items(key) for hour, key in keys.items()}
        decided = {hour: reviews.of_hour(inbox.engine, key) for hour, key in keys.items()}
        with warehouse.read_hours(some) as connection:
            for hour in some:
                its = _write_hour(connection, folder, hour, items.get(hour, ()), decided.get(hour, ()))
                written[hour.date()][hour] = its
    return written


def _write_hour(
    connection: "DuckDBPyConnection",
    folder: Path,
    hour: datetime,
    items: "Sequence[InboxItem]",
    decided: Sequence[reviews.Review],
) -> dict[str, str]:
    """The hour's files by table. A file is named by what is in it, so the same content is the same file."""
    # What is announced and not available yet is not received; its hour isn't known either.
    known = [
        _known(item)
        for item in items
        if item.source != CANARY
        and item.state != "listed"
        and (item.event is EventType.AVAILABLE or item.attempts or item.reason)
    ] or [dict.fromkeys(_KNOWN)]
    said = [
        {"recording_id": one.recording_id, "rule_id": one.rule_id, "decision": str(one.decision), "at": one.at}
        for one in decided
    ] or [dict.fromkeys(("recording_id", "rule_id", "decision", "at"))]

    def keep(table: str, query: str, **parameters: Any) -> str:
        return _keep(connection, folder, hour.date(), f"{hour:%H}-{table}", query, {"hour": hour, **parameters})

    made = {"interactions": keep("interactions", sql("snapshot/interactions"), inbox=known, reviews=said)}
    of = [str(folder / made["interactions"])]
    made["violations"] = keep("violations", sql("snapshot/violations"), interactions=of, reviews=said)
    return made | {table: keep(table, _copy(table)) for table in COPIES}


def _copy(table: str) -> str:
    return f"FROM {table} WHERE partition_hour = $hour{'' if table == 'sweeps' else _NO_CANARIES} ORDER BY ALL"


_NO_CANARIES = (
    " AND recording_id NOT IN (SELECT recording_id FROM recordings WHERE partition_hour = $hour AND source = 'canary')"
)


def roll_up(
    folder: Path,
    day: date,
    old: Day,
    new: Mapping[datetime, Mapping[str, str]],
    again: Mapping[datetime, Mapping[str, str]],
    objective: Objective,
) -> Day:
    """The day with the files of its `new` hours in place. Its rollups are counted anew for the hours in `again`; what
    they say of its other hours is taken over."""
    hours = {**old.hours, **new}

    def lists(query: str, of: Collection[Mapping[str, str]]) -> dict[str, Any]:
        return {
            table: [str(folder / its[table]) for its in of]
            for table in FACTS + COPIES
            if f"read_parquet(${table})" in query
        }

    rollups = {}
    with _connect(folder) as connection:
        for table in HOURLY:
            query = sql(f"snapshot/{table}")
            parameters = lists(query, again.values())
            if "$objective_s" in query:
                parameters |= objective.parameters
            if old.rollups:
                parameters |= {"before": str(folder / old.rollups[table]), "again": list(again)}
                query = (
                    f"FROM read_parquet($before) WHERE NOT list_contains($again, partition_hour) "
                    f"UNION ALL BY NAME ({query})"
                )
            rollups[table] = _keep(connection, folder, day, table, f"FROM ({query}) ORDER BY ALL", parameters)
        for table in DAILY:
            query = sql(f"snapshot/{table}")
            parameters = {"latency": str(folder / rollups["latency"])} if "$latency" in query else {}
            parameters |= lists(query, hours.values())
            rollups[table] = _keep(connection, folder, day, table, f"FROM ({query}) ORDER BY ALL", parameters)
        [(left,)] = connection.execute(
            "SELECT coalesce(sum(open), 0)::BIGINT FROM read_parquet($rules)", {"rules": str(folder / rollups["rules"])}
        ).fetchall()
    return Day(hours, rollups, left)


def _connect(folder: Path) -> "DuckDBPyConnection":
    """What doesn't fit into memory lies in the folder for as long, not in the working directory."""
    import duckdb

    connection = duckdb.connect(
        config={
            "threads": 2,
            "memory_limit": "256MB",
            "temp_directory": str(folder / ".spilled"),
            "autoinstall_known_extensions": False,
        }
    )
    connection.execute("SET TimeZone = 'UTC'; SET parquet_metadata_cache = true; SET enable_progress_bar = false")
    return connection


def write_day(folder: Path, day: date, content: Day) -> str:
    """The name of the file that names the day's files."""
    said = content.dumps()
    name = f"{day}/day-{sha256(said.encode()).hexdigest()[:16]}.json"
    if not (folder / name).exists():
        private_file.write(folder / name, said, replace=True)
    return name


def make_current(folder: Path, manifest: Manifest) -> None:
    private_file.write(folder / CURRENT, manifest.dumps(), replace=True)


_KNOWN = (
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
    "found_by_sweep",
    "duplicates",
    "attempts",
)


def _known(item: "InboxItem") -> dict[str, Any]:
    event = item.recording_event
    said: tuple[Any, ...] = (
        item.recording_id,
        item.available_at,
        item.received_at,
        item.source,
        str(event.channel),
        event.direction and str(event.direction),
        event.queue,
        event.agent,
        str(item.state),
        item.reason,
        item.found_by_sweep,
        item.duplicates,
        item.attempts,
    )
    return dict(zip(_KNOWN, said, strict=True))


def _keep(
    connection: "DuckDBPyConnection", folder: Path, day: date, name: str, query: str, parameters: Mapping[str, Any]
) -> str:
    """The name of the Parquet file with the query's rows, relative to the folder."""
    where = folder / day.isoformat()
    where.mkdir(exist_ok=True)
    part = where / f".{name}-{secrets.token_hex(4)}.part"
    try:
        connection.execute(f"COPY ({query}) TO '{_quoted(part)}' (FORMAT parquet, COMPRESSION zstd)", parameters)
        kept = f"{day}/{name}-{sha256(part.read_bytes()).hexdigest()[:16]}.parquet"
        private_file.sync(part)
        part.replace(folder / kept)
    finally:
        part.unlink(missing_ok=True)
    return kept


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")


def _remove_left(folder: Path, day: date, known: Collection[str], before: datetime) -> None:
    """What killed publishers left of a day, and beside the manifest."""
    for path in [*(folder / day.isoformat()).iterdir(), *folder.glob(f".{CURRENT}.*")]:
        if str(path.relative_to(folder)) not in known and datetime.fromtimestamp(path.stat().st_mtime, UTC) < before:
            path.unlink(missing_ok=True)


class Snapshot:
    """One published state, as SQL sees it. Threads may share it; it stays readable for KEPT_FOR after the next one."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self._database = _connect(folder)

    @classmethod
    def current(cls, folder: Path) -> "Snapshot":
        """Raises NoSnapshot."""
        return cls(folder, Manifest.current(folder))

    def hours(self, start: datetime, end: datetime) -> list[datetime]:
        """Those in [start, end) that have recordings, oldest first."""
        return sorted(hour for hour, _ in self._hours(start, end))

    def _hours(self, start: datetime, end: datetime) -> list[tuple[datetime, Mapping[str, str]]]:
        """With each its files."""
        first = start.replace(minute=0, second=0, microsecond=0)
        return [(hour, its) for day in self._days(start, end) for hour, its in day.hours.items() if first <= hour < end]

    def open_since(self) -> datetime:
        """Where the first day with a violation that nobody has decided on begins; else where the data ends."""
        days = (day for day in sorted(self.manifest.days) if self._named(day).open)
        first = next(days, None)
        return datetime(first.year, first.month, first.day, tzinfo=UTC) if first else self.manifest.data_to

    def rows(self, query: str, start: datetime, end: datetime, **parameters: Any) -> list[dict[str, Any]]:
        """The rows of a query over `read_parquet($table)` of TABLES, whose files are those of hours in [start, end).

        A file holds a whole hour, or for rollups a UTC day: the query asks for $start and $end itself.
        """
        if "$start" in query:
            parameters |= {"start": start, "end": end}
        empty = self._named(EMPTY.date())
        for table in TABLES:
            if f"read_parquet(${table})" not in query:
                continue
            if table in ROLLUPS:
                names = [day.rollups[table] for day in (empty, *self._days(start, end))]
            else:
                names = [empty.hours[EMPTY][table], *(its[table] for _, its in self._hours(start, end))]
            parameters[table] = [str(self.folder / name) for name in names]
        with self._database.cursor() as cursor:
            result = cursor.execute(query, parameters)
            names = [column[0] for column in result.description or ()]
            return [dict(zip(names, row, strict=True)) for row in result.fetchall()]

    def _named(self, day: date) -> Day:
        return Day.read(self.folder / self.manifest.days[day])

    def _days(self, start: datetime, end: datetime) -> list[Day]:
        first, last = start.astimezone(UTC).date(), end.astimezone(UTC).date()
        return [self._named(day) for day in sorted(self.manifest.days) if first <= day <= last and day != EMPTY.date()]

    def close(self) -> None:
        self._database.close()
