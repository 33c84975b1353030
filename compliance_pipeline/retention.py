"""Retention: what the vault keeps and for how long, legal holds that beat it, and the deletion itself.

Verdicts and the ledger stay. What the platform keeps of a recording is deleted by the platform, where the policy says
`purge_after_review`; here is when it may be.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from logging import getLogger
from typing import Any

import sqlalchemy as sa

from compliance_pipeline import database, ledger, reviews
from compliance_pipeline.contracts.policy import RetentionRule
from compliance_pipeline.database import UtcTime
from compliance_pipeline.evidence import FOLDER, ORIGINAL
from compliance_pipeline.ledger import Entry
from compliance_pipeline.media.vault import Vault
from compliance_pipeline.plain_text import refuse_sensitive
from compliance_pipeline.warehouse.warehouse import Warehouse

_log = getLogger(__name__)

CLIP = "clip"
PLATFORM = "platform"
"""The platform's own recording; `remediate` deletes it, when the policy says `purge_after_review`."""
NOT_REVIEWED, LEGAL_HOLD = "not reviewed yet", "a legal hold stands"
EVERYTHING = "everything"
"""All that the vault has of a recording is due: its key is destroyed, so that no copy anywhere can be read again."""


class NotHeld(Exception):
    """A hold that can't be, with the reason in words."""


holds = sa.Table(
    "holds",
    database.metadata,
    sa.Column("recording_id", sa.String, primary_key=True),
    sa.Column("reason", sa.String, nullable=False),
    sa.Column("by", sa.String, nullable=False),
    sa.Column("at", UtcTime, nullable=False),
    sa.Column("lifted_at", UtcTime),
)
purges = sa.Table(
    "purges",
    database.metadata,
    sa.Column("recording_id", sa.String, primary_key=True),
    sa.Column("what", sa.String, primary_key=True),
    sa.Column("names", sa.String, nullable=False),
    sa.Column("rule", sa.String, nullable=False),
    sa.Column("why", sa.String, nullable=False),
    sa.Column("due", UtcTime, nullable=False),
    sa.Column("begun_at", UtcTime, primary_key=True),
    sa.Column("done_at", UtcTime),
)
"""A deletion is begun here, where a hold would show, and done after the vault's part: killed between, it goes on. Of a
recording and kind at most one is not done."""


@dataclass(frozen=True, slots=True)
class Deletion:
    """what: 'clip', 'original' or 'everything'; names: in the vault. why: the rule in words.

    held: the reason of the legal hold that keeps it, if there is one.
    """

    recording_id: str
    what: str
    names: tuple[str, ...]
    rule: str
    why: str
    due: datetime
    held: str | None = None


@dataclass(frozen=True, slots=True)
class Deleted:
    deletion: Deletion
    begun_at: datetime
    done_at: datetime | None


@dataclass(frozen=True, slots=True)
class Hold:
    recording_id: str
    reason: str
    by: str
    at: datetime


class Outcome(StrEnum):
    DELETED = "deleted"
    HELD = "held"
    FAILED = "failed"
    GONE = "gone already"
    """By another process, since the plan was made."""


def data_of(name: str) -> str:
    """Which kind of data the vault has under a name. Clips, those that are no evidence any more too, have a folder."""
    return CLIP if name.startswith(f"{FOLDER}/") else ORIGINAL


# Holds


def is_known(warehouse: Warehouse, recording_id: str) -> bool:
    return bool(
        warehouse.select("SELECT 1 AS one FROM recordings WHERE recording_id = $id LIMIT 1", {"id": recording_id})
    )


