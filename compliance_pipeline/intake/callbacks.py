"""Verdicts that an external engine calls back with: stored once, and the recording that waits for them is due again.

No HTTP here: the receiver checks signature and schema. What a verdict means is the pipeline's.
"""

from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlencode

import sqlalchemy as sa

from compliance_pipeline.contracts.verdict import Verdict
from compliance_pipeline.database import UtcTime, insert, metadata
from compliance_pipeline.intake.inbox import State, inbox_table

PATH = "/api/v1/callback/genesys"
"""Guide, step 3: the flow's entry point."""
POLICY_PARAMETER = "policy"

verdict_table = sa.Table(
    "engine_verdicts",
    metadata,
    sa.Column("recording_id", sa.String(128), primary_key=True),
    sa.Column("correlation_id", sa.String(256), primary_key=True),
    sa.Column("policy_version", sa.String(128), primary_key=True),
    sa.Column("verdict", sa.JSON, nullable=False),
    sa.Column("received_at", UtcTime, nullable=False),
)
message_table = sa.Table(
    "engine_messages",
    metadata,
    sa.Column("webhook_id", sa.String(256), primary_key=True),
    sa.Column("body_sha256", sa.String(64), nullable=False),
    sa.Column("received_at", UtcTime, nullable=False),
)
_verdict, _message, _row = verdict_table.c, message_table.c, inbox_table.c


class UnknownRecording(Exception):
    """A verdict on a recording that no event ever announced."""


class MessageIdReused(Exception):
    """Another body under a webhook-id that was seen before."""


@dataclass(frozen=True, slots=True)
class Message:
    """A signed message as it came. policy_version: what the callback URL said that was asked for; '' if nothing."""

    webhook_id: str
    body_sha256: str
    policy_version: str = ""


@dataclass(frozen=True, slots=True)
class StoredVerdict:
    verdict: Verdict
    received_at: datetime


def callback_url(receiver_url: str, policy_version: str) -> str:
    """Where an engine sends its verdict under this policy. The wire verdict names no policy, so the address does:
    a recording that is screened again under another policy must not be given the old verdict."""
    return f"{receiver_url.rstrip('/')}{PATH}?{urlencode({POLICY_PARAMETER: policy_version})}"


def take(engine: sa.Engine, message: Message, verdict: Verdict, now: datetime) -> bool:
    """Store a verdict in the inbox's database and make its recording due; whether it said nothing new.

    Applied once per webhook-id, durable on return; the last of several verdicts on one request stands. Raises
    UnknownRecording, MessageIdReused.
    """
    key = {
        "recording_id": verdict.recording_id,
        "correlation_id": verdict.correlation_id,
        "policy_version": message.policy_version,
    }
    said = {"verdict": verdict.model_dump(mode="json", by_alias=True), "received_at": now}
    with engine.execution_options(writes=True).begin() as connection:
        # The lock on the row lets two deliveries of one message, and a run that defers the row, take turns.
        known = sa.select(_row.seq).where(_row.recording_id == verdict.recording_id).with_for_update()
        if connection.scalar(known) is None:
            raise UnknownRecording
        seen = {"webhook_id": message.webhook_id, "body_sha256": message.body_sha256, "received_at": now}
        noted = insert(engine, message_table).on_conflict_do_nothing().values(seen).returning(_message.webhook_id)
        if connection.scalar(noted) is None:
            first = sa.select(_message.body_sha256).where(_message.webhook_id == message.webhook_id)
            if connection.scalar(first) != message.body_sha256:
                raise MessageIdReused
            return True
        if connection.scalar(sa.select(_verdict.verdict).where(*_where(key))) == said["verdict"]:
            return True
        store = insert(engine, verdict_table).values(key | said)
        connection.execute(store.on_conflict_do_update(index_elements=list(key), set_=said))
        _make_due(connection, verdict.recording_id, now)
    return False


def verdict_for(
    engine: sa.Engine, recording_id: str, correlation_id: str, policy_version: str = ""
) -> StoredVerdict | None:
    """What an engine called back with for this request, if it has."""
    key = {"recording_id": recording_id, "correlation_id": correlation_id, "policy_version": policy_version}
    with engine.connect() as connection:
        query = sa.select(_verdict.verdict, _verdict.received_at).where(*_where(key))
        found = connection.execute(query).one_or_none()
    return StoredVerdict(Verdict.model_validate(found.verdict), found.received_at) if found else None


def wake(engine: sa.Engine, recording_id: str, now: datetime) -> None:
    """Make a waiting recording due. For whoever deferred it and then finds that its verdict came in between:
    a callback can't make due what is still claimed."""
    with engine.execution_options(writes=True).begin() as connection:
        _make_due(connection, recording_id, now)


def _make_due(connection: sa.Connection, recording_id: str, now: datetime) -> None:
    """A row that waits is due now; one that was given up on starts anew; one that is held or settled stays."""
    mine = _row.recording_id == recording_id
    waiting = sa.update(inbox_table).where(mine, _row.state == State.DEFERRED, _row.due_at > now)
    connection.execute(waiting.values(due_at=now, updated_at=now))
    dead = sa.update(inbox_table).where(mine, _row.state == State.DEAD)
    anew = {"state": State.NEW, "due_at": now, "claimed_by": None, "claimed_at": None, "attempts": 0}
    connection.execute(dead.values(**anew, updated_at=now))


def _where(key: dict[str, str]) -> list[sa.ColumnElement[bool]]:
    return [_verdict[name] == value for name, value in key.items()]
