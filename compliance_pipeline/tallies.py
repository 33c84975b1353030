"""Counts by hour that all processes share: what was refused or could not be delivered, and why. Names and numbers only.

For what has no row of its own anywhere; what is counted under which name is its counter's to say.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta

import sqlalchemy as sa

from compliance_pipeline import database
from compliance_pipeline.database import UtcTime, insert, metadata

RECEIVED, REJECTED = "received:", "rejected:"
"""Prefixes: events that the inbox took (accepted, duplicate), and what receiver or consumers refused, by reason."""

URL_REFUSED = "url_refused:"
"""Prefix: addresses of media that were refused before they were asked, by reason."""
POISON = "poison"
"""Reason of a queue's message that nobody understood; it lies with the dead messages."""

tally_table = sa.Table(
    "tallies",
    metadata,
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("hour", UtcTime, primary_key=True),
    sa.Column("count", sa.BigInteger, nullable=False),
)
_tally = tally_table.c


def count(engine: sa.Engine, counts: Mapping[str, int], now: datetime) -> None:
    """Add to the counts of this hour."""
    hour = now.replace(minute=0, second=0, microsecond=0)
    rows = [{"name": name, "hour": hour, "count": number} for name, number in sorted(counts.items()) if number]
    if not rows:
        return
    database.ensure(engine, tally_table)
    statement = insert(engine, tally_table)
    added = {"count": _tally.count + statement.excluded.count}
    with database.writer(engine).begin() as connection:
        connection.execute(statement.on_conflict_do_update(index_elements=["name", "hour"], set_=added), rows)


def counted(engine: sa.Engine, prefix: str, since: datetime) -> dict[str, int]:
    """Totals by name, of names that begin with `prefix`, from the hour of `since` on."""
    database.ensure(engine, tally_table)
    begin = since - timedelta(minutes=since.minute, seconds=since.second, microseconds=since.microsecond)
    query = (
        sa.select(_tally.name, sa.func.sum(_tally.count))
        .where(_tally.name.startswith(prefix, autoescape=True), _tally.hour >= begin)
        .group_by(_tally.name)
    )
    with engine.connect() as connection:
        return {name: int(total) for name, total in connection.execute(query)}
