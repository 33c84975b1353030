"""Text media to turns: chats, e-mail and calls' transcripts, as bytes. Pure; what the turns say belongs to `text`.

Raises UnreadableTranscript rather than give back less than was there.
"""

import codecs
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.message import EmailMessage
from html.parser import HTMLParser
from typing import Any, cast

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
)

SMALL_IMAGE_BYTES = 16 * 1024
"""A picture within a mail's text is taken for a logo up to here; a photo in which a number can be read is larger."""


class UnreadableTranscript(Exception):
    """Text media that can't be screened; `reason` says why and holds none of the content."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True, repr=False)
class Turn:
    """One message or utterance. speaker: 'agent', 'customer', 'ivr' (any machine), or '0', '1' ... without a role.

    start_ms: of a call from the recording's start, else from the first message; 0 where the transcript has no times.
    end_ms: of an utterance, where it is known.
    """

    speaker: str
    start_ms: int
    text: str
    end_ms: int | None = None

    def __repr__(self) -> str:
        return f"Turn({self.speaker!r}, {self.start_ms} ms, <{len(self.text)} characters>)"


@dataclass(frozen=True, slots=True)
class Transcript:
    """turns: in order. unread: content types of what was sent besides and nobody has read: attachments of messages and
    of mails, but for signatures and the logos within a mail's text."""

    turns: tuple[Turn, ...]
    unread: tuple[str, ...] = ()

    @property
    def timed(self) -> bool:
        """Whether it says when anything was said."""
        return any(turn.start_ms or turn.end_ms for turn in self.turns)


def parse_transcript(data: bytes, content_type: str | None = None) -> Transcript:
    """Read chat JSON (`{"messages": [{"time", "participant", "text"}]}`), Genesys Cloud's transcript of a call
    (`{"transcripts": [{"phrases": [...]}]}`), plain text or RFC 5322 mail.

    The content type is a hint; without a known one the content decides. Raises UnreadableTranscript.
    """
    kind = (content_type or "").partition(";")[0].strip().lower()
    if not data.strip():
        raise UnreadableTranscript("the transcript is empty")
    if kind == "message/rfc822" or (kind in _UNTOLD and _looks_like_mail(data)):
        return _mail(data)
    text = _decode(data)
    if kind.endswith("json") or (kind in _UNTOLD and _JSON.match(text)):
        return _json(text)
    if kind == "text/html" or (kind in _UNTOLD and text.lstrip()[:15].lower().startswith(("<!doctype html", "<html"))):
        turns = [Turn("0", 0, html_text(text))]
    else:
        turns = _plain(text)
    return _not_empty(Transcript(tuple(turns)))


_JSON = re.compile(r"\s*(?:\{\s*[\"}]|\[\s*[\]{])")
_UNTOLD = ("", "application/octet-stream", "binary/octet-stream", "text/plain")


def _not_empty(transcript: Transcript) -> Transcript:
    if not any(turn.text.strip() for turn in transcript.turns):
        only = f", only {', '.join(sorted(set(transcript.unread)))}" if transcript.unread else ""
        raise UnreadableTranscript(f"the transcript holds no words{only}")
    return transcript


def _decode(data: bytes) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            return data.decode("utf-16")
        except UnicodeDecodeError:
            raise UnreadableTranscript("the text is not the UTF-16 that it says it is") from None
    if len(_CONTROLS.findall(data[:65536])) > len(data[:65536]) // 100:
        raise UnreadableTranscript("the media is not text (binary content)")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


_CONTROLS = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


# JSON


def _json(text: str) -> Transcript:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise UnreadableTranscript("the transcript is not valid JSON (cut off or damaged)") from None
    try:
        if isinstance(content, dict) and "transcripts" in content:
            return _not_empty(Transcript(tuple(_call(_Call.model_validate(content)))))
        chat = _Chat.model_validate({"messages": content} if isinstance(content, list) else content)
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in fault["loc"]) or "top level"
        raise UnreadableTranscript(f"the JSON has no list of messages or phrases that can be read: {where}") from None
    unread = tuple(kind for message in chat.messages for kind in message.attachments)
    return _not_empty(Transcript(tuple(_chat(chat)), unread))


# Chat


