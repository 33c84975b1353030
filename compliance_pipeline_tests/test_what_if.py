"""What-if: what another pack would change, from what was screened; kept once; nothing is done about it."""

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from compliance_pipeline import database, what_if
from compliance_pipeline.cli import app
from compliance_pipeline.clock import utc_now
from compliance_pipeline.contracts.event import Channel
from compliance_pipeline.contracts.policy import Action, Detector, FindingKind, PolicyPack, Severity
from compliance_pipeline.contracts.verdict import VerdictValue
from compliance_pipeline.definitions import compliance_pipeline
from compliance_pipeline.remediation.plan import Violation, plan
from compliance_pipeline.sandbox.calls import Kind
from compliance_pipeline.screening.engine import from_settings
from compliance_pipeline.screening.findings import Finding
from compliance_pipeline.screening.policy import Facts, RuleOutcome, evaluate, judge, load_policy
from compliance_pipeline.settings import Settings
from compliance_pipeline.warehouse.tables import FindingRow, RecordingRow, RemediationRow, Row, ScreeningRow
from compliance_pipeline.warehouse.warehouse import Warehouse
from compliance_pipeline.what_if import PolicyDiff
from compliance_pipeline_tests.workshop import recording, workshop

LIVE = load_policy()
AT = datetime(2026, 3, 1, 10, tzinfo=UTC)
HOUR = timedelta(hours=1)
ENGINE = "engine-1"
FLAGGED = ("VIOLATION_DETECTED", "REVIEW_REQUIRED")


def found(kind: str = "card_number", confidence: float = 0.95, speaker: str = "customer") -> Finding:
    return Finding(FindingKind(kind), Detector.TEXT, speaker, 4_000, 9_000, confidence, "411111******1111")


def of_recording(
    name: str,
    findings: Iterable[Finding] = (),
    *,
    at: datetime = AT,
    queue: str | None = "billing",
    source: str = "guide",
    engine: str | None = ENGINE,
) -> Iterator[Row]:
    """A chat; engine: None where it was not screened."""
    hour = at.replace(minute=0, second=0)
    yield RecordingRow(name, hour, source, "chat", "inbound", queue, [], f"msg-{name}", at, at, at, at, at)
    if engine is None:
        return
    yield ScreeningRow(
        name, engine, hour, "chat", "inbound", queue, at, None, f"msg-{name}", True, True, ["agent", "customer"], None,
        None, None, at,
    )  # fmt: skip
    for number, one in enumerate(findings):
        yield FindingRow(
            name, engine, number, hour, one.kind, one.detector, one.speaker, one.start_ms, one.end_ms, one.confidence,
            one.masked, one.fingerprint, one.phrase,
        )  # fmt: skip


def without(*rule_ids: str, pack: PolicyPack = LIVE) -> PolicyPack:
    return pack.model_copy(update={"rules": tuple(rule for rule in pack.rules if rule.id not in rule_ids)})


def edited(rule_id: str, pack: PolicyPack = LIVE, **update: Any) -> PolicyPack:
    rules = (rule.model_copy(update=update) if rule.id == rule_id else rule for rule in pack.rules)
    return pack.model_copy(update={"rules": tuple(rules)})


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    return Warehouse(tmp_path / "warehouse.duckdb")


def diff(
    warehouse: Warehouse, new: PolicyPack, start: datetime = AT, end: datetime = AT + HOUR, live: PolicyPack = LIVE
) -> PolicyDiff:
    return what_if.diff(warehouse, live, new, ENGINE, start, end, 6.0)


