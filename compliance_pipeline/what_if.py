"""What another policy pack would change: both packs evaluated over what was screened, before one of them goes live.

Nothing is fetched, and nothing is written but the result, which is kept in the operational database under the start of
its digest: terminal, Dagster's run and page show the same.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from hashlib import sha256
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa

from compliance_pipeline import database
from compliance_pipeline.contracts.event import CANARY
from compliance_pipeline.contracts.policy import Action, PolicyPack, Severity
from compliance_pipeline.contracts.verdict import VerdictValue
from compliance_pipeline.database import UtcTime
from compliance_pipeline.ledger import canonical
from compliance_pipeline.remediation.plan import PlannedAction, Violation, idempotency_key, plan
from compliance_pipeline.remediation.undone import DROPPED

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection
    from pydantic import TypeAdapter

    from compliance_pipeline.replay import Judging
    from compliance_pipeline.warehouse.warehouse import Warehouse

HOUR = timedelta(hours=1)
PIECE = 2_500
"""Recordings compared at a time."""
MOST_EXAMPLES = 10
"""Of each kind."""
KINDS = ("added", "removed", "changed")
"""A recording is flagged by the new pack alone, by the live one alone, or comes out otherwise different."""
ID_LENGTH = 12

what_if_table = sa.Table(
    "what_if",
    database.metadata,
    sa.Column("id", sa.String(ID_LENGTH), primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("made_at", UtcTime, nullable=False, index=True),
    sa.Column("by", sa.Text, nullable=False),
    sa.Column("new_digest", sa.String(64), nullable=False, index=True),
    sa.Column("diff", sa.Text, nullable=False, doc="PolicyDiff as canonical JSON"),
    sa.Column("content", sa.Text, nullable=False, doc="the new pack as JSON"),
)
_row = what_if_table.c


@dataclass(frozen=True, slots=True)
class LexiconChange:
    """Names of phrases. rules: of the new pack, those that ask for one that was added or changed: what is told of them
    is of the phrases as they were."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()

    @property
    def is_any(self) -> bool:
        return bool(self.added or self.removed or self.changed)


@dataclass(frozen=True, slots=True)
class Transition:
    """Recordings by both packs' verdict."""

    live: str
    new: str
    recordings: int


@dataclass(frozen=True, slots=True)
class RuleChange:
    """Recordings that break the rule by each pack; of these: by the new one alone, by the live one alone, by both but
    with another verdict, type or severity. edit: what happened to the rule itself (added, removed, edited or nothing),
    fields: where. opens: work items that would be opened for it."""

    rule_id: str
    title: str
    severity: str
    edit: str
    fields: tuple[str, ...]
    live: int = 0
    new: int = 0
    added: int = 0
    removed: int = 0
    changed: int = 0
    opens: int = 0

    @property
    def is_any(self) -> bool:
        return bool(self.edit or self.added or self.removed or self.changed or self.opens)


@dataclass(frozen=True, slots=True)
class QueueChange:
    """Recordings of a queue (empty: not known) that were compared, that each pack flags, and by KINDS."""

    queue: str
    compared: int
    live: int = 0
    new: int = 0
    added: int = 0
    removed: int = 0
    changed: int = 0
    opens: int = 0


@dataclass(frozen=True, slots=True)
class ActionChange:
    """How often each pack asks for an action. opens: of what the new one alone asks for, what was never begun: what
    judging the window again by it would do."""

    action: str
    live: int
    new: int
    opens: int


@dataclass(frozen=True, slots=True)
class Example:
    """A recording that comes out different. masked, start_ms: of the finding behind it, if there is one."""

    kind: str
    recording_id: str
    queue: str
    channel: str
    available_at: datetime
    live: str
    new: str
    live_rules: tuple[str, ...]
    new_rules: tuple[str, ...]
    masked: str
    start_ms: int | None