def hold(engine: sa.Engine, recording_id: str, reason: str, by: str, now: datetime) -> bool:
    """Keep a recording from deletion; False if it is held already.

    What is left of it is held: clips may have gone. Raises NotHeld while something of it is being deleted and when the
    platform deleted it, NotPlain for the texts.
    """
    _refuse_sensitive(reason, by)
    _ensure(engine)
    with database.writer(engine).begin() as connection:
        _one_at_a_time(connection)
        begun = connection.execute(
            sa.select(purges).where(
                purges.c.recording_id == recording_id, purges.c.done_at.is_(None) | (purges.c.what == PLATFORM)
            )
        ).first()
        if begun is not None:
            state = f"was deleted at {begun.done_at:%F %T}" if begun.done_at else "is being deleted"
            raise NotHeld(f"the recording {state} ({begun.why}): a hold comes too late")
        held = connection.execute(sa.select(holds).where(holds.c.recording_id == recording_id)).first()
        if held is not None and held.lifted_at is None:
            return False
        row = {"reason": reason, "by": by, "at": now, "lifted_at": None}
        connection.execute(
            database.insert(engine, holds)
            .values(recording_id=recording_id, **row)
            .on_conflict_do_update(index_elements=[holds.c.recording_id], set_=row)
        )
        entry = Entry(
            f"hold/{recording_id}/{now.isoformat()}", "hold", by, recording_id, details={"held": True, "reason": reason}
        )
        ledger.append(connection, [entry], now)
    return True


def lift(engine: sa.Engine, recording_id: str, reason: str, by: str, now: datetime) -> bool:
    """Let retention have the recording again; False if it was not held. Raises NotPlain for the texts."""
    _refuse_sensitive(reason, by)
    _ensure(engine)
    with database.writer(engine).begin() as connection:
        _one_at_a_time(connection)
        held = connection.execute(
            sa.select(holds).where(holds.c.recording_id == recording_id, holds.c.lifted_at.is_(None))
        ).first()
        if held is None:
            return False
        connection.execute(holds.update().where(holds.c.recording_id == recording_id).values(lifted_at=now))
        entry = Entry(
            f"hold/{recording_id}/{held.at.isoformat()}/lifted",
            "hold",
            by,
            recording_id,
            details={"held": False, "reason": reason},
        )
        ledger.append(connection, [entry], now)
    return True


def holds_in_force(engine: sa.Engine) -> list[Hold]:
    _ensure(engine)
    with engine.connect() as connection:
        rows = connection.execute(sa.select(holds).where(holds.c.lifted_at.is_(None)).order_by(holds.c.at)).all()
    return [Hold(row.recording_id, row.reason, row.by, row.at) for row in rows]


def _refuse_sensitive(reason: str, by: str) -> None:
    refuse_sensitive(reason, "the reason")
    refuse_sensitive(by, "the name")


def kept_from_purge(warehouse: Warehouse, engine: sa.Engine, recording_ids: Collection[str]) -> dict[str, str]:
    """Of these, the recordings that the platform may not be asked to delete yet, with why.

    A purge that was begun goes on: no hold was taken since.
    """
    if not recording_ids:
        return {}
    reviewed = reviews.reviewed(warehouse, engine, recording_ids)
    held = {one.recording_id for one in holds_in_force(engine)}
    begun = {one.deletion.recording_id for one in unfinished_purges(engine)}
    return {
        recording_id: NOT_REVIEWED if recording_id not in reviewed else LEGAL_HOLD
        for recording_id in recording_ids
        if recording_id not in begun and (recording_id not in reviewed or recording_id in held)
    }


# Planning


