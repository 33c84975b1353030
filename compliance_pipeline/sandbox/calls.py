"""Synthetic recordings with known truth: seeded, the same bytes for the same arguments. Plans of them, too.
No clock, no network, no files here: `platform` serves what this makes and `delivery` announces it."""

import io
import json
import random
import re
import uuid
import wave
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from email.message import EmailMessage
from email.utils import format_datetime
from enum import StrEnum
from functools import lru_cache
from operator import itemgetter
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from compliance_pipeline.contracts.event import Channel, Direction
from compliance_pipeline.contracts.verdict import VerdictValue
from compliance_pipeline.sandbox.speech import SAMPLE_RATE, speak

Samples = NDArray[np.float32]

AGENT: Final = 0
CUSTOMER: Final = 1


class Kind(StrEnum):
    VOICE_TONES = "voice_tones"
    VOICE_DIGITS = "voice_digits"
    VOICE_CLEAN = "voice_clean"
    CHAT_CARD = "chat_card"
    CHAT_SSN = "chat_ssn"
    CHAT_CVV = "chat_cvv"
    CHAT_CLEAN = "chat_clean"
    EMAIL_CARD = "email_card"
    EMAIL_CLEAN = "email_clean"
    VOICE_READ_BACK = "voice_read_back"
    """A card number in two halves, the agent's read-back of the first between them."""
    VOICE_WORDED = "voice_worded"
    """A card number in words such as 'double four', 'triple two', 'forty one eleven'."""
    VOICE_CVV = "voice_cvv"
    """A card number, then its verification code."""
    VOICE_NO_NOTICE = "voice_no_notice"
    VOICE_THREAT = "voice_threat"
    VOICE_LOOKALIKE = "voice_lookalike"
    """An order number and a phone number, together as long as a card number."""
    CHAT_IBAN = "chat_iban"
    CHAT_NHS = "chat_nhs"
    CHAT_LOOKALIKE = "chat_lookalike"
    """Numbers as long as a card's that are none: order, tracking, time."""

    @property
    def channel(self) -> Channel:
        return Channel(self.value.split("_")[0])


class Damage(StrEnum):
    """What can be wrong with the media of a voice recording."""

    TRUNCATED = "truncated"
    EMPTY = "empty"
    HEADER_ONLY = "header_only"
    HTML = "html"
    UNKNOWN_FORMAT = "unknown_format"


class Container(StrEnum):
    """How a voice recording is stored: G.711 mu-law in WAV, MP3, Opus in Ogg, Opus in WebM."""

    WAV = "wav"
    MP3 = "mp3"
    OGG = "ogg"
    WEBM = "webm"


_CODECS: Final = {
    Container.WAV: ("pcm_mulaw", "audio/wav"),
    Container.MP3: ("libmp3lame", "audio/mpeg"),
    Container.OGG: ("libopus", "audio/ogg"),
    Container.WEBM: ("libopus", "audio/webm"),
}

_VIOLATION_TYPES: Final = {
    Kind.VOICE_TONES: "PCI_DTMF_CAPTURE",
    Kind.VOICE_DIGITS: "PCI_MID_CAPTURE",
    Kind.CHAT_CARD: "PCI_MID_CAPTURE",
    Kind.CHAT_SSN: "PII_GOVERNMENT_ID",
    Kind.CHAT_CVV: "PCI_SAD_CAPTURE",
    Kind.EMAIL_CARD: "PCI_MID_CAPTURE",
    Kind.VOICE_READ_BACK: "PCI_MID_CAPTURE",
    Kind.VOICE_WORDED: "PCI_MID_CAPTURE",
    Kind.VOICE_CVV: "PCI_SAD_CAPTURE",
    Kind.VOICE_NO_NOTICE: "REC_NOTICE_MISSING",
    Kind.VOICE_THREAT: "FDCPA_THREAT",
    Kind.CHAT_IBAN: "PII_GOVERNMENT_ID",
    Kind.CHAT_NHS: "PII_GOVERNMENT_ID",
}
_NEED_WORDS: Final = frozenset(
    {Kind.VOICE_READ_BACK, Kind.VOICE_WORDED, Kind.VOICE_CVV, Kind.VOICE_NO_NOTICE, Kind.VOICE_THREAT}
)
"""Their violation is in the words: the platform always has a transcript of them."""
_TRANSCRIBED: Final = 0.8
"""Share of the other calls of which the platform has a transcript."""


@dataclass(frozen=True, slots=True)
class Truth:
    """What a recording holds. `offset_ms` and `end_ms` are the span of the violation from the recording's start:
    the first tone, the first spoken digit, the chat message; 0 in an e-mail; None for what is missing (a notice).

    Without a transcript, rules about words can't be decided: a clean call is UNDETERMINED then, not NO_VIOLATION.
    """

    verdict: VerdictValue
    violation_type: str | None = None
    offset_ms: int | None = None
    end_ms: int | None = None
    damage: Damage | None = None


