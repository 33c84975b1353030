"""Findings and facts to what comes of each rule, and to a verdict, by a policy pack. Pure but for reading its file.

What was found belongs to the detectors; what is done about a rule that fired belongs to remediation.
"""

import json
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import yaml
from pydantic import ValidationError

from compliance_pipeline.contracts.event import Channel, Direction
from compliance_pipeline.contracts.policy import (
    EXAMPLE_TURN,
    AbsentForm,
    Annotation,
    ContactFrequency,
    Detector,
    Example,
    FindingKind,
    FindingsForm,
    LocalTimes,
    MetadataForm,
    PolicyPack,
    Role,
    Rule,
    SequenceForm,
    Status,
    TogetherForm,
)
from compliance_pipeline.contracts.verdict import RecommendedAction, Verdict, VerdictValue
from compliance_pipeline.screening.findings import Finding

DEFAULT_PACK = Path(__file__).parent / "policies" / "default-us-eu.yaml"

METADATA = "metadata"
"""In place of a detector, where a rule fired on facts about the recording rather than on what is in it."""
ABSENCE_CONFIDENCE = 0.8
"""That something was not said: a recogniser may have lost it. An engineering value."""

NEEDS_TRANSCRIPT = "needs a transcript"
UNKNOWN_SPEAKER = "the transcript does not say who is the agent"
NO_TIMES = "the transcript has no times"
NO_ANNOTATIONS = "the platform's annotations are not known"


