"""The wire between the pipeline and an engine over HTTP (guide, step 2): our request, its answers. The verdict itself
is `verdict`'s; who signs, retries or screens is the service's and the client's."""

import re
from base64 import b64encode
from collections.abc import Mapping
from secrets import token_bytes
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Base64Bytes, ConfigDict, Field, field_validator, model_validator

from compliance_pipeline.contracts.event import Channel, Direction, RecordingId, UtcDatetime, WireModel
from compliance_pipeline.contracts.policy import Detector, FindingKind
from compliance_pipeline.contracts.verdict import Verdict

SCREENINGS_PATH = "/api/v1/screenings"
NDJSON = "application/x-ndjson"
UNMAPPED_RULE = "EXTERNAL-UNMAPPED"
"""Stands for the rule of what another engine found and no rule of our pack has the violation type of."""

_TOKEN = re.compile(r"^tok_[a-z]+_[a-z2-7]{26}$")
_LONG_NUMBER = re.compile(r"(?:\d[\s().+-]*){7}")

Token = Annotated[str, Field(pattern=_TOKEN.pattern, description="made by the receiver")]
CorrelationId = Annotated[str, Field(min_length=1, max_length=256)]


def is_address(text: str) -> bool:
    """Whether it is an http(s) URL with a host and no user name."""
    try:
        parts = urlsplit(text)
        port_fits = parts.port != 0
    except ValueError:
        return False
    return port_fits and parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc


class _Strict(WireModel):
    model_config = ConfigDict(**WireModel.model_config | {"extra": "forbid"})


class TokenisedMetadata(_Strict):
    """What an engine may know of a call besides its sound; guide, edge case 2: tokens only.

    queue: scrubbed by the receiver. participants: their tokens, in the event's order.
    """

    direction: Direction | None = None
    queue: str | None = Field(default=None, max_length=128)
    participants: tuple[Token, ...] = Field(default=(), max_length=64)
    start_time: UtcDatetime | None = None
    end_time: UtcDatetime | None = None

    @field_validator("queue")
    @classmethod
    def _names_nobody(cls, value: str | None) -> str | None:
        if value and not _TOKEN.fullmatch(value) and ("@" in value or _LONG_NUMBER.search(value)):
            raise ValueError("looks like an address or a number: send its token")
        return value


class SealedMedia(_Strict):
    """Media in envelope encryption: AES-256-GCM under a key made for it, which is wrapped (RFC 3394) under a key that
    only both ends hold, `key_id`. Bound to recordingId and correlationId: it opens under no others."""

    key_id: str = Field(pattern=r"^[A-Za-z0-9._:/-]{1,128}$")
    wrapped_key: Base64Bytes = Field(min_length=56, max_length=56, repr=False, description="40 bytes")
    nonce: Base64Bytes = Field(min_length=16, max_length=16, description="12 bytes")
    ciphertext: Base64Bytes = Field(min_length=24, repr=False, description="with the tag of 16 bytes at its end")


class SealBroken(ValueError):
    """A sealed medium that does not open: an unknown key, another one, another recording, or changed on the way."""


def seal(media: bytes, key_id: str, key: bytes, recording_id: str, correlation_id: str) -> SealedMedia:
    """`key`: 32 bytes, the key-encryption key; a fresh data key and nonce each time (NIST SP 800-38D, 8.2.2)."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.keywrap import aes_key_wrap

    data_key, nonce = AESGCM.generate_key(256), token_bytes(12)
    return SealedMedia(
        key_id=key_id,
        wrapped_key=b64encode(aes_key_wrap(key, data_key)),
        nonce=b64encode(nonce),
        ciphertext=b64encode(AESGCM(data_key).encrypt(nonce, media, _bound_to(recording_id, correlation_id))),
    )


def unseal(sealed: SealedMedia, keys: Mapping[str, bytes], recording_id: str, correlation_id: str) -> bytes:
    """The media. Raises SealBroken."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap

    if sealed.key_id not in keys:
        raise SealBroken("the key that the media is sealed with is not known here")
    try:
        data_key = aes_key_unwrap(keys[sealed.key_id], sealed.wrapped_key)
        return AESGCM(data_key).decrypt(sealed.nonce, sealed.ciphertext, _bound_to(recording_id, correlation_id))
    except (InvalidUnwrap, InvalidTag, ValueError):
        raise SealBroken("the sealed media does not open: another key or recording, or changed on the way") from None


