"""Every figure is what a plain count over the raw rows of the same snapshot says, whatever the window and filter."""

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from compliance_pipeline.figures import figures
from compliance_pipeline.figures.figures import Filter, Percentiles, wilson
from compliance_pipeline.figures.snapshots import Snapshot
from compliance_pipeline_tests.figures.buckets import bucket_of, seconds_of
from compliance_pipeline_tests.figures.history import (
    CHANNELS,
    DIRECTIONS,
    HOUR,
    OBJECTIVE,
    POLICIES,
    QUEUES,
    RULES,
    STAGES,
    History,
)

START, NOW = datetime(2026, 3, 20, tzinfo=UTC), datetime(2026, 4, 3, 9, 41, tzinfo=UTC)
"""Europe's clocks go forward on 29 March."""
DAY = timedelta(days=1)
ZONES = ("UTC", "Europe/Berlin", "Asia/Kolkata", "America/New_York")
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module", params=[1])
def snapshot(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Snapshot]:
    history = History(random.Random(request.param), START, NOW, recordings=1500, hours=40)
    snapshot = history.publish(tmp_path_factory.mktemp("history"))
    yield snapshot
    snapshot.close()


@pytest.fixture(scope="module")
def facts(snapshot: Snapshot) -> tuple[Rows, Rows]:
    """All interactions, all violations."""
    return (
        snapshot.rows("FROM read_parquet($interactions)", START, NOW + DAY),
        snapshot.rows("FROM read_parquet($violations)", START, NOW + DAY),
    )


@st.composite
def filters(draw: st.DrawFn) -> Filter:
    end = draw(
        st.one_of(
            st.just(NOW.replace(minute=0) + HOUR),
            st.integers(1, 14 * 24 * 60).map(lambda minutes: START + timedelta(minutes=minutes)),
        )
    )
    hours = draw(st.sampled_from([0.5, 3, 6, 20, 24, 24.5, 49, 168, 250, 340, 500]))
    some = {
        "queue": QUEUES, "channel": CHANNELS, "direction": DIRECTIONS, "policy_version": POLICIES,
        "agent": ("tok_1", "tok_2"), "rule": tuple(RULES), "severity": ("critical", "high", "low"),
        "review": ("open", "confirmed", "dismissed"),
    }  # fmt: skip
    used = draw(st.lists(st.sampled_from(sorted(some)), max_size=2, unique=True))
    values = {
        name: tuple(draw(st.lists(st.sampled_from(some[name]), min_size=1, max_size=2, unique=True))) for name in used
    }
    return Filter(end - timedelta(hours=hours), end, zone=draw(st.sampled_from(ZONES)), **values)