def plan_retention(
    warehouse: Warehouse, vault: Vault, engine: sa.Engine, rules: Sequence[RetentionRule], until: datetime
) -> list[Deletion]:
    """What is to be deleted by `until`, the earliest first; held ones too, which `apply` leaves. Deletes nothing.

    What was begun and not done comes first, held or not: no hold is taken after the beginning.
    """
    _ensure(engine)
    kept = vault.recording_ids()
    reviewed = reviews.reviewed(warehouse, engine, kept)
    held = {one.recording_id: one.reason for one in holds_in_force(engine)}
    known = [one for one in purged(engine) if one.deletion.what != PLATFORM]
    begun = [one.deletion for one in known if one.done_at is None]
    gone = {one.deletion.recording_id for one in known if one.deletion.what == EVERYTHING or one.done_at is None}
    planned = []
    for row in _candidates(warehouse, kept, rules, reviewed, until):
        if row["recording_id"] in gone:
            continue
        dues = {data: _due(row, data, rules, reviewed.get(row["recording_id"])) for data in (CLIP, ORIGINAL)}
        planned += [
            replace(deletion, held=held.get(deletion.recording_id)) for deletion in _deletions(row, dues, vault, until)
        ]
    return begun + sorted(planned, key=lambda deletion: (deletion.due, deletion.recording_id, deletion.what))


_CANDIDATES = """
SELECT
    r.recording_id, r.available_at,
    (SELECT arg_max(v.verdict, v.judged_at) FROM verdicts v WHERE v.recording_id = r.recording_id) AS verdict,
    (SELECT list(DISTINCT f.kind) FROM findings f WHERE f.recording_id = r.recording_id) AS kinds
FROM recordings r
WHERE r.recording_id IN (SELECT unnest($kept))
  AND (r.available_at <= $before OR r.recording_id IN (SELECT unnest($reviewed)))
"""


def _candidates(
    warehouse: Warehouse,
    kept: Collection[str],
    rules: Sequence[RetentionRule],
    reviewed: Mapping[str, datetime],
    until: datetime,
) -> list[dict[str, Any]]:
    if not rules:
        return []
    before = until - timedelta(days=min(rule.days for rule in rules))
    return warehouse.select(_CANDIDATES, {"kept": list(kept), "before": before, "reviewed": list(reviewed)})


def unknown_recordings(warehouse: Warehouse, vault: Vault) -> list[str]:
    """What the vault keeps and the warehouse does not know, so that no rule has it."""
    kept = vault.recording_ids()
    rows = warehouse.select(
        "SELECT DISTINCT recording_id FROM recordings WHERE recording_id IN (SELECT unnest($ids))", {"ids": kept}
    )
    return sorted(set(kept) - {row["recording_id"] for row in rows})


def _due(
    row: Mapping[str, Any], data: str, rules: Sequence[RetentionRule], reviewed_at: datetime | None
) -> tuple[datetime, RetentionRule] | None:
    """When the recording's data of a kind is due, and by which rule; None where no rule has it."""
    dues = []
    for rule in rules:
        applies = (
            rule.data == data
            and (not rule.verdicts or row["verdict"] in rule.verdicts)
            and (not rule.kinds or not set(rule.kinds).isdisjoint(row["kinds"] or ()))
        )
        if applies:
            at_latest = row["available_at"] + timedelta(days=rule.days)
            early = rule.after_review and reviewed_at is not None
            dues.append((min(at_latest, reviewed_at) if early and reviewed_at else at_latest, rule))
    return min(dues, key=lambda due: due[0], default=None)


def _deletions(
    row: Mapping[str, Any],
    dues: Mapping[str, tuple[datetime, RetentionRule] | None],
    vault: Vault,
    until: datetime,
) -> Iterable[Deletion]:
    due = {data: said for data, said in dues.items() if said is not None and said[0] <= until}
    if not due:
        return
    there: dict[str, tuple[str, ...]] = {}
    for name in vault.names(row["recording_id"]):
        there[data_of(name)] = (*there.get(data_of(name), ()), name)
    wanted = {data: found for data, found in there.items() if data in due}
    if not wanted:
        return
    if wanted.keys() == there.keys():
        # The key goes when the last of it is due; what is due before then goes by itself.
        last = max(wanted, key=lambda data: due[data][0])
        everything = tuple(sorted(name for found in wanted.values() for name in found))
        earlier = {data: found for data, found in wanted.items() if due[data][0] < due[last][0]}
        yield _deletion(row, EVERYTHING, everything, due[last])
        wanted = earlier
    for data, found in wanted.items():
        yield _deletion(row, data, found, due[data])


