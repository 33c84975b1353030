"""Sample interactions as a platform gives them out after its own redaction: what `redaction-check` looks at."""

import json
import re
import uuid
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from typing import Final

from compliance_pipeline.contracts.event import Channel, Direction
from compliance_pipeline.contracts.verdict import VerdictValue
from compliance_pipeline.sandbox.calls import Kind, SyntheticRecording, Truth

REDACTIONS: Final = {
    "card": r"\b(?:\d[ -]?){12,18}\d\b",
    "ssn": r"\b\d{3}-\d{2}-\d{4}\b",
    "phone": r"(?:\+1 ?)?\(?\d{3}\)?[ -]?\d{3}[ -]?\d{4}\b",
    "email": r"[\w.+-]+@[\w.-]+\w",
}


def sample(channel: Channel, text: str, redacted: frozenset[str]) -> SyntheticRecording:
    """A chat, an e-mail, or the transcript of a call in which the customer says `text`, without the kinds `redacted`.

    A call is two seconds of silence: platforms redact words by the transcript.
    """
    for kind in sorted(redacted):
        text = re.sub(REDACTIONS[kind], "[redacted]", text)
    ended_at = datetime.now(UTC)
    started_at = ended_at - timedelta(seconds=2)
    recording_id = str(uuid.uuid4())
    transcript = None
    if channel is Channel.VOICE:
        kind_of, content_type, media = Kind.VOICE_CLEAN, "audio/wav", _silence()
        transcript = _transcript(text, recording_id, started_at)
    elif channel is Channel.CHAT:
        message = {"time": started_at.isoformat(), "participant": "customer", "text": text}
        kind_of, content_type, media = Kind.CHAT_CLEAN, "application/json", json.dumps({"messages": [message]}).encode()
    else:
        mail = EmailMessage()
        mail["From"], mail["To"], mail["Subject"] = "sample@example.com", "service@example.org", "Sample"
        mail.set_content(text)
        kind_of, content_type, media = Kind.EMAIL_CLEAN, "message/rfc822", mail.as_bytes()
    return SyntheticRecording(
        recording_id=recording_id,
        kind=kind_of,
        direction=Direction.INBOUND,
        start_time=started_at,
        end_time=ended_at,
        participants=(),
        content_type=content_type,
        media=media,
        truth=Truth(VerdictValue.NO_VIOLATION),
        planted=(),
        transcript=transcript,
        speakers=("agent", "customer") if channel is Channel.VOICE else (),
    )


def _silence() -> bytes:
    import io
    import wave

    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as output:
        output.setparams((2, 2, 8000, 0, "NONE", ""))
        output.writeframes(bytes(2 * 2 * 16_000))
    return buffer.getvalue()


def _transcript(text: str, recording_id: str, started_at: datetime) -> bytes:
    start_ms = round(started_at.timestamp() * 1000)
    phrase = {
        "phraseIndex": 0,
        "text": text,
        "participantPurpose": "external",
        "startTimeMs": start_ms,
        "duration": {"milliseconds": 2000},
    }
    return json.dumps(
        {
            "conversationId": recording_id,
            "communicationId": recording_id,
            "mediaType": "call",
            "startTime": start_ms,
            "duration": {"milliseconds": 2000},
            "transcripts": [{"language": "en-us", "startTime": start_ms, "phrases": [phrase]}],
        }
    ).encode()