class Plain:
    """The figures, counted row by row."""

    def __init__(self, facts: tuple[Rows, Rows], chosen: Filter) -> None:
        self.facts, self.chosen = facts, chosen
        self.is_long = chosen.end - chosen.start > DAY
        self.start, self.end = chosen.start, chosen.end
        if self.is_long:
            self.start, self.end = (
                datetime.fromtimestamp(math.ceil(at.timestamp() / 3600) * 3600, UTC) for at in (self.start, self.end)
            )

    def _has(self, row: dict[str, Any], but: str = "") -> bool:
        at = row["partition_hour" if self.is_long else "available_at"]
        return self.start <= at < self.end and all(
            not (wanted := getattr(self.chosen, name)) or name == but or row[name] in wanted
            for name in ("queue", "channel", "direction", "agent", "policy_version")
        )

    def _is_chosen(self, row: dict[str, Any]) -> bool:
        return all(
            not (wanted := getattr(self.chosen, name)) or row[column] in wanted
            for name, column in (("rule", "rule_id"), ("severity", "severity"), ("review", "review"))
        )

    @cached_property
    def interactions(self) -> Rows:
        return [row for row in self.facts[0] if self._has(row)]

    @cached_property
    def broken(self) -> Rows:
        """Whatever the rule, severity and review."""
        return [row for row in self.facts[1] if self._has(row)]

    @cached_property
    def violations(self) -> Rows:
        return [row for row in self.broken if self._is_chosen(row)]

    def without(self, dimension: str) -> "Plain":
        return Plain(self.facts, replace(self.chosen, **{dimension: ()}))  # type: ignore[arg-type]

    @staticmethod
    def overdue(row: dict[str, Any]) -> bool:
        return (
            row["verdict"] == "VIOLATION_DETECTED"
            and row["flagged_s"] is None
            and row["available_at"] < NOW - timedelta(seconds=OBJECTIVE.of(row["channel"]))
        )

    @classmethod
    def due_late(cls, rows: Rows) -> tuple[int, int]:
        due = [row for row in rows if row["flagged_s"] is not None or cls.overdue(row)]
        late = [row for row in due if row["flagged_s"] is None or row["flagged_s"] > OBJECTIVE.of(row["channel"])]
        return len(due), len(late)

    def buckets(self) -> list[int]:
        """Where each bucket of a series begins."""
        hours = (self.chosen.end - self.chosen.start) / HOUR
        if hours > 240:
            zone = ZoneInfo(self.chosen.zone)
            day = self.start.astimezone(zone).replace(hour=0, minute=0)
            times = []
            while day < self.end.astimezone(zone):
                if self._time(self.end - timedelta(hours=1)) >= int(day.timestamp()):
                    times.append(int(day.timestamp()))
                day = (day.replace(tzinfo=None) + DAY).replace(tzinfo=zone)
            return times
        width = self._width()
        first = int(self.start.timestamp()) // width * width
        return list(range(first, math.ceil(self.end.timestamp()), width))

    def _width(self) -> int:
        hours = (self.chosen.end - self.chosen.start) / HOUR
        return 300 if hours <= 6 else 900 if hours <= 24 else 3600

    def _time(self, at: datetime) -> int:
        if (self.chosen.end - self.chosen.start) / HOUR > 240:
            local = at.replace(minute=0, second=0, microsecond=0).astimezone(ZoneInfo(self.chosen.zone))
            return int(local.replace(hour=0, minute=0).timestamp())
        return int(at.timestamp()) // self._width() * self._width()

    def time(self, row: dict[str, Any]) -> int:
        return self._time(row["partition_hour" if self.is_long else "available_at"])


