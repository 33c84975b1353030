"""Canaries: synthetic interactions that must be flagged, made from the examples beside a policy's rules, and the
platform that has them. Nothing done about a canary reaches the real platform.

When they are put in, and what came of them, is `canaries`'s; here nothing is stored and nothing read.
"""

import json
import math
import re
import wave
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO

from compliance_pipeline.contracts.event import CANARY, Channel, EventType, Participant, RecordingEvent
from compliance_pipeline.contracts.policy import (
    EXAMPLE_TURN,
    Detector,
    Example,
    ExampleFinding,
    FindingKind,
    PolicyPack,
    Rule,
    Status,
)
from compliance_pipeline.contracts.work_item import SupervisorCallback, WorkItem
from compliance_pipeline.platforms.port import Gone, Location, Media, MediaStream, NotYet, Platform, Ready

_ID = re.compile(r"canary-(?P<rule>[A-Z0-9]+(?:-[A-Z0-9]+)+)-(?P<channel>voice|chat|email)-(?P<hour>\d{8}T\d{2})")

SURE = 0.75
"""An example's finding from this confidence on stands for plain words; below for words that leave a doubt."""
WORDS: Mapping[FindingKind, tuple[str, str]] = {
    FindingKind.CARD_NUMBER: ("my card is 4111 1111 1111 1111", "the reference is 4111 1111 1111 1111"),
    FindingKind.CARD_LENGTH_NUMBER: ("the reference is 4111 1111 1111 1111", "the reference is 4111 1111 1111 1111"),
    FindingKind.CARD_VERIFICATION_CODE: ("the cvv is 123", "the three digits are 123"),
    FindingKind.CARD_PIN: ("my card's PIN is 4829", "the three digits are 123"),
    FindingKind.GOVERNMENT_ID: ("my social security number is 536-22-8714", "it is 536 22 8714"),
    FindingKind.HEALTH_ID: ("my NHS number is 943 476 5919", "my NHS number is 943 476 5919"),
    FindingKind.BANK_ACCOUNT: ("my IBAN is GB82 WEST 1234 5698 7654 32", "my IBAN is GB82 WEST 1234 5698 7654 32"),
    FindingKind.PHONE_NUMBER: ("call me on 555-867-5309", "call me on 555-867-5309"),
    FindingKind.EMAIL_ADDRESS: ("write to jo@example.com", "write to jo@example.com"),
}
"""By kind what is said: for a sure finding, and for a doubtful one, or what comes nearest. Numbers for tests."""
KEYED = "4111111111111111"

_RATE = 8000
_KEYS = {key: (low, high) for low, row in ((697, "123"), (770, "456"), (852, "789"), (941, "*0#"))
         for high, key in zip((1209, 1336, 1477), row, strict=True)}  # fmt: skip
_KEY_S, _TURN_S = 0.1, 4.0


