"""The policy pack: rules and phrases as data (YAML), versioned and validated. Not legal advice.

What the forms mean for a recording is screening/policy's; how phrases are found is screening/phrases's.
"""

import json
import re
from datetime import time
from enum import StrEnum
from hashlib import sha256
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator, model_serializer, model_validator

from compliance_pipeline.contracts.event import Channel, Direction
from compliance_pipeline.contracts.verdict import VerdictValue


class FindingKind(StrEnum):
    """What a detector can find."""

    CARD_NUMBER = "card_number"
    """13-19 digits with a known issuer range (IIN) that pass the Luhn check."""
    CARD_LENGTH_NUMBER = "card_length_number"
    """12 or more digits in one breath that do not verify as a card number: misread, cut, or something else."""
    CARD_VERIFICATION_CODE = "card_verification_code"
    """3-4 digits after a cue such as 'CVV', or keyed right after a card number."""
    CARD_PIN = "card_pin"
    """4-6 digits after a cue such as 'PIN' or 'passcode for the card'."""
    GOVERNMENT_ID = "government_id"
    """A US social security number in a valid area, group and serial; another state's identifier with a valid check."""
    HEALTH_ID = "health_id"
    """An identifier of a health service or insurer with a valid check (NHS number, Medicare)."""
    BANK_ACCOUNT = "bank_account"
    """An IBAN with valid check digits."""
    PHONE_NUMBER = "phone_number"
    EMAIL_ADDRESS = "email_address"
    PHRASE = "phrase"
    """Words of the policy pack's lexicon; `Finding.phrase` says which entry."""


class Detector(StrEnum):
    """What found it: keyed tones, spoken digits, numbers in text, phrases in text.

    Text is a chat, an e-mail, or the transcript of a call.
    """

    TONES = "tones"
    DIGITS = "digits"
    TEXT = "text"
    PHRASES = "phrases"


class Severity(StrEnum):
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        return list(Severity).index(self)


class Action(StrEnum):
    """In the order in which they are done."""

    TAG_RECORDING = "tag_recording"
    QUARANTINE = "quarantine"
    """The platform's deletion protection (legal hold), where it has one."""
    CREATE_WORK_ITEM = "create_work_item"
    SUPERVISOR_CALLBACK = "supervisor_callback"
    NOTIFY = "notify"
    """A message to people: mail, Slack, Teams and the like."""
    PURGE_AFTER_REVIEW = "purge_after_review"
    """The platform deletes the recording, once a person has decided on it and while no legal hold stands."""

    @property
    def is_reversible(self) -> bool:
        """A call and a message reach people and can't be taken back; what is deleted is gone."""
        return self not in (Action.SUPERVISOR_CALLBACK, Action.NOTIFY, Action.PURGE_AFTER_REVIEW)


class Role(StrEnum):
    """Who speaks. A channel whose role the platform does not say has its index instead, which is neither."""

    AGENT = "agent"
    CUSTOMER = "customer"


class Annotation(StrEnum):
    """What the platform may note about a recording."""

    SECURE_PAUSE = "secure_pause"
    """Recording was paused while card data was given, and resumed after."""
    SECURE_FLOW = "secure_flow"
    """Card data was taken by a payment flow that is not recorded."""
    PAUSE_NOT_RESUMED = "pause_not_resumed"
    RECORDING_NOTICE = "recording_notice"
    """The notice was played before the recording began, or shown."""


class Status(StrEnum):
    """What came of a rule for one recording."""

    FIRED = "fired"
    PASSED = "passed"
    UNDETERMINED = "undetermined"
    NOT_APPLICABLE = "not_applicable"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


PhraseName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Seconds = Annotated[float, Field(gt=0)]
Confidence = Annotated[float, Field(ge=0, le=1)]


Priority = Literal["low", "normal", "high"]


class RuleAction(_Strict):
    """What to do when a rule fires: an action's name, or `{name: {parameter: value}}`.

    queue: of the work item or callback; the settings' if None. priority: of the work item; by the rule's severity if
    None. due_hours: until the work item is due, from when it is made. to: channel of the settings' notify_urls.
    """

    action: Action
    queue: Annotated[str, Field(pattern=r"\S")] | None = None
    priority: Priority | None = None
    due_hours: Annotated[float, Field(gt=0, le=24 * 366, strict=True)] | None = None
    to: Annotated[str, Field(pattern=r"\S")] | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_a_name_or_a_mapping(cls, given: Any) -> Any:
        if isinstance(given, str):
            return {"action": given}
        if isinstance(given, dict) and not isinstance(given.get("action"), Action):
            if len(given) != 1:
                raise ValueError("needs one action's name, with its parameters below it")
            [(name, parameters)] = given.items()
            if not isinstance(parameters, dict) or "action" in parameters:
                raise ValueError(f"the parameters of {name} must be names with values")
            return {"action": name, **parameters}
        return given

    @model_validator(mode="after")
    def _has_its_own_parameters_only(self) -> "RuleAction":
        allowed = _PARAMETERS.get(self.action, frozenset())
        if others := self._given.keys() - allowed:
            raise ValueError(f"{self.action} does not take {', '.join(sorted(others))}")
        if self.action is Action.NOTIFY and self.to is None:
            raise ValueError("notify needs `to`: the channel")
        return self

    @property
    def _given(self) -> dict[str, Any]:
        return {name: value for name, value in self if name != "action" and value is not None}

    @model_serializer
    def _as_written(self) -> str | dict[str, Any]:
        """So that a pack without parameters has the digest that it always had."""
        return {self.action.value: self._given} if self._given else self.action.value


