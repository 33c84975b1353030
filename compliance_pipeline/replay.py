"""A policy evaluated again from what the detectors found before: no media is fetched, nothing is asked of the platform.

Recordings that a policy can't tell apart are evaluated once. The pack is taken apart into rules that look at the same
findings; of a recording each such part sees few findings and few facts, and few of these differ from recording to
recording. What only one recording has (times, confidence, what is masked) is read by SQL where a rule fired.

A warehouse's file is free while a part is evaluated. A served one's other writers wait meanwhile, for about a second.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from compliance_pipeline.contracts.event import Channel, Direction
from compliance_pipeline.contracts.policy import Annotation, Detector, FindingKind, PolicyPack, Rule, Status
from compliance_pipeline.contracts.verdict import VerdictValue
from compliance_pipeline.screening.findings import Finding
from compliance_pipeline.screening.policy import Facts, RuleOutcome, evaluate, judge
from compliance_pipeline.warehouse.served import ServedWarehouse
from compliance_pipeline.warehouse.warehouse import HELD_S, leave_to_others, note_change, sql

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from compliance_pipeline.steps import Pipeline

PART_SIZE = 10_000
"""Recordings judged at a time, at the least and to begin with: fewer would cost more than they give back."""
MOST_AT_ONCE = 20_000
"""More would cost hardly less, and hold the warehouse for longer."""
_REMEMBERED = 200_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class ReplayReport:
    """judged: verdicts written, by value in `verdicts`; changed: those whose verdict or deciding rule is not that of
    the newest before. known: judged by this policy and engine before. without_screening: only their media tell."""

    judged: int = 0
    known: int = 0
    changed: int = 0
    without_screening: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)


def replay(
    pipeline: "Pipeline",
    hours: Sequence[datetime],
    run_id: str,
    on_progress: Callable[[datetime, ReplayReport], None] = lambda _hour, _report: None,
    only: Collection[str] | None = None,
    judging: "Judging | None" = None,
) -> ReplayReport:
    """Write the policy's verdicts on what its engine screened in these hours; those that it has stay as they are.

    The warehouse is held shortly, and left to others in between. Can be killed at any time and run again.
    on_progress: told the hour and the report so far, after each transaction. only: of these recordings. judging: of
    the pipeline's policy, where several calls are to evaluate equal recordings once.
    """
    import duckdb

    judging = judging or Judging(pipeline.policy)
    report = ReplayReport()
    size = PART_SIZE
    with duckdb.connect(config={"autoinstall_known_extensions": False}) as here:
        here.execute("SET TimeZone = 'UTC'")
        # After each part DuckDB would write the end of the table anew, for one large group of rows. Whoever writes next
        # does that for all parts at once: half a second where it is 300,000 verdicts, once.
        here.execute("SET max_vacuum_tasks = 0")
        for hour in hours:
            work = _Hour(pipeline, judging, hour, run_id, only, report)
            while not work.is_done:
                began = monotonic()
                held_s = work.judge_some(here, size)
                on_progress(hour, report)
                size = max(PART_SIZE, min(round(size * HELD_S / max(held_s)), 2 * size, MOST_AT_ONCE))
                leave_to_others(sum(held_s), monotonic() - began - sum(held_s))
    return report


class _Hour:
    """What of an hour is to be judged, by id."""

    def __init__(
        self,
        pipeline: "Pipeline",
        judging: "Judging",
        hour: datetime,
        run_id: str,
        only: Collection[str] | None,
        report: ReplayReport,
    ) -> None:
        self.is_done = False
        self._pipeline, self._judging, self._hour, self._run_id = pipeline, judging, hour, run_id
        self._only = None if only is None else list(only)
        self._report = report
        self._of_policy = {
            "hour": hour,
            "engine": pipeline.engine.version,
            "policy": pipeline.policy.policy_version,
        }
        self._after: str | None = None

    def judge_some(self, here: "DuckDBPyConnection", size: int) -> list[float]:
        """For how many seconds the warehouse was held, each time."""
        warehouse = self._pipeline.warehouse
        if isinstance(warehouse, ServedWarehouse):
            # Its readers wait for nobody; and what a session has in temporary tables ends with it.
            with warehouse.write() as there:
                began = monotonic()
                if self._choose(there, size):
                    self._judge(there)
                    self._store(there)
            return [monotonic() - began]
        with warehouse.lent(here, read_only=True):
            began = monotonic()
            is_any = self._choose(here, size)
        held_s = [monotonic() - began]
        if is_any:
            self._judge(here)
            with warehouse.lent(here):
                began = monotonic()
                self._store(here)
            held_s.append(monotonic() - began)
        return held_s

    def _choose(self, connection: "DuckDBPyConnection", size: int) -> bool:
        """Copy what is judged next; whether that is anything."""
        if self._after is None:
            [(known, to_judge, without_screening)] = connection.execute(
                sql("replay_counted"), self._of_policy | {"only": self._only}
            ).fetchall()
            self._report.known += known
            self._report.without_screening += without_screening
            self._after = ""
            if not to_judge:
                self.is_done = True
                return False
        _choose(connection, "replay_next", self._of_policy | {"only": self._only, "after": self._after, "size": size})
        [(chosen,)] = connection.execute("SELECT count(*) FROM chosen").fetchall()
        self.is_done = chosen < size
        return bool(chosen)

    def _judge(self, connection: "DuckDBPyConnection") -> None:
        self._judging.judge(connection, self._pipeline.engine.version, self._hour)

    def _store(self, connection: "DuckDBPyConnection") -> None:
        """Of what others changed since it was chosen, nothing: what they judged is known, what they screened is chosen
        again."""
        report, policy, now = self._report, self._pipeline.policy, self._pipeline.clock()
        [(known,)] = connection.execute(sql("replay_known"), self._of_policy).fetchall()
        [(stale,)] = connection.execute(
            sql("replay_stale"), {"hour": self._hour, "engine": self._of_policy["engine"]}
        ).fetchall()
        if known or stale:
            connection.execute("DELETE FROM broken WHERE recording_id NOT IN (SELECT recording_id FROM judged)")
        if stale:
            self.is_done = False
        else:
            [(self._after,)] = connection.execute("SELECT max(recording_id) FROM chosen").fetchall()
        connection.execute(
            "INSERT INTO policies VALUES ($version, $content, $now) ON CONFLICT DO NOTHING",
            {"version": policy.policy_version, "content": policy.content, "now": now},
        )
        [(changed,)] = connection.execute(sql("replay_changed"), {"hour": self._hour}).fetchall()
        [(judged,)] = connection.execute(
            "INSERT INTO verdicts BY NAME "
            "SELECT *, $now AS judged_at, $run AS run_id FROM judged ORDER BY recording_id",
            {"now": now, "run": self._run_id},
        ).fetchall()
        connection.execute("INSERT INTO violations BY NAME FROM broken ON CONFLICT DO NOTHING")
        note_change(connection, [self._hour])
        report.known += known
        report.judged += judged
        report.changed += changed
        report.verdicts.update(dict(connection.execute("SELECT verdict, count(*) FROM judged GROUP BY ALL").fetchall()))


def _choose(connection: "DuckDBPyConnection", which: str, parameters: dict[str, Any]) -> None:
    """Copy screenings, and what was found in them, into the temporary tables `chosen` and `said`."""
    connection.execute(sql(which), parameters)
    connection.execute(sql("replay_said"), {name: parameters[name] for name in ("hour", "engine")})


def choose_part(
    connection: "DuckDBPyConnection", engine_version: str, hour: datetime, part: int = 0, parts: int = 1
) -> None:
    """Lay out for `Judging.judge` what an engine screened in an hour, or one of several parts of it."""
    _choose(connection, "replay_part", {"hour": hour, "engine": engine_version, "part": part, "parts": parts})


_Kind = tuple[str, str | None]
"""A kind of finding; and which phrase, if it is one."""


class _Fired(NamedTuple):
    """A rule by its number in the pack. place, near: of its finding and of the one next to it, from 1, among those that
    its part of the pack looks at; where it fired without one, confidence and masked are the rule's."""

    rule_no: int
    place: int | None
    near: int | None
    hits: int
    detector: str
    confidence: float
    masked: str