@dataclass(frozen=True, slots=True)
class SyntheticRecording:
    """One recording as a platform holds it. `participants` are raw, as a platform would leak them;
    `planted` are the clear values in it (cards, SSNs, phones, e-mail addresses) that must not be found elsewhere;
    `transcript` is of a call, in Genesys Cloud's format, if there is one; `speakers` names the audio channels."""

    recording_id: str
    kind: Kind
    direction: Direction
    start_time: datetime
    end_time: datetime
    participants: tuple[dict[str, str], ...] = field(repr=False)
    content_type: str
    media: bytes = field(repr=False)
    truth: Truth
    planted: tuple[str, ...] = field(repr=False)
    transcript: bytes | None = field(default=None, repr=False)
    speakers: tuple[str, ...] = ()

    @property
    def channel(self) -> Channel:
        return self.kind.channel


def make_recording(
    seed: int,
    kind: Kind,
    *,
    ended_at: datetime,
    container: Container = Container.WAV,
    damage: Damage | None = None,
) -> SyntheticRecording:
    """One recording of `kind` that ended at `ended_at` (aware). Chats and e-mails carry that time in their text.

    Raises ValueError for damage to a chat or an e-mail, and for TRUNCATED in a container other than WAV
    (only there does the header say how much is missing).
    """
    if damage and kind.channel is not Channel.VOICE:
        raise ValueError(f"damage {damage} is made for voice recordings only, not for {kind}")
    if damage is Damage.TRUNCATED and container is not Container.WAV:
        raise ValueError(f"a truncated {container} can't be told from a short one: use {Container.WAV}")
    rng = random.Random(f"{seed}:{kind}")
    recording_id = recording_id_of(seed, kind)
    customer = _customer(rng)
    agent = {
        "id": str(uuid.UUID(bytes=rng.randbytes(16), version=4)),
        "purpose": "agent",
        "queue": rng.choice(("billing", "orders", "support")),
        "extension": str(rng.randint(2000, 8999)),
    }
    planted = [customer["ani"], customer["email"]]
    violation = _VIOLATION_TYPES.get(kind)
    transcript: bytes | None = None
    if kind.channel is Channel.VOICE:
        call = _Call(rng)
        planted += _VOICE_SCRIPTS[kind](call)
        media = call.encoded(container, comment=f"caller {customer['ani']} {customer['email']}")
        content_type = _CODECS[container][1]
        length, span = call.length_ms, call.span_ms
        if kind in _NEED_WORDS or random.Random(f"transcript:{seed}:{kind}").random() < _TRANSCRIBED:
            transcript = _transcript_json(call, recording_id, ended_at)
    elif kind.channel is Channel.CHAT:
        messages, secret, at = _chat(kind, rng)
        length, span = messages[-1][0] + 2000, (None if at is None else (messages[at][0], messages[at][0]))
        media = _chat_json(messages, ended_at - timedelta(milliseconds=length))
        content_type = "application/json"
        planted += secret
    else:
        body, secret = _email_body(kind, rng)
        media = _email_bytes(body, customer["email"], recording_id, ended_at, rng)
        content_type, length, span = "message/rfc822", 0, (0, 0) if violation else None
        planted += secret
    undecided = kind.channel is Channel.VOICE and transcript is None
    clean = VerdictValue.UNDETERMINED if undecided else VerdictValue.NO_VIOLATION
    truth = Truth(VerdictValue.VIOLATION_DETECTED if violation else clean, violation)
    if span:
        truth = replace(truth, offset_ms=span[0], end_ms=span[1])
    recording = SyntheticRecording(
        recording_id=recording_id,
        kind=kind,
        # Calls come in: of one that went out, the rules ask what a platform does not say (the time where it rang).
        direction=Direction.INBOUND if kind.channel is Channel.VOICE else rng.choice(tuple(Direction)),
        start_time=ended_at - timedelta(milliseconds=length),
        end_time=ended_at,
        participants=(agent, customer),
        content_type=content_type,
        media=media,
        truth=truth,
        planted=tuple(planted),
        transcript=transcript,
        speakers=("agent", "customer") if kind.channel is Channel.VOICE else (),
    )
    return recording if damage is None else _damaged(recording, damage, rng)


def recording_id_of(seed: int, kind: Kind) -> str:
    """The UUID of the recording that `make_recording` makes of these."""
    return str(uuid.UUID(bytes=random.Random(f"id:{seed}:{kind}").randbytes(16), version=4))


# Values


def card_number(rng: random.Random) -> str:
    """A number in a real issuer range (Visa, Mastercard, American Express) that passes the Luhn check."""
    brand = rng.choice(("visa", "mastercard", "mastercard-2", "amex"))
    prefix = {
        "visa": "4",
        "mastercard": str(rng.randint(51, 55)),
        "mastercard-2": str(rng.randint(2221, 2720)),
        "amex": "37",
    }[brand]
    length = 15 if brand == "amex" else 16
    body = prefix + _digits(rng, length - 1 - len(prefix))
    return body + str(-_luhn_sum(body) % 10)