_KIND = re.compile(r"[a-z]{1,20}/[A-Za-z0-9.+-]{1,100}")


class _Message(BaseModel):
    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)

    time: datetime | float | None = Field(
        default=None, validation_alias=AliasChoices("time", "timestamp", "sentAt", "startTime", "start")
    )
    end: datetime | float | None = Field(default=None, validation_alias=AliasChoices("end", "endTime"))
    participant: str | None = Field(
        default=None, validation_alias=AliasChoices("participant", "speaker", "from", "role", "sender", "purpose")
    )
    text: str = Field(default="", validation_alias=AliasChoices("text", "body", "message", "content"))
    attachments: tuple[str, ...] = ()

    @field_validator("attachments", mode="before")
    @classmethod
    def _kinds(cls, value: Any) -> Any:
        entries = value if isinstance(value, list) else [value] if value else []
        kinds = [entry.get("contentType") if isinstance(entry, dict) else None for entry in entries]
        return tuple(
            kind if isinstance(kind, str) and _KIND.fullmatch(kind) else "application/octet-stream" for kind in kinds
        )

    @field_validator("time", "end", mode="before")
    @classmethod
    def _numbers_stay_numbers(cls, value: Any) -> Any:
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("end", mode="wrap")
    @classmethod
    def _no_end_rather_than_no_message(cls, value: Any, read: ValidatorFunctionWrapHandler) -> Any:
        try:
            return read(value)
        except ValidationError:
            return None

    @field_validator("participant", mode="before")
    @classmethod
    def _role_of_an_object(cls, value: Any) -> Any:
        if isinstance(value, dict):
            value = next((value[key] for key in ("purpose", "role", "type", "id", "name") if value.get(key)), None)
        return str(value) if isinstance(value, int) else value

    @field_validator("text", mode="before")
    @classmethod
    def _null_is_no_text(cls, value: Any) -> Any:
        return "" if value is None else value


class _Chat(BaseModel):
    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)

    messages: tuple[_Message, ...] = Field(validation_alias=AliasChoices("messages", "turns", "transcript", "segments"))


def _chat(chat: _Chat) -> list[Turn]:
    """Milliseconds from the first message. Numbers: epoch milliseconds, epoch seconds, else seconds from the start."""
    speakers = _Speakers()
    stamps = [_seconds(message.time) for message in chat.messages]
    first = min((stamp for stamp in stamps if stamp is not None), default=0.0)
    origin = first if first > 1e8 else 0.0
    turns = []
    at = 0
    for message, stamp in zip(chat.messages, stamps, strict=True):
        at = at if stamp is None else max(0, round((stamp - origin) * 1000))
        end = _seconds(message.end)
        end_ms = None if end is None or stamp is None else round((end - origin) * 1000)
        turns.append(_turn(speakers(message.participant), at, end_ms, message.text))
    return turns


def _turn(speaker: str, start_ms: int, end_ms: int | None, text: str) -> Turn:
    """With an end only where it can be one: some transcripts give a length of 0, or the end of something else."""
    return Turn(speaker, start_ms, text, end_ms if end_ms is not None and end_ms > start_ms else None)


def _seconds(time: datetime | float | None) -> float | None:
    if isinstance(time, datetime):
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    if time is None or time != time or abs(time) > 1e16:
        return None
    return time / 1000 if time > 1e11 else time


# Call


class _Span(BaseModel):
    milliseconds: float = Field(ge=0, le=1e10)


class _Phrase(BaseModel):
    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)

    text: str
    purpose: str | None = Field(default=None, validation_alias="participantPurpose")
    start: float | None = Field(default=None, validation_alias="startTimeMs", ge=0, le=1e16)
    offset: _Span | None = None
    duration: _Span | None = None

    @field_validator("text", mode="before")
    @classmethod
    def _null_is_no_text(cls, value: Any) -> Any:
        return "" if value is None else value


class _OneTranscript(BaseModel):
    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)

    start: float | None = Field(default=None, validation_alias="startTime", ge=0, le=1e16)
    phrases: tuple[_Phrase, ...]