def _bound_to(recording_id: str, correlation_id: str) -> bytes:
    return f"{recording_id}\0{correlation_id}".encode()


class ScreeningRequest(_Strict):
    """One recording to screen. The same recordingId, correlationId and policyVersion always mean the same screening.

    media_url: where the platform serves the media, signed by it and short-lived; fetched at once. In its place the
    media itself can come along, sealed.
    transcript_url: of a call, where the platform has one; served like the media. speakers: who is on each audio
    channel, in order, where the platform says so.
    callback_url: where a verdict goes that takes longer than the answer may.
    """

    schema_version: Literal["1"] = "1"
    correlation_id: CorrelationId
    recording_id: RecordingId
    channel: Channel
    media_url: str | None = Field(default=None, max_length=4096, repr=False)
    sealed: SealedMedia | None = None
    content_type: str | None = Field(default=None, max_length=128, pattern=r"^[\w.+-]+/[\w.+-]+$")
    transcript_url: str | None = Field(default=None, max_length=4096, repr=False)
    speakers: tuple[Annotated[str, Field(pattern=r"^[a-z]{1,32}$")], ...] = Field(default=(), max_length=8)
    metadata: TokenisedMetadata = TokenisedMetadata()
    callback_url: str | None = Field(default=None, max_length=4096, repr=False)
    policy_version: str = Field(min_length=1, max_length=128)

    @field_validator("media_url", "transcript_url", "callback_url")
    @classmethod
    def _is_http(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not is_address(value):
            raise ValueError("must be an http or https URL without a user name")
        return value

    @property
    def addresses(self) -> tuple[tuple[str, str | None], ...]:
        """Those that the engine is to ask, by field."""
        return (
            ("mediaUrl", self.media_url),
            ("transcriptUrl", self.transcript_url),
            ("callbackUrl", self.callback_url),
        )

    @model_validator(mode="after")
    def _has_its_media(self) -> "ScreeningRequest":
        if (self.media_url is None) == (self.sealed is None):
            raise ValueError("either mediaUrl or sealed is required, and not both")
        return self


class Accepted(_Strict):
    """202: the verdict comes later, to the callback URL."""

    status: Literal["accepted"] = "accepted"
    recording_id: RecordingId
    correlation_id: CorrelationId


class PartialFinding(_Strict):
    """A finding before the verdict. What is not settled may still be taken back; every finding that stands is sent
    again as settled before the verdict. masked: as in `Finding`, no more digits than may be shown."""

    kind: FindingKind
    detector: Detector
    speaker: str
    start_ms: int = Field(ge=0)
    end_ms: int = Field(ge=0)
    confidence: float = Field(ge=0, le=1)
    masked: str
    settled: bool


class Fault(_Strict):
    """Why a stream ends without a verdict. reason: one word; retry_after: seconds, where another try may help."""

    reason: str = Field(max_length=64)
    retry_after: float | None = Field(default=None, ge=0)


class StreamLine(_Strict):
    """One line of an NDJSON answer: findings as they come, then the verdict or why there is none."""

    finding: PartialFinding | None = None
    verdict: Verdict | None = None
    fault: Fault | None = None

    @model_validator(mode="after")
    def _says_one_thing(self) -> "StreamLine":
        if sum(part is not None for part in (self.finding, self.verdict, self.fault)) != 1:
            raise ValueError("a line is a finding, a verdict or a fault")
        return self


def stored_form(verdict: Verdict) -> Verdict:
    """The verdict as it may be kept: of an evidence URL only what is no signature."""
    snippet = verdict.evidence_snippet
    return verdict.model_copy(update={"evidence_snippet": snippet.partition("?")[0]}) if snippet else verdict
