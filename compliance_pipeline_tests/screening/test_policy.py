"""The default pack and packs that are wrong; what comes of each rule; the verdict that comes of it."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from math import inf
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from compliance_pipeline.contracts.event import Channel, Direction
from compliance_pipeline.contracts.policy import Action, Annotation, Detector, FindingKind, Severity, Status
from compliance_pipeline.contracts.verdict import RecommendedAction, VerdictValue
from compliance_pipeline.screening.findings import Finding
from compliance_pipeline.screening.policy import (
    DEFAULT_PACK,
    Facts,
    PolicyError,
    RuleOutcome,
    deciding_hit,
    evaluate,
    judge,
    load_policy,
    run_examples,
)

PACK = load_policy(None)
CHAT = Facts(Channel.CHAT)
HEARD = Facts(Channel.VOICE)
"""A call without a transcript."""
TWO = frozenset({"agent", "customer"})
READ = Facts(Channel.VOICE, transcript_read=True, annotations=frozenset({Annotation.RECORDING_NOTICE}))


def finding(
    kind: FindingKind = FindingKind.CARD_NUMBER,
    detector: Detector = Detector.TEXT,
    start_ms: int = 0,
    end_ms: int = 0,
    confidence: float = 0.97,
    speaker: str = "customer",
) -> Finding:
    return Finding(kind, detector, speaker, start_ms, end_ms, confidence, "****")


def phrase(name: str, start_ms: int = 0, speaker: str = "agent") -> Finding:
    return Finding(FindingKind.PHRASE, Detector.PHRASES, speaker, start_ms, start_ms, 0.9, f"[{name}]", phrase=name)


def fired(*findings: Finding, facts: Facts = CHAT) -> list[str]:
    return [outcome.rule.id for outcome in evaluate(findings, facts, PACK) if outcome.fired]


def of(rule_id: str, *findings: Finding, facts: Facts = CHAT) -> RuleOutcome:
    return next(outcome for outcome in evaluate(findings, facts, PACK) if outcome.rule.id == rule_id)


# Findings


@pytest.mark.parametrize(
    ("kind", "detector", "confidence", "rule"),
    [
        (FindingKind.CARD_NUMBER, Detector.TEXT, 0.9, "PCI-PAN-01"),
        (FindingKind.CARD_NUMBER, Detector.DIGITS, 0.95, "PCI-PAN-01"),
        (FindingKind.CARD_NUMBER, Detector.TONES, 0.99, "PCI-DTMF-01"),
        (FindingKind.CARD_NUMBER, Detector.TEXT, 0.6, "PCI-PAN-02"),
        (FindingKind.CARD_LENGTH_NUMBER, Detector.DIGITS, 0.6, "PCI-PAN-02"),
        (FindingKind.CARD_VERIFICATION_CODE, Detector.TONES, 0.95, "PCI-SAD-01"),
        (FindingKind.CARD_VERIFICATION_CODE, Detector.TONES, 0.6, "PCI-SAD-03"),
        (FindingKind.CARD_PIN, Detector.TEXT, 0.9, "PCI-SAD-02"),
        (FindingKind.CARD_PIN, Detector.TEXT, 0.6, "PCI-SAD-03"),
        (FindingKind.GOVERNMENT_ID, Detector.TEXT, 0.97, "PII-GOV-01"),
        (FindingKind.HEALTH_ID, Detector.TEXT, 0.97, "PII-GOV-01"),
        (FindingKind.BANK_ACCOUNT, Detector.TEXT, 0.97, "PII-GOV-01"),
        (FindingKind.GOVERNMENT_ID, Detector.TEXT, 0.6, "PII-GOV-02"),
    ],
)
def test_each_kind_of_finding_fires_exactly_its_rule(
    kind: FindingKind, detector: Detector, confidence: float, rule: str
) -> None:
    assert fired(finding(kind, detector, confidence=confidence), facts=READ) == [rule]


def test_phone_numbers_and_email_addresses_fire_nothing_by_themselves() -> None:
    assert fired(finding(FindingKind.PHONE_NUMBER), finding(FindingKind.EMAIL_ADDRESS)) == []


def test_a_finding_below_every_threshold_fires_nothing() -> None:
    assert fired(*(finding(kind, confidence=0.49) for kind in FindingKind)) == []


def test_a_hit_names_the_best_finding_and_counts_them_all() -> None:
    late, best, early = (
        finding(start_ms=9_000),
        finding(start_ms=4_000),
        finding(start_ms=1_000, confidence=0.9),
    )
    hit = of("PCI-PAN-01", late, best, early)
    assert hit.finding is best
    assert (hit.count, hit.detector, hit.start_ms, hit.masked) == (3, "text", 4_000, "****")


def test_every_rule_has_an_outcome_in_the_packs_order() -> None:
    assert [outcome.rule.id for outcome in evaluate([], CHAT, PACK)] == [rule.id for rule in PACK.rules]


def test_rules_look_at_their_channels_only(tmp_path: Path) -> None:
    content = yaml.safe_load(DEFAULT_PACK.read_text())
    rule = next(rule for rule in content["rules"] if rule["id"] == "PCI-PAN-01")
    content["rules"] = [rule | {"channels": ["email"]}]
    pack = load_policy(written(tmp_path, content))
    [outcome] = evaluate([finding()], READ, pack)
    assert (outcome.status, outcome.reason) == (Status.NOT_APPLICABLE, "not for voice")
    [outcome] = evaluate([finding()], Facts(Channel.EMAIL), pack)
    assert outcome.fired


# Words on a call


def test_without_a_transcript_no_rule_about_words_is_passed() -> None:
    outcomes = {outcome.rule.id: outcome for outcome in evaluate([], HEARD, PACK)}
    undetermined = {rule_id for rule_id, outcome in outcomes.items() if outcome.status is Status.UNDETERMINED}
    assert undetermined == {
        "PCI-SAD-01", "PCI-SAD-02", "PCI-SAD-03", "PCI-PAUSE-01", "HIPAA-PHI-01", "HIPAA-VER-01", "PII-GOV-01",
        "PII-GOV-02", "GDPR-ART9-01", "GDPR-DSR-01", "REC-CONSENT-01", "TCPA-REV-01", "FDCPA-THREAT-01",
        "FDCPA-THREAT-02",
    }  # fmt: skip
    assert {outcomes[rule_id].reason for rule_id in undetermined} == {"needs a transcript"}
    assert outcomes["PCI-PAN-01"].status is Status.PASSED
    assert outcomes["PCI-DTMF-01"].status is Status.PASSED


def test_what_was_found_fires_though_there_is_no_transcript() -> None:
    assert fired(finding(FindingKind.CARD_VERIFICATION_CODE, Detector.TONES), facts=HEARD) == ["PCI-SAD-01"]


def test_with_a_transcript_a_clean_call_is_clean() -> None:
    outcomes = evaluate([], READ, PACK)
    assert {outcome.status for outcome in outcomes} == {Status.PASSED, Status.NOT_APPLICABLE}
    assert judge("r", "c", outcomes).verdict is VerdictValue.NO_VIOLATION


def test_a_threat_of_an_unknown_speaker_is_undetermined_and_of_a_customer_passed() -> None:
    facts = replace(CHAT, queue="Collections")
    assert of("FDCPA-THREAT-01", phrase("threat"), facts=facts).fired
    assert of("FDCPA-THREAT-01", phrase("threat", speaker="customer"), facts=facts).status is Status.PASSED
    unknown = of("FDCPA-THREAT-01", phrase("threat", speaker="1"), facts=facts)
    assert (unknown.status, unknown.reason) == (Status.UNDETERMINED, "the transcript does not say who is the agent")


@pytest.mark.parametrize(
    ("queue", "said", "rule"),
    [
        ("Collections", (), "FDCPA-THREAT-01"),
        ("orders", ("mm_debt_collector",), "FDCPA-THREAT-01"),
        (None, ("debt_talk",), "FDCPA-THREAT-01"),
        ("orders", ("payment_cue",), "FDCPA-THREAT-02"),
        ("Waste collection", (), "FDCPA-THREAT-02"),
        ("Waste collection", ("debt_talk",), "FDCPA-THREAT-01"),
        (None, (), "FDCPA-THREAT-02"),
    ],
)
def test_a_threat_accuses_where_a_debt_is_collected_and_asks_for_review_elsewhere(
    queue: str | None, said: tuple[str, ...], rule: str
) -> None:
    facts = replace(CHAT, queue=queue, speakers=frozenset({"agent"}), first_contact=False)
    said = (*said, "mm_debt_collector") if queue == "Collections" else said
    assert fired(*map(phrase, said), phrase("threat", 5_000), facts=facts) == [rule]


def test_without_a_transcript_nobody_knows_that_a_debt_was_not_spoken_of() -> None:
    outcome = of("FDCPA-THREAT-01", facts=replace(HEARD, queue="orders"))
    assert (outcome.status, outcome.reason) == (Status.UNDETERMINED, "needs a transcript")


def test_a_rule_that_asks_for_review_takes_an_unknown_speaker_for_whom_it_asks_about() -> None:
    assert fired(phrase("data_request", speaker="0")) == ["GDPR-DSR-01"]
    assert fired(phrase("data_request", speaker="agent")) == []


# Absence


def test_a_notice_counts_when_the_agent_or_an_unknown_speaker_gives_it_in_time() -> None:
    silent = replace(READ, annotations=None, speakers=TWO)
    given = {
        who: of("REC-CONSENT-01", phrase("recording_notice", 30_000, who), facts=silent).status
        for who in ("agent", "0", "customer")
    }
    assert given == {"agent": Status.PASSED, "0": Status.PASSED, "customer": Status.FIRED}
    late = of("REC-CONSENT-01", phrase("recording_notice", 30_001), facts=silent)
    assert (late.status, late.masked) == (Status.FIRED, "[not said within 30 s: recording_notice]")
    assert (late.finding, late.detector, late.start_ms, late.confidence) == (None, "phrases", 0, 0.8)


def test_a_call_that_ended_before_the_notice_was_due_did_not_lack_it() -> None:
    short = replace(READ, annotations=None, duration_ms=8_000, speakers=TWO)
    assert of("REC-CONSENT-01", facts=short).status is Status.NOT_APPLICABLE


COLLECTION = replace(READ, queue="EU Debt Recovery", speakers=TWO)


@pytest.mark.parametrize("channel", [Channel.VOICE, Channel.CHAT])
@pytest.mark.parametrize(
    ("speakers", "status"),
    [
        ({"customer"}, Status.NOT_APPLICABLE),
        ({"agent"}, Status.FIRED),
        ({"agent", "0"}, Status.FIRED),
        ({"0", "1"}, Status.UNDETERMINED),
        ({"customer", "1"}, Status.UNDETERMINED),
        (set(), Status.UNDETERMINED),
    ],
)
def test_only_who_spoke_or_wrote_can_have_left_something_unsaid(
    channel: Channel, speakers: set[str], status: Status
) -> None:
    facts = replace(COLLECTION, channel=channel, speakers=frozenset(speakers))
    assert of("FDCPA-MM-01", facts=facts).status is status


@pytest.mark.parametrize(
    ("direction", "status"),
    [(Direction.INBOUND, Status.NOT_APPLICABLE), (Direction.OUTBOUND, Status.FIRED), (None, Status.UNDETERMINED)],
)
def test_the_direction_says_who_wrote_an_email(direction: Direction | None, status: Status) -> None:
    mail = Facts(Channel.EMAIL, queue="Collections", direction=direction, speakers=frozenset({"0"}))
    assert of("FDCPA-MM-01", facts=mail).status is status


def test_what_a_customer_writes_in_anger_is_not_the_agents_and_what_we_may_have_quoted_is_not_held_against_us() -> None:
    abuse = phrase("profanity", speaker="0")
    for direction, status in ((Direction.INBOUND, Status.PASSED), (Direction.OUTBOUND, Status.UNDETERMINED)):
        mail = Facts(Channel.EMAIL, queue="Collections", direction=direction)
        assert of("FDCPA-THREAT-01", abuse, facts=mail).status is status
    assert of("FDCPA-THREAT-02", abuse, facts=Facts(Channel.EMAIL, direction=Direction.INBOUND)).status is Status.PASSED
    asks = Facts(Channel.EMAIL, direction=Direction.INBOUND)
    assert of("GDPR-DSR-01", phrase("data_request", speaker="0"), facts=asks).fired


@pytest.mark.parametrize("queue", ["Disaster Recovery", "Account recovery", "Parcel collection", "Waste Collections"])
def test_a_queue_that_sounds_alike_is_not_one_of_collectors(queue: str) -> None:
    assert of("FDCPA-MM-01", facts=replace(COLLECTION, queue=queue)).status is Status.NOT_APPLICABLE


@pytest.mark.parametrize("said", [(), ("recording_notice",)])
def test_in_a_transcript_without_times_nobody_knows_what_was_said_in_time(said: tuple[str, ...]) -> None:
    untimed = replace(READ, annotations=None, speakers=TWO, words_timed=False)
    outcome = of("REC-CONSENT-01", *map(phrase, said), facts=untimed)
    assert (outcome.status, outcome.reason) == (Status.UNDETERMINED, "the transcript has no times")
    short = of("REC-CONSENT-01", *map(phrase, said), facts=replace(untimed, duration_ms=8_000))
    assert short.status is (Status.PASSED if said else Status.NOT_APPLICABLE)
    assert of("FDCPA-MM-01", *map(phrase, said), facts=replace(untimed, queue="Collections")).fired


def test_what_may_be_in_the_missing_end_is_not_said_to_be_absent() -> None:
    assert of("FDCPA-MM-01", facts=COLLECTION).fired
    cut = of("FDCPA-MM-01", facts=replace(COLLECTION, complete=False))
    assert (cut.status, cut.reason) == (Status.UNDETERMINED, "the end of the recording is missing")


@pytest.mark.parametrize(
    ("first_contact", "status"), [(True, Status.FIRED), (False, Status.PASSED), (None, Status.UNDETERMINED)]
)
def test_after_the_first_contact_a_part_of_the_disclosure_is_enough(first_contact: bool | None, status: Status) -> None:
    facts = replace(COLLECTION, first_contact=first_contact)
    assert of("FDCPA-MM-01", phrase("mm_debt_collector"), facts=facts).status is status


def test_whoever_is_not_the_debtor_need_not_be_told() -> None:
    outcome = of("FDCPA-MM-01", phrase("wrong_party", speaker="customer"), facts=COLLECTION)
    assert (outcome.status, outcome.reason) == (Status.PASSED, "excused by what was said: wrong_party")


# Together and in sequence


@pytest.mark.parametrize(("apart_ms", "status"), [(60_000, Status.FIRED), (60_001, Status.PASSED)])
def test_an_identifier_and_a_health_term_count_within_a_minute(apart_ms: int, status: Status) -> None:
    number = finding(FindingKind.PHONE_NUMBER, start_ms=100_000, end_ms=100_000, confidence=0.8)
    for start_ms in (100_000 - apart_ms, 100_000 + apart_ms):
        outcome = of("HIPAA-PHI-01", number, phrase("health_term", start_ms, "customer"))
        assert outcome.status is status
        if outcome.finding:
            assert outcome.finding is number
            assert outcome.near is not None
            assert (outcome.start_ms, outcome.end_ms) == (min(start_ms, 100_000), max(start_ms, 100_000))
            assert outcome.confidence == 0.8


def test_without_times_nobody_knows_what_was_said_together() -> None:
    number, term = finding(FindingKind.EMAIL_ADDRESS), phrase("health_term")
    untimed = replace(READ, words_timed=False)
    together = of("HIPAA-PHI-01", number, term, facts=untimed)
    assert (together.status, together.reason) == (Status.UNDETERMINED, "the transcript has no times")
    assert of("HIPAA-PHI-01", number, facts=untimed).status is Status.PASSED
    assert of("HIPAA-PHI-01", number, term, facts=replace(untimed, channel=Channel.CHAT)).fired


@given(
    st.lists(st.integers(0, 500_000), max_size=12),
    st.lists(st.integers(0, 500_000), max_size=12),
)
def test_together_finds_a_pair_wherever_there_is_one(numbers: list[int], terms: list[int]) -> None:
    findings = [finding(FindingKind.EMAIL_ADDRESS, start_ms=at) for at in numbers]
    findings += [phrase("health_term", at) for at in terms]
    near = [at for at in numbers if any(abs(at - other) <= 60_000 for other in terms)]
    outcome = of("HIPAA-PHI-01", *findings, facts=Facts(Channel.CHAT, jurisdictions=frozenset({"US"})))
    assert outcome.fired is bool(near)
    assert len(outcome.findings) == len(near)


@given(
    st.lists(st.tuples(st.sampled_from(FindingKind), st.sampled_from(Detector), st.integers(0, 99_000)), max_size=8),
    st.lists(st.tuples(st.sampled_from(sorted(PACK.phrases)), st.integers(0, 99_000)), max_size=8),
)
def test_what_a_rule_fires_on_is_always_one_of_the_findings_given(
    numbers: list[tuple[FindingKind, Detector, int]], phrases: list[tuple[str, int]]
) -> None:
    findings = [finding(kind, detector, at, at) for kind, detector, at in numbers]
    findings += [phrase(name, at) for name, at in phrases]
    for outcome in evaluate(findings, READ, PACK):
        for given_back in filter(None, (outcome.finding, outcome.near, *outcome.findings)):
            assert any(given_back is finding for finding in findings), outcome.rule.id


def test_health_data_may_be_told_after_two_different_identifiers_and_not_after_one_twice() -> None:
    told = phrase("health_disclosure", 30_000)
    name, birth, again = phrase("asks_name"), phrase("asks_birth_date", 10_000), phrase("asks_name", 20_000)
    assert of("HIPAA-VER-01", name, birth, told).status is Status.PASSED
    assert of("HIPAA-VER-01", name, again, told).fired
    assert of("HIPAA-VER-01", told, name, replace(birth, start_ms=40_000)).fired


def test_in_a_text_without_times_the_order_of_findings_counts() -> None:
    asked, told = [phrase("asks_name"), phrase("asks_birth_date")], phrase("health_disclosure")
    assert of("HIPAA-VER-01", *asked, told).status is Status.PASSED
    assert of("HIPAA-VER-01", told, *asked).fired


# Facts


NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)
OUTBOUND = replace(READ, direction=Direction.OUTBOUND, started_at=NOON, called_time_zone="UTC")


@pytest.mark.parametrize(
    ("utc", "zone", "status"),
    [
        ("07:59", "UTC", Status.FIRED),
        ("08:00", "UTC", Status.PASSED),
        ("21:00", "UTC", Status.PASSED),
        ("21:01", "UTC", Status.FIRED),
        ("11:30", "America/New_York", Status.FIRED),
        ("12:30", "America/New_York", Status.PASSED),
        ("14:30", "America/Los_Angeles", Status.FIRED),
        ("12:00", "Mars/Olympus", Status.UNDETERMINED),
        ("12:00", "../etc", Status.UNDETERMINED),
    ],
)
def test_the_hour_of_a_call_is_that_of_the_called_party(utc: str, zone: str, status: Status) -> None:
    began = datetime.fromisoformat(f"2026-07-01T{utc}:00Z")
    assert of("CALL-TIME-01", facts=replace(OUTBOUND, started_at=began, called_time_zone=zone)).status is status


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"called_time_zone": None}, "the called party's time zone is not known"),
        ({"started_at": None}, "when it began is not known"),
    ],
)
def test_what_is_not_known_of_a_call_is_said(change: dict[str, Any], reason: str) -> None:
    outcome = of("CALL-TIME-01", facts=replace(OUTBOUND, **change))
    assert (outcome.status, outcome.reason) == (Status.UNDETERMINED, reason)


def test_a_rule_on_facts_fires_without_a_finding() -> None:
    outcome = of("CALL-TIME-01", facts=replace(OUTBOUND, started_at=NOON - timedelta(hours=6)))
    assert (outcome.detector, outcome.confidence, outcome.start_ms) == ("metadata", 1.0, 0)
    assert outcome.masked == "[began at 06:00 where the called party is]"
    verdict = judge("r", "c", [outcome])
    assert (verdict.violation_type, verdict.evidence_snippet) == ("CALL_OUTSIDE_HOURS", None)


@pytest.mark.parametrize(
    ("attempts", "days", "status"),
    [
        (8, None, Status.FIRED),
        (7, 7, Status.PASSED),
        (7, inf, Status.PASSED),
        (1, 6, Status.FIRED),
        (None, 0, Status.FIRED),
        (None, inf, Status.UNDETERMINED),
        (7, None, Status.UNDETERMINED),
    ],
)
def test_attempts_are_counted_over_seven_days(attempts: int | None, days: float | None, status: Status) -> None:
    facts = replace(OUTBOUND, queue="collections", attempts_7_days=attempts, days_since_conversation=days)
    assert of("FDCPA-7IN7-01", facts=facts).status is status


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"queue": None}, "the queue is not known"),
        ({"queue": "sales"}, "another queue"),
        ({"direction": None}, "the direction is not known"),
        ({"direction": Direction.INBOUND}, "not for inbound recordings"),
        ({"jurisdictions": frozenset({"DE", "EU"})}, "another jurisdiction"),
    ],
)
def test_a_limited_rule_leaves_other_recordings_alone(change: dict[str, Any], reason: str) -> None:
    facts = replace(OUTBOUND, queue="COLLECTIONS west", jurisdictions=frozenset({"US-NY"}), attempts_7_days=8)
    assert of("FDCPA-7IN7-01", facts=facts).fired
    outcome = of("FDCPA-7IN7-01", facts=replace(facts, **change))
    assert (outcome.status, outcome.reason) == (Status.NOT_APPLICABLE, reason)


def test_a_country_alone_may_be_any_of_its_states() -> None:
    facts = replace(READ, annotations=None, speakers=TWO)
    for places, status in (("US", Status.FIRED), ("US-CA", Status.FIRED), ("US-TX", Status.NOT_APPLICABLE)):
        assert of("REC-CONSENT-01", facts=replace(facts, jurisdictions=frozenset({places}))).status is status


@pytest.mark.parametrize(
    ("annotations", "status"),
    [
        (frozenset(), Status.FIRED),
        (frozenset({Annotation.SECURE_FLOW}), Status.PASSED),
        (frozenset({Annotation.PAUSE_NOT_RESUMED}), Status.FIRED),
        (None, Status.UNDETERMINED),
    ],
)
def test_a_secure_pause_excuses_talk_of_cards(annotations: frozenset[Annotation] | None, status: Status) -> None:
    facts = replace(READ, annotations=annotations)
    assert of("PCI-PAUSE-01", phrase("payment_cue"), facts=facts).status is status


def test_where_pauses_are_not_known_a_call_without_talk_of_cards_passes_and_says_so() -> None:
    outcome = of("PCI-PAUSE-01", facts=replace(READ, annotations=None))
    assert (outcome.status, outcome.reason) == (Status.PASSED, "the platform's annotations are not known")
    assert of("PCI-PAUSE-01", facts=READ).reason == ""
    unread = of("PCI-PAUSE-01", facts=replace(HEARD, annotations=None))
    assert (unread.status, unread.reason) == (Status.UNDETERMINED, "needs a transcript")


def test_a_rule_on_annotations_alone_is_undetermined_where_they_are_not_known(tmp_path: Path) -> None:
    content = yaml.safe_load(DEFAULT_PACK.read_text())
    rule = next(rule for rule in content["rules"] if rule["id"] == "PCI-PAUSE-01")
    del rule["when"]["findings"], rule["unless"], rule["examples"]
    content["rules"] = [rule]
    [outcome] = evaluate([], READ, load_policy(written(tmp_path, content)))
    assert outcome.status is Status.PASSED
    [outcome] = evaluate([], replace(READ, annotations=None), load_policy(written(tmp_path, content)))
    assert outcome.status is Status.UNDETERMINED


def test_talk_of_cards_is_the_evidence_though_the_pause_was_not_resumed_either() -> None:
    cue = phrase("payment_cue", 7_000)
    outcome = of("PCI-PAUSE-01", cue, facts=replace(READ, annotations=frozenset({Annotation.PAUSE_NOT_RESUMED})))
    assert (outcome.finding, outcome.start_ms) == (cue, 7_000)


def test_consent_that_nobody_knows_of_is_none() -> None:
    said = phrase("special_category", speaker="customer")
    for consent, fires in ((True, False), (False, True), (None, True)):
        assert of("GDPR-ART9-01", said, facts=replace(CHAT, consent=consent)).fired is fires


# The packaged pack


def test_the_default_pack_says_what_it_is_not_and_what_it_rests_on() -> None:
    assert PACK.policy_version.startswith("default-us-eu@0.3.0+")
    assert "not legal advice" in PACK.notice.lower()
    assert all(rule.basis for rule in PACK.rules)
    assert any(not citation.verified for rule in PACK.rules for citation in rule.basis)


def test_the_default_pack_has_the_sixteen_rules_and_their_review_companions() -> None:
    assert {rule.id for rule in PACK.rules} == {
        "PCI-SAD-01", "PCI-SAD-02", "PCI-PAN-01", "PCI-DTMF-01", "PCI-PAUSE-01", "HIPAA-PHI-01", "HIPAA-VER-01",
        "PII-GOV-01", "GDPR-ART9-01", "GDPR-DSR-01", "REC-CONSENT-01", "TCPA-REV-01", "CALL-TIME-01", "FDCPA-MM-01",
        "FDCPA-7IN7-01", "FDCPA-THREAT-01", "PCI-SAD-03", "PCI-PAN-02", "PII-GOV-02",
        "FDCPA-THREAT-02",
    }  # fmt: skip


def test_every_rule_has_examples_that_fire_and_that_do_not_and_all_hold() -> None:
    results = list(run_examples(PACK))
    assert [(r.rule.id, r.number, r.outcome.status) for r in results if not r.holds] == []
    for rule in PACK.rules:
        expected = {example.expect for example in rule.examples}
        assert Status.FIRED in expected, rule.id
        assert Status.PASSED in expected, rule.id


def test_only_critical_rules_call_a_supervisor() -> None:
    calling = {rule.id for rule in PACK.rules if rule.wants(Action.SUPERVISOR_CALLBACK)}
    critical = {rule.id for rule in PACK.rules if rule.severity is Severity.CRITICAL}
    assert calling == critical == {"PCI-SAD-01", "PCI-SAD-02", "FDCPA-THREAT-01"}


# Verdicts


def test_the_verdict_names_the_gravest_hit() -> None:
    card = finding(start_ms=1_000, end_ms=5_500, confidence=0.99)
    code = finding(FindingKind.CARD_VERIFICATION_CODE, Detector.TONES, 70_250, 71_500, 0.95)
    doubtful = finding(FindingKind.GOVERNMENT_ID, confidence=0.6)
    outcomes = evaluate([card, doubtful, code], HEARD, PACK)
    verdict = judge("rec-1", "corr-1", outcomes)
    assert verdict.model_dump(mode="json", by_alias=True) == {
        "recordingId": "rec-1",
        "verdict": "VIOLATION_DETECTED",
        "violationType": "PCI_SAD_CAPTURE",
        "confidenceScore": 0.95,
        "timestampOffsetMs": 70_250,
        "evidenceSnippet": None,
        "recommendedAction": "ROUTE_TO_COMPLIANCE_QUEUE",
        "correlationId": "corr-1",
    }
    decided = deciding_hit(outcomes)
    assert decided is not None
    assert decided.rule.id == "PCI-SAD-01"


def test_among_equals_the_surer_then_the_earlier_is_named() -> None:
    sure = finding(FindingKind.GOVERNMENT_ID, start_ms=9_000, confidence=0.99)
    verdict = judge("r", "c", evaluate([finding(confidence=0.9), sure], CHAT, PACK))
    assert verdict.violation_type == "PII_GOVERNMENT_ID"
    even = finding(FindingKind.GOVERNMENT_ID, start_ms=9_000, confidence=0.97)
    verdict = judge("r", "c", evaluate([finding(start_ms=10_000), even], CHAT, PACK))
    assert verdict.timestamp_offset_ms == 9_000


def test_a_violation_stands_though_the_media_was_incomplete_and_other_rules_are_undetermined() -> None:
    verdict = judge("r", "c", evaluate([finding()], HEARD, PACK), "cut off")
    assert verdict.verdict is VerdictValue.VIOLATION_DETECTED


def test_a_doubt_asks_for_review() -> None:
    doubt = finding(FindingKind.CARD_LENGTH_NUMBER, Detector.DIGITS, confidence=0.7)
    verdict = judge("r", "c", evaluate([doubt], HEARD, PACK))
    assert (verdict.verdict, verdict.recommended_action) == (
        VerdictValue.REVIEW_REQUIRED,
        RecommendedAction.ROUTE_TO_COMPLIANCE_QUEUE,
    )


def test_nothing_found_is_clean_only_if_all_was_screened() -> None:
    assert judge("r", "c", evaluate([], CHAT, PACK)).verdict is VerdictValue.NO_VIOLATION
    for reason in ("", "the audio ends after 12 of 90 s"):
        for outcomes in ([], evaluate([], HEARD, PACK)):
            verdict = judge("r", "c", outcomes, reason)
            assert verdict.verdict is VerdictValue.UNSCREENABLE
            assert verdict.recommended_action is RecommendedAction.CHECK_MEDIA


def test_nothing_found_where_a_rule_could_not_be_decided_is_undetermined() -> None:
    verdict = judge("r", "c", evaluate([], HEARD, PACK))
    assert (verdict.verdict, verdict.recommended_action) == (
        VerdictValue.UNDETERMINED,
        RecommendedAction.SUPPLY_MISSING_INPUT,
    )


def test_a_verdict_never_points_to_the_recording_itself() -> None:
    assert judge("r", "c", evaluate([finding()], CHAT, PACK)).evidence_snippet is None


# Packs that are wrong


def written(folder: Path, content: Any) -> Path:
    path = folder / "pack.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("severity", "awful", ["rule PCI-SAD-01", "severity"]),
        ("verdict", "NO_VIOLATION", ["rule PCI-SAD-01", "VIOLATION_DETECTED or REVIEW_REQUIRED"]),
        ("violation_type", "pci", ["rule PCI-SAD-01", "violation_type"]),
        ("when", {"findings": {"kinds": [], "min_confidence": 2}}, ["rule PCI-SAD-01", "when.findings.min_confidence"]),
        ("when", {"findings": {"kinds": ["card_numbr"]}}, ["rule PCI-SAD-01", "when.findings.kinds.0"]),
        ("when", {"findings": {"phrases": ["thret"]}}, ["rule PCI-SAD-01 names phrases that are not defined: thret"]),
        ("applies", {"queues": ["a"], "or_said": ["thret"]}, ["names phrases that are not defined: thret"]),
        ("applies", {"or_said": ["threat"]}, ["rule PCI-SAD-01", "applies: or_said needs queues"]),
        ("when", {}, ["rule PCI-SAD-01", "when: needs one of findings, absent, together, sequence, metadata"]),
        ("title", 3, ["rule PCI-SAD-01", "title"]),
        ("actions", ["tag"], ["rule PCI-SAD-01", "actions.0"]),
        ("color", "red", ["rule PCI-SAD-01", "color"]),
        ("id", "PCI-PAN-01", ["rule ids used twice: PCI-PAN-01"]),
        ("id", "lower", ["rule lower", "id"]),
        ("id", None, ["rule number 1", "id"]),
    ],
)
def test_a_wrong_rule_is_refused_by_name_and_field(tmp_path: Path, field: str, value: Any, says: list[str]) -> None:
    content = yaml.safe_load(DEFAULT_PACK.read_text())
    content["rules"][0][field] = value
    path = written(tmp_path, content)
    with pytest.raises(PolicyError) as refused:
        load_policy(path)
    assert all(word in str(refused.value) for word in [*says, str(path)])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("phrases: {threat: {description: d, patterns: ['(a']}}", "rules: Field required"),
        ("rules: [", "is not YAML"),
        ("rules: &a [*a]", "contains itself"),
        ("2001-01-01: c", "keys that are no names"),
        ("", "refused"),
        ("- a\n- b", "refused"),
        ("rules: 3", "rules"),
        ("rules: [3]", "rule number 1"),
        ("!!python/object/apply:os.system ['true']", "is not YAML"),
        ("pack: p\nversion: one\nnotice: n\nrules: []", "version"),
    ],
)
def test_a_file_that_is_no_pack_is_refused(tmp_path: Path, content: str, says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        load_policy(written(tmp_path, content))


def test_a_missing_pack_is_refused_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"absent\.yaml"):
        load_policy(tmp_path / "absent.yaml")


def test_a_pattern_that_cannot_be_read_is_refused_by_its_phrase(tmp_path: Path) -> None:
    content = yaml.safe_load(DEFAULT_PACK.read_text())
    content["phrases"]["threat"]["patterns"] = ["we will ..."]
    content["phrases"]["threat"]["unless"] = ["[maybe]"]
    with pytest.raises(PolicyError, match=r"phrase threat: pattern '\[maybe\]': needs at least one word"):
        load_policy(written(tmp_path, content))