class _Call(BaseModel):
    """What Genesys Cloud's transcript URL leads to (developer.genesys.cloud, 'Transcript URL'), as far as it is used.

    Times are of the epoch, in milliseconds; copies that start at 0 are about too.
    """

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)

    start: float | None = Field(default=None, validation_alias="startTime", ge=0, le=1e16)
    transcripts: tuple[_OneTranscript, ...]


def _call(call: _Call) -> list[Turn]:
    """Utterances of all parties in order of time. The communication's start is taken for the recording's."""
    starts = [start for start in (call.start, *(part.start for part in call.transcripts)) if start is not None]
    phrases = [(part, phrase) for part in call.transcripts for phrase in part.phrases]
    times = [phrase.start for _, phrase in phrases if phrase.start is not None]
    origin = call.start if call.start is not None else min(starts or times, default=0.0)
    speakers = _Speakers()
    turns = []
    at = 0.0
    for part, phrase in phrases:
        if phrase.start is not None:
            at = phrase.start - (origin if phrase.start > _EPOCH_MS else 0)
        elif phrase.offset is not None:
            later = part.start - origin if part.start is not None else 0
            at = later + phrase.offset.milliseconds
        at = max(0.0, at)
        end_ms = None if phrase.duration is None else round(at + phrase.duration.milliseconds)
        turns.append(_turn(speakers(phrase.purpose), round(at), end_ms, phrase.text))
    return sorted(turns, key=lambda turn: turn.start_ms)


_EPOCH_MS = 1e11
"""In milliseconds of the epoch, 1973; as an offset, three years."""


class _Speakers:
    """Roles by the words platforms use; anyone else by order of appearance, since a name is personal data."""

    _ROLES = dict.fromkeys(("customer", "external", "visitor", "client", "caller", "guest", "consumer"), "customer") | (
        dict.fromkeys(
            ("agent", "internal", "user", "representative", "rep", "advisor", "adviser", "operator", "supervisor"),
            "agent",
        )
        | dict.fromkeys(("bot", "acd", "ivr", "system", "workflow", "assistant", "virtual agent", "voicemail"), "ivr")
    )

    def __init__(self) -> None:
        self._others: dict[str, str] = {}

    def __call__(self, name: str | None) -> str:
        key = (name or "").strip().lower()
        return self._ROLES.get(key) or self._others.setdefault(key, str(len(self._others)))


# Plain text

_LINE = re.compile(
    r"(?:\[?(?P<clock>(?:\d{1,2}:)?\d{1,2}:\d{2}(?:[.,]\d{1,3})?)\]?[ \t]+-?[ \t]*)?"
    r"(?:(?P<who>agent|customer|caller|client|visitor|guest|representative|rep|advis[eo]r|operator|bot|ivr|system"
    r"|speaker[ _]?\d{1,2})[ \t]*:[ \t]*)?",
    re.IGNORECASE,
)


def _plain(text: str) -> list[Turn]:
    """Lines such as `[00:12] Agent: ...` are turns; other lines go on with the turn before."""
    speakers = _Speakers()
    turns: list[tuple[str | None, int, list[str]]] = []
    at = 0
    for line in text.splitlines():
        head = cast(re.Match[str], _LINE.match(line))
        if head["clock"]:
            at = _clock_ms(head["clock"])
        if turns and not head["who"]:
            turns[-1][2].append(line)
        else:
            turns.append((head["who"], at, [line[head.end() :] if head["who"] else line]))
    return [Turn(speakers(who), start, "\n".join(lines)) for who, start, lines in turns]


def _clock_ms(clock: str) -> int:
    seconds = 0.0
    for part in clock.replace(",", ".").split(":"):
        seconds = seconds * 60 + float(part)
    return round(seconds * 1000)


# Mail


_HEADER = re.compile(rb"[A-Za-z][A-Za-z0-9-]{1,60}:")
_MAIL_HEADERS = re.compile(rb"^(?:from|to|subject|date|message-id|mime-version|received|return-path):", re.I | re.M)


def _looks_like_mail(data: bytes) -> bool:
    head = data[:65536].lstrip().replace(b"\r\n", b"\n").partition(b"\n\n")[0]
    return bool(_HEADER.match(head)) and len(_MAIL_HEADERS.findall(head)) >= 2


