"""A published history of any length for benchmarks and demonstrations: its facts are made up here, by SQL from a seed;
its rollups are counted from these by the code that publishes."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb

from compliance_pipeline.figures.snapshots import (
    COPIES,
    EMPTY,
    FACTS,
    Day,
    Manifest,
    make_current,
    publish,
    roll_up,
    write_day,
)
from compliance_pipeline.intake.inbox import Inbox
from compliance_pipeline.objective import Objective
from compliance_pipeline.warehouse.warehouse import Warehouse

OBJECTIVE = Objective(30.0)
END = datetime(2026, 5, 31, tzinfo=UTC)

_DAY, _VIOLATIONS = (
    Path(__file__).with_name(f"history_{name}.sql").read_text("utf-8") for name in ("day", "violations")
)


def make_history(
    folder: Path, recordings: int, days: int = 30, seed: float = 0.42, said: Callable[[int], None] = lambda _: None
) -> None:
    """Publish into `folder` the `days` up to END with so many recordings in all. said: told each day's number."""
    empty = _empty(folder)
    connection = duckdb.connect(config={"threads": 2})
    connection.execute("SET TimeZone = 'UTC'; SET enable_progress_bar = false")
    connection.execute("SELECT setseed($seed)", {"seed": seed})
    named = dict(Manifest.current(folder).days)
    for number in range(days):
        start = END - timedelta(days=days - number)
        connection.execute(_DAY, {"recordings": recordings // days, "day": start, "number": number})
        hours: dict[datetime, dict[str, str]] = {}
        where = folder / f"{start:%F}"
        where.mkdir(exist_ok=True)
        for hour in (start + timedelta(hours=number) for number in range(24)):
            hours[hour] = {table: empty[table] for table in COPIES}
            for table in FACTS:
                name = f"{start:%F}/{hour:%H}-{table}-made.parquet"
                made = "FROM day WHERE partition_hour = $hour" if table == "interactions" else _VIOLATIONS
                connection.execute(
                    f"COPY (FROM read_parquet($empty) UNION ALL BY NAME ({made}) ORDER BY available_at) "
                    f"TO '{folder / name}' (FORMAT parquet, COMPRESSION zstd)",
                    {"hour": hour, "empty": str(folder / empty[table])},
                )
                hours[hour][table] = name
        rolled = roll_up(folder, start.date(), Day({}, {}), hours, hours, OBJECTIVE)
        named[start.date()] = write_day(folder, start.date(), rolled)
        said(number + 1)
    connection.close()
    make_current(folder, Manifest(2, 0, END, OBJECTIVE, named))


def _empty(folder: Path) -> dict[str, str]:
    """The files of an hour without recordings, by table, from a publication of nothing."""
    with TemporaryDirectory() as home:
        inbox = Inbox(f"sqlite:///{home}/inbox.db")
        inbox.create()
        publish(Warehouse(Path(home) / "warehouse.duckdb"), inbox, folder, OBJECTIVE, END)
        inbox.close()
    manifest = Manifest.current(folder)
    return dict(Day.read(folder / manifest.days[EMPTY.date()]).hours[EMPTY])