def _luhn_sum(body: str) -> int:
    """ISO/IEC 7812-1, annex B: every second digit from the right doubled, the check digit not yet there."""
    return sum(sum(divmod(int(digit) * (2 - at % 2), 10)) for at, digit in enumerate(reversed(body)))


def _groups(number: str) -> list[str]:
    """As printed on the card: 4-6-5 for 15 digits, else fours."""
    if len(number) == 15:
        return [number[:4], number[4:10], number[10:]]
    return [number[at : at + 4] for at in range(0, len(number), 4)]


def _ssn(rng: random.Random) -> str:
    """Area, group and serial within what the SSA assigns."""
    area = rng.choice([n for n in range(1, 900) if n != 666])
    return f"{area:03d}-{rng.randint(1, 99):02d}-{rng.randint(1, 9999):04d}"


def _iban(rng: random.Random) -> str:
    """German or Austrian, with the check digits of ISO 13616 (those countries' own numbers have no check in it)."""
    country, length = rng.choice((("DE", 18), ("AT", 16)))
    account = _digits(rng, length)
    as_number = "".join(str(int(letter, 36)) for letter in country)
    return f"{country}{98 - int(account + as_number + '00') % 97:02d}{account}"


def _nhs_number(rng: random.Random) -> str:
    """Nine digits and the check digit of the NHS data dictionary (modulus 11), in a range that is in use."""
    while True:
        body = rng.choice("467") + _digits(rng, 8)
        check = -sum(int(digit) * weight for digit, weight in zip(body, range(10, 1, -1), strict=True)) % 11
        if check < 10:
            return body + str(check)


def _phone(rng: random.Random) -> str:
    """Ten digits in the range kept for fiction (NANP 555-01XX)."""
    return f"{rng.randint(201, 989)}55501{_digits(rng, 2)}"


def _digits(rng: random.Random, count: int) -> str:
    return "".join(rng.choices("0123456789", k=count))


def _customer(rng: random.Random) -> dict[str, str]:
    ani = f"+1{_phone(rng)}"
    name = f"{rng.choice(_NAMES)}.{rng.choice(_NAMES)}{rng.randint(10, 9999)}".lower()
    email = f"{name}@example.com"
    return {"id": ani, "purpose": "customer", "ani": ani, "externalCallerId": ani, "email": email}


_NAMES: Final = ("Alba", "Bruno", "Chidi", "Dana", "Emre", "Farah", "Goran", "Hana", "Ines", "Jonas", "Kemi", "Luca")


# Voice

_VOICES: Final = (("en-us", 150, 45), ("en-us+f3", 160, 55), ("en-gb", 155, 50), ("en-gb+f2", 150, 60))
_SPOKEN: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_ROWS: Final = (697, 770, 852, 941)
_COLUMNS: Final = (1209, 1336, 1477)
_KEYPAD: Final = "123456789*0#"


@lru_cache(maxsize=1024)
def _sentence(text: str, voice: int) -> Samples:
    """Speech at about -20 dBFS without the silence before and after it; shared, so read-only."""
    name, rate, pitch = _VOICES[voice]
    samples = speak(text, voice=name, rate=rate, pitch=pitch)
    loud = np.flatnonzero(np.abs(samples) > 0.01)
    if len(loud):
        samples = samples[loud[0] : loud[-1] + 1]
        samples = samples * np.float32(0.1 / np.sqrt(np.mean(samples**2)))
    samples = np.clip(samples, -0.95, 0.95).astype(np.float32)
    samples.setflags(write=False)
    return samples