_PARAMETERS = {
    Action.CREATE_WORK_ITEM: frozenset({"queue", "priority", "due_hours"}),
    Action.SUPERVISOR_CALLBACK: frozenset({"queue"}),
    Action.NOTIFY: frozenset({"to"}),
}


class Phrase(_Strict):
    """An entry of the lexicon. How patterns are written is said in screening/phrases.py.

    patterns: plain words with (alternatives|of words), [optional words] and ... for up to four words between.
    whole_message: the same, but a turn must hold these words and no others (a text message that says 'STOP').
    unless: patterns that take the phrase back where they overlap it ('not my real card').
    answered: found only where another speaker has the next turn.
    negatable: taken back by 'not', 'never' and the like up to four words before it in the same sentence.
    """

    description: str = Field(min_length=1, max_length=120)
    patterns: tuple[str, ...] = ()
    whole_message: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()
    confidence: Confidence = 0.9
    answered: bool = False
    negatable: bool = True

    @model_validator(mode="after")
    def _has_words(self) -> "Phrase":
        if not (self.patterns or self.whole_message):
            raise ValueError("a phrase needs patterns or whole_message")
        return self


class FindingsForm(_Strict):
    """Any finding of these kinds, or of these phrases, that matches all the rest."""

    kinds: tuple[FindingKind, ...] = ()
    phrases: tuple[PhraseName, ...] = ()
    detectors: tuple[Detector, ...] = Field(default=tuple(Detector), min_length=1)
    speakers: tuple[Role, ...] = Field(default=(), description="empty: whoever")
    min_confidence: Confidence = 0.5

    @model_validator(mode="after")
    def _looks_for_something(self) -> "FindingsForm":
        if FindingKind.PHRASE in self.kinds:
            raise ValueError("name the phrases under `phrases` instead of the kind `phrase`")
        if not (self.kinds or self.phrases):
            raise ValueError("needs kinds or phrases")
        return self


class AbsentForm(_Strict):
    """Something that had to be said, and was not.

    phrases: all of them. later: those that are enough when it is not the first contact about the matter.
    speakers: who had to say it; where none of them has a turn, nothing is missing.
    within_s: from the start of the recording. annotated: any of these counts as said.
    """

    phrases: tuple[PhraseName, ...] = Field(min_length=1)
    later: tuple[PhraseName, ...] = ()
    speakers: tuple[Role, ...] = ()
    within_s: Seconds | None = None
    annotated: tuple[Annotation, ...] = ()
    min_confidence: Confidence = 0.5


class TogetherForm(_Strict):
    """A finding of the one and a finding of the other that begin no more than `within_s` apart."""

    one: FindingsForm
    other: FindingsForm
    within_s: Seconds


class SequenceForm(_Strict):
    """`then` comes before `at_least` different kinds or phrases of `first` have come."""

    first: FindingsForm
    at_least: int = Field(default=1, ge=1)
    then: FindingsForm


class LocalTimes(_Strict):
    """A time outside of these, where the called party is: before `earliest` or after `latest`."""

    earliest: time
    latest: time


class ContactFrequency(_Strict):
    """More attempts within seven days than these, this one included; or an attempt this soon after a conversation."""

    attempts_over: int = Field(ge=0)
    conversation_within_days: int = Field(ge=0)


class MetadataForm(_Strict):
    """Facts about the recording, whatever was said in it. Exactly one of these."""

    started_outside: LocalTimes | None = None
    contacts: ContactFrequency | None = None
    annotated: tuple[Annotation, ...] = ()

    @model_validator(mode="after")
    def _is_one(self) -> "MetadataForm":
        if sum(map(bool, (self.started_outside, self.contacts, self.annotated))) != 1:
            raise ValueError("needs exactly one of started_outside, contacts, annotated")
        return self