class PolicyError(ValueError):
    """A policy pack that can't be used. Names the file, the rule, the field, and what is wrong with it.

    `faults`: one line for each.
    """

    def __init__(self, message: str, faults: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.faults = tuple(faults) or (message,)


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a recording besides what was found in it; None: not known.

    transcript_read: of a voice recording; chats and e-mails are always read. words_timed: False where that transcript
    has no times. speakers: who has a turn in the words that were read. complete: False where its end is missing.
    called_time_zone: IANA name, of the called party. attempts_7_days: to this person for this matter, this one
    included. days_since_conversation: calendar days, 0 on the same day, infinity if there was none. first_contact:
    about this matter. consent: to the processing of special categories of data. jurisdictions: of the parties, ISO
    3166 codes (`US-CA`, `DE`), and `EU` for its member states.
    """

    channel: Channel
    transcript_read: bool = False
    words_timed: bool = True
    speakers: frozenset[str] = frozenset()
    complete: bool = True
    direction: Direction | None = None
    queue: str | None = None
    started_at: datetime | None = None
    duration_ms: int | None = None
    called_time_zone: str | None = None
    attempts_7_days: int | None = None
    days_since_conversation: float | None = None
    first_contact: bool | None = None
    annotations: frozenset[Annotation] | None = None
    consent: bool | None = None
    jurisdictions: frozenset[str] | None = None

    @property
    def words_known(self) -> bool:
        return self.transcript_read or self.channel is not Channel.VOICE

    @property
    def order_only(self) -> bool:
        """The words of a call are known, and in which order, but not when they were said."""
        return self.channel is Channel.VOICE and not self.words_timed

    @property
    def writer(self) -> Role | None:
        """Of an e-mail, which has one, though it may quote the other party."""
        if self.channel is not Channel.EMAIL or self.direction is None:
            return None
        return Role.CUSTOMER if self.direction is Direction.INBOUND else Role.AGENT


@dataclass(frozen=True, slots=True)
class RuleOutcome:
    """What came of a rule for one recording.

    reason: why it could not be decided, does not apply, was excused, or fired without a finding; safe to show.
    finding: the best (highest confidence, then earliest) of `findings`, all that the rule fired on, each one of those
    given; None and empty where it fired on what was not said or on facts about the recording.
    near: of a rule on what comes together, what was found next to `finding`; time and confidence are those of both.
    """

    rule: Rule
    status: Status
    reason: str = ""
    finding: Finding | None = None
    findings: tuple[Finding, ...] = ()
    near: Finding | None = None

    @property
    def fired(self) -> bool:
        return self.status is Status.FIRED

    @property
    def count(self) -> int:
        return len(self.findings) or 1

    @property
    def detector(self) -> str:
        if self.finding:
            return self.finding.detector
        return METADATA if self.rule.when.metadata else Detector.PHRASES

    @property
    def speaker(self) -> str:
        return self.finding.speaker if self.finding else ""

    @property
    def start_ms(self) -> int:
        return min((finding.start_ms for finding in self._evidence), default=0)

    @property
    def end_ms(self) -> int:
        return max((finding.end_ms for finding in self._evidence), default=0)

    @property
    def confidence(self) -> float:
        if self.finding:
            return min(finding.confidence for finding in self._evidence)
        return 1.0 if self.rule.when.metadata else ABSENCE_CONFIDENCE

    @property
    def masked(self) -> str:
        return self.finding.masked if self.finding else f"[{self.reason}]"

    @property
    def _evidence(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in (self.finding, self.near) if finding)


# Loading


def load_policy(path: Path | None = None) -> PolicyPack:
    """The pack in `path`, or the packaged one. Raises PolicyError."""
    from compliance_pipeline.screening.phrases import PatternError, compile_lexicon

    path = path or DEFAULT_PACK
    try:
        # The same safe loader, in C where PyYAML has it: a pack takes 20 ms instead of 300.
        content = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(f"policy pack {path} can't be read: {error}") from error
    except yaml.YAMLError as error:
        raise PolicyError(f"policy pack {path} is not YAML: {error}") from error
    try:
        # By way of JSON, in which lists and names are all that tuples and enumerations can be: strict, yet readable.
        document = json.dumps(content, default=str)
    except (TypeError, ValueError, RecursionError) as error:
        raise PolicyError(f"policy pack {path} is refused: it holds what no pack can (keys that are no names, or a "
                          "part that contains itself). Mend it and load it again.") from error  # fmt: skip
    try:
        pack = PolicyPack.model_validate_json(document, strict=True)
        compile_lexicon(pack.phrases)
    except ValidationError as error:
        faults = [_fault(content, fault["loc"], fault["msg"]) for fault in error.errors()]
    except PatternError as error:
        faults = [str(error)]
    else:
        return pack
    raise PolicyError(f"policy pack {path} is refused: {'; '.join(faults)}. Mend it and load it again.", faults)


def _fault(content: Any, location: tuple[int | str, ...], message: str) -> str:
    """`rule PCI-PAN-01, when.findings.min_confidence: Input should be ...`"""
    where = ""
    match location:
        case ("rules", int(at), *field):
            rule = content["rules"][at]
            name = rule.get("id") if isinstance(rule, dict) else None
            where, location = f"rule {name or f'number {at + 1}'}", tuple(field)
        case ("phrases", str(name), *field):
            where, location = f"phrase {name}", tuple(field)
    path = ".".join(str(part) for part in location)
    return f"{', '.join(part for part in (where, path) if part) or 'pack'}: {message.removeprefix('Value error, ')}"


# Evaluation


def evaluate(findings: Iterable[Finding], facts: Facts, policy: PolicyPack) -> list[RuleOutcome]:
    """What comes of every rule, in the pack's order.

    A rule about words says nothing of a voice recording without a transcript: UNDETERMINED, never PASSED. A rule that
    asks for review looks only at findings that no rule of violation has settled, and takes a speaker of unknown role
    for whomever it asks about; a rule that accuses does not.
    """
    found = sorted(findings, key=lambda finding: finding.start_ms)
    settled: set[int] = set()
    outcomes: dict[str, RuleOutcome] = {}
    for verdict in (VerdictValue.VIOLATION_DETECTED, VerdictValue.REVIEW_REQUIRED):
        unsettled = [finding for finding in found if id(finding) not in settled]
        for rule in policy.rules:
            if rule.verdict is verdict:
                outcome = outcomes[rule.id] = _Evaluation(rule, found, unsettled, facts).outcome()
                if verdict is VerdictValue.VIOLATION_DETECTED and rule.when.findings:
                    settled.update(map(id, outcome.findings))
    return [outcomes[rule.id] for rule in policy.rules]


@dataclass(frozen=True, slots=True)
class _Chosen:
    """Findings that a form looks for; `perhaps` are of speakers whose role is unknown."""

    surely: list[Finding]
    perhaps: list[Finding]

    @property
    def all(self) -> list[Finding]:
        return sorted(self.surely + self.perhaps, key=lambda finding: finding.start_ms)


@dataclass(frozen=True, slots=True)
class _Evaluation:
    """One rule on one recording. `unsettled`: findings that no rule of violation has settled."""

    rule: Rule
    found: list[Finding]
    unsettled: list[Finding]
    facts: Facts

    def outcome(self) -> RuleOutcome:
        if why := _not_applicable(self.rule, self.facts, self.found):
            return self._result(Status.NOT_APPLICABLE, why)
        when = self.rule.when
        results = [
            *([self._findings(when.findings)] if when.findings else []),
            *([self._absent(when.absent)] if when.absent else []),
            *([self._together(when.together)] if when.together else []),
            *([self._sequence(when.sequence)] if when.sequence else []),
            *([self._metadata(when.metadata)] if when.metadata else []),
        ]
        order = (Status.FIRED, Status.UNDETERMINED, Status.PASSED, Status.NOT_APPLICABLE)
        # What passes with a reason (something was not known, and does not matter) says more than what just passes.
        worst = min(
            results,
            key=lambda result: (order.index(result.status), result.status is Status.PASSED and not result.reason),
        )
        if worst.status not in (Status.FIRED, Status.UNDETERMINED):
            return worst
        if excuse := self._excuse():
            return self._result(Status.PASSED, excuse)
        if worst.fired and self.rule.unless.annotations and self.facts.annotations is None:
            return self._result(Status.UNDETERMINED, NO_ANNOTATIONS)
        return worst

    def _result(self, status: Status, reason: str = "", findings: Sequence[Finding] = ()) -> RuleOutcome:
        best = min(findings, key=lambda finding: (-finding.confidence, finding.start_ms), default=None)
        return RuleOutcome(self.rule, status, reason, best, tuple(findings))

    @property
    def _timed(self) -> list[Finding]:
        """Of what was found, that whose time is known."""
        return [finding for finding in self.found if not self.facts.order_only or finding.detector in _BY_EAR]

    def _excuse(self) -> str:
        unless = self.rule.unless
        if unless.consent and self.facts.consent:
            return "excused: consent is on record"
        if noted := sorted(set(unless.annotations) & (self.facts.annotations or frozenset())):
            return f"excused: the platform notes {', '.join(noted)}"
        if said := sorted({finding.phrase for finding in self.found if finding.phrase} & set(unless.phrases)):
            return f"excused by what was said: {', '.join(said)}"
        return ""

    def _choose(self, form: FindingsForm, among: list[Finding]) -> _Chosen:
        review = self.rule.verdict is VerdictValue.REVIEW_REQUIRED
        chosen = _Chosen([], [])
        for finding in among:
            if (
                (finding.kind in form.kinds or (finding.kind is FindingKind.PHRASE and finding.phrase in form.phrases))
                and finding.detector in form.detectors
                and finding.confidence >= form.min_confidence
            ):
                # An e-mail of ours may quote the customer's; what is in the customer's is held against nobody else.
                known = _has_role(finding) or self.facts.writer is Role.CUSTOMER
                speaker = finding.speaker if _has_role(finding) else self.facts.writer
                if not form.speakers or (speaker in form.speakers if known else review):
                    chosen.surely.append(finding)
                elif not known:
                    chosen.perhaps.append(finding)
        return chosen

    def _nothing_found(self, *forms: FindingsForm) -> RuleOutcome:
        if not self.facts.words_known and any(map(_needs_words, forms)):
            return self._result(Status.UNDETERMINED, NEEDS_TRANSCRIPT)
        return self._result(Status.PASSED)

    def _findings(self, form: FindingsForm) -> RuleOutcome:
        review = self.rule.verdict is VerdictValue.REVIEW_REQUIRED
        chosen = self._choose(form, self.unsettled if review else self.found)
        if chosen.surely:
            return self._result(Status.FIRED, "", chosen.surely)
        if chosen.perhaps:
            return self._result(Status.UNDETERMINED, UNKNOWN_SPEAKER)
        return self._nothing_found(form)

    def _absent(self, form: AbsentForm) -> RuleOutcome:
        if noted := set(form.annotated) & (self.facts.annotations or frozenset()):
            return self._result(Status.PASSED, f"the platform notes {', '.join(sorted(noted))}")
        if not self.facts.words_known:
            return self._result(Status.UNDETERMINED, NEEDS_TRANSCRIPT)
        said = {
            finding.phrase
            for finding in self.found
            if finding.kind is FindingKind.PHRASE
            and finding.confidence >= form.min_confidence
            and (not form.speakers or finding.speaker in form.speakers or not _has_role(finding))
            and (form.within_s is None or finding.start_ms <= form.within_s * 1000)
        }
        short = form.within_s and self.facts.duration_ms is not None and self.facts.duration_ms < form.within_s * 1000
        missing = [name for name in form.phrases if name not in said]
        if not missing:
            if form.within_s and self.facts.order_only and not short:
                return self._result(Status.UNDETERMINED, NO_TIMES)
            return self._result(Status.PASSED)
        if form.later and said.issuperset(form.later) and self.facts.first_contact is not True:
            if self.facts.first_contact is None:
                return self._result(Status.UNDETERMINED, "whether this is the first contact is not known")
            return self._result(Status.PASSED, "enough where it is not the first contact")
        if form.within_s is None and not self.facts.complete:
            return self._result(Status.UNDETERMINED, "the end of the recording is missing")
        if short:
            return self._result(Status.NOT_APPLICABLE, f"it ended before {form.within_s:g} s were over")
        speakers = frozenset({self.facts.writer}) if self.facts.writer else self.facts.speakers
        if form.speakers and not speakers & set(form.speakers):
            if speakers and speakers <= set(Role):
                return self._result(Status.NOT_APPLICABLE, f"the {' or '.join(form.speakers)} says nothing in it")
            return self._result(Status.UNDETERMINED, UNKNOWN_SPEAKER)
        if form.within_s and self.facts.order_only:
            return self._result(Status.UNDETERMINED, NO_TIMES)
        within = f" within {form.within_s:g} s" if form.within_s else ""
        return self._result(Status.FIRED, f"not said{within}: {', '.join(missing)}")

    def _together(self, form: TogetherForm) -> RuleOutcome:
        one, other = self._choose(form.one, self._timed), self._choose(form.other, self._timed)
        if pairs := _near(one.surely, other.surely, form.within_s):
            finding, near = min(pairs, key=lambda pair: (-min(f.confidence for f in pair), pair[0].start_ms))
            return RuleOutcome(self.rule, Status.FIRED, "", finding, tuple(pair[0] for pair in pairs), near)
        if _near(one.all, other.all, form.within_s):
            return self._result(Status.UNDETERMINED, UNKNOWN_SPEAKER)
        if self.facts.order_only:
            either = [self._choose(side, self.found) for side in (form.one, form.other)]
            if all(chosen.all for chosen in either):
                return self._result(Status.UNDETERMINED, NO_TIMES)
        return self._nothing_found(form.one, form.other)

    def _sequence(self, form: SequenceForm) -> RuleOutcome:
        then, first = self._choose(form.then, self.found), self._choose(form.first, self.found)
        place = {id(finding): at for at, finding in enumerate(self.found)}
        before = sorted(first.surely + first.perhaps, key=lambda finding: place[id(finding)])

        def too_early(finding: Finding) -> bool:
            came = {f.phrase or f.kind for f in before if place[id(f)] < place[id(finding)]}
            return len(came) < form.at_least

        # What comes first has the least before it.
        if early := [finding for finding in then.surely[:1] if too_early(finding)]:
            return self._result(Status.FIRED, "", early)
        if any(too_early(finding) for finding in then.perhaps[:1]):
            return self._result(Status.UNDETERMINED, UNKNOWN_SPEAKER)
        return self._nothing_found(form.then, form.first)

    def _metadata(self, form: MetadataForm) -> RuleOutcome:
        if form.started_outside:
            return self._started_outside(form.started_outside)
        if form.contacts:
            return self._contacts(form.contacts)
        if self.facts.annotations is None:
            # Most platforms note nothing: were this undetermined, no recording of theirs would ever be clean.
            alone = not (self.rule.when.findings_forms or self.rule.when.absent)
            return self._result(Status.UNDETERMINED if alone else Status.PASSED, NO_ANNOTATIONS)
        noted = sorted(set(form.annotated) & self.facts.annotations)
        return self._result(Status.FIRED, f"the platform notes {', '.join(noted)}") if noted else self._nothing_found()

    def _started_outside(self, times: LocalTimes) -> RuleOutcome:
        if self.facts.started_at is None:
            return self._result(Status.UNDETERMINED, "when it began is not known")
        if self.facts.called_time_zone is None:
            return self._result(Status.UNDETERMINED, "the called party's time zone is not known")
        try:
            zone = ZoneInfo(self.facts.called_time_zone)
        except (ValueError, OSError, LookupError):  # ZoneInfoNotFoundError is a KeyError
            return self._result(Status.UNDETERMINED, "the called party's time zone is not one of the IANA database")
        local = self.facts.started_at.astimezone(zone).time()
        if times.earliest <= local <= times.latest:
            return self._result(Status.PASSED)
        return self._result(Status.FIRED, f"began at {local:%H:%M} where the called party is")

    def _contacts(self, limit: ContactFrequency) -> RuleOutcome:
        attempts, days = self.facts.attempts_7_days, self.facts.days_since_conversation
        if attempts is not None and attempts > limit.attempts_over:
            return self._result(Status.FIRED, f"{attempts} attempts within seven days")
        if days is not None and days < limit.conversation_within_days:
            return self._result(Status.FIRED, f"{days:g} days after a conversation")
        if attempts is None:
            return self._result(Status.UNDETERMINED, "the number of attempts in seven days is not known")
        if days is None:
            return self._result(Status.UNDETERMINED, "when the last conversation was is not known")
        return self._result(Status.PASSED)


def _has_role(finding: Finding) -> bool:
    return finding.speaker in tuple(Role)


_BY_EAR = frozenset({Detector.TONES, Detector.DIGITS})
_HEARD = frozenset({FindingKind.CARD_NUMBER, FindingKind.CARD_LENGTH_NUMBER})
"""What the audio alone gives, spoken or keyed; everything else needs the words around it."""


def _needs_words(form: FindingsForm) -> bool:
    by_words = {Detector.TEXT, Detector.PHRASES} & set(form.detectors)
    return bool(by_words) and bool(form.phrases or set(form.kinds) - _HEARD)


def _near(one: list[Finding], other: list[Finding], within_s: float) -> list[tuple[Finding, Finding]]:
    """Each of the one with some of the other near it, and the nearest of those; both lists in order of time."""
    starts = [finding.start_ms for finding in other]
    pairs = []
    for finding in one:
        at = bisect_left(starts, finding.start_ms)
        nearest = min(other[max(0, at - 1) : at + 1], key=lambda o: abs(o.start_ms - finding.start_ms), default=None)
        if nearest and abs(nearest.start_ms - finding.start_ms) <= within_s * 1000:
            pairs.append((finding, nearest))
    return pairs


def _not_applicable(rule: Rule, facts: Facts, found: list[Finding]) -> str:
    """Why the rule is not for this recording; '' if it is."""
    applies = rule.applies
    if facts.channel not in rule.channels:
        return f"not for {facts.channel}"
    if rule.jurisdictions and facts.jurisdictions is not None:
        near = any(a == b or a.startswith(f"{b}-") or b.startswith(f"{a}-")
                   for a in rule.jurisdictions for b in facts.jurisdictions)  # fmt: skip
        if not near:
            return "another jurisdiction"
    if applies.directions and facts.direction not in applies.directions:
        return f"not for {facts.direction} recordings" if facts.direction else "the direction is not known"
    # Without words nobody knows that it was not said.
    if applies.or_said and (not facts.words_known or any(finding.phrase in applies.or_said for finding in found)):
        return ""
    if applies.queues and not _named(facts.queue, applies.queues):
        return "another queue" if facts.queue else "the queue is not known"
    return "a queue that the rule leaves out" if _named(facts.queue, applies.except_queues) else ""


def _named(queue: str | None, globs: tuple[str, ...]) -> bool:
    return queue is not None and any(fnmatchcase(queue.lower(), glob.lower()) for glob in globs)


# Verdict


def deciding_hit(outcomes: Iterable[RuleOutcome]) -> RuleOutcome | None:
    """The fired rule that names the verdict: a violation before a review, then severity, confidence, the earliest."""
    return min(
        (outcome for outcome in outcomes if outcome.fired),
        key=lambda hit: (
            hit.rule.verdict is not VerdictValue.VIOLATION_DETECTED,
            -hit.rule.severity.rank,
            -hit.confidence,
            hit.start_ms,
        ),
        default=None,
    )


def judge(
    recording_id: str, correlation_id: str, outcomes: Sequence[RuleOutcome], unscreenable_reason: str | None = None
) -> Verdict:
    """The verdict on one recording: what was found stands even if the media was incomplete; else incomplete media is
    UNSCREENABLE and a rule that could not be decided makes it UNDETERMINED, neither of which is clean.

    It names no evidence: that is the masked clip, which is made and verified after the flag.
    """
    if hit := deciding_hit(outcomes):
        return Verdict(
            recording_id=recording_id,
            verdict=hit.rule.verdict,
            violation_type=hit.rule.violation_type,
            confidence_score=hit.confidence,
            timestamp_offset_ms=hit.start_ms,
            recommended_action=RecommendedAction.ROUTE_TO_COMPLIANCE_QUEUE,
            correlation_id=correlation_id,
        )
    if unscreenable_reason is not None:
        verdict, action = VerdictValue.UNSCREENABLE, RecommendedAction.CHECK_MEDIA
    elif any(outcome.status is Status.UNDETERMINED for outcome in outcomes):
        verdict, action = VerdictValue.UNDETERMINED, RecommendedAction.SUPPLY_MISSING_INPUT
    else:
        verdict, action = VerdictValue.NO_VIOLATION, RecommendedAction.NONE
    return Verdict(recording_id=recording_id, verdict=verdict, recommended_action=action, correlation_id=correlation_id)


# Examples beside the rules


@dataclass(frozen=True, slots=True)
class ExampleResult:
    """number: from 1, within the rule."""

    rule: Rule
    number: int
    example: Example
    outcome: RuleOutcome

    @property
    def holds(self) -> bool:
        return self.outcome.status is self.example.expect


def run_examples(policy: PolicyPack) -> Iterator[ExampleResult]:
    """Every example of every rule, through the detectors for words and numbers in text, and the whole pack."""
    from compliance_pipeline.screening.phrases import compile_lexicon, find_phrases
    from compliance_pipeline.screening.text import screen_text
    from compliance_pipeline.screening.transcripts import Transcript, Turn

    lexicon = compile_lexicon(policy.phrases)
    for rule in policy.rules:
        for number, example in enumerate(rule.examples, 1):
            findings = [
                Finding(
                    given.kind, given.detector, given.speaker, round(given.at_s * 1000), round(given.at_s * 1000),
                    given.confidence, "****", phrase=given.phrase,
                )
                for given in example.findings
            ]  # fmt: skip
            lines = [re.match(EXAMPLE_TURN, line.strip()) for line in (example.text or "").strip().splitlines()]
            turns = tuple(
                Turn(line["speaker"], round(float(line["at_s"] or 0) * 1000), line["words"]) for line in lines if line
            )
            if turns:
                transcript = Transcript(turns)
                findings += find_phrases(transcript, lexicon) + screen_text(transcript)
            speakers = frozenset(turn.speaker for turn in turns)
            outcomes = evaluate(findings, _example_facts(rule, example, speakers), policy)
            outcome = next(outcome for outcome in outcomes if outcome.rule is rule)
            yield ExampleResult(rule, number, example, outcome)


def _example_facts(rule: Rule, example: Example, speakers: frozenset[str]) -> Facts:
    given: Mapping[str, Any] = example.facts.model_dump(exclude={"transcript", "channel", "duration_s"})
    facts = example.facts
    return Facts(
        **{
            **given,
            "channel": facts.channel or rule.channels[0],
            "speakers": speakers,
            "transcript_read": example.text is not None or facts.transcript,
            "duration_ms": None if facts.duration_s is None else round(facts.duration_s * 1000),
            "annotations": None if facts.annotations is None else frozenset(facts.annotations),
            "jurisdictions": None if facts.jurisdictions is None else frozenset(facts.jurisdictions),
        }
    )