def test_a_rule_that_goes_takes_its_verdicts_with_it(warehouse: Warehouse) -> None:
    both = [found(), found("government_id")]
    warehouse.append([
        *of_recording("rec-card", [found()]),
        *of_recording("rec-both", both),
        *of_recording("rec-id", both[1:], queue="sales"),
        *of_recording("rec-clean", queue=None),
    ])  # fmt: skip
    made = diff(warehouse, without("PCI-PAN-01", "PCI-PAN-02"))
    assert (made.recordings, made.compared, made.needs_audio) == (4, 4, 0)
    assert (made.live_flagged, made.new_flagged) == (3, 2)
    assert (made.added, made.removed, made.changed) == (0, 1, 1)
    assert {(one.live, one.new): one.recordings for one in made.transitions} == {
        ("VIOLATION_DETECTED", "VIOLATION_DETECTED"): 2,
        ("VIOLATION_DETECTED", "NO_VIOLATION"): 1,
        ("NO_VIOLATION", "NO_VIOLATION"): 1,
    }
    rules = {one.rule_id: one for one in made.rules}
    assert (rules["PCI-PAN-01"].edit, rules["PCI-PAN-01"].live, rules["PCI-PAN-01"].removed) == ("removed", 2, 2)
    assert (rules["PII-GOV-01"].edit, rules["PII-GOV-01"].new, rules["PII-GOV-01"].is_any) == ("", 2, True)
    assert not rules["FDCPA-THREAT-01"].is_any
    assert [(one.queue, one.compared, one.live, one.new, one.removed) for one in made.queues] == [
        ("billing", 2, 2, 1, 1), ("", 1, 0, 0, 0), ("sales", 1, 1, 1, 0),
    ]  # fmt: skip
    assert [(one.kind, one.recording_id) for one in made.examples] == [("removed", "rec-card"), ("changed", "rec-both")]
    [removed, changed] = made.examples
    assert (removed.live_rules, removed.new_rules, removed.masked) == (("PCI-PAN-01",), (), "411111******1111")
    assert changed.live_rules == ("PCI-PAN-01", "PII-GOV-01")
    assert changed.new_rules == ("PII-GOV-01",)


def test_work_items_that_would_open_are_those_of_which_none_was_begun(warehouse: Warehouse) -> None:
    unsure = found(confidence=0.6)
    warehouse.append([
        *of_recording("rec-new", [unsure]),
        *of_recording("rec-known", [unsure]),
        *of_recording("rec-dropped", [unsure], queue="sales"),
        *(RemediationRow(name, "PCI-PAN-02", "create_work_item", revision, AT, status, None, None, AT, "run-1")
          for name, revision, status in (("rec-known", 1, "done"), ("rec-dropped", 1, "failed"),
                                         ("rec-dropped", 2, "dropped"))),
    ])  # fmt: skip
    made = diff(warehouse, LIVE, live=without("PCI-PAN-02"))
    assert made.added == 3
    assert (made.work_items.live, made.work_items.new, made.work_items.opens) == (0, 3, 2)
    assert made.hours(made.work_items.opens) == pytest.approx(0.2)
    assert {one.queue: one.opens for one in made.queues} == {"billing": 1, "sales": 1}
    assert {one.rule_id: one.opens for one in made.rules if one.opens} == {"PCI-PAN-02": 2}


def test_callbacks_and_messages_that_would_go_out_are_counted(warehouse: Warehouse) -> None:
    warehouse.append([*of_recording("rec-1", [found()])])
    actions = ("tag_recording", "create_work_item", "supervisor_callback", {"notify": {"to": "legal"}})
    rule = next(rule for rule in LIVE.rules if rule.id == "PCI-PAN-01")
    calling = type(rule).model_validate(rule.model_dump() | {"actions": actions})
    made = diff(warehouse, edited("PCI-PAN-01", actions=calling.actions))
    assert {one.action: (one.live, one.new, one.opens) for one in made.actions} == {
        Action.TAG_RECORDING: (1, 1, 0), Action.CREATE_WORK_ITEM: (1, 1, 0), Action.SUPERVISOR_CALLBACK: (0, 1, 1),
        Action.NOTIFY: (0, 1, 1),
    }  # fmt: skip
    assert (made.added, made.removed, made.changed) == (0, 0, 0)
    assert [(one.edit, one.fields) for one in made.rules if one.rule_id == "PCI-PAN-01"] == [("edited", ("actions",))]


def test_a_rule_that_both_packs_break_with_another_severity_is_a_change(warehouse: Warehouse) -> None:
    warehouse.append([*of_recording("rec-1", [found()])])
    made = diff(warehouse, edited("PCI-PAN-01", severity=Severity.LOW))
    assert (made.added, made.removed, made.changed) == (0, 0, 1)
    [rule] = [one for one in made.rules if one.is_any]
    assert (rule.rule_id, rule.live, rule.new, rule.changed, rule.severity) == ("PCI-PAN-01", 1, 1, 1, "low")