def _deletion(
    row: Mapping[str, Any], what: str, names: tuple[str, ...], due: tuple[datetime, RetentionRule]
) -> Deletion:
    at, rule = due
    kept = f"until review, {rule.days:g} days at most" if rule.after_review else f"{rule.days:g} days"
    return Deletion(row["recording_id"], what, names, rule.name, f"{rule.name}: kept {kept}", at)


# Doing


def apply(
    engine: sa.Engine, vault: Vault, deletions: Sequence[Deletion], by: str, now: datetime
) -> list[tuple[Deletion, Outcome]]:
    """Delete what is due by `now` and not held. Done again, or after a kill, it changes nothing that is done.

    A failure of one leaves the others; the next run tries it again.
    """
    _ensure(engine)
    outcomes = []
    left = {(one.deletion.recording_id, one.deletion.what) for one in purged(engine, undone_only=True)}
    for deletion in deletions:
        if deletion.due > now:
            continue
        try:
            is_left = (deletion.recording_id, deletion.what) in left
            outcome = _delete(engine, vault, deletion, by, now, is_left=is_left)
        except Exception as error:
            # The text of a storage's exception may quote addresses: only its type is kept.
            _log.error("recording %s: not deleted: %s", deletion.recording_id, type(error).__qualname__)
            outcome = Outcome.FAILED
        outcomes.append((deletion, outcome))
    return outcomes


def _delete(engine: sa.Engine, vault: Vault, deletion: Deletion, by: str, now: datetime, *, is_left: bool) -> Outcome:
    """is_left: it was begun by a run that was killed, which may have deleted some or all of it."""
    recording_id = deletion.recording_id
    if not is_left and set(deletion.names).isdisjoint(vault.names(recording_id)):
        return Outcome.GONE
    begun_at = begin(engine, deletion, now)
    if begun_at is None:
        return Outcome.HELD
    names: Sequence[str] = deletion.names
    if deletion.what == EVERYTHING:
        if not set(vault.names(recording_id)) <= set(names):
            # More was put since the plan, which may not be due: the key stays.
            cancel(engine, deletion)
            outcomes = [_delete(engine, vault, one, by, now, is_left=False) for one in _by_kind(deletion)]
            return next((outcome for outcome in outcomes if outcome is not Outcome.GONE), Outcome.GONE)
        vault.shred(recording_id, now)
        names = vault.names(recording_id)
    for name in names:
        vault.delete(recording_id, name)
    end(engine, deletion, by, begun_at, now)
    return Outcome.DELETED


def _by_kind(deletion: Deletion) -> list[Deletion]:
    kinds = sorted({data_of(name) for name in deletion.names})
    return [
        replace(deletion, what=kind, names=tuple(name for name in deletion.names if data_of(name) == kind))
        for kind in kinds
    ]


def begin(engine: sa.Engine, deletion: Deletion, now: datetime, with_it: Collection[str] = ()) -> datetime | None:
    """When the deletion was begun, now or by a run that was killed; None where a hold beats it.

    with_it: recordings that would lose their protection with it, so that their holds count as well. A deletion of
    everything, or at the platform, that is done is final: its beginning again, to be ended without effect. From the
    beginning on no hold can be had, until `end`, or `cancel` where it turns out that nothing was deleted.
    """
    _ensure(engine)
    with database.writer(engine).begin() as connection:
        _one_at_a_time(connection)
        last = connection.execute(
            sa.select(purges).where(_same(deletion)).order_by(purges.c.begun_at.desc()).limit(1)
        ).first()
        is_begun = last is not None and (last.done_at is None or deletion.what in (EVERYTHING, PLATFORM))
        heeded = {*with_it} if is_begun else {deletion.recording_id, *with_it}
        held = sa.select(holds).where(holds.c.recording_id.in_(heeded), holds.c.lifted_at.is_(None))
        if connection.execute(held).first() is not None:
            return None
        if last is not None and is_begun:
            return last.begun_at  # type: ignore[no-any-return]
        begun_at = now if last is None else max(now, last.begun_at + timedelta(microseconds=1))
        connection.execute(
            purges.insert().values(
                recording_id=deletion.recording_id,
                what=deletion.what,
                names=json.dumps(deletion.names),
                rule=deletion.rule,
                why=deletion.why,
                due=deletion.due,
                begun_at=begun_at,
            )
        )
    return begun_at


