"""The policy pack: rules as data (YAML), versioned and validated. Not legal advice."""

from enum import StrEnum
from hashlib import sha256
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from compliance_pipeline.contracts.event import Channel
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
    TAG_RECORDING = "tag_recording"
    CREATE_WORK_ITEM = "create_work_item"
    SUPERVISOR_CALLBACK = "supervisor_callback"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class When(_Strict):
    """A rule fires on any finding that matches all of these."""

    kinds: tuple[FindingKind, ...] = Field(min_length=1)
    detectors: tuple[Detector, ...] = Field(default=tuple(Detector), min_length=1)
    channels: tuple[Channel, ...] = Field(default=tuple(Channel), min_length=1)
    min_confidence: float = Field(default=0.5, ge=0, le=1)


class Rule(_Strict):
    id: Annotated[str, Field(pattern=r"^[A-Z0-9]+(-[A-Z0-9]+)+$")]
    title: str
    basis: str = Field(description="the clause or standard that the rule rests on")
    severity: Severity
    violation_type: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")]
    verdict: VerdictValue = VerdictValue.VIOLATION_DETECTED
    when: When
    actions: tuple[Action, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _a_rule_accuses_or_asks(self) -> "Rule":
        if self.verdict not in (VerdictValue.VIOLATION_DETECTED, VerdictValue.REVIEW_REQUIRED):
            raise ValueError(f"rule {self.id}: verdict must be VIOLATION_DETECTED or REVIEW_REQUIRED")
        return self


class PolicyPack(_Strict):
    pack: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]
    version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]
    notice: str = Field(description="what the pack is not, shown beside its results")
    rules: tuple[Rule, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _rule_ids_are_unique(self) -> "PolicyPack":
        ids = [rule.id for rule in self.rules]
        if twice := {rule_id for rule_id in ids if ids.count(rule_id) > 1}:
            raise ValueError(f"rule ids used twice: {', '.join(sorted(twice))}")
        return self

    @property
    def policy_version(self) -> str:
        """The key under which verdicts are kept, e.g. `default-us-eu@0.1.0+1f2e3d4c`.

        The end is a digest of the content: an edited pack is another policy, whether or not its version was raised.
        """
        return f"{self.pack}@{self.version}+{sha256(self.model_dump_json().encode()).hexdigest()[:8]}"
