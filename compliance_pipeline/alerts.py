"""What people are told of at once: what it is, each of them once, and again only where sending failed."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING

import sqlalchemy as sa
from pydantic import SecretStr

from compliance_pipeline import breaker, canaries, database
from compliance_pipeline.contracts.event import CANARY
from compliance_pipeline.database import UtcTime, insert, metadata
from compliance_pipeline.intake.dead_messages import dead_table
from compliance_pipeline.intake.inbox import State, inbox_table
from compliance_pipeline.notify import NotifyFailed, send
from compliance_pipeline.objective import Objective

if TYPE_CHECKING:
    from compliance_pipeline.figures.snapshots import Snapshot

CHANNEL = "alerts"
LOOK_BACK = timedelta(days=1)
"""What is older was of use to somebody yesterday."""
CLAIM = timedelta(minutes=2)
"""Whoever claimed an alert and has not sent it after this has died."""
KEEP = timedelta(days=30)
QUIET = timedelta(minutes=30)
"""One alert a breaker, a job that fails, or for dead letters in each of these: what recurs is one thing to know."""
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


def half_hour(at: datetime) -> datetime:
    return at - (at - datetime.min.replace(tzinfo=UTC)) % QUIET


def opened_breakers(engine: sa.Engine, now: datetime) -> list[Alert]:
    """One for a breaker's openings of half an hour, the last of them; a probe that fails is no new one."""
    found: dict[str, breaker.Opening] = {}
    for opening in breaker.openings(engine, now - LOOK_BACK):
        found[f"breaker:{opening.name}@{half_hour(opening.opened_at).isoformat()}"] = opening
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


def missed_canaries(engine: sa.Engine, now: datetime) -> list[Alert]:
    """One for a rule and channel and UTC day, however many of that day's were missed."""
    found: dict[str, Alert] = {}
    for fate in canaries.missed(engine, now - LOOK_BACK):
        title = f"Canary of {fate.rule_id} missed ({fate.channel})"
        text = {
            canaries.Outcome.WRONG: "was judged, and the rule did not fire",
            canaries.Outcome.LATE: f"was flagged after {fate.seconds or 0:.0f} s",
        }.get(fate.outcome or canaries.Outcome.MISSED, "is not flagged yet")
        key = f"canary:{fate.name}@{fate.injected_at:%F}"
        found[key] = Alert(
            key,
            title,
            f"A synthetic violation of {fate.injected_at:%F %T} UTC {text}: real ones may pass too. "
            "`compliance canaries` shows all rules.",
        )
    return list(found.values())


def given_up(engine: sa.Engine, now: datetime) -> list[Alert]:
    """One for what was given up on within half an hour: recordings, and messages that nobody understood."""
    for table in (inbox_table, dead_table):
        database.ensure(engine, table)
    row, since = inbox_table.c, now - LOOK_BACK
    # By when it was last taken: a repeat of its event changes the row, and is no news.
    letters = sa.select(row.claimed_at, row.reason).where(
        row.state == State.DEAD, row.updated_at >= since, row.claimed_at >= since, row.source != CANARY
    )
    messages = sa.select(dead_table.c.received_at, dead_table.c.reason).where(dead_table.c.received_at >= since)
    found = []
    for what, query, command in (
        ("recordings", letters, "compliance inbox"),
        ("messages", messages, "compliance consume --dead"),
    ):
        reasons: dict[datetime, Counter[str]] = {}
        with engine.connect() as connection:
            for at, reason in connection.execute(query):
                reasons.setdefault(half_hour(at), Counter())[reason or "no reason"] += 1
        for at, counted in reasons.items():
            [(commonest, _)] = counted.most_common(1)
            text = f"{counted.total()} since {at:%F %R} UTC. Of most: {commonest}. `{command}` lists them."
            found.append(Alert(f"dead:{what}@{at.isoformat()}", f"{what.capitalize()} were given up on", text))
    return found


def by_figures(snapshot: "Snapshot", objective: Objective, share: float, now: datetime) -> list[Alert]:
    """Budgets that burn too fast, once in their long window; and hours of which the sweep alone found more than `share`
    of the recordings."""
    from compliance_pipeline.figures.chosen import Filter
    from compliance_pipeline.figures.promise import BURN_WINDOWS, burn_windows
    from compliance_pipeline.figures.snapshots import sql

    end = snapshot.manifest.data_to
    longs = {name: long for name, _, long, _ in BURN_WINDOWS}
    found = []
    for window in burn_windows(snapshot, Filter(end - longs[BURN_WINDOWS[0][0]], end), objective):
        if window.firing and window.long_burn is not None:
            since = end - (end - datetime.min.replace(tzinfo=UTC)) % longs[window.name]
            found.append(
                Alert(
                    f"burn:{window.name}@{since.isoformat()}",
                    f"The error budget burns {window.long_burn:.1f} times too fast ({window.name})",
                    f"Of what had to be flagged within {objective.seconds:g} s, too much was not. "
                    "`compliance report` says where the time goes.",
                )
            )
    return found + [
        Alert(
            f"sweep:{hour['hour'].isoformat()}",
            "Events do not arrive",
            f"{hour['found_by_sweep']} of {hour['at_source']} recordings of {hour['hour']:%F %R} UTC were found by the "
            "sweep alone. `compliance doctor` looks at the subscription.",
        )
        for hour in snapshot.rows(sql("completeness"), now - LOOK_BACK, now)
        if hour["found_by_sweep"] > share * hour["at_source"]
    ]


def due_alerts(engine: sa.Engine, now: datetime, more: Sequence[Alert] = ()) -> list[Alert]:
    """What nobody was told yet, AT_ONCE at most, claimed by the caller: to be `settled` within CLAIM, or due again.

    more: what others than the operational database know of.
    """
    database.ensure(engine, alert_table)
    raised = [*opened_breakers(engine, now), *missed_canaries(engine, now), *given_up(engine, now), *more]
    if not raised:
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


def send_due(engine: sa.Engine, urls: Mapping[str, SecretStr], now: datetime, more: Sequence[Alert] = ()) -> str:
    """Log each alert that is due, and send them in one message where the channel `alerts` is set; what was done, in a
    sentence. Takes as long as one `send`, whatever is due."""
    due = due_alerts(engine, now, more)
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