class _Call:
    """A two-channel call that grows turn by turn."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.span: tuple[int, int] | None = None
        self.utterances: list[tuple[int, tuple[int, int], str]] = []
        self._at = round(0.4 * SAMPLE_RATE)
        self._parts: list[tuple[int, int, Samples]] = []
        agent, customer = rng.sample(range(len(_VOICES)), 2)
        self._voices = (agent, customer)

    def say(self, channel: int, text: str, *, pause_s: float | None = None) -> tuple[int, int]:
        """Adds a sentence, then a pause; the span in samples."""
        span = self._speak(channel, text, self.rng.uniform(0.25, 0.6) if pause_s is None else pause_s)
        self.utterances.append((channel, span, text))
        return span

    def read_out(self, channel: int, groups: list[str]) -> tuple[int, int]:
        """Adds digits spoken one by one, a pause after each group; one utterance."""
        return self.say_in_parts(channel, [" ".join(_SPOKEN[int(digit)] for digit in group) for group in groups])

    def say_in_parts(self, channel: int, parts: list[str]) -> tuple[int, int]:
        """Adds words with a pause after each part; one utterance."""
        spans = [self._speak(channel, part, self.rng.uniform(0.25, 0.5)) for part in parts]
        self.utterances.append((channel, (spans[0][0], spans[-1][1]), " ".join(parts)))
        return spans[0][0], spans[-1][1]

    def _speak(self, channel: int, text: str, pause_s: float) -> tuple[int, int]:
        return self._add(channel, _sentence(text, self._voices[channel]), pause_s)

    def key_in(self, groups: list[str]) -> tuple[int, int]:
        """Adds keypad tones of the customer: 80-120 ms on, 60-120 ms off, levels and twist within ITU-T Q.24."""
        spans = []
        level = 10 ** (self.rng.uniform(-15, -9) / 20)
        twist = 10 ** (self.rng.uniform(-3, 3) / 40)
        for group in groups:
            for key in group:
                row, column = divmod(_KEYPAD.index(key), 3)
                t = np.arange(round(self.rng.uniform(0.08, 0.12) * SAMPLE_RATE)) / SAMPLE_RATE
                low = level / twist * np.sin(2 * np.pi * _ROWS[row] * t)
                high = level * twist * np.sin(2 * np.pi * _COLUMNS[column] * t)
                spans.append(self._add(CUSTOMER, (low + high).astype(np.float32), self.rng.uniform(0.06, 0.12)))
            self._at += round(self.rng.uniform(0.1, 0.4) * SAMPLE_RATE)
        return spans[0][0], spans[-1][1]

    def _add(self, channel: int, samples: Samples, pause_s: float) -> tuple[int, int]:
        start, end = self._at, self._at + len(samples)
        self._parts.append((channel, start, samples))
        self._at = end + round(pause_s * SAMPLE_RATE)
        return start, end

    @property
    def seconds(self) -> float:
        return self._at / SAMPLE_RATE

    @property
    def length_ms(self) -> int:
        return round(1000 * self._at / SAMPLE_RATE)

    @property
    def span_ms(self) -> tuple[int, int] | None:
        return self.span and (round(1000 * self.span[0] / SAMPLE_RATE), round(1000 * self.span[1] / SAMPLE_RATE))

    def encoded(self, container: Container, *, comment: str) -> bytes:
        """The call in `container`, line noise at about -60 dBFS under both channels."""
        import av

        noise = np.random.default_rng(self.rng.getrandbits(64))
        sound = noise.normal(0, 0.001, (2, self._at)).astype(np.float32)
        for channel, start, samples in self._parts:
            sound[channel, start : start + len(samples)] += samples
        pcm = np.round(np.clip(sound, -1, 1) * 32767).astype(np.int16)
        buffer = io.BytesIO()
        # bitexact: no random serial numbers and no version of the muxer in the file.
        with av.open(buffer, "w", format=container.value, container_options={"fflags": "+bitexact"}) as output:
            output.metadata["comment"] = comment
            stream = cast(av.AudioStream, output.add_stream(_CODECS[container][0], rate=SAMPLE_RATE, layout="stereo"))
            if container is not Container.WAV:
                stream.bit_rate = 64_000
            for start in range(0, pcm.shape[1], SAMPLE_RATE):
                interleaved = pcm[:, start : start + SAMPLE_RATE].T.reshape(1, -1)
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(interleaved), format="s16", layout="stereo")
                frame.sample_rate = SAMPLE_RATE
                frame.pts = start
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
        return buffer.getvalue()


_GREETINGS: Final = (
    "Thank you for calling, how can I help you today?",
    "Good morning, you are through to customer service. What can I do for you?",
    "Hello, thanks for waiting. How may I help?",
)
_SMALL_TALK: Final = (
    (CUSTOMER, "I have been waiting for a while, it must be busy there."),
    (AGENT, "I am sorry about the wait, we have had a lot of calls today."),
    (CUSTOMER, "The lamp works well, I would just like another one."),
    (AGENT, "Let me open your account, this will only take a moment."),
    (CUSTOMER, "Yes, that is right, the same address as before."),
    (AGENT, "I can see the delivery is planned for the end of the week."),
    (CUSTOMER, "That would be fine, somebody is at home in the afternoon."),
)
_GOODBYES: Final = (
    (AGENT, "Thank you, that is all done. Is there anything else?"),
    (CUSTOMER, "No, that was all. Thank you and goodbye."),
)


_NOTICES: Final = (
    "This call may be recorded for quality and training purposes.",
    "Please note that this call is being recorded.",
    "This call may be monitored or recorded.",
    "You are speaking with us on a recorded line.",
)
_DEBT: Final = (
    "I am a debt collector, this is an attempt to collect a debt, and any information obtained will be used "
    "for that purpose."
)
_THREATS: Final = (
    "We will have you arrested if you do not pay.",
    "You will go to jail if you do not pay this.",
    "We will garnish your wages tomorrow.",
)


def _open(call: _Call, wish: str | None = None, *, notice: bool = True) -> None:
    """A greeting with the notice that the call is recorded, and what the customer wants."""
    call.say(AGENT, call.rng.choice(_GREETINGS))
    if notice:
        call.say(AGENT, call.rng.choice(_NOTICES))
    call.say(CUSTOMER, wish or call.rng.choice(("I would like to pay my bill.", "I want to place an order, please.")))


def _close(call: _Call, talk_until_s: tuple[float, float] = (11, 22)) -> None:
    """Small talk until the call is long enough, then goodbye: 15 to 40 s in all."""
    talk = call.rng.sample(_SMALL_TALK, len(_SMALL_TALK))
    wanted = call.rng.uniform(*talk_until_s)
    while talk and call.seconds < wanted:
        call.say(*talk.pop())
    for channel, text in _GOODBYES:
        call.say(channel, text)


def _tones_call(call: _Call) -> list[str]:
    card = card_number(call.rng)
    _open(call)
    call.say(AGENT, "Please key in your card number on your phone now.", pause_s=0.7)
    call.span = call.key_in(_groups(card))
    call.say(AGENT, "Thank you, I have received the number.")
    _close(call)
    return [card]


def _ask_for_card(call: _Call) -> None:
    _open(call)
    call.say(AGENT, "Can you read me the long number on your card, please?")
    call.say(CUSTOMER, "Yes, of course, it is", pause_s=0.4)


def _digits_call(call: _Call) -> list[str]:
    card = card_number(call.rng)
    _ask_for_card(call)
    call.span = call.read_out(CUSTOMER, _groups(card))
    call.say(AGENT, "Thank you, I have noted that.")
    _close(call)
    return [card]


def _read_back_call(call: _Call) -> list[str]:
    card = card_number(call.rng)
    groups = _groups(card)
    _ask_for_card(call)
    start, _ = call.read_out(CUSTOMER, groups[:2])
    call.read_out(AGENT, groups[:2])
    _, end = call.read_out(CUSTOMER, groups[2:])
    call.span = start, end
    call.say(AGENT, "Thank you, I have noted that.")
    _close(call)
    return [card]


def _worded_call(call: _Call) -> list[str]:
    parts: list[str] = []
    while not _is_worded(parts):
        card = card_number(call.rng)
        parts = [_worded(group) for group in _groups(card)]
    _ask_for_card(call)
    call.span = call.say_in_parts(CUSTOMER, parts)
    call.say(AGENT, "Thank you, I have noted that.")
    _close(call)
    return [card]


def _is_worded(parts: list[str]) -> bool:
    """Whether a number has both a repeated digit and a pair of figures read as one."""
    words = " ".join(parts).split()
    return bool({"double", "triple"} & set(words)) and bool(set(_TENS) & set(words))


_TEENS: Final = (
    *("ten", "eleven", "twelve", "thirteen", "fourteen"),
    *("fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS: Final = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def _worded(group: str) -> str:
    """Digits as many people say them: 'double four oh one', 'forty one eleven'."""
    runs = [match.group() for match in re.finditer(r"(\d)\1{0,2}", group)]
    if len(runs) < len(group):
        return " ".join(
            ("", "double ", "triple ")[len(run) - 1] + (_SPOKEN[int(run[0])], "oh")[run[0] == "0"] for run in runs
        )
    pairs = [group[:2], group[2:]]
    # After a round figure the next digit would be taken for its own ('forty', 'one').
    if len(group) == 4 and all(pair[0] != "0" and (pair[1] != "0" or pair == "10") for pair in pairs):
        return " ".join(_pair(int(pair)) for pair in pairs)
    return " ".join(_SPOKEN[int(digit)] for digit in group)


def _pair(value: int) -> str:
    return _TEENS[value - 10] if value < 20 else f"{_TENS[value // 10 - 2]} {_SPOKEN[value % 10]}"


def _cvv_call(call: _Call) -> list[str]:
    card = card_number(call.rng)
    _ask_for_card(call)
    call.read_out(CUSTOMER, _groups(card))
    call.say(AGENT, "And what is the security code on the back of the card?")
    call.span = call.say(CUSTOMER, "It is " + " ".join(_SPOKEN[int(digit)] for digit in _digits(call.rng, 3)))
    _close(call)
    return [card]


def _no_notice_call(call: _Call) -> list[str]:
    _open(call, "I want to place an order, please.", notice=False)
    call.say(CUSTOMER, f"We live at number {call.rng.randint(2, 99)}, on the second floor.")
    # A notice may come within the first 30 s: a shorter call is not without one yet.
    _close(call, talk_until_s=(26, 28))
    return []


def _threat_call(call: _Call) -> list[str]:
    _open(call, "Hello, you left me a message.")
    call.say(AGENT, _DEBT)
    call.say(CUSTOMER, "I can not pay this month.")
    call.span = call.say(AGENT, call.rng.choice(_THREATS))
    call.say(CUSTOMER, "I will see what I can do.")
    _close(call)
    return []


def _clean_call(call: _Call) -> list[str]:
    planted = []
    _open(call, "I want to place an order, please.")
    if call.rng.random() < 0.3:
        call.say(AGENT, "Please press a key to confirm.", pause_s=0.5)
        call.key_in([call.rng.choice("123")])
    call.say(AGENT, "Do you have your order number?")
    call.say(CUSTOMER, "Yes, the order number is", pause_s=0.3)
    call.read_out(CUSTOMER, [_digits(call.rng, call.rng.randint(5, 7))])
    if call.rng.random() < 0.5:
        planted.append(_say_phone(call))
    else:
        call.say(CUSTOMER, f"We live at number {call.rng.randint(2, 99)}, on the second floor.")
    _close(call)
    return planted


def _lookalike_call(call: _Call) -> list[str]:
    _open(call, "I am calling about an order.")
    call.say(AGENT, "Do you have your order number?")
    call.say(CUSTOMER, "Yes, the order number is", pause_s=0.3)
    # No issuer's number begins with 8 or 9, and none of this is as long as a card number by itself.
    call.read_out(CUSTOMER, [call.rng.choice("89") + _digits(call.rng, 3), _digits(call.rng, 4)])
    phone = _say_phone(call)
    _close(call)
    return [phone]


def _say_phone(call: _Call) -> str:
    phone = _phone(call.rng)
    call.say(AGENT, "And a phone number for the driver?")
    call.read_out(CUSTOMER, [phone[:3], phone[3:6], phone[6:]])
    return phone


_VOICE_SCRIPTS: Final[dict[Kind, Callable[[_Call], list[str]]]] = {
    Kind.VOICE_TONES: _tones_call,
    Kind.VOICE_DIGITS: _digits_call,
    Kind.VOICE_CLEAN: _clean_call,
    Kind.VOICE_READ_BACK: _read_back_call,
    Kind.VOICE_WORDED: _worded_call,
    Kind.VOICE_CVV: _cvv_call,
    Kind.VOICE_NO_NOTICE: _no_notice_call,
    Kind.VOICE_THREAT: _threat_call,
    Kind.VOICE_LOOKALIKE: _lookalike_call,
}


def _transcript_json(call: _Call, recording_id: str, ended_at: datetime) -> bytes:
    """As Genesys Cloud's transcript URL gives it, as far as a reader needs: times are milliseconds of the epoch."""
    start_ms = round((ended_at - timedelta(milliseconds=call.length_ms)).timestamp() * 1000)
    phrases = []
    for index, (channel, (start, end), text) in enumerate(call.utterances):
        at, until = round(1000 * start / SAMPLE_RATE), round(1000 * end / SAMPLE_RATE)
        phrases.append(
            {
                "phraseIndex": index,
                "text": text,
                "participantPurpose": "internal" if channel == AGENT else "external",
                "startTimeMs": start_ms + at,
                "duration": {"milliseconds": until - at},
            }
        )
    return json.dumps(
        {
            "conversationId": recording_id,
            "communicationId": recording_id,
            "mediaType": "call",
            "startTime": start_ms,
            "duration": {"milliseconds": call.length_ms},
            "transcripts": [{"language": "en-us", "startTime": start_ms, "phrases": phrases}],
        }
    ).encode()