@dataclass(frozen=True, slots=True)
class Canary:
    """A rule's synthetic violation on one channel. example: of the rule's, that it is made from."""

    rule: Rule
    channel: Channel
    example: Example

    @property
    def name(self) -> str:
        return f"{self.rule.id}/{self.channel}"

    def recording_id(self, hour: datetime) -> str:
        # Not ten digits in a row: those may be somebody's number.
        return f"canary-{self.rule.id}-{self.channel}-{hour:%Y%m%dT%H}"

    def event(self, hour: datetime) -> RecordingEvent:
        facts, recording_id = self.example.facts, self.recording_id(hour)
        return RecordingEvent(
            recording_id=recording_id,
            event=EventType.AVAILABLE,
            media_uri=f"{CANARY}:{recording_id}",
            channel=self.channel,
            direction=facts.direction,
            start_time=facts.started_at,
            called_time_zone=facts.called_time_zone,
            participants=(Participant(purpose="agent", queue=facts.queue),) if facts.queue else (),
        )

    def location(self, recording_id: str) -> Ready:
        noted = self.example.facts.annotations
        annotations = None if noted is None else frozenset(noted)
        url, words = f"{CANARY}:{recording_id}", self._words()
        if self.channel is not Channel.VOICE:
            return Ready(Media(url, "application/json", words), annotations=annotations)
        transcript = Media(f"{url}/words", "application/json", words) if words else None
        return Ready(Media(url, "audio/wav", self._sound()), transcript, ("customer",), annotations)

    def _turns(self) -> list[tuple[float, str, str]]:
        """(second, speaker, words): of the example's text, then of its findings."""
        lines = [re.match(EXAMPLE_TURN, line.strip()) for line in (self.example.text or "").strip().splitlines()]
        turns: list[tuple[float, str, str]] = []
        for line in lines:
            if line:
                last = turns[-1][0] + _TURN_S if turns else 0.0
                turns.append((float(line["at_s"]) if line["at_s"] else last, line["speaker"], line["words"]))
        for found in self.example.findings:
            if not _keyed(found):
                at = max(found.at_s, turns[-1][0] + _TURN_S if turns else 0.0)
                turns.append((at, found.speaker, WORDS[found.kind][found.confidence < SURE]))
        if not turns and self.example.facts.transcript:
            turns.append((0.0, "agent", "hello"))
        return turns

    def _words(self) -> bytes | None:
        said = [
            {"time": at, "end": at + _TURN_S - 1, "participant": speaker, "text": words}
            for at, speaker, words in self._turns()
        ]
        return json.dumps({"messages": said}).encode() if said else None

    def _sound(self) -> bytes:
        """16-bit mono WAV: keyed digits where the example has some, else quiet, as long as the rule needs."""
        samples = array("h")
        if any(map(_keyed, self.example.findings)):
            samples.extend([0] * _RATE)
            for key in KEYED:
                low, high = (2 * math.pi * hz / _RATE for hz in _KEYS[key])
                tone = range(int(_RATE * _KEY_S))
                samples.extend(int(8000 * (math.sin(low * at) + math.sin(high * at))) for at in tone)
                samples.extend([0] * len(tone))
        within = self.rule.when.absent.within_s if self.rule.when.absent else None
        ends = max(self._turns()[-1][0] if self._turns() else 0.0, within or 0.0) + _TURN_S + 1
        samples.extend([0] * max(_RATE, int(ends * _RATE) - len(samples)))
        made = BytesIO()
        with wave.open(made, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(_RATE)
            file.writeframes(samples.tobytes())
        return made.getvalue()


def _keyed(found: ExampleFinding) -> bool:
    return found.detector is Detector.TONES


def _can_be_told(example: Example, channel: Channel) -> bool:
    """Whether a recording can say what the example says: some facts no platform tells."""
    facts = example.facts
    untold = (facts.attempts_7_days, facts.days_since_conversation, facts.first_contact)
    known = all(fact is None for fact in untold) and facts.complete and not facts.consent
    sayable = all(
        found.kind is FindingKind.CARD_NUMBER and channel is Channel.VOICE if _keyed(found) else found.kind in WORDS
        for found in example.findings
    )
    has_words = bool(example.text) or any(not _keyed(found) for found in example.findings)
    return known and sayable and (has_words or channel is Channel.VOICE)


def canary_of(rule: Rule, channel: Channel) -> Canary | None:
    """Made from the rule's first example that must fire and can be put into a recording of this channel: one for it
    before one for any channel, and words before findings. None where the rule has no such example.

    Without asking any detector: what they stop finding is what canaries are for.
    """
    fitting = [one for one in rule.examples if one.expect is Status.FIRED and _can_be_told(one, channel)]
    best = min(
        fitting, key=lambda one: (one.facts.channel is not channel, one.facts.channel is not None, not one.text),
        default=None,
    )  # fmt: skip
    return Canary(rule, channel, best) if best else None


def canaries_of(policy: PolicyPack) -> tuple[list[Canary], list[str]]:
    """One for each rule and channel, and the names (`RULE/channel`) of those for which none can be made."""
    made, without = [], []
    for rule in policy.rules:
        for channel in rule.channels:
            if canary := canary_of(rule, channel):
                made.append(canary)
            else:
                without.append(f"{rule.id}/{channel}")
    return made, without


def is_canary(recording_id: str) -> bool:
    return _ID.fullmatch(recording_id) is not None


class _Content:
    """Media that is there already."""

    last_modified: datetime | None = None

    def __init__(self, media: Media) -> None:
        self._content = media.content or b""
        self.content_length: int | None = len(self._content)
        self.content_type = media.content_type

    def __iter__(self) -> Iterator[bytes]:
        yield self._content


class _WithCanaries:
    """Answers for canaries itself, and passes everything else on."""

    def __init__(self, platform: Platform, policy: PolicyPack) -> None:
        self.name, self.callback_lag_s = platform.name, platform.callback_lag_s
        self._platform = platform
        self._rules = {rule.id: rule for rule in policy.rules}

    def locate(self, recording_id: str) -> Location:
        if not (said := _ID.fullmatch(recording_id)):
            return self._platform.locate(recording_id)
        rule = self._rules.get(said["rule"])
        canary = canary_of(rule, Channel(said["channel"])) if rule else None
        return canary.location(recording_id) if canary else Gone("the policy has no such canary any more")

    def prefetch(self, recording_ids: Sequence[str]) -> None:
        self._platform.prefetch([one for one in recording_ids if not is_canary(one)])

    def recordings_of(self, conversation_id: str) -> tuple[RecordingEvent, ...] | NotYet:
        return self._platform.recordings_of(conversation_id)

    def list_available(self, since: datetime, until: datetime) -> Iterator[RecordingEvent]:
        return self._platform.list_available(since, until)

    def open_media(self, media: Media) -> AbstractContextManager[MediaStream]:
        if media.url.startswith(f"{CANARY}:"):
            return nullcontext(_Content(media))
        return self._platform.open_media(media)

    def tag(self, recording_id: str, tags: Mapping[str, str], at_ms: int | None = None) -> None:
        if not is_canary(recording_id):
            self._platform.tag(recording_id, tags, at_ms)

    def open_work_item(self, item: WorkItem) -> str:
        return item.key if is_canary(item.recording_id) else self._platform.open_work_item(item)

    def request_callback(self, callback: SupervisorCallback) -> str:
        return callback.key if is_canary(callback.recording_id) else self._platform.request_callback(callback)

    def protect(self, recording_ids: Sequence[str], *, protected: bool) -> None:
        if real := [one for one in recording_ids if not is_canary(one)]:
            self._platform.protect(real, protected=protected)

    def purge(self, recording_id: str) -> None:
        if not is_canary(recording_id):
            self._platform.purge(recording_id)

    def delivery_failures(self, since: datetime) -> int | None:
        return self._platform.delivery_failures(since)

    def close(self) -> None:
        self._platform.close()


def with_canaries(platform: Platform, policy: PolicyPack) -> Platform:
    """The platform, and the canaries of this policy beside what it has."""
    return _WithCanaries(platform, policy)