def test_canaries_are_left_out_and_what_was_not_screened_by_this_engine_is_said_to_need_audio(
    warehouse: Warehouse,
) -> None:
    warehouse.append([
        *of_recording("rec-1", [found()]),
        *of_recording("canary-1", [found()], source="canary"),
        *of_recording("rec-waiting", engine=None),
        *of_recording("rec-older", [found()], engine="engine-0"),
    ])  # fmt: skip
    made = diff(warehouse, without("PCI-PAN-01", "PCI-PAN-02"))
    assert (made.recordings, made.compared, made.needs_audio, made.without_screening) == (3, 1, 2, 2)
    assert (made.removed, made.work_items.live) == (1, 1)


def test_the_window_is_whole_hours(warehouse: Warehouse) -> None:
    warehouse.append([
        row
        for number in range(-1, 4)
        for row in of_recording(f"rec-{number}", [found()], at=AT + number * HOUR + timedelta(minutes=59))
    ])  # fmt: skip
    made = diff(warehouse, LIVE, AT + timedelta(minutes=30), AT + 2 * HOUR + timedelta(minutes=1))
    assert (made.start, made.end) == (AT, AT + 3 * HOUR)
    assert made.recordings == 3
    assert diff(warehouse, LIVE, AT, AT + 3 * HOUR).end == AT + 3 * HOUR


def test_changed_phrases_are_named_with_the_rules_that_ask_for_them_and_all_needs_screening_anew(
    warehouse: Warehouse,
) -> None:
    warehouse.append([*of_recording("rec-1")])
    phrases = dict(LIVE.phrases)
    phrases["threat"] = phrases["threat"].model_copy(update={"patterns": ("we will sue",)})
    phrases["new_one"] = phrases.pop("profanity")
    made = diff(warehouse, without("FDCPA-THREAT-02", pack=LIVE.model_copy(update={"phrases": phrases})))
    assert made.lexicon == what_if.LexiconChange(("new_one",), ("profanity",), ("threat",), ("FDCPA-THREAT-01",))
    assert (made.compared, made.needs_audio, made.without_screening) == (1, 1, 0)
    assert not diff(warehouse, without("FDCPA-THREAT-02")).lexicon.is_any


def test_rules_about_keeping_that_differ_are_named(warehouse: Warehouse) -> None:
    made = diff(warehouse, LIVE.model_copy(update={"retention": LIVE.retention[1:]}))
    assert made.retention == (LIVE.retention[0].name,)
    assert made.new == made.live
    assert made.new_digest != made.live_digest


def test_examples_are_ten_of_a_kind_from_as_many_rules_as_there_are(warehouse: Warehouse) -> None:
    warehouse.append([
        row
        for number in range(40)
        for row in of_recording(f"rec-{number:02d}", [found(), found("government_id")][number == 39 :][:1])
    ])  # fmt: skip
    made = diff(warehouse, without("PCI-PAN-01", "PCI-PAN-02", "PII-GOV-01", "PII-GOV-02"))
    assert made.removed == 40
    assert len(made.examples) == 10
    assert {rule for one in made.examples for rule in one.live_rules} == {"PCI-PAN-01", "PII-GOV-01"}


def test_the_same_difference_is_kept_once_and_read_back_as_it_was(warehouse: Warehouse, tmp_path: Path) -> None:
    warehouse.append([*of_recording("rec-1", [found()]), *of_recording("rec-2")])
    new = without("PCI-PAN-01")
    engine = database.connect(f"sqlite:///{tmp_path / 'inbox.db'}")
    made, again = diff(warehouse, new), diff(warehouse, new)
    first = what_if.keep(engine, made, new, "wanda", AT)
    assert what_if.keep(engine, again, new, "somebody", AT + HOUR) == first
    assert (first.by, first.made_at, first.diff, first.id) == ("wanda", AT, made, made.digest[:12])
    assert PolicyPack.model_validate_json(first.content, strict=True) == new
    other = what_if.keep(engine, diff(warehouse, new, AT - HOUR), new, "wanda", AT + 2 * HOUR)
    with engine.connect() as connection:
        assert [one.id for one in what_if.newest(connection, 10)] == [other.id, first.id]
        assert what_if.of_pack(connection, new) == other
        assert what_if.of_pack(connection, without("PCI-PAN-02")) is None
        assert what_if.find(connection, "nothing") is None
    assert what_if.digest_of(first.diff.json) == first.diff.digest
    assert json.loads(first.diff.json)["recordings"] == 2
    engine.dispose()