class _Outcome(NamedTuple):
    undetermined: tuple[int, ...]
    fired: tuple[_Fired, ...]


@dataclass(frozen=True, slots=True)
class _Part:
    """Rules whose outcomes hang together, by their numbers in the pack, and what they look at.

    kinds: of findings; by bits, 1: it may be the one of two that must come together, 2: the other, 4: when it is said
    matters, 8: it must not come too early. needs: of these bits, those without which it is as if nothing was found.
    facts: columns. dated: so is the local time.
    """

    pack: PolicyPack
    rules: tuple[int, ...]
    kinds: dict[_Kind, int]
    needs: int
    facts: tuple[str, ...]
    dated: bool


class Judging:
    """A policy over stored screenings. Remembers what it evaluated: keep one for many hours."""

    def __init__(self, policy: PolicyPack) -> None:
        self.policy = policy
        self._parts = list(_taken_apart(policy))
        self._views: dict[tuple[Any, ...], int] = {}
        self._known: dict[tuple[Any, ...], int] = {}
        self._outcomes: list[_Outcome] = []
        self._numbers: dict[_Outcome, int] = {}
        absent = [rule.when.absent for rule in policy.rules if rule.when.absent]
        forms = [form for rule in policy.rules for form in rule.when.findings_forms]
        self._limits_ms = sorted({form.within_s * 1000 for form in absent if form.within_s})
        self._thresholds = sorted({form.min_confidence for form in absent} | {form.min_confidence for form in forms})
        times = [m.started_outside for rule in policy.rules if (m := rule.when.metadata) and m.started_outside]
        self._by_minute = not any(at.second or at.microsecond for t in times for at in (t.earliest, t.latest))

    def judge(self, connection: "DuckDBPyConnection", engine_version: str, hour: datetime) -> int:
        """Evaluate the screenings in the temporary table `chosen` by the findings in `said`; returns how many.

        Leaves temporary tables in the connection, which may be one for reading: `judged` with the columns of `verdicts`
        but judged_at and run_id, `broken` with those of `violations`. Nothing is stored.
        """
        if len(self._known) > _REMEMBERED:
            self._known.clear()
            self._views.clear()
            self._outcomes.clear()
            self._numbers.clear()
        connection.execute(sql("replay_facts"), {"limits": self._limits_ms})
        connection.execute(sql("replay_recordings"), {"limits": self._limits_ms, "by_minute": self._by_minute})
        facts = {row["facts_no"]: row for row in _rows(connection, "FROM facts")}
        views = self._lay_out_pack(connection, facts)
        connection.execute(sql("replay_heard"), {"thresholds": self._thresholds, "limits": self._limits_ms})
        connection.execute(sql("replay_shapes"))
        came = self._of_shapes(connection, facts, views)
        blank = [
            (view, self._outcome((view, None, None, ""), part, facts[facts_no], ()))
            for view, (part, facts_no) in views.items()
        ]
        self._lay_out_outcomes(connection, came, blank)
        connection.execute(sql("replay_told"))
        connection.execute(sql("replay_fired"))
        connection.execute(sql("replay_decided"))
        self._lay_out_verdicts(connection)
        key = {"hour": hour, "engine": engine_version, "policy": self.policy.policy_version}
        connection.execute(sql("replay_broken"), key)
        connection.execute(sql("replay_judged"), key)
        [(count,)] = connection.execute("SELECT count(*) FROM judged").fetchall()
        return int(count)

    def _lay_out_pack(
        self, connection: "DuckDBPyConnection", facts: dict[int, dict[str, Any]]
    ) -> dict[int, tuple[int, int]]:
        """View -> part, and facts of which the part sees no more than this view; the same view for as long as known."""
        rules = self.policy.rules
        views: dict[int, tuple[int, int]] = {}
        of_facts: list[tuple[Any, ...]] = []
        bits = [self._bits(part.rules) for part in self._parts]
        for facts_no, row in facts.items():
            for no, part in enumerate(self._parts):
                seen = (no, *(_hashable(row[name]) for name in part.facts))
                view = self._views.setdefault(seen, len(self._views))
                views[view] = no, facts_no
                of_facts.append((facts_no, no, view, part.dated, bits[no]))
        looks = [
            (no, *kind, side, part.needs) for no, part in enumerate(self._parts) for kind, side in part.kinds.items()
        ]
        _table(
            connection,
            "rules",
            {"rule_no": "INT", "rule_id": "VARCHAR", "verdict": "VARCHAR", "violation_type": "VARCHAR",
             "severity": "VARCHAR", "precedence": "INT"},
            [(no, rule.id, rule.verdict, rule.violation_type, rule.severity, _precedence(rule))
             for no, rule in enumerate(rules)],
        )  # fmt: skip
        _table(
            connection,
            "views",
            {"facts_no": "BIGINT", "part": "INT", "view_no": "INT", "dated": "BOOLEAN", "rules": "BIT"},
            of_facts,
        )
        _table(
            connection,
            "looks",
            {"look_no": "INT", "part": "INT", "kind": "VARCHAR", "phrase": "VARCHAR", "side": "INT", "needs": "INT"},
            [(look_no, *look) for look_no, look in enumerate(looks)],
        )
        return views

    def _of_shapes(
        self, connection: "DuckDBPyConnection", facts: dict[int, dict[str, Any]], views: dict[int, tuple[int, int]]
    ) -> list[tuple[int, int]]:
        """(shape, outcome). The findings are fetched of those only that were not met before."""
        keys = {
            no: tuple(key)
            for no, *key in connection.execute("SELECT shape_no, view_no, clock, zone, shape FROM shapes").fetchall()
        }
        found: dict[int, list[Finding]] = {no: [] for no, key in keys.items() if key not in self._known}
        for no, kind, phrase, detector, speaker, start_ms, confidence, masked in connection.execute(
            sql("replay_found"), {"new": list(found)}
        ).fetchall():
            found[no].append(
                Finding(
                    FindingKind(kind), Detector(detector), speaker, start_ms, start_ms, confidence, masked, None, phrase
                )
            )
        for no, findings in found.items():
            part, facts_no = views[keys[no][0]]
            self._outcome(keys[no], part, facts[facts_no], findings)
        return [(no, self._known[key]) for no, key in keys.items()]

    def _outcome(self, key: tuple[Any, ...], part: int, facts: dict[str, Any], findings: Sequence[Finding]) -> int:
        """Number of what comes of a part's rules. key: view, clock, zone, shape."""
        number = self._known.get(key)
        if number is None:
            _view, clock, zone, _shape = key
            outcome = self._evaluated(self._parts[part], facts, clock, zone, findings)
            number = self._numbers.setdefault(outcome, len(self._outcomes))
            if number == len(self._outcomes):
                self._outcomes.append(outcome)
            self._known[key] = number
        return number

    def _evaluated(
        self,
        part: _Part,
        row: dict[str, Any],
        clock_us: int | None,
        zone: str | None,
        findings: Sequence[Finding],
    ) -> _Outcome:
        clock = None if clock_us is None else _EPOCH + timedelta(microseconds=clock_us)
        if zone is None:
            clock = _EPOCH if row["dated"] else None
        facts = Facts(
            channel=Channel(row["channel"]),
            transcript_read=row["words_known"],
            words_timed=row["words_timed"],
            speakers=frozenset(row["speakers"]),
            complete=row["complete"],
            direction=Direction(row["direction"]) if row["direction"] else None,
            queue=row["queue"],
            started_at=clock,
            duration_ms=row["duration_ms"],
            called_time_zone=zone,
            annotations=None if row["annotations"] is None else frozenset(map(Annotation, row["annotations"])),
        )
        places = {id(finding): place for place, finding in enumerate(findings, 1)}
        undetermined: list[int] = []
        fired: list[_Fired] = []
        for rule_no, outcome in zip(part.rules, evaluate(findings, facts, part.pack), strict=True):
            if outcome.status is Status.UNDETERMINED:
                undetermined.append(rule_no)
            elif outcome.fired:
                place, near = (places[id(f)] if f else None for f in (outcome.finding, outcome.near))
                bare = place is None
                fired.append(
                    _Fired(rule_no, place, near, outcome.count, outcome.detector,
                           outcome.confidence if bare else 0.0, outcome.masked if bare else "")
                )  # fmt: skip
        return _Outcome(tuple(undetermined), tuple(fired))

    def _lay_out_outcomes(
        self, connection: "DuckDBPyConnection", came: list[tuple[int, int]], blank: list[tuple[int, int]]
    ) -> None:
        """What came of each shape, and of each part in a recording in which it looks at nothing."""
        used = {outcome for _, outcome in came} | {outcome for *_, outcome in blank}
        _table(connection, "came", {"shape_no": "BIGINT", "outcome_no": "INT"}, came)
        _table(connection, "blank", {"view_no": "INT", "outcome_no": "INT"}, blank)
        _table(
            connection,
            "outcomes",
            {"outcome_no": "INT", "undetermined": "BIT"},
            [(no, self._bits(self._outcomes[no].undetermined)) for no in used],
        )
        _table(
            connection,
            "outcome_rules",
            {"outcome_no": "INT", "rule_no": "INT", "place": "INT", "near": "INT", "hits": "INT", "detector": "VARCHAR",
             "confidence": "DOUBLE", "masked": "VARCHAR"},
            [(no, *fired) for no in used for fired in self._outcomes[no].fired],
        )  # fmt: skip

    def _lay_out_verdicts(self, connection: "DuckDBPyConnection") -> None:
        """Table `named`: the verdict for each way in which a recording was decided."""
        rules = self.policy.rules
        rows: list[tuple[Any, ...]] = []
        for rule_no, is_incomplete, bits in connection.execute(
            "SELECT DISTINCT rule_no, is_incomplete, undetermined::VARCHAR FROM decided"
        ).fetchall():
            left = [rule for rule, bit in zip(rules, bits, strict=True) if bit == "1"]
            outcomes = [RuleOutcome(rule, Status.UNDETERMINED) for rule in left]
            if rule_no is not None:
                outcomes.append(RuleOutcome(rules[rule_no], Status.FIRED))
            verdict = judge("any", "any", outcomes, "any" if is_incomplete else None)
            ids = [rule.id for rule in left]
            rows.append((rule_no, is_incomplete, bits, verdict.verdict, verdict.recommended_action, ids))
        _table(
            connection,
            "named",
            {"rule_no": "INT", "is_incomplete": "BOOLEAN", "undetermined": "BIT", "verdict": "VARCHAR",
             "recommended_action": "VARCHAR", "undetermined_rules": "VARCHAR[]"},
            rows,
        )  # fmt: skip

    def _bits(self, rules: Sequence[int]) -> str:
        return "".join("1" if number in rules else "0" for number in range(len(self.policy.rules)))