def _mail(data: bytes) -> Transcript:
    try:
        message = message_from_bytes(data, policy=policy.default)
        subject, words, unread, passed_over = _mail_parts(message)
    except Exception as error:  # the parser of the standard library fails on damaged mail in many ways
        raise UnreadableTranscript(f"the mail is damaged ({type(error).__name__})") from None
    others = unread + passed_over
    if not message.keys() or not (subject or words or others):
        raise UnreadableTranscript("the mail has neither headers nor a body that can be read")
    turns = tuple(Turn("0", 0, text) for text in (subject, *words) if text.strip())
    if not turns and others:
        raise UnreadableTranscript(f"the mail holds no text, only {', '.join(sorted(set(others)))}")
    return _not_empty(Transcript(turns, tuple(unread)))


def _mail_parts(message: EmailMessage) -> tuple[str, list[str], list[str], list[str]]:
    """Subjects, texts, kinds of parts that somebody has to read, kinds of parts that hold nothing to read."""
    words: list[str] = []
    unread: list[str] = []
    passed_over: list[str] = []
    subjects = []
    elsewhere: dict[int, int | None] = {}
    for part in message.walk():
        subjects.append(_header(part, "subject"))
        kind = part.get_content_type()
        if kind == "message/external-body" and part.is_multipart():
            # RFC 2046, 5.2.3: of what it stands for, only the headers are in the mail.
            size = str(part.get_param("size", ""))
            elsewhere |= {id(one): int(size) if size.isdecimal() else None for one in part.walk() if one is not part}
        if part.is_multipart():
            continue
        away = id(part) in elsewhere
        if not away and (part.get_content_maintype() == "text" or kind in ("application/json", "application/xml")):
            text = _part_text(part)
            words.append(html_text(text) if kind == "text/html" else text)
            continue
        size_bytes = elsewhere[id(part)] if away else len(part.get_payload(decode=True) or b"")
        (passed_over if _needs_no_reader(part, size_bytes) else unread).append(kind)
    return "\n".join(subject for subject in subjects if subject), words, unread, passed_over


def _needs_no_reader(part: EmailMessage, size_bytes: int | None) -> bool:
    """Whether it is empty, a signature, or a logo within the text. size_bytes: None where it is not known."""
    if size_bytes == 0 or part.get_content_type() in _SIGNATURES:
        return True
    within_text = part.get_content_disposition() == "inline" or "content-id" in part
    small = size_bytes is not None and size_bytes <= SMALL_IMAGE_BYTES
    return part.get_content_maintype() == "image" and within_text and small


_SIGNATURES = frozenset({"application/pgp-signature", "application/pkcs7-signature", "application/x-pkcs7-signature"})


def _header(part: EmailMessage, name: str) -> str:
    try:
        return str(part.get(name, ""))
    except Exception:  # a header that the standard library can't parse is still text to screen
        return next((str(value) for key, value in part.raw_items() if key.lower() == name), "")


def _part_text(part: EmailMessage) -> str:
    payload = part.get_payload(decode=True)
    data = payload if isinstance(payload, bytes) else b""
    charset = part.get_content_charset() or "utf-8"
    try:
        return data.decode(charset)
    except (LookupError, UnicodeDecodeError):
        return data.decode("utf-8" if _is_utf8(data) else "latin-1")


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


class _TextOfHtml(HTMLParser):
    """Keeps the words; inline tags join them, as a reader sees them, all other tags part them."""

    _INLINE = frozenset(
        ["a", "b", "big", "code", "em", "font", "i", "mark", "small", "span", "strong", "tt", "u", "wbr"]
    )

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._unseen: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        if tag in ("script", "style"):
            self._unseen = tag
        elif tag not in self._INLINE:
            self.parts.append(" " if tag in ("td", "th") else "\n")

    def handle_endtag(self, tag: str) -> None:
        if tag == self._unseen:
            self._unseen = None
        elif tag not in self._INLINE:
            self.parts.append(" " if tag in ("td", "th") else "\n")

    def handle_data(self, data: str) -> None:
        if self._unseen is None:
            self.parts.append(data)


def html_text(html: str) -> str:
    """The words of an HTML page or fragment, tags and scripts left out."""
    parser = _TextOfHtml()
    parser.feed(html)
    parser.close()
    return "".join(parser.parts)