@dataclass(frozen=True, slots=True)
class PolicyDiff:
    """What `new` would change in [start, end), beside `live`; recordings without canaries.

    compared: evaluated by both. needs_audio: that have no stored screening of this engine, or all where the lexicon
    changed: it makes another engine version.
    """

    live: str
    new: str
    live_digest: str
    new_digest: str
    engine: str
    start: datetime
    end: datetime
    review_minutes: float
    recordings: int
    compared: int
    needs_audio: int
    lexicon: LexiconChange
    retention: tuple[str, ...]
    transitions: tuple[Transition, ...]
    rules: tuple[RuleChange, ...]
    queues: tuple[QueueChange, ...]
    actions: tuple[ActionChange, ...]
    examples: tuple[Example, ...]

    @property
    def digest(self) -> str:
        return digest_of(self.json)

    @property
    def id(self) -> str:
        return self.digest[:ID_LENGTH]

    @property
    def json(self) -> str:
        """Canonical: the same for the same difference."""
        return canonical(_adapter().dump_python(self, mode="json"))

    @property
    def live_flagged(self) -> int:
        return sum(one.live for one in self.queues)

    @property
    def new_flagged(self) -> int:
        return sum(one.new for one in self.queues)

    @property
    def added(self) -> int:
        return sum(one.added for one in self.queues)

    @property
    def removed(self) -> int:
        return sum(one.removed for one in self.queues)

    @property
    def changed(self) -> int:
        return sum(one.changed for one in self.queues)

    @property
    def without_screening(self) -> int:
        return self.recordings - self.compared

    @property
    def work_items(self) -> ActionChange:
        return next(
            (one for one in self.actions if one.action == Action.CREATE_WORK_ITEM),
            ActionChange(Action.CREATE_WORK_ITEM, 0, 0, 0),
        )

    def hours(self, work_items: int) -> float:
        """That persons need to review so many."""
        return work_items * self.review_minutes / 60


@dataclass(frozen=True, slots=True)
class WhatIf:
    """A kept difference. by: who made it first, and made_at when. content: the new pack as JSON."""

    id: str
    made_at: datetime
    by: str
    diff: PolicyDiff
    content: str


@cache
def _adapter() -> "TypeAdapter[PolicyDiff]":
    from pydantic import TypeAdapter

    return TypeAdapter(PolicyDiff)


def whole(pack: PolicyPack) -> str:
    """The pack as JSON, with what changes no verdict."""
    return pack.model_dump_json()


def digest_of(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def pack_digest(pack: PolicyPack) -> str:
    return digest_of(whole(pack))


def time_of(text: str) -> datetime:
    """In UTC; without an offset it is one of UTC. Raises ValueError with what it must look like."""
    try:
        at = datetime.fromisoformat(text)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text!r} is no time such as 2026-03-01 or 2026-03-01T14:00 (UTC), or 2026-03-01T14:00+02:00"
        ) from None


# Comparing