# Text

_Message = tuple[int, str, str]


def _as_typed(number: str, rng: random.Random) -> str:
    return rng.choice(("", " ", "-")).join(_groups(number))


def _chat(kind: Kind, rng: random.Random) -> tuple[list[_Message], list[str], int | None]:
    """Messages as (ms from the start, participant, text), the clear values in them, and which one violates."""
    order = rng.randint(10_000, 9_999_999)
    turns = [
        ("agent", rng.choice(("Hi, how can I help?", "Hello, thanks for getting in touch."))),
        ("customer", f"My order {order} has not arrived yet, and I moved to number {rng.randint(2, 99)}."),
        ("agent", "Sorry to hear that, let me look into it."),
    ]
    secret: list[str] = []
    at: int | None = len(turns) + 1
    if kind is Kind.CHAT_CARD:
        card = card_number(rng)
        typed = _as_typed(card, rng)
        secret = [card, typed]
        turns += [("agent", "How would you like to pay?"), ("customer", f"Please charge {typed}, expiry next year.")]
    elif kind is Kind.CHAT_SSN:
        ssn = _ssn(rng)
        secret = [ssn]
        turns += [("agent", "Can you confirm who you are?"), ("customer", f"My social security number is {ssn}.")]
    elif kind is Kind.CHAT_CVV:
        turns += [("agent", "Which card is it?"), ("customer", f"The one on file, the cvv is {_digits(rng, 3)}.")]
    elif kind is Kind.CHAT_IBAN:
        iban = _iban(rng)
        typed = rng.choice((iban, " ".join(iban[start : start + 4] for start in range(0, len(iban), 4))))
        secret = [iban, typed]
        turns += [("agent", "Where do we send the refund?"), ("customer", f"To my account, IBAN {typed}.")]
    elif kind is Kind.CHAT_NHS:
        nhs = _nhs_number(rng)
        typed = rng.choice((nhs, f"{nhs[:3]} {nhs[3:6]} {nhs[6:]}"))
        secret = [nhs, typed]
        turns += [("agent", "Can you confirm who you are?"), ("customer", f"My NHS number is {typed}.")]
    elif kind is Kind.CHAT_LOOKALIKE:
        at = None
        turns += [
            (
                "agent",
                f"I see order number {_no_card_number(rng)}, sent with tracking number 1Z999AA1{_digits(rng, 10)}.",
            ),
            (
                "customer",
                f"It says 'delivered' with the time stamp {rng.randint(1_700_000_000_000, 1_800_000_000_000)}.",
            ),
        ]
    else:
        phone = _phone(rng)
        typed = rng.choice((phone, f"({phone[:3]}) {phone[3:6]}-{phone[6:]}"))
        secret, at = [typed], None
        turns += [("agent", "On which number can we reach you?"), ("customer", f"Call me on {typed}, any time.")]
    turns += [("agent", "Thanks, I have everything I need."), ("customer", "Great, bye!")]
    times = [0]
    while len(times) < len(turns):
        times.append(times[-1] + rng.randint(2_000, 15_000))
    return [(ms, who, text) for ms, (who, text) in zip(times, turns, strict=True)], secret, at