def test_progress_is_told_until_all_is_done(warehouse: Warehouse) -> None:
    warehouse.append([row for number in range(3) for row in of_recording(f"rec-{number}", at=AT + number * HOUR)])
    told: list[tuple[int, int]] = []
    what_if.diff(
        warehouse, LIVE, LIVE, ENGINE, AT, AT + 3 * HOUR, 6.0, lambda done, of: told.append((done, of))
    )  # fmt: skip
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_an_hour_is_looked_at_in_pieces_with_the_same_result(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    warehouse.append([
        row for number in range(30) for row in of_recording(f"rec-{number}", [found()] if number % 3 else [])
    ])  # fmt: skip
    whole = diff(warehouse, without("PCI-PAN-01"))
    monkeypatch.setattr(what_if, "PIECE", 7)
    pieces = diff(warehouse, without("PCI-PAN-01"))
    assert (pieces.transitions, pieces.rules, pieces.queues, pieces.actions) == (
        whole.transitions, whole.rules, whole.queues, whole.actions,
    )  # fmt: skip


# Against evaluating each recording by itself

_FINDINGS = st.builds(
    found,
    st.sampled_from(["card_number", "card_verification_code", "government_id", "phone_number", "health_id"]),
    st.sampled_from([0.55, 0.7, 0.78, 0.95]),
    st.sampled_from(["agent", "customer", "0"]),
)
_NEW = [
    without("PCI-PAN-01"),
    without("PII-GOV-02", "PCI-SAD-01"),
    edited("PCI-PAN-02", severity=Severity.HIGH),
    edited("PII-GOV-01", verdict=VerdictValue.REVIEW_REQUIRED),
    edited("PCI-PAN-01", channels=(Channel.VOICE,)),
]


def by_itself(
    packs: Sequence[PolicyPack], recordings: Sequence[tuple[str, list[Finding]]]
) -> tuple[list[str], dict[str, list[RuleOutcome]]]:
    verdicts, fired = [], {}
    for name, findings in recordings:
        of_packs = []
        for pack in packs:
            facts = Facts(Channel.CHAT, transcript_read=True, speakers=frozenset({"agent", "customer"}))
            outcomes = evaluate(findings, facts, pack)
            of_packs.append(judge(name, "msg", outcomes, None).verdict)
            fired[f"{name}/{pack.policy_version}"] = [one for one in outcomes if one.fired]
        verdicts.append("/".join(of_packs))
    return verdicts, fired


@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(_FINDINGS, max_size=4), min_size=10, max_size=40), st.sampled_from(_NEW), st.integers(0, 2**32)
)
def test_it_says_what_evaluating_each_recording_by_itself_says(
    tmp_path: Path, drawn: list[list[Finding]], new: PolicyPack, number: int
) -> None:
    warehouse = Warehouse(tmp_path / f"{number}-{len(list(tmp_path.iterdir()))}.duckdb")
    recordings = [(f"rec-{at}", findings) for at, findings in enumerate(drawn)]
    warehouse.append([row for name, findings in recordings for row in of_recording(name, findings)])
    made = diff(warehouse, new)
    verdicts, fired = by_itself((LIVE, new), recordings)
    assert {f"{one.live}/{one.new}": one.recordings for one in made.transitions} == {
        one: verdicts.count(one) for one in verdicts
    }
    for pack, side in ((LIVE, "live"), (new, "new")):
        outcomes = {name: fired[f"{name}/{pack.policy_version}"] for name, _ in recordings}
        broke = [one.rule.id for its in outcomes.values() for one in its]
        assert {one.rule_id: getattr(one, side) for one in made.rules if getattr(one, side)} == {
            rule: broke.count(rule) for rule in broke
        }
        planned = plan(
            (
                Violation(name, one.rule.id, one.rule.verdict, one.rule.violation_type, one.rule.severity,
                          one.confidence, one.start_ms, one.masked)
                for name, its in outcomes.items() for one in its
            ),
            pack,
        )  # fmt: skip
        assert {one.action: getattr(one, side) for one in made.actions if getattr(one, side)} == {
            one.action: sum(other.action == one.action for other in planned) for one in planned
        }
    was, now = ([any(one.partition("/")[at].startswith(f) for f in FLAGGED) for one in verdicts] for at in (0, 2))
    assert (made.live_flagged, made.new_flagged) == (sum(was), sum(now))
    assert made.added == sum(n and not w for w, n in zip(was, now, strict=True))
    assert made.removed == sum(w and not n for w, n in zip(was, now, strict=True))


