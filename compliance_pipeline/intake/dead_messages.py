"""Messages that nobody understood: set aside with the reason, sealed, until an upgrade understands them.

Which messages those are is decided in events and consumer, not here.
"""

import hmac
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

import sqlalchemy as sa
from cryptography.fernet import Fernet, InvalidToken

from compliance_pipeline.database import UtcTime, insert, metadata, writer
from compliance_pipeline.settings import Settings

KEY_FILE = "dead_messages"

dead_table = sa.Table(
    "dead_messages",
    metadata,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("queue", sa.String(512), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("received_at", UtcTime, nullable=False),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
)
_row = dead_table.c


class SealBroken(Exception):
    """A body that was sealed under another key, or changed since."""


@dataclass(frozen=True, slots=True)
class Unread:
    """A message that is not understood. `reason` is stored and shown: it may hold nothing sensitive."""

    body: bytes = field(repr=False)
    reason: str


@dataclass(frozen=True, slots=True)
class DeadMessage:
    """What is shown of one. received_at: the first time; attempts: how often it came; size: of the body, in bytes."""

    key: str
    queue: str
    reason: str
    received_at: datetime
    size: int
    attempts: int


def sealing_secret(settings: Settings) -> str:
    """The secret in `<home>/secrets/dead_messages`, made at first use, readable by its owner only."""
    return settings._secret(None, KEY_FILE)


class DeadMessages:
    """The store in the operational database. `secret`: base64 of 32 bytes. Methods raise SQLAlchemyError."""

    def __init__(self, engine: sa.Engine, secret: str) -> None:
        self._engine = engine
        self._secret = b64decode(secret)
        self._seal = Fernet(urlsafe_b64encode(self._secret))

    def store(self, unread: Sequence[Unread], queue: str, now: datetime) -> None:
        """Set messages aside in one transaction, durable on return. One that is there already is counted."""
        if not unread:
            return
        # Keyed, as a plain digest of a short body could be guessed; in one order, so that two processes can't block
        # each other for ever.
        by_key = sorted((hmac.digest(self._secret, letter.body, "sha256").hex(), letter) for letter in unread)
        with writer(self._engine).begin() as connection:
            for key, letter in by_key:
                row = {
                    "key": key,
                    "queue": queue,
                    "reason": letter.reason,
                    "received_at": now,
                    "size": len(letter.body),
                    "attempts": 1,
                    "body": self._seal.encrypt(letter.body),
                }
                again = {"attempts": _row.attempts + 1, "reason": letter.reason}
                statement = insert(self._engine, dead_table).values(row)
                connection.execute(statement.on_conflict_do_update(index_elements=["key"], set_=again))

    def all(self) -> list[DeadMessage]:
        """What was set aside, newest first."""
        columns = (_row.key, _row.queue, _row.reason, _row.received_at, _row.size, _row.attempts)
        query = sa.select(*columns).order_by(_row.received_at.desc(), _row.key)
        with self._engine.connect() as connection:
            return [DeadMessage(*row) for row in connection.execute(query)]

    def body(self, key: str) -> bytes | None:
        """The message as it came; None if it is gone. Raises SealBroken."""
        with self._engine.connect() as connection:
            sealed = connection.scalar(sa.select(_row.body).where(_row.key == key))
        try:
            return None if sealed is None else self._seal.decrypt(sealed)
        except InvalidToken:
            raise SealBroken(
                f"a dead message can't be opened: put back the {KEY_FILE} file of the secrets folder that sealed it"
            ) from None

    def explain(self, key: str, reason: str) -> None:
        """Another reason, from a later try."""
        with writer(self._engine).begin() as connection:
            connection.execute(sa.update(dead_table).where(_row.key == key).values(reason=reason))

    def forget(self, key: str) -> None:
        """Remove one whose events are stored."""
        with writer(self._engine).begin() as connection:
            connection.execute(sa.delete(dead_table).where(_row.key == key))