@dataclass(slots=True)
class _Counts:
    compared: int = 0
    transitions: Counter[tuple[str, str]] = field(default_factory=Counter)
    by_rule: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    by_queue: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    by_action: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    examples: defaultdict[str, defaultdict[str, list[Example]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )


def diff(
    warehouse: "Warehouse",
    live: PolicyPack,
    new: PolicyPack,
    engine_version: str,
    start: datetime,
    end: datetime,
    review_minutes: float,
    on_progress: Callable[[int, int], None] = lambda _done, _pieces: None,
) -> PolicyDiff:
    """Of the whole hours that [start, end) touches, in which recordings became available; engine_version: of `live`.

    on_progress: told of pieces done, and of how many there are. The warehouse is held shortly, and then left to others
    as long again.
    """
    from compliance_pipeline.replay import Judging
    from compliance_pipeline.warehouse.warehouse import HELD_S, leave_to_others

    start = start.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    end = -(-(end - start) // HOUR) * HOUR + start
    counts = _Counts()
    judging = Judging(live), Judging(new)
    hours = warehouse.select(
        "SELECT partition_hour, count(*) AS recordings FROM recordings WHERE partition_hour >= $start "
        "AND partition_hour < $end AND source <> $canary GROUP BY ALL ORDER BY ALL",
        {"start": start, "end": end, "canary": CANARY},
    )
    todo = deque(
        _Piece(row["partition_hour"], number, of)
        for row in hours
        for of in [-(-row["recordings"] // PIECE)]
        for number in range(of)
    )
    pieces = len(todo)
    while todo:
        with warehouse.read() as connection:
            began = monotonic()
            while todo and monotonic() - began < HELD_S:
                _compare(connection, judging, engine_version, todo.popleft(), counts)
                on_progress(pieces - len(todo), pieces)
        leave_to_others(monotonic() - began)
    recordings = sum(row["recordings"] for row in hours)
    lexicon = _lexicon(live, new)
    return PolicyDiff(
        live=live.policy_version,
        new=new.policy_version,
        live_digest=pack_digest(live),
        new_digest=pack_digest(new),
        engine=engine_version,
        start=start,
        end=end,
        review_minutes=review_minutes,
        recordings=recordings,
        compared=counts.compared,
        needs_audio=recordings if lexicon.is_any else recordings - counts.compared,
        lexicon=lexicon,
        retention=_retention(live, new),
        transitions=tuple(Transition(*verdicts, number) for verdicts, number in sorted(counts.transitions.items())),
        rules=_rules(live, new, counts.by_rule),
        queues=tuple(
            QueueChange(queue, **found)
            for queue, found in sorted(counts.by_queue.items(), key=lambda one: (-one[1]["compared"], one[0]))
        ),
        actions=tuple(
            ActionChange(action, found["live"], found["new"], found["opens"])
            for action in Action
            if (found := counts.by_action[action])
        ),
        examples=tuple(one for kind in KINDS for one in _spread(counts.examples[kind])),
    )


_PAIRS = """
CREATE OR REPLACE TEMP TABLE pairs AS
WITH broke AS (
    SELECT
        recording_id,
        list([rule_id, verdict, violation_type, severity] ORDER BY rule_id) FILTER (is_live) AS live_broke,
        list([rule_id, verdict, violation_type, severity] ORDER BY rule_id) FILTER (NOT is_live) AS new_broke
    FROM (
        SELECT recording_id, rule_id, verdict, violation_type, severity, true AS is_live FROM live_violations
        UNION ALL BY NAME
        SELECT recording_id, rule_id, verdict, violation_type, severity, false AS is_live FROM new_violations
    )
    GROUP BY recording_id
)
SELECT
    s.recording_id, coalesce(s.queue, '') AS queue, s.channel, s.available_at,
    l.verdict AS live, n.verdict AS new, coalesce(n.rule_id, l.rule_id, '') AS deciding,
    l.verdict IN ('VIOLATION_DETECTED', 'REVIEW_REQUIRED') AS live_flagged,
    n.verdict IN ('VIOLATION_DETECTED', 'REVIEW_REQUIRED') AS new_flagged,
    CASE
        WHEN live_flagged <> new_flagged THEN if(new_flagged, 'added', 'removed')
        WHEN l.verdict <> n.verdict OR live_broke IS DISTINCT FROM new_broke THEN 'changed'
        ELSE 'same'
    END AS kind
FROM (FROM recordings WHERE partition_hour = $hour AND source <> $canary) s
JOIN live_verdicts l USING (recording_id)
JOIN new_verdicts n USING (recording_id)
LEFT JOIN broke USING (recording_id)
"""
_BY_QUEUE = """
SELECT queue, live, new, kind, live_flagged, new_flagged, count(*) FROM pairs GROUP BY ALL
"""
_BY_RULE = """
SELECT
    rule_id, count(l.rule_id), count(n.rule_id),
    count(*) FILTER (l.rule_id IS NULL), count(*) FILTER (n.rule_id IS NULL),
    count(*) FILTER (
        l.verdict <> n.verdict OR l.violation_type <> n.violation_type OR l.severity <> n.severity
    )
FROM (FROM live_violations SEMI JOIN pairs USING (recording_id)) l
FULL JOIN (FROM new_violations SEMI JOIN pairs USING (recording_id)) n USING (recording_id, rule_id)
GROUP BY rule_id
"""
_EXAMPLES = """
FROM pairs WHERE kind <> 'same'
QUALIFY row_number() OVER (PARTITION BY kind, deciding, live, new ORDER BY available_at, recording_id) <= $most
ORDER BY available_at, recording_id
"""


class _Piece(NamedTuple):
    """Part `number` of an hour that is looked at in `of` parts."""

    hour: datetime
    number: int
    of: int


def _compare(
    connection: "DuckDBPyConnection",
    judging: "tuple[Judging, Judging]",
    engine_version: str,
    piece: _Piece,
    counts: _Counts,
) -> None:
    """Add a piece's recordings to `counts`. judging: by the live pack and by the new one."""
    from compliance_pipeline.replay import choose_part

    choose_part(connection, engine_version, *piece)
    for side, by in zip(("live", "new"), judging, strict=True):
        by.judge(connection, engine_version, piece.hour)
        connection.execute(f"CREATE OR REPLACE TEMP TABLE {side}_verdicts AS FROM judged")
        connection.execute(f"CREATE OR REPLACE TEMP TABLE {side}_violations AS FROM broken")
    connection.execute(_PAIRS, {"hour": piece.hour, "canary": CANARY})
    for queue, was, now, kind, live_flagged, new_flagged, number in connection.execute(_BY_QUEUE).fetchall():
        counts.compared += number
        counts.transitions[was, now] += number
        of_queue = counts.by_queue[queue]
        of_queue["compared"] += number
        of_queue["live"] += number * live_flagged
        of_queue["new"] += number * new_flagged
        if kind != "same":
            of_queue[kind] += number
    for rule_id, *found in connection.execute(_BY_RULE).fetchall():
        counts.by_rule[rule_id].update(dict(zip(("live", "new", "added", "removed", "changed"), found, strict=True)))
    live, new = (by.policy for by in judging)
    wanted_before = plan(_violations(connection, "live"), live)
    for planned in wanted_before:
        counts.by_action[planned.action]["live"] += 1
    known = {planned.key for planned in wanted_before}
    _count_new(connection, plan(_violations(connection, "new"), new), known, piece.hour, counts)
    _keep_examples(connection, counts)


def _count_new(
    connection: "DuckDBPyConnection", wanted: Iterable[PlannedAction], known: set[str], hour: datetime, counts: _Counts
) -> None:
    """known: keys of what the live pack asks for."""
    rows = connection.execute(
        "SELECT recording_id, rule_id, action FROM latest_remediations SEMI JOIN pairs USING (recording_id) "
        "WHERE partition_hour = $hour AND status <> $dropped",
        {"hour": hour, "dropped": DROPPED},
    ).fetchall()
    known |= {idempotency_key(*row) for row in rows}
    queues = dict(connection.execute("SELECT recording_id, queue FROM pairs WHERE new_flagged").fetchall())
    for planned in wanted:
        of_action = counts.by_action[planned.action]
        of_action["new"] += 1
        if planned.key in known:
            continue
        of_action["opens"] += 1
        if planned.action is Action.CREATE_WORK_ITEM:
            counts.by_rule[planned.violation.rule_id]["opens"] += 1
            counts.by_queue[queues[planned.violation.recording_id]]["opens"] += 1


def _violations(connection: "DuckDBPyConnection", side: str) -> list[Violation]:
    rows = connection.execute(
        f"FROM {side}_violations SEMI JOIN pairs USING (recording_id) "
        "SELECT recording_id, rule_id, verdict, violation_type, severity, confidence, start_ms, masked "
        f"ORDER BY {side}_violations.rowid"
    ).fetchall()
    return [
        Violation(recording, rule, VerdictValue(verdict), kind, Severity(severity), confidence, start_ms, masked)
        for recording, rule, verdict, kind, severity, confidence, start_ms, masked in rows
    ]


def _keep_examples(connection: "DuckDBPyConnection", counts: _Counts) -> None:
    result = connection.execute(_EXAMPLES, {"most": MOST_EXAMPLES})
    names = [column[0] for column in result.description or ()]
    rows = [dict(zip(names, row, strict=True)) for row in result.fetchall()]
    rows = [row for row in rows if len(counts.examples[row["kind"]][_sort_of(row)]) < MOST_EXAMPLES]
    broken = {side: _broken(connection, side, [row["recording_id"] for row in rows]) for side in ("live", "new")}
    for row in rows:
        found = counts.examples[row["kind"]][_sort_of(row)]
        if len(found) < MOST_EXAMPLES:
            found.append(_example(row, *(broken[side][row["recording_id"]] for side in ("live", "new"))))


def _sort_of(row: Mapping[str, Any]) -> str:
    return f"{row['deciding']}/{row['live']}/{row['new']}"


def _broken(connection: "DuckDBPyConnection", side: str, ids: Sequence[str]) -> defaultdict[str, list[dict[str, Any]]]:
    """What each of the recordings broke."""
    rows = connection.execute(
        f"SELECT recording_id, rule_id, verdict, severity, masked, start_ms FROM {side}_violations "  # noqa: S608
        "WHERE recording_id IN (SELECT unnest($ids)) ORDER BY recording_id, rule_id",
        {"ids": list(ids)},
    ).fetchall()
    found: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for recording_id, *values in rows:
        found[recording_id].append(
            dict(zip(("rule_id", "verdict", "severity", "masked", "start_ms"), values, strict=True))
        )
    return found


def _example(row: Mapping[str, Any], live: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]]) -> Example:
    """What is shown is of the first rule that makes the difference."""
    behind = next((one for one in [*new, *live] if (one in new) != (one in live)), None)
    return Example(
        kind=row["kind"],
        recording_id=row["recording_id"],
        queue=row["queue"],
        channel=row["channel"],
        available_at=row["available_at"],
        live=row["live"],
        new=row["new"],
        live_rules=tuple(one["rule_id"] for one in live),
        new_rules=tuple(one["rule_id"] for one in new),
        masked=behind["masked"] if behind else "",
        start_ms=behind["start_ms"] if behind else None,
    )


def _spread(found: Mapping[str, Sequence[Example]]) -> Iterator[Example]:
    """MOST_EXAMPLES at most: the first of each sort, then the second of each, and so on."""
    in_turn = [(number, sort, example) for sort, examples in found.items() for number, example in enumerate(examples)]
    for _, _, example in sorted(in_turn, key=lambda one: one[:2])[:MOST_EXAMPLES]:
        yield example


# What was edited


def _lexicon(live: PolicyPack, new: PolicyPack) -> LexiconChange:
    both = live.phrases.keys() & new.phrases.keys()
    added = new.phrases.keys() - live.phrases.keys()
    changed = {name for name in both if live.phrases[name] != new.phrases[name]}
    touched = added | changed
    return LexiconChange(
        added=tuple(sorted(added)),
        removed=tuple(sorted(live.phrases.keys() - new.phrases.keys())),
        changed=tuple(sorted(changed)),
        rules=tuple(
            rule.id
            for rule in new.rules
            if touched & (rule.when.phrases | set(rule.unless.phrases) | set(rule.applies.or_said))
        ),
    )


def _retention(live: PolicyPack, new: PolicyPack) -> tuple[str, ...]:
    """Names of the rules about keeping that differ: they change no verdict."""
    was, now = ({rule.name: rule for rule in pack.retention} for pack in (live, new))
    return tuple(sorted(name for name in was.keys() | now.keys() if was.get(name) != now.get(name)))


def _rules(live: PolicyPack, new: PolicyPack, found: Mapping[str, Counter[str]]) -> tuple[RuleChange, ...]:
    """In the new pack's order, then those that are only in the live one."""
    was, now = ({rule.id: rule for rule in pack.rules} for pack in (live, new))
    made = []
    for rule in [*new.rules, *(rule for rule in live.rules if rule.id not in now)]:
        before, after = was.get(rule.id), now.get(rule.id)
        fields: Iterable[str] = ()
        if before and after:
            fields = (name for name in type(rule).model_fields if getattr(before, name) != getattr(after, name))
        edited = tuple(fields)
        edit = "added" if before is None else "removed" if after is None else "edited" if edited else ""
        made.append(RuleChange(rule.id, rule.title, str(rule.severity), edit, edited, **found.get(rule.id, Counter())))
    return tuple(made)


# Keeping


def keep(engine: sa.Engine, made: PolicyDiff, new: PolicyPack, by: str, now: datetime) -> WhatIf:
    """What was kept; where the same was made before, that."""
    database.ensure(engine, what_if_table)
    values = {
        "id": made.id,
        "digest": made.digest,
        "made_at": now,
        "by": by,
        "new_digest": made.new_digest,
        "diff": made.json,
        "content": whole(new),
    }
    with database.writer(engine).begin() as connection:
        connection.execute(database.insert(engine, what_if_table).values(values).on_conflict_do_nothing())
        kept = find(connection, made.id)
    assert kept is not None  # noqa: S101
    return kept


def find(connection: sa.Connection, what_if_id: str) -> WhatIf | None:
    return next(iter(_select(connection, sa.select(what_if_table).where(_row.id == what_if_id))), None)


def of_pack(connection: sa.Connection, pack: PolicyPack) -> WhatIf | None:
    """The newest of just this pack."""
    of = sa.select(what_if_table).where(_row.new_digest == pack_digest(pack))
    return next(iter(_select(connection, of.order_by(_row.made_at.desc()).limit(1))), None)


def newest(connection: sa.Connection, limit: int) -> list[WhatIf]:
    return _select(connection, sa.select(what_if_table).order_by(_row.made_at.desc(), _row.id).limit(limit))


def _select(connection: sa.Connection, query: sa.Select[Any]) -> list[WhatIf]:
    return [
        WhatIf(row.id, row.made_at, row.by, _adapter().validate_json(row.diff), row.content)
        for row in connection.execute(query)
    ]
