"""Which policy pack judges: COMPLIANCE_POLICY's, else the one that was promoted last, else the one in the package.

A promotion names the what-if that was looked at before, and stands in the ledger. Demotion is promoting an older pack.
"""

from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path

import sqlalchemy as sa
from pydantic import ValidationError

from compliance_pipeline import database, ledger, what_if
from compliance_pipeline.contracts.policy import PolicyPack
from compliance_pipeline.database import UtcTime
from compliance_pipeline.ledger import Entry
from compliance_pipeline.plain_text import refuse_sensitive
from compliance_pipeline.screening.policy import DEFAULT_PACK, PolicyError, load_policy
from compliance_pipeline.settings import Settings

REASON_LENGTH = 1_000
"""Characters."""
_LOCK = 0x70726F6D6F74  # any constant, the same in every process

promoted_policy = sa.Table(
    "promoted_policy",
    database.metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", UtcTime, nullable=False),
    sa.Column("policy_version", sa.Text, nullable=False),
    sa.Column("content", sa.Text, nullable=False, doc="the whole pack as JSON"),
    sa.Column("by", sa.Text, nullable=False),
    sa.Column("instead_of", sa.Text, nullable=False, doc="version that was live until then"),
    sa.Column("diff_digest", sa.String(64), doc="of the what-if; NULL where there was a reason to go without"),
    sa.Column("reason", sa.Text),
)
_row = promoted_policy.c


class NotPromoted(Exception):
    """A pack that was not promoted, with the reason in words and what to do next."""


@dataclass(frozen=True, slots=True)
class Promotion:
    """content: the whole pack as JSON. diff_digest: of the what-if that was looked at; else there is a `reason`."""

    number: int
    at: datetime
    policy_version: str
    content: str
    by: str
    instead_of: str
    diff_digest: str | None
    reason: str | None


# Which is live


def live_policy(settings: Settings, engine: sa.Engine) -> PolicyPack:
    """What the next run judges by. engine: of the operational database. Raises PolicyError."""
    if settings.policy is None and (last := last_promoted(engine)):
        return pack_of(last)
    path = settings.policy or DEFAULT_PACK
    try:
        changed_ns = path.stat().st_mtime_ns
    except OSError:
        changed_ns = 0
    return _in_file(path, changed_ns)


def live_policy_of(settings: Settings) -> PolicyPack:
    """The same, where no engine is open. Raises PolicyError."""
    engine = database.connect(settings.inbox_database_url)
    try:
        return live_policy(settings, engine)
    finally:
        engine.dispose()


@lru_cache(maxsize=4)
def _in_file(path: Path, _changed_ns: int) -> PolicyPack:
    return load_policy(path)


@lru_cache(maxsize=8)
def _in_table(content: str) -> PolicyPack:
    return PolicyPack.model_validate_json(content, strict=True)


def pack_of(promotion: Promotion) -> PolicyPack:
    """Raises PolicyError where this version of the package can't read what an earlier one promoted."""
    try:
        return _in_table(promotion.content)
    except ValidationError:
        raise PolicyError(
            f"the promoted policy pack {promotion.policy_version} is of another version of this package and can't be "
            "used: mend its file, and promote that with --without-diff, or go back to that version of the package"
        ) from None


def last_promoted(engine: sa.Engine) -> Promotion | None:
    found = history(engine, limit=1)
    return found[0] if found else None


def history(engine: sa.Engine, limit: int | None = None) -> list[Promotion]:
    """Newest first. Makes no table and no database: where there is none, nothing was promoted."""
    if engine.dialect.name == "sqlite" and not Path(engine.url.database or "").exists():
        return []
    with engine.connect() as connection:
        if not sa.inspect(connection).has_table(promoted_policy.name):
            return []
        return _newest(connection, limit)


def _newest(connection: sa.Connection, limit: int | None) -> list[Promotion]:
    query = sa.select(promoted_policy).order_by(_row.number.desc()).limit(limit)
    return [Promotion(**row) for row in connection.execute(query).mappings()]