def cancel(engine: sa.Engine, deletion: Deletion) -> None:
    with database.writer(engine).begin() as connection:
        connection.execute(purges.delete().where(_same(deletion), purges.c.done_at.is_(None)))


def end(engine: sa.Engine, deletion: Deletion, by: str, begun_at: datetime, now: datetime) -> None:
    """Done; ended again, it changes nothing."""
    recording_id = deletion.recording_id
    kind = "shred" if deletion.what == EVERYTHING else "purge"
    entry = Entry(
        f"{kind}/{recording_id}/{deletion.what}/{begun_at.isoformat()}",
        kind,
        by,
        recording_id,
        details={
            "what": deletion.what,
            "names": list(deletion.names),
            "rule": deletion.rule,
            "why": deletion.why,
            "due": deletion.due.isoformat(),
        },
    )
    with database.writer(engine).begin() as connection:
        connection.execute(
            purges.update()
            .where(_same(deletion), purges.c.begun_at == begun_at, purges.c.done_at.is_(None))
            .values(done_at=now)
        )
        ledger.append(connection, [entry], now)


def _same(deletion: Deletion) -> sa.ColumnElement[bool]:
    return (purges.c.recording_id == deletion.recording_id) & (purges.c.what == deletion.what)


def purged(engine: sa.Engine, since: datetime | None = None, *, undone_only: bool = False) -> list[Deleted]:
    """Deletions that were begun (from `since` on), the oldest first; or only those of them that are not done."""
    _ensure(engine)
    query = sa.select(purges).order_by(purges.c.begun_at, purges.c.recording_id)
    if since is not None:
        query = query.where(purges.c.begun_at >= since)
    if undone_only:
        query = query.where(purges.c.done_at.is_(None))
    with engine.connect() as connection:
        rows = connection.execute(query).all()
    return [
        Deleted(
            Deletion(row.recording_id, row.what, tuple(json.loads(row.names)), row.rule, row.why, row.due),
            row.begun_at,
            row.done_at,
        )
        for row in rows
    ]


def unfinished_purges(engine: sa.Engine) -> list[Deleted]:
    """Purges at the platform that were begun, and neither ended nor cancelled."""
    return [one for one in purged(engine, undone_only=True) if one.deletion.what == PLATFORM]


def is_shredded(engine: sa.Engine, recording_id: str) -> bool:
    _ensure(engine)
    query = sa.select(purges).where(purges.c.recording_id == recording_id, purges.c.what == EVERYTHING)
    with engine.connect() as connection:
        return connection.execute(query).first() is not None


def why_deleted(engine: sa.Engine, recording_id: str, name: str) -> str | None:
    """Why the vault has no such thing any more; None where retention did not delete it."""
    _ensure(engine)
    query = sa.select(purges).where(purges.c.recording_id == recording_id).order_by(purges.c.begun_at)
    with engine.connect() as connection:
        rows = connection.execute(query).all()
    return next((row.why for row in rows if row.what == EVERYTHING or name in json.loads(row.names)), None)


def _ensure(engine: sa.Engine) -> None:
    database.ensure(engine, purges)


def _one_at_a_time(connection: sa.Connection) -> None:
    """Holds and the beginnings of deletions see each other: SQLite's write transactions are serial as they are."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("LOCK TABLE holds IN EXCLUSIVE MODE"))
