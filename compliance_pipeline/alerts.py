"""What people are told of at once: what it is, each of them once, and again only where sending failed."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice

import sqlalchemy as sa
from pydantic import SecretStr

from compliance_pipeline import breaker, database
from compliance_pipeline.database import UtcTime, insert, metadata
from compliance_pipeline.notify import NotifyFailed, send

CHANNEL = "alerts"
LOOK_BACK = timedelta(days=1)
"""What is older was of use to somebody yesterday."""
CLAIM = timedelta(minutes=2)
"""Whoever claimed an alert and has not sent it after this has died."""
KEEP = timedelta(days=30)
QUIET = timedelta(minutes=30)
"""One alert a breaker in each of these: one that opens and closes all the time is one thing to know."""
AT_ONCE = 20
"""Alerts in one message."""

_log = logging.getLogger(__name__)

alert_table = sa.Table(
    "alert",
    metadata,
    sa.Column("key", sa.String(256), primary_key=True),
    sa.Column("raised_at", UtcTime, nullable=False),
    sa.Column("claimed_at", UtcTime),
    sa.Column("alerted_at", UtcTime),
)
_alert = alert_table.c


@dataclass(frozen=True, slots=True)
class Alert:
    """key: the same for the same occasion, whoever sees it. title, text: plain; nothing of what was screened."""

    key: str
    title: str
    text: str


def opened_breakers(engine: sa.Engine, now: datetime) -> list[Alert]:
    """One for a breaker's openings of half an hour, the last of them; a probe that fails is no new one."""
    found: dict[str, breaker.Opening] = {}
    for opening in breaker.openings(engine, now - LOOK_BACK):
        half_hour = opening.opened_at - (opening.opened_at - datetime.min.replace(tzinfo=UTC)) % QUIET
        found[f"breaker:{opening.name}@{half_hour.isoformat()}"] = opening
    return [
        Alert(
            key,
            f"{opening.name} fails",
            f"{opening.failures} of {opening.calls} calls within a minute failed at {opening.opened_at:%F %T} UTC. "
            + (
                f"It answers again since {opening.closed_at:%F %T} UTC."
                if opening.closed_at
                else "It is asked again every half minute; what waits for it is not lost."
            ),
        )
        for key, opening in found.items()
    ]


def due_alerts(engine: sa.Engine, now: datetime) -> list[Alert]:
    """What nobody was told yet, AT_ONCE at most, claimed by the caller: to be `settled` within CLAIM, or due again."""
    database.ensure(engine, alert_table)
    if not (raised := opened_breakers(engine, now)):
        return []
    told = sa.select(_alert.key).where(_alert.alerted_at.is_not(None), _alert.raised_at > now - KEEP)
    with engine.connect() as connection:
        known = set(connection.scalars(told))
    claimed = (alert for alert in raised if alert.key not in known and _claim(engine, alert, now))
    return list(islice(claimed, AT_ONCE))


def _claim(engine: sa.Engine, alert: Alert, now: datetime) -> bool:
    row = insert(engine, alert_table).values(key=alert.key, raised_at=now).on_conflict_do_nothing()
    free = sa.or_(_alert.claimed_at.is_(None), _alert.claimed_at <= now - CLAIM, _alert.claimed_at > now + CLAIM)
    mine = sa.update(alert_table).where(_alert.key == alert.key, _alert.alerted_at.is_(None), free)
    with engine.begin() as connection:
        connection.execute(row)
        connection.execute(sa.delete(alert_table).where(_alert.raised_at < now - KEEP))
        return connection.execute(mine.values(claimed_at=now)).rowcount == 1


def settle(engine: sa.Engine, alerts: Sequence[Alert], now: datetime, *, sent: bool) -> None:
    """Done with, or due again at once."""
    values = {"alerted_at": now} if sent else {"claimed_at": None}
    with engine.begin() as connection:
        mine = _alert.key.in_([alert.key for alert in alerts])
        connection.execute(sa.update(alert_table).where(mine).values(**values))


def send_due(engine: sa.Engine, urls: Mapping[str, SecretStr], now: datetime) -> str:
    """Log each alert that is due, and send them in one message where the channel `alerts` is set; what was done, in a
    sentence. Takes as long as one `send`, whatever is due."""
    due = due_alerts(engine, now)
    if not due:
        return "Nothing to tell."
    for alert in due:
        _log.error("%s: %s", alert.title, alert.text)
    title = due[0].title + (f", and {len(due) - 1} more" if len(due) > 1 else "")
    try:
        if CHANNEL in urls:
            send(urls, CHANNEL, title, "\n".join(f"{alert.title}: {alert.text}" for alert in due))
    except NotifyFailed as error:
        _log.warning("alerts not sent, tried again: %s", error)
        settle(engine, due, now, sent=False)
        return f"{len(due)} alerts to be tried again."
    settle(engine, due, now, sent=True)
    return f"{len(due)} alerts told."