def known_pack(settings: Settings, engine: sa.Engine, version: str) -> PolicyPack | None:
    """The pack of a `policy_version` that was promoted once, is live, or comes with the package. Raises PolicyError."""
    # The live one is asked last: where it can't be read, the others are the way out.
    for promotion in history(engine)[settings.policy is None :]:
        if promotion.policy_version == version:
            return pack_of(promotion)
    if (packaged := load_policy()).policy_version == version:
        return packaged
    live = live_policy(settings, engine)
    return live if live.policy_version == version else None


# Promoting


def promote(
    settings: Settings,
    engine: sa.Engine,
    pack: PolicyPack,
    by: str,
    now: datetime,
    *,
    diff_id: str | None = None,
    without_diff: str | None = None,
) -> Promotion:
    """Make `pack` the one that judges from the next run on, with its entry in the ledger.

    diff_id: the what-if that was looked at; the newest of this pack if None. without_diff: why there was none.
    Raises NotPromoted, NotPlain for the texts, PolicyError for the live pack.
    """
    refuse_unpromotable(settings)
    reason = (without_diff or "").strip() or None
    if without_diff is not None and (reason is None or len(reason) > REASON_LENGTH or "\0" in reason):
        raise NotPromoted(f"say in plain text why there is no what-if, in {REASON_LENGTH:,} characters at most")
    refuse_sensitive(reason or "", "the reason")
    refuse_sensitive(by, "the name")
    database.ensure(engine, promoted_policy)
    with database.writer(engine).begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        before = _newest(connection, 1)
        live: PolicyPack | None = None
        try:
            live = pack_of(before[0]) if before else load_policy()
        except PolicyError:
            if reason is None:
                raise
        if live and what_if.whole(live) == what_if.whole(pack):
            raise NotPromoted(f"{pack.policy_version} is live already")
        digest = _looked_at(connection, pack, live, diff_id) if live and reason is None else None
        promotion = Promotion(
            number=before[0].number + 1 if before else 1,
            at=now,
            policy_version=pack.policy_version,
            content=what_if.whole(pack),
            by=by,
            instead_of=live.policy_version if live else before[0].policy_version,
            diff_digest=digest,
            reason=reason,
        )
        values = {column.name: getattr(promotion, column.name) for column in promoted_policy.columns}
        connection.execute(promoted_policy.insert(), [values])
        ledger.append(connection, [_entry(promotion)], now)
    return promotion


def refuse_unpromotable(settings: Settings) -> None:
    """Raises NotPromoted where a setting names the pack."""
    if settings.policy is not None:
        raise NotPromoted(
            f"COMPLIANCE_POLICY names the pack that judges, {settings.policy}: what is promoted would never be used. "
            "Unset it and promote again"
        )


def _looked_at(connection: sa.Connection, pack: PolicyPack, live: PolicyPack, diff_id: str | None) -> str:
    """The digest of the what-if of just this pack, against just the one that is live."""
    again = "make one of it: compliance policy diff"
    found = what_if.of_pack(connection, pack) if diff_id is None else what_if.find(connection, diff_id)
    if found is None and diff_id is None:
        raise NotPromoted(f"no what-if of {pack.policy_version} was made: {again}")
    if found is None:
        raise NotPromoted(f"there is no what-if {diff_id}: {again}")
    diff = found.diff
    if diff.new_digest != what_if.pack_digest(pack):
        raise NotPromoted(f"what-if {found.id} is of {diff.new}, not of this pack: {again}")
    if diff.live_digest != what_if.pack_digest(live):
        raise NotPromoted(
            f"what-if {found.id} compares with {diff.live}, and live is {live.policy_version} by now: {again}"
        )
    return diff.digest


def _entry(promotion: Promotion) -> Entry:
    details: dict[str, ledger.Detail] = {
        "policy_version": promotion.policy_version,
        "pack_digest": what_if.digest_of(promotion.content),
        "instead_of": promotion.instead_of,
        "diff_digest": promotion.diff_digest,
        "reason": promotion.reason,
    }
    return Entry(f"promotion/{promotion.number}", "promotion", promotion.by, details=details)