def test_of_real_recordings_nothing_is_written_but_the_what_if(tmp_path: Path) -> None:
    with workshop(tmp_path / "home") as shop:
        shop.announce(recording(Kind.CHAT_CARD), recording(Kind.CHAT_CLEAN, 2))
        shop.run()
        before = {table: shop.rows(table) for table in ("verdicts", "violations", "policies", "latest_remediations")}
        platform = shop.state.observed()
        broken = {row["rule_id"] for row in before["violations"]}
        new = without(*broken, "PCI-PAN-02", pack=shop.pipeline.policy)
        engine = shop.pipeline.engine.version
        made = what_if.diff(shop.warehouse, shop.pipeline.policy, new, engine, shop.at, shop.at + HOUR, 6.0)
        assert broken
        assert (made.recordings, made.compared, made.removed, made.added) == (2, 2, 1, 0)
        assert (made.work_items.live, made.work_items.new, made.work_items.opens) == (1, 0, 0)
        assert {table: shop.rows(table) for table in before} == before
        assert shop.state.observed() == platform


# By command and by job


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With ten chats, three with a card number, of an hour ago."""
    path = tmp_path / "home"
    monkeypatch.setenv("COMPLIANCE_HOME", str(path))
    monkeypatch.setenv("LOGNAME", "wanda")
    monkeypatch.chdir(tmp_path)
    engine = from_settings(Settings(), LIVE).version
    at = utc_now() - HOUR
    Warehouse(path / "warehouse.duckdb").append([
        row
        for number in range(10)
        for row in of_recording(f"rec-{number}", [found()] if number < 3 else [], at=at, engine=engine)
    ])  # fmt: skip
    return path


def written(folder: Path, pack: PolicyPack) -> Path:
    path = folder / "new-pack.yaml"
    path.write_text(yaml.safe_dump(json.loads(pack.model_dump_json(exclude_none=True)), sort_keys=False))
    assert what_if.whole(load_policy(path)) == what_if.whole(pack)
    return path


def run(*arguments: object, answer: str | None = None, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(one) for one in arguments], input=answer)
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def kept_in(home: Path) -> list[what_if.WhatIf]:
    engine = database.connect(f"sqlite:///{home / 'inbox.db'}")
    try:
        with engine.connect() as connection:
            return what_if.newest(connection, 9)
    finally:
        engine.dispose()


def test_the_command_prints_and_keeps_what_would_change(home: Path, tmp_path: Path) -> None:
    new = without("PCI-PAN-01", "PCI-PAN-02").model_copy(update={"version": "1.0.0"})
    path = written(tmp_path, new)
    shown = run("policy", "diff", path)
    [kept] = kept_in(home)
    assert kept.by == "wanda"
    assert kept.diff.end - kept.diff.start == timedelta(days=7, hours=1)
    assert "of 10 recordings 0 more and 3 fewer would be flagged" in shown
    assert f"http://127.0.0.1:8075/what-if/{kept.id}" in shown
    assert "PCI-PAN-01" in shown
    assert "411111******1111" in shown
    window = (kept.diff.start.isoformat(), kept.diff.end.isoformat())
    as_json = run("policy", "diff", path, "--from", window[0], "--to", window[1], "--json")
    assert json.loads(as_json)["new"] == new.policy_version
    assert what_if.digest_of(as_json) == kept.diff.digest
    assert len(kept_in(home)) == 1


def test_a_window_that_is_none_is_refused_with_what_it_must_look_like(home: Path, tmp_path: Path) -> None:
    path = written(tmp_path, without("PCI-PAN-01"))
    assert "is no time such as 2026-03-01" in run("policy", "diff", path, "--from", "yesterday", code=2)
    refused = run("policy", "diff", path, "--from", "2026-03-02", "--to", "2026-03-01", code=1)
    assert "--from must be earlier than --to" in refused
    assert "there is no pack a@1" in run("policy", "diff", "a@1", code=1)
    assert not (home / "inbox.db").exists() or not kept_in(home)


def test_what_was_looked_at_is_promoted_by_command_listed_and_taken_back(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = without("PCI-PAN-01", "PCI-PAN-02").model_copy(update={"version": "1.0.0"})
    path = written(tmp_path, new)
    assert "no what-if of" in run("policy", "promote", path, "--yes", code=1)
    run("policy", "diff", path)
    [kept] = kept_in(home)
    assert "Aborted" in run("policy", "promote", path, answer="n\n", code=1)
    assert "live default-us-eu@0.3.0" in run("policy", "history").replace("│ ", "")
    shown = run("policy", "promote", path, answer="y\n")
    assert f"{kept.id} {new.policy_version} beside {LIVE.policy_version}" in shown
    assert f"promoted {new.policy_version} in place of {LIVE.policy_version}, by wanda" in shown
    listed = run("policy", "history").replace("│ ", "")
    assert f"live {new.policy_version}" in listed
    assert kept.id in listed
    back = ("policy", "promote", LIVE.policy_version, "--yes")
    assert "no what-if of" in run(*back, code=1)
    run("policy", "diff", LIVE.policy_version)
    run(*back)
    assert f"live {LIVE.policy_version}" in run("policy", "history").replace("│ ", "")
    monkeypatch.setenv("COMPLIANCE_POLICY", str(path))
    assert "COMPLIANCE_POLICY names the pack" in run(*back, code=1)
    assert f"Live is {new.policy_version}: COMPLIANCE_POLICY names it" in run("policy", "history")


@pytest.mark.parametrize("as_text", [False, True])
def test_the_job_links_its_report_page_and_keeps_the_same(home: Path, tmp_path: Path, as_text: bool) -> None:
    path = written(tmp_path, without("PCI-PAN-01", "PCI-PAN-02"))
    now = utc_now()
    config = {
        "pack": path.read_text() if as_text else str(path),
        "from": (now - 2 * HOUR).isoformat(),
        "to": now.isoformat(),
    }
    job = compliance_pipeline().resolve_job_def("what_if")
    with dg.DagsterInstance.ephemeral() as instance:
        ran = job.execute_in_process(instance=instance, run_config={"ops": {"compare_policies": {"config": config}}})
    [output] = [one for one in ran.all_events if one.is_step_event and one.event_type_value == "STEP_OUTPUT"]
    told = output.step_output_data.metadata
    [kept] = kept_in(home)
    assert kept.by == "dagster"
    assert told["page"] == dg.MetadataValue.url(f"http://127.0.0.1:8075/what-if/{kept.id}")
    assert (told["removed"].value, told["recordings compared"].value) == (3, 10)
    assert told["digest"].value == kept.diff.digest
    assert "| PCI-PAN-01 | removed | 3 | 0 | 0 | 3 | 0 | 0 |" in told["by rule"].value  # type: ignore[operator]


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"pack": "absent.yaml"}, "can't be used"),
        ({"from": "soon"}, "is no time such as"),
        ({"to": "2026-01-01"}, "ends before it begins"),
    ],
)
def test_a_job_with_a_wrong_config_says_what_is_wrong(
    home: Path, tmp_path: Path, wrong: dict[str, str], why: str
) -> None:
    config = {"pack": str(written(tmp_path, LIVE)), "from": "2026-03-01", "to": "2026-03-02"} | wrong
    job = compliance_pipeline().resolve_job_def("what_if")
    with dg.DagsterInstance.ephemeral() as instance, pytest.raises(dg.Failure, match=why):
        job.execute_in_process(instance=instance, run_config={"ops": {"compare_policies": {"config": config}}})
    assert kept_in(home) == []