class When(_Strict):
    """A rule fires when one of its forms does; most rules have one form."""

    findings: FindingsForm | None = None
    absent: AbsentForm | None = None
    together: TogetherForm | None = None
    sequence: SequenceForm | None = None
    metadata: MetadataForm | None = None

    @model_validator(mode="after")
    def _has_a_form(self) -> "When":
        if not any(self.model_dump(exclude_none=True)):
            raise ValueError("needs one of findings, absent, together, sequence, metadata")
        return self

    @property
    def phrases(self) -> set[str]:
        """The lexicon's entries that the forms name."""
        return set(self.absent.phrases + self.absent.later if self.absent else ()) | {
            name for form in self.findings_forms for name in form.phrases
        }

    @property
    def findings_forms(self) -> tuple[FindingsForm, ...]:
        """All sets of findings that the forms look at."""
        forms = [self.findings]
        if self.together:
            forms += [self.together.one, self.together.other]
        if self.sequence:
            forms += [self.sequence.first, self.sequence.then]
        return tuple(form for form in forms if form)


class Applies(_Strict):
    """To which recordings. A limit on direction or queue keeps the rule from recordings that do not say theirs.

    queues: shell globs, whatever the case. or_said: a recording with any of these is meant, whatever its queue.
    except_queues: these are left out; an unknown queue is not.
    """

    directions: tuple[Direction, ...] = ()
    queues: tuple[str, ...] = ()
    or_said: tuple[PhraseName, ...] = ()
    except_queues: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _is_an_alternative(self) -> "Applies":
        if self.or_said and not self.queues:
            raise ValueError("or_said needs queues: without them every queue is meant")
        return self


class Unless(_Strict):
    """What excuses a recording that the rule would fire on.

    annotations: any of these; where the platform has no annotations the rule stays undetermined.
    consent: the person's consent is on record; one that nobody knows of is none.
    phrases: any of these was said.
    """

    annotations: tuple[Annotation, ...] = ()
    consent: bool = False
    phrases: tuple[PhraseName, ...] = ()


class Citation(_Strict):
    """verified: somebody compared the rule with the clause's text, at `source`."""

    cite: str = Field(min_length=1)
    verified: bool = False
    source: str | None = Field(default=None, description="where the text was read")

    @model_validator(mode="after")
    def _verified_says_where(self) -> "Citation":
        if self.verified is not (self.source is not None):
            raise ValueError("a verified citation, and no other, names its source")
        return self


class ExampleFinding(_Strict):
    kind: FindingKind
    detector: Detector = Detector.TEXT
    speaker: str = Role.CUSTOMER
    at_s: float = Field(default=0, ge=0)
    confidence: Confidence = 0.95
    phrase: PhraseName | None = None


class ExampleFacts(_Strict):
    """See `Facts` in screening/policy.py. transcript: of a voice recording that has no words here."""

    channel: Channel | None = None
    transcript: bool = False
    complete: bool = True
    direction: Direction | None = None
    queue: str | None = None
    started_at: AwareDatetime | None = None
    duration_s: float | None = None
    called_time_zone: str | None = None
    attempts_7_days: int | None = None
    days_since_conversation: int | None = None
    first_contact: bool | None = None
    annotations: tuple[Annotation, ...] | None = None
    consent: bool | None = None
    jurisdictions: tuple[str, ...] | None = None


class Example(_Strict):
    """What must come of the rule for a small recording: words, findings, or both.

    text: a turn a line, `agent: words`, or `12 agent: words` for one that begins 12 s from the start.
    """

    expect: Status
    text: str | None = None
    findings: tuple[ExampleFinding, ...] = ()
    facts: ExampleFacts = ExampleFacts()

    @field_validator("text")
    @classmethod
    def _is_turns(cls, text: str | None) -> str | None:
        for number, line in enumerate((text or "").strip().splitlines(), 1):
            if not re.match(EXAMPLE_TURN, line.strip()):
                raise ValueError(f"line {number} must be `agent: words` or `12 agent: words`")
        return text


EXAMPLE_TURN = r"(?:(?P<at_s>\d+(?:\.\d+)?) +)?(?P<speaker>agent|customer|\d): *(?P<words>.*)"


class Rule(_Strict):
    """guidance: what people should do that no action of ours does, e.g. by when."""

    id: Annotated[str, Field(pattern=r"^[A-Z0-9]+(-[A-Z0-9]+)+$")]
    title: str
    basis: tuple[Citation, ...] = Field(min_length=1, description="the clauses or standards that the rule rests on")
    severity: Severity
    violation_type: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")]
    verdict: VerdictValue = VerdictValue.VIOLATION_DETECTED
    channels: tuple[Channel, ...] = Field(default=tuple(Channel), min_length=1)
    jurisdictions: tuple[str, ...] = Field(
        default=(), description="ISO 3166 codes, or EU; empty: anywhere. A recording that does not say: all of them"
    )
    applies: Applies = Applies()
    when: When
    unless: Unless = Unless()
    actions: tuple[RuleAction, ...] = Field(min_length=1)
    guidance: str | None = None
    examples: tuple[Example, ...] = ()

    @model_validator(mode="after")
    def _a_rule_accuses_or_asks(self) -> "Rule":
        if self.verdict not in (VerdictValue.VIOLATION_DETECTED, VerdictValue.REVIEW_REQUIRED):
            raise ValueError(f"rule {self.id}: verdict must be VIOLATION_DETECTED or REVIEW_REQUIRED")
        return self

    @model_validator(mode="after")
    def _each_action_once(self) -> "Rule":
        names = [wanted.action for wanted in self.actions]
        if twice := {name.value for name in names if names.count(name) > 1}:
            raise ValueError(f"rule {self.id} names an action twice: {', '.join(sorted(twice))}")
        return self

    def wants(self, action: Action) -> bool:
        return any(wanted.action is action for wanted in self.actions)