def _no_card_number(rng: random.Random) -> str:
    """Sixteen digits as an order has them: of no issuer's range, and one off a valid check digit."""
    card = "9" + card_number(rng)[:14]
    return card + str(-_luhn_sum(card) % 10 ^ 1)


def _chat_json(messages: list[_Message], start: datetime) -> bytes:
    return json.dumps(
        {
            "messages": [
                {"time": (start + timedelta(milliseconds=ms)).isoformat(), "participant": who, "text": text}
                for ms, who, text in messages
            ]
        }
    ).encode()


def _email_body(kind: Kind, rng: random.Random) -> tuple[str, list[str]]:
    order = rng.randint(10_000, 9_999_999)
    if kind is Kind.EMAIL_CARD:
        card = card_number(rng)
        typed = _as_typed(card, rng)
        return f"Hello,\n\nplease use this card for order {order}:\n{typed}\n\nThank you\n", [card, typed]
    phone = _phone(rng)
    return f"Hello,\n\nwhere is my order {order}? You can call me on {phone}.\n\nThank you\n", [phone]


def _email_bytes(body: str, sender: str, recording_id: str, sent: datetime, rng: random.Random) -> bytes:
    message = EmailMessage()
    message["From"] = sender
    message["To"] = "service@example.org"
    message["Subject"] = "My order"
    message["Date"] = format_datetime(sent)
    message["Message-ID"] = f"<{recording_id}@example.com>"
    message.set_content(body, cte=rng.choice(("7bit", "quoted-printable", "base64")))
    return message.as_bytes()


