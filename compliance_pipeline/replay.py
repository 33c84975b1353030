"""A policy evaluated again from what the detectors found before: no media is fetched, nothing is asked of the platform.

Recordings that a policy can't tell apart are evaluated once. The pack is taken apart into rules that look at the same
findings; of a recording each such part sees few findings and few facts, and few of these differ from recording to
recording. What only one recording has (times, confidence, what is masked) is read by SQL where a rule fired.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, NamedTuple

from compliance_pipeline.contracts.event import Channel, Direction
from compliance_pipeline.contracts.policy import Annotation, Detector, FindingKind, PolicyPack, Rule, Status
from compliance_pipeline.contracts.verdict import VerdictValue
from compliance_pipeline.screening.findings import Finding
from compliance_pipeline.screening.policy import Facts, RuleOutcome, evaluate, judge
from compliance_pipeline.warehouse.warehouse import note_change, sql

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from compliance_pipeline.steps import Pipeline

PART_SIZE = 5_000
"""Recordings looked at while the warehouse is held, to begin with."""
LEAST_SIZE = 5_000
"""On a busy machine fewer would cost more than they give back."""
HELD_S = 0.3
"""For so long, about, the warehouse is held at a time: live runs need it too."""
LEAST_PAUSE_S = 0.06
"""Whoever waits for the warehouse looks every 50 ms whether it is free."""
_REMEMBERED = 200_000
_ANY_TIME = datetime(2000, 1, 1, tzinfo=UTC)


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
    judging = judging or Judging(pipeline.policy)
    report = ReplayReport()
    size = PART_SIZE
    for hour in hours:
        key: dict[str, Any] = {
            "hour": hour,
            "engine": pipeline.engine.version,
            "policy": pipeline.policy.policy_version,
            "only": None if only is None else list(only),
        }
        [counted] = pipeline.warehouse.select(sql("replay_counted"), key)
        report.known += counted["known"]
        report.without_screening += counted["without_screening"]
        after: str | None = "" if counted["to_judge"] else None
        while after is not None:
            with pipeline.warehouse.write() as connection:
                began = monotonic()
                connection.execute(sql("replay_next"), key | {"after": after, "size": size})
                after = _judge_chosen(connection, pipeline, judging, hour, run_id, report)
            held_s = monotonic() - began
            on_progress(hour, report)
            size = max(LEAST_SIZE, min(round(size * HELD_S / held_s), 2 * size, 100_000))
            sleep(max(held_s / 3, LEAST_PAUSE_S))
    return report


def _judge_chosen(
    connection: "DuckDBPyConnection",
    pipeline: "Pipeline",
    judging: "Judging",
    hour: datetime,
    run_id: str,
    report: ReplayReport,
) -> str | None:
    """Store the verdicts on the screenings in `chosen`; returns the last of them by id, None where there is none."""
    policy, now = pipeline.policy, pipeline.clock()
    if not judging.judge(connection, pipeline.engine.version, hour):
        return None
    connection.execute(
        "INSERT INTO policies VALUES ($version, $content, $now) ON CONFLICT DO NOTHING",
        {"version": policy.policy_version, "content": policy.content, "now": now},
    )
    [(changed,)] = connection.execute(sql("replay_changed"), {"hour": hour}).fetchall()
    [(judged,)] = connection.execute(
        "INSERT INTO verdicts BY NAME SELECT *, $now AS judged_at, $run AS run_id FROM judged ON CONFLICT DO NOTHING",
        {"now": now, "run": run_id},
    ).fetchall()
    connection.execute("INSERT INTO violations BY NAME FROM broken ON CONFLICT DO NOTHING")
    note_change(connection, [hour])
    report.judged += judged
    report.changed += changed
    report.verdicts.update(dict(connection.execute("SELECT verdict, count(*) FROM judged GROUP BY ALL").fetchall()))
    [(last,)] = connection.execute("SELECT max(recording_id) FROM chosen").fetchall()
    return str(last)


def judged_again(
    connection: "DuckDBPyConnection",
    judging: "Judging",
    engine_version: str,
    hour: datetime,
    part: int = 0,
    parts: int = 1,
) -> int:
    """Evaluate what an engine screened in an hour, or one of several parts of it; returns how many recordings.

    Leaves temporary tables in the connection, which may be one for reading: `judged` with the columns of `verdicts`
    but judged_at and run_id, `broken` with those of `violations`. Nothing is stored.
    """
    connection.execute(sql("replay_part"), {"hour": hour, "engine": engine_version, "part": part, "parts": parts})
    return judging.judge(connection, engine_version, hour)


def hour_parts(connection: "DuckDBPyConnection", engine_version: str, hour: datetime, size: int = PART_SIZE) -> int:
    """In how many parts to look at the hour, so that the warehouse is held shortly for each; at least one."""
    [(screened,)] = connection.execute(
        "SELECT count(*) FROM screenings WHERE partition_hour = $hour AND engine_version = $engine",
        {"hour": hour, "engine": engine_version},
    ).fetchall()
    return max(1, -(-int(screened) // size))


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
    matters. facts: columns. dated: so is the local time.
    """

    pack: PolicyPack
    rules: tuple[int, ...]
    kinds: dict[_Kind, int]
    facts: tuple[str, ...]
    dated: bool