class RetentionRule(_Strict):
    """How long the vault keeps one kind of data. Of several rules that apply, the earliest day counts.

    verdicts, kinds: of the newest verdict, and of any finding; empty: whatever they are.
    days: from when the recording became available. after_review: due as soon as a person has decided, `days` at most.
    """

    name: str = Field(pattern=r"^[a-z0-9-]+$")
    data: Literal["clip", "original"]
    verdicts: tuple[VerdictValue, ...] = ()
    kinds: tuple[FindingKind, ...] = ()
    days: float = Field(ge=0, le=36_500)
    after_review: bool = False
    basis: str = ""


SENSITIVE_CODES = (FindingKind.CARD_VERIFICATION_CODE, FindingKind.CARD_PIN)
"""Audio that holds one is not kept after authorisation, not even encrypted (PCI DSS 4.0.1, 3.3.1; FAQ 1210)."""
_NOT_STORED = (
    "PCI DSS 4.0.1, 3.3.1, with PCI SSC FAQ 1210: audio that holds a card verification code or PIN is not kept after "
    "authorisation, not even encrypted"
)
DEFAULT_RETENTION = (
    RetentionRule(name="clips", data="clip", days=365),
    RetentionRule(name="originals", data="original", days=365),
    RetentionRule(
        name="clips-beside-codes", data="clip", kinds=SENSITIVE_CODES, days=90, after_review=True,
        basis=f"{_NOT_STORED}; the clip is masked, and not needed once a person has decided",
    ),
    RetentionRule(
        name="originals-with-codes", data="original", kinds=SENSITIVE_CODES, days=30, after_review=True,
        basis=_NOT_STORED,
    ),
)  # fmt: skip


class PolicyPack(_Strict):
    """retention: what the vault keeps and for how long; of a pack that does not say, DEFAULT_RETENTION. An empty list
    keeps everything."""

    pack: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]
    version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]
    notice: str = Field(description="what the pack is not, shown beside its results")
    phrases: dict[PhraseName, Phrase] = Field(default_factory=dict)
    rules: tuple[Rule, ...] = Field(min_length=1)
    retention: tuple[RetentionRule, ...] = DEFAULT_RETENTION

    @model_validator(mode="after")
    def _retention_names_are_unique(self) -> "PolicyPack":
        names = [rule.name for rule in self.retention]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"retention rules named twice: {', '.join(sorted(twice))}")
        return self

    @model_validator(mode="after")
    def _rule_ids_are_unique(self) -> "PolicyPack":
        ids = [rule.id for rule in self.rules]
        if twice := {rule_id for rule_id in ids if ids.count(rule_id) > 1}:
            raise ValueError(f"rule ids used twice: {', '.join(sorted(twice))}")
        return self

    @model_validator(mode="after")
    def _phrases_are_in_the_lexicon(self) -> "PolicyPack":
        for rule in self.rules:
            named = rule.when.phrases | set(rule.unless.phrases + rule.applies.or_said)
            if unknown := named - self.phrases.keys():
                raise ValueError(f"rule {rule.id} names phrases that are not defined: {', '.join(sorted(unknown))}")
        return self

    @property
    def policy_version(self) -> str:
        """The key under which verdicts are kept, e.g. `default-us-eu@0.1.0+1f2e3d4c`.

        The end is a digest of the content: an edited pack is another policy, whether or not its version was raised.
        Only how long things are kept is left out: it changes no verdict.
        """
        return f"{self.pack}@{self.version}+{sha256(self.content.encode()).hexdigest()[:8]}"

    @property
    def content(self) -> str:
        """What judges, as JSON; the start of its SHA-256 is the end of `policy_version`."""
        return self.model_dump_json(exclude={"retention"})

    @property
    def lexicon_version(self) -> str:
        """A digest of the phrases alone: only a change of these needs the words again, not just the findings."""
        phrases = {name: phrase.model_dump(mode="json") for name, phrase in self.phrases.items()}
        return sha256(json.dumps(phrases, sort_keys=True).encode()).hexdigest()[:8]