def same_percentile(said: float | None, seconds: list[float], percent: int, exact: bool) -> None:
    least = {50: 1, 95: 20, 99: 100}[percent]
    if len(seconds) < least:
        assert said is None
        return
    assert said is not None
    ranked = sorted(seconds)
    if exact:
        place = (len(ranked) - 1) * percent / 100
        low = ranked[math.floor(place)]
        assert said == pytest.approx(low + (ranked[math.ceil(place)] - low) * (place - math.floor(place)))
    else:
        at = max(ranked[-(-percent * len(ranked) // 100) - 1], 0.001)
        assert abs(said - at) <= 0.0102 * at + 1e-9
        assert said == pytest.approx(seconds_of(bucket_of(at)))


def is_exact(chosen: Filter) -> bool:
    return chosen.end - chosen.start <= DAY


_END = NOW.replace(minute=0) + HOUR
_ALWAYS = (
    Filter(_END - 20 * HOUR, _END, review=("open",), severity=("critical", "low")),
    Filter(_END - 7 * DAY, _END, review=("open", "dismissed"), rule=("R-1", "R-2"), zone="Europe/Berlin"),
    Filter(_END - 14 * DAY, _END, queue=("claims",), rule=("R-2",), zone="Asia/Kolkata"),
    Filter(_END - 14 * DAY, _END, zone="Europe/Berlin"),
)


def few(**more: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """These windows always, and some at random."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        for chosen in _ALWAYS:
            test = example(chosen=chosen, **more)(test)
        return settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])(
            test
        )

    return decorate


@few()
@given(chosen=filters())
def test_counts_and_the_headline(snapshot: Snapshot, facts: tuple[Rows, Rows], chosen: Filter) -> None:
    plain, head = Plain(facts, chosen), figures.headline(snapshot, chosen, OBJECTIVE)
    rows, status = plain.interactions, Counter(row["status"] for row in plain.interactions)
    due, late = plain.due_late(rows)
    assert asdict(head.counts) == {
        "received": len(rows),
        "judged": status["judged"],
        "unscreenable": status["unscreenable"],
        "waiting": status["waiting"],
        "deferred": status["deferred"],
        "dead_letters": status["dead_letter"],
        "violating": sum(row["verdict"] == "VIOLATION_DETECTED" for row in rows),
        "flagged": sum(row["flagged_s"] is not None for row in rows),
        "in_time": due - late,
        "overdue": sum(map(plain.overdue, rows)),
        "tagged": sum(row["tagged_at"] is not None for row in rows),
        "work_items": sum(row["work_item_at"] is not None for row in rows),
        "reviewed": sum(row["reviewed_at"] is not None for row in rows),
        "found_by_sweep": sum(bool(row["found_by_sweep"]) for row in rows),
        "duplicates": sum(row["duplicates"] for row in rows),
    }
    assert figures.counts(snapshot, chosen, OBJECTIVE) == head.counts
    before = Plain(facts, replace(chosen, start=chosen.start - (chosen.end - chosen.start), end=chosen.start))
    before.is_long, before.start, before.end = plain.is_long, plain.start - (chosen.end - chosen.start), plain.start
    if plain.is_long:
        before.start = datetime.fromtimestamp(math.ceil(before.chosen.start.timestamp() / 3600) * 3600, UTC)
    assert (head.before.received, head.violations_before) == (len(before.interactions), len(before.violations))
    flagged_before = [row["flagged_s"] for row in before.interactions if row["flagged_s"] is not None]
    if head.p95_before_s is None:
        assert len(flagged_before) < 20
    else:
        same_percentile(head.p95_before_s, flagged_before, 95, is_exact(chosen))
    assert head.burn_rate == (pytest.approx(late / due / 0.01) if due else None)
    assert (head.violations, head.open, head.critical) == (
        len(plain.violations),
        sum(row["review"] == "open" for row in plain.violations),
        sum(row["severity"] == "critical" for row in plain.violations),
    )
    assert head.interval == wilson(head.counts.violating, head.counts.judged)
    actions = [action for row in plain.broken for action in row["actions"]]
    tried = [action for action in actions if action["status"] in ("done", "failed", "dead")]
    assert (head.sent_actions, head.failed_actions, head.retried_actions) == (
        len(tried),
        sum(action["status"] != "done" for action in tried),
        sum(action["attempts"] > 1 for action in actions),
    )
    for window, lengths in zip(head.windows, ((1, 1 / 12), (6, 0.5), (72, 6)), strict=True):
        until = min(chosen.end, NOW)
        burns = []
        for hours in lengths:
            part = Plain(facts, replace(chosen, start=until - timedelta(hours=hours), end=until))
            part_due, part_late = part.due_late(part.interactions)
            burns.append(part_late / part_due / 0.01 if part_due else None)
        assert [window.long_burn, window.short_burn] == [
            burn if burn is None else pytest.approx(burn) for burn in burns
        ]
        assert window.firing == all(burn is not None and burn > window.factor for burn in burns)


@few()
@given(chosen=filters())
def test_percentiles_by_stage_and_by_bucket(snapshot: Snapshot, facts: tuple[Rows, Rows], chosen: Filter) -> None:
    plain = Plain(facts, chosen)
    said, series = figures.stages(snapshot, chosen), figures.latency_series(snapshot, chosen)
    assert series.times == plain.buckets()
    assert set(said) == set(series.stages)
    for stage in (*STAGES, "flagged"):
        of = [(plain.time(row), row[f"{stage}_s"]) for row in plain.interactions if row[f"{stage}_s"] is not None]
        found = said.get(stage, Percentiles(0, None, None, None))
        assert found.recordings == len(of)
        for percent, value in ((50, found.p50_s), (95, found.p95_s), (99, found.p99_s)):
            same_percentile(value, [seconds for _, seconds in of], percent, is_exact(chosen))
        for time, (p50, p95, p99, number) in zip(series.times, series.stages.get(stage, []), strict=bool(of)):
            there = [seconds for at, seconds in of if at == time]
            assert number == len(there)
            for percent, value in ((50, p50), (95, p95), (99, p99)):
                same_percentile(value, there, percent, is_exact(chosen))


@few()
@given(chosen=filters())
def test_the_heatmap_the_burn_the_budget_and_the_breaches(
    snapshot: Snapshot, facts: tuple[Rows, Rows], chosen: Filter
) -> None:
    plain = Plain(facts, chosen)
    flagged = [row for row in plain.interactions if row["flagged_s"] is not None]
    thirds = Counter(
        (plain.time(row), math.ceil(3 * bucket_of(row["flagged_s"]) * math.log(1.0206) / math.log(2)))
        for row in flagged
    )
    said = {
        (cell.time, round(3 * math.log2(cell.seconds_to))): cell.recordings for cell in figures.heat(snapshot, chosen)
    }
    assert said == thirds
    burn = figures.burn_series(snapshot, chosen, OBJECTIVE)
    assert burn.times == plain.buckets()
    for place, time in enumerate(burn.times):
        due, late = plain.due_late([row for row in plain.interactions if plain.time(row) == time])
        assert (burn.due[place], burn.late[place]) == (due, late)
        assert burn.burn[place] == (pytest.approx(late / due / 0.01) if due else None)
    budget = figures.budget_series(snapshot, chosen, OBJECTIVE)
    period = Plain(facts, replace(chosen, start=chosen.end - timedelta(days=30)))
    due, late = period.due_late(period.interactions)
    assert (sum(budget.due), sum(budget.late), len(budget.times)) == (due, late, 120)
    assert budget.left[-1] == (pytest.approx(1 - late / due / 0.01) if due else None)
    for place, time in enumerate(budget.times):
        step = [row for row in period.interactions if 0 <= row["partition_hour"].timestamp() - time < 6 * 3600]
        assert (budget.due[place], budget.late[place]) == period.due_late(step)
    longest: Counter[str] = Counter()
    for row in flagged:
        if row["flagged_s"] > OBJECTIVE.of(row["channel"]):
            longest[max(STAGES, key=lambda stage: row[f"{stage}_s"])] += 1
    assert {breach.stage: breach.recordings for breach in figures.breaches(snapshot, chosen)} == longest


@few()
@given(chosen=filters())
def test_rules_rates_the_matrix_and_policies(snapshot: Snapshot, facts: tuple[Rows, Rows], chosen: Filter) -> None:
    plain = Plain(facts, chosen)
    judged = [row for row in plain.interactions if row["status"] == "judged"]
    expected = {}
    for rule, (kind, severity) in RULES.items():
        of = [row for row in plain.violations if row["rule_id"] == rule]
        applies = {row["channel"] for row in plain.broken if row["rule_id"] == rule}
        applies |= {row["channel"] for row in judged if rule in row["undetermined_rules"]}
        screened = sum(row["channel"] in applies and rule not in row["undetermined_rules"] for row in judged)
        review = Counter(row["review"] for row in of)
        if of:
            expected[rule] = (
                kind, severity, len(of), screened, review["open"], review["confirmed"], review["dismissed"],
            )  # fmt: skip
    said = figures.rules(snapshot, chosen)
    assert {one.rule_id: tuple(asdict(one).values())[1:] for one in said} == expected
    assert [one.recordings for one in said] == sorted((one.recordings for one in said), reverse=True)
    for dimension in ("queue", "channel", "direction", "policy_version"):
        free = plain.without(dimension)
        of_judged = Counter(row[dimension] for row in free.interactions if row["status"] == "judged")
        chosen_ones = {row["recording_id"]: row[dimension] for row in free.violations}
        violating = Counter(chosen_ones.values())
        rates = figures.rates(snapshot, chosen, dimension)
        assert {one.value: (one.violating, one.judged) for one in rates} == {
            value: (violating[value], number) for value, number in of_judged.items()
        }
    free = plain.without("queue")
    of_queue = Counter(row["queue"] for row in free.interactions if row["status"] == "judged")
    cells = Counter((row["queue"], row["rule_id"]) for row in free.violations)
    matrix = figures.matrix(snapshot, chosen)
    assert matrix.cells == {cell: (number, of_queue[cell[0]]) for cell, number in cells.items()}
    assert (set(matrix.queues), set(matrix.rules)) == ({queue for queue, _ in cells}, {rule for _, rule in cells})
    policies = {one.policy_version: (one.judged, one.violating) for one in figures.policies(snapshot, chosen)}
    screened_by = {row["policy_version"] for row in plain.interactions} - {None}
    assert policies == {
        version: (
            sum(row["policy_version"] == version for row in judged),
            sum(row["policy_version"] == version for row in judged if row["verdict"] == "VIOLATION_DETECTED"),
        )
        for version in screened_by
    }


@few()
@given(chosen=filters())
def test_agents_are_ordered_by_the_lower_bound(snapshot: Snapshot, facts: tuple[Rows, Rows], chosen: Filter) -> None:
    plain = Plain(facts, chosen)
    judged = Counter(row["agent"] for row in plain.interactions if row["status"] == "judged" and row["agent"])
    violating = Counter({row["recording_id"]: row["agent"] for row in plain.violations}.values())
    expected = []
    for agent, number in judged.items():
        interval = wilson(violating[agent], number)
        if number >= 30 and violating[agent] and interval:
            expected.append((-interval[0], agent, number, violating[agent]))
    said = figures.agents(snapshot, chosen)
    assert [(-one.low, one.agent, one.judged, one.violating) for one in said] == sorted(expected)
    for one in said:
        by_rule = Counter(
            row["rule_id"]
            for row in plain.broken
            if row["agent"] == one.agent and (not chosen.rule or row["rule_id"] in chosen.rule)
        )
        assert one.mostly == min(by_rule, key=lambda rule: (-by_rule[rule], rule))


@few()
@given(chosen=filters())
def test_the_funnel_losses_and_actions(snapshot: Snapshot, facts: tuple[Rows, Rows], chosen: Filter) -> None:
    plain = Plain(facts, chosen)
    steps = figures.funnel(snapshot, chosen)
    for step in steps:
        assert step.recordings + sum(number for _, number in step.lost) == step.of
        assert all(number > 0 for _, number in step.lost)
    assert [step.of for step in steps[1:4]] == [step.recordings for step in steps[:3]]
    assert {step.of for step in steps[4:]} == {steps[3].recordings}
    lost = [row for row in plain.interactions if row["status"] != "judged"]
    series = figures.losses_series(snapshot, chosen)
    assert series.times == plain.buckets()
    expected = Counter((row["reason"] or row["status"], plain.time(row)) for row in lost)
    assert {
        (name, time): number
        for name, values in zip(series.names, series.values, strict=True)
        for time, number in zip(series.times, values, strict=True)
        if number
    } == expected
    actions = figures.actions_series(snapshot, chosen)
    of = Counter(action["status"] for row in plain.broken for action in row["actions"])
    assert dict(zip(actions.names, map(sum, actions.values), strict=True)) == {
        "done": of["done"], "failed": of["failed"], "dead": of["dead"], "other": of["planned"],
    }  # fmt: skip


@few(limit=7)
@given(chosen=filters(), limit=st.integers(1, 40))
def test_lists_are_paged_without_gap_or_repeat(
    snapshot: Snapshot, facts: tuple[Rows, Rows], chosen: Filter, limit: int
) -> None:
    plain = Plain(facts, chosen)

    def key(row: Any) -> tuple[datetime, str, str]:
        get = row.__getitem__ if isinstance(row, dict) else lambda name: getattr(row, name)
        return get("available_at"), get("recording_id"), get("rule_id")

    expected = sorted(map(key, plain.violations), reverse=True)
    assert list(map(key, figures.violations_table(snapshot, chosen))) == expected
    seen: list[tuple[datetime, str, str]] = []
    while page := figures.latest(snapshot, chosen, limit, seen[-1] if seen else None):
        assert len(page) == min(limit, len(expected) - len(seen))
        seen += map(key, page)
    assert seen == expected
    rank = ("critical", "high", "medium", "low")
    waiting = [row for row in plain.broken if row["review"] == "open" and replaced(plain, row)]
    queue = [(rank.index(row["severity"]), *key(row)) for row in waiting]
    offset = 0
    shown: list[tuple[Any, ...]] = []
    while page := figures.review_queue(snapshot, chosen, limit, offset):
        shown += [(rank.index(row.severity), *key(row)) for row in page]
        offset += len(page)
    assert shown == sorted(queue)


def replaced(plain: Plain, row: dict[str, Any]) -> bool:
    chosen = plain.chosen
    return (not chosen.rule or row["rule_id"] in chosen.rule) and (
        not chosen.severity or row["severity"] in chosen.severity
    )


def test_open_violations_age_by_severity(snapshot: Snapshot, facts: tuple[Rows, Rows]) -> None:
    ages: Counter[tuple[str, str]] = Counter()
    for row in facts[1]:
        days = (NOW - row["partition_hour"]) / DAY
        name = "<1 d" if days < 1 else "1–3 d" if days < 3 else "3–7 d" if days < 7 else "7–30 d"
        ages[row["severity"], name] += row["review"] == "open"
    said = figures.ageing(snapshot, Filter(NOW - HOUR, NOW))
    assert {(one.severity, one.age): one.open for one in said if one.open} == {age: n for age, n in ages.items() if n}