class Judging:
    """A policy over stored screenings. Remembers what it evaluated: keep one for many hours."""

    def __init__(self, policy: PolicyPack) -> None:
        self.policy = policy
        self._parts = list(_taken_apart(policy))
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
        """Judge the screenings in the temporary table `chosen`; see `judged_again`."""
        if len(self._known) > _REMEMBERED:
            self._known.clear()
            self._outcomes.clear()
            self._numbers.clear()
        of_hour = {"hour": hour, "engine": engine_version}
        connection.execute(sql("replay_facts"), {"limits": self._limits_ms})
        connection.execute(sql("replay_recordings"), {"limits": self._limits_ms, "by_minute": self._by_minute})
        self._lay_out_pack(connection)
        connection.execute(sql("replay_heard"), of_hour | {"thresholds": self._thresholds, "limits": self._limits_ms})
        connection.execute(sql("replay_shapes"))
        facts = {row["facts_no"]: row for row in _rows(connection, "FROM facts")}
        seen = {
            number: [(no, *(_hashable(row[name]) for name in part.facts)) for no, part in enumerate(self._parts)]
            for number, row in facts.items()
        }
        came = self._of_shapes(connection, hour, facts, seen)
        blank = [
            (number, keys[0], self._outcome((*keys, None, None, ""), facts[number], ()))
            for number, by_part in seen.items()
            for keys in by_part
        ]
        self._lay_out_outcomes(connection, came, blank)
        connection.execute(sql("replay_told"))
        connection.execute(sql("replay_fired"), {"hour": hour})
        connection.execute(sql("replay_decided"))
        self._lay_out_verdicts(connection)
        of_hour["policy"] = self.policy.policy_version
        connection.execute(sql("replay_broken"), of_hour)
        connection.execute(sql("replay_judged"), of_hour)
        [(count,)] = connection.execute("SELECT count(*) FROM judged").fetchall()
        return int(count)

    def _lay_out_pack(self, connection: "DuckDBPyConnection") -> None:
        rules = self.policy.rules
        looks = [(no, *kind, side) for no, part in enumerate(self._parts) for kind, side in part.kinds.items()]
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
            "parts",
            {"part": "INT", "dated": "BOOLEAN", "rules": "BIT"},
            [(no, part.dated, self._bits(part.rules)) for no, part in enumerate(self._parts)],
        )
        _table(
            connection,
            "looks",
            {"look_no": "INT", "part": "INT", "kind": "VARCHAR", "phrase": "VARCHAR", "side": "INT"},
            [(look_no, *look) for look_no, look in enumerate(looks)],
        )

    def _of_shapes(
        self,
        connection: "DuckDBPyConnection",
        hour: datetime,
        facts: dict[int, dict[str, Any]],
        seen: dict[int, list[tuple[Any, ...]]],
    ) -> list[tuple[int, int]]:
        """(shape, outcome). The findings are fetched of those only that were not met before."""
        shapes = connection.execute("SELECT shape_no, facts_no, part, clock, zone, shape FROM shapes").fetchall()
        keys = {no: (*seen[facts_no][part], *rest) for no, facts_no, part, *rest in shapes}
        facts_of = {no: facts_no for no, facts_no, *_ in shapes}
        new = {key: no for no, key in keys.items() if key not in self._known}
        found: dict[int, list[Finding]] = {no: [] for no in new.values()}
        for no, kind, phrase, detector, speaker, start_ms, confidence, masked in connection.execute(
            sql("replay_found"), {"hour": hour, "new": list(found)}
        ).fetchall():
            found[no].append(
                Finding(
                    FindingKind(kind), Detector(detector), speaker, start_ms, start_ms, confidence, masked, None, phrase
                )
            )
        for no, findings in found.items():
            self._outcome(keys[no], facts[facts_of[no]], findings)
        return [(no, self._known[key]) for no, key in keys.items()]

    def _outcome(self, key: tuple[Any, ...], facts: dict[str, Any], findings: Sequence[Finding]) -> int:
        """Number of what comes of a part's rules. key: the part, what it sees of the facts, clock, zone, shape."""
        number = self._known.get(key)
        if number is None:
            outcome = self._evaluated(self._parts[key[0]], facts, key[-3], key[-2], findings)
            number = self._numbers.setdefault(outcome, len(self._outcomes))
            if number == len(self._outcomes):
                self._outcomes.append(outcome)
            self._known[key] = number
        return number

    def _evaluated(
        self,
        part: _Part,
        row: dict[str, Any],
        clock: datetime | None,
        zone: str | None,
        findings: Sequence[Finding],
    ) -> _Outcome:
        if zone is None:
            clock = _ANY_TIME if row["dated"] else None
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
        self, connection: "DuckDBPyConnection", came: list[tuple[int, int]], blank: list[tuple[int, int, int]]
    ) -> None:
        """What came of each shape, and of each part in a recording in which it looks at nothing."""
        used = {outcome for _, outcome in came} | {outcome for *_, outcome in blank}
        _table(connection, "came", {"shape_no": "BIGINT", "outcome_no": "INT"}, came)
        _table(connection, "blank", {"facts_no": "BIGINT", "part": "INT", "outcome_no": "INT"}, blank)
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
        for kind in [*((kind, None) for kind in form.kinds), *((FindingKind.PHRASE, name) for name in form.phrases)]:
            kinds[kind] = kinds.get(kind, 0) | side
    return kinds


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