# Damage


def _damaged(recording: SyntheticRecording, damage: Damage, rng: random.Random) -> SyntheticRecording:
    media, content_type = recording.media, recording.content_type
    if damage is Damage.TRUNCATED:
        # Cut before the violation, so that what is left does not hold it.
        share = min(0.4, 0.9 * (recording.truth.offset_ms or 1e9) / 1000 * SAMPLE_RATE * 2 / len(media))
        media = media[: round(share * len(media))]
    elif damage is Damage.EMPTY:
        media = b""
    elif damage is Damage.HEADER_ONLY:
        header = io.BytesIO()
        with wave.open(header, "wb") as output:
            output.setparams((2, 2, SAMPLE_RATE, 0, "NONE", ""))
        media = header.getvalue()
    elif damage is Damage.HTML:
        media = b"<!doctype html><html><head><title>503</title></head><body>Service unavailable</body></html>"
    else:
        # Seven-bit, so that no prober takes it for the sync word of an MPEG stream.
        media = b"VOX3" + bytes(byte & 0x7F for byte in rng.randbytes(20_000))
        content_type = "application/octet-stream"
    truth = Truth(VerdictValue.UNSCREENABLE, damage=damage)
    # What damages the audio of a call leaves no transcript of it either.
    return replace(recording, media=media, content_type=content_type, truth=truth, transcript=None)


# Plans


class Readiness(StrEnum):
    """How a recording that is not ready when it is first heard of comes in."""

    COMPLETED = "completed"
    """recordingCompleted comes, recordingAvailable never does."""
    EARLY = "early"
    """recordingAvailable comes before the platform says 'available'."""


@dataclass(frozen=True, slots=True)
class PlannedRecording:
    """When and how one recording comes. at_s: end of the interaction, seconds from the start of the plan;
    lag_s: from there to available; not_ready_for: further seconds, with `readiness` saying which event comes first."""

    seed: int
    kind: Kind
    at_s: float
    lag_s: float = 0.0
    container: Container = Container.WAV
    deliveries: int = 1
    not_ready_for: float = 0.0
    readiness: Readiness = Readiness.COMPLETED
    damage: Damage | None = None

    @property
    def recording_id(self) -> str:
        return recording_id_of(self.seed, self.kind)

    def make(self, ended_at: datetime) -> SyntheticRecording:
        return make_recording(self.seed, self.kind, ended_at=ended_at, container=self.container, damage=self.damage)