def _precedence(rule: Rule) -> int:
    """As in `deciding_hit`: a violation before a review, then the severity; the lowest decides."""
    return -rule.severity.rank - (100 if rule.verdict is VerdictValue.VIOLATION_DETECTED else 0)


def _taken_apart(policy: PolicyPack) -> Iterator[_Part]:
    """Rules hang together where a rule of violation may settle a finding that a rule of review asks about."""
    group = list(range(len(policy.rules)))
    rules = list(enumerate(policy.rules))
    for violation, accuses in rules:
        for review, asks in rules:
            if (
                accuses.verdict is VerdictValue.VIOLATION_DETECTED
                and asks.verdict is VerdictValue.REVIEW_REQUIRED
                and accuses.when.findings
                and asks.when.findings
                and _kinds(accuses).keys() & _kinds(asks).keys()
            ):
                group = [group[violation] if of == group[review] else of for of in group]
    for number in sorted(set(group)):
        numbers = tuple(no for no, of in enumerate(group) if of == number)
        some = [policy.rules[no] for no in numbers]
        kinds: dict[_Kind, int] = {}
        for rule in some:
            for kind, side in _kinds(rule).items():
                kinds[kind] = kinds.get(kind, 0) | side
        yield _Part(
            policy.model_copy(update={"rules": tuple(some)}),
            numbers,
            kinds,
            _needs(some[0]) if len(some) == 1 else 0,
            _facts_seen(some),
            any(rule.when.metadata and rule.when.metadata.started_outside for rule in some),
        )