_MIX: Final = {
    Kind.VOICE_TONES: 5,
    Kind.VOICE_DIGITS: 5,
    Kind.VOICE_CLEAN: 5,
    Kind.CHAT_CARD: 3,
    Kind.CHAT_SSN: 1,
    Kind.CHAT_CVV: 1,
    Kind.CHAT_CLEAN: 3,
    Kind.EMAIL_CARD: 3,
    Kind.EMAIL_CLEAN: 2,
    Kind.VOICE_READ_BACK: 2,
    Kind.VOICE_NO_NOTICE: 2,
    Kind.VOICE_CVV: 2,
    Kind.VOICE_THREAT: 1,
    Kind.VOICE_WORDED: 1,
    Kind.VOICE_LOOKALIKE: 1,
    Kind.CHAT_IBAN: 1,
    Kind.CHAT_NHS: 1,
    Kind.CHAT_LOOKALIKE: 1,
}
"""Of 40; a shorter plan has one of each from the top first."""
_CONTAINERS: Final = (Container.WAV,) * 5 + (Container.MP3, Container.OGG, Container.WEBM)


def demo_plan(seed: int, *, count: int = 40, spread_s: float = 40.0) -> list[PlannedRecording]:
    """`count` recordings over `spread_s` seconds, in order of time. Of 40: every kind, 5 delivered twice,
    3 not ready at first (two recordingCompleted, one early recordingAvailable), 2 damaged (of at least 12: 1 each)."""
    rng = random.Random(f"demo:{seed}")
    mixed = sorted(((at / number, kind) for kind, number in _MIX.items() for at in range(number)), key=itemgetter(0))
    kinds = [mixed[at % len(mixed)][1] for at in range(count)]
    rng.shuffle(kinds)
    step = spread_s / max(count, 1)
    plan = [
        PlannedRecording(
            seed=seed * 100_000 + number,
            kind=kind,
            at_s=round(step * (number + rng.random()), 3),
            lag_s=round(rng.uniform(0.2, 1.2), 3),
            container=rng.choice(_CONTAINERS) if kind.channel is Channel.VOICE else Container.WAV,
        )
        for number, kind in enumerate(kinds)
    ]
    # Never all recordings of a kind of violation.
    damaged_number = round(count * 2 / 40)
    plain = {Kind.VOICE_TONES, Kind.VOICE_DIGITS, Kind.VOICE_CLEAN}
    voices = [
        number
        for number, kind in enumerate(kinds)
        if kind is Kind.VOICE_CLEAN or (kind in plain and kinds.count(kind) > damaged_number)
    ]
    damages = (Damage.TRUNCATED, Damage.HTML, Damage.EMPTY, Damage.HEADER_ONLY, Damage.UNKNOWN_FORMAT)
    damaged = rng.sample(voices, damaged_number)
    for at, number in enumerate(damaged):
        plan[number] = replace(plan[number], damage=damages[at % len(damages)], container=Container.WAV)
    others = rng.sample([number for number in range(count) if number not in damaged], round(count * 8 / 40))
    late = round(count * 3 / 40)
    for at, number in enumerate(others):
        if at < late:
            readiness = Readiness.EARLY if at % 3 == 2 else Readiness.COMPLETED
            plan[number] = replace(plan[number], not_ready_for=round(rng.uniform(2, 5), 3), readiness=readiness)
        else:
            plan[number] = replace(plan[number], deliveries=2)
    return plan


def endless_plan(seed: int, *, interval_s: float = 6.0) -> Iterator[PlannedRecording]:
    """Recordings for as long as one asks, one every `interval_s` on average, with a few of everything odd."""
    rng = random.Random(f"endless:{seed}")
    at_s = 0.0
    number = 0
    while True:
        kind = rng.choices(tuple(_MIX), tuple(_MIX.values()))[0]
        odd: dict[str, Any] = {}
        if kind.channel is Channel.VOICE and rng.random() < 0.05:
            odd["damage"] = rng.choice(tuple(Damage))
        elif kind.channel is Channel.VOICE:
            odd["container"] = rng.choice(_CONTAINERS)
        if rng.random() < 0.1:
            odd["deliveries"] = 2
        elif rng.random() < 0.1:
            odd |= {"not_ready_for": round(rng.uniform(2, 8), 3), "readiness": rng.choice(tuple(Readiness))}
        yield PlannedRecording(
            seed=seed * 100_000 + number, kind=kind, at_s=round(at_s, 3), lag_s=round(rng.uniform(0.5, 2), 3), **odd
        )
        at_s += interval_s * rng.uniform(0.5, 1.5)
        number += 1