def _kinds(rule: Rule) -> dict[_Kind, int]:
    """The kinds of findings that a rule looks at; see `_Part`."""
    when = rule.when
    kinds: dict[_Kind, int] = {}
    for phrase in when.phrases | set(rule.unless.phrases + rule.applies.or_said):
        is_timed = when.absent and when.absent.within_s and phrase in when.absent.phrases + when.absent.later
        kinds[FindingKind.PHRASE, phrase] = 4 if is_timed else 0
    together = when.together
    for form in when.findings_forms:
        side = (form is together.one) + 2 * (form is together.other) if together else 0
        side += 8 * bool(when.sequence and form is when.sequence.then)
        for kind in [*((kind, None) for kind in form.kinds), *((FindingKind.PHRASE, name) for name in form.phrases)]:
            kinds[kind] = kinds.get(kind, 0) | side
    return kinds


def _needs(rule: Rule) -> int:
    """See `_Part`: of a rule that asks for two things, and whose outcome nothing else that is said can change."""
    when = rule.when
    if when.findings or when.absent or when.metadata or rule.applies.or_said or rule.unless.phrases:
        return 0
    return 3 * bool(when.together and not when.sequence) + 8 * bool(when.sequence and not when.together)


def _facts_seen(rules: Sequence[Rule]) -> tuple[str, ...]:
    absent = [rule.when.absent for rule in rules if rule.when.absent]
    noted = [rule.when.metadata.annotated for rule in rules if rule.when.metadata]
    noted += [rule.unless.annotations for rule in rules] + [form.annotated for form in absent]
    by_name = {
        "queue": any(rule.applies.queues or rule.applies.except_queues for rule in rules),
        "speakers": any(form.speakers for form in absent),
        "short": any(form.within_s for form in absent),
        "annotations": any(noted),
        "dated": any(rule.when.metadata and rule.when.metadata.started_outside for rule in rules),
    }
    always = ("channel", "direction", "words_known", "words_timed", "complete")
    return (*always, *(name for name, is_seen in by_name.items() if is_seen))


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _rows(connection: "DuckDBPyConnection", query: str) -> list[dict[str, Any]]:
    result = connection.execute(query)
    names = [column[0] for column in result.description or ()]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def _table(connection: "DuckDBPyConnection", name: str, columns: dict[str, str], rows: Sequence[Sequence[Any]]) -> None:
    """A temporary table of few rows."""
    chosen = ", ".join(f'unnest(${column}::{kind}[]) AS "{column}"' for column, kind in columns.items())
    values = {column: [row[at] for row in rows] for at, column in enumerate(columns)}
    connection.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS SELECT {chosen}", values)
