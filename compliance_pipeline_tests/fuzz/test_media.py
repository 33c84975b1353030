"""Sound in every container that is taken, and texts: decoded, or refused by the exception that is meant for it."""

from functools import cache
from time import perf_counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_pipeline.media.decode import MediaReader, UnscreenableMedia, decode_audio
from compliance_pipeline.screening.transcripts import UnreadableTranscript, parse_transcript
from compliance_pipeline_tests.fuzz.broken import CARD, MAIL, documents, effort, files, says_nothing_of
from compliance_pipeline_tests.media.audio import CODECS, MemoryStream, encoded, sound

LONGEST_S = 24 * 3600
E_MAIL = f"""\
From: {MAIL}\r
To: compliance@example.com\r
Subject: =?utf-8?b?{"TXkgY2FyZA"}==?=\r
Date: Sun, 1 Mar 2026 12:00:00 +0000\r
MIME-Version: 1.0\r
Content-Type: multipart/mixed; boundary="outer"\r
\r
--outer\r
Content-Type: multipart/alternative; boundary=inner\r
\r
--inner\r
Content-Type: text/plain; charset="iso-8859-15"\r
Content-Transfer-Encoding: quoted-printable\r
\r
My card is {CARD}=2E\r
--inner\r
Content-Type: text/html; charset=utf-8\r
Content-Transfer-Encoding: base64\r
\r
PGh0bWw+PGI+Y2FyZDwvYj48L2h0bWw+\r
--inner--\r
--outer\r
Content-Type: message/rfc822\r
\r
From: a@example.com\r
Subject: inside\r
\r
words\r
--outer\r
Content-Type: application/pdf; name*=utf-8''scan%C3%A9.pdf\r
Content-Disposition: attachment; filename="scan.pdf"\r
Content-Transfer-Encoding: base64\r
\r
JVBERi0xLjQ=\r
--outer--\r
""".encode()
CHAT = {
    "messages": [
        {"from": "agent", "time": "2026-03-01T12:00:00Z", "text": "your card?"},
        {"from": "customer", "time": 1772366400, "text": CARD},
    ]
}
CALL = {
    "transcripts": [
        {
            "phrases": [
                {"participantPurpose": "external", "startTimeMs": 0, "text": CARD, "words": [{"startTimeMs": 0}]},
                {"participantPurpose": "internal", "startTimeMs": 900, "duration": {"milliseconds": 10}, "text": "ok"},
            ]
        }
    ]
}
PLAIN = f"[00:12] Agent: hello\n[00:15] Customer: {CARD}\nand more\n".encode()
HTML = f"<html><body><p>{CARD}<script>x</script></p></body></html>".encode()


@cache
def good(kind: str) -> bytes:
    return encoded(kind, sound(1.5, channels=2 if kind in ("wav", "ogg") else 1), comment=CARD)


@pytest.mark.parametrize("kind", CODECS)
def test_damaged_sound_is_decoded_or_refused_by_name(kind: str) -> None:
    @given(files([good(kind)]), st.sampled_from([1, 777, 1 << 16]))
    @effort(300)
    def decode(content: bytes, chunk: int) -> None:
        reader, started = MediaReader(MemoryStream(content, chunk=max(chunk, len(content) // 500))), perf_counter()
        try:
            audio, blocks = decode_audio(reader)
            for block in blocks:
                assert block.dtype == np.float32
                assert block.shape[0] == audio.channels
                assert np.isfinite(block).all()
            assert audio.duration_s <= LONGEST_S
        except UnscreenableMedia as error:
            says_nothing_of(str(error))
        assert perf_counter() - started < 10

    decode()


@pytest.mark.parametrize("content_type", [None, "message/rfc822"])
def test_a_damaged_mail_is_read_or_refused_by_name(content_type: str | None) -> None:
    @given(files([E_MAIL]))
    @effort(800)
    def read(content: bytes) -> None:
        parsed_or_refused(content, content_type)

    read()


@given(documents([CHAT, CALL]), st.sampled_from([None, "application/json"]))
@effort(800)
def test_a_damaged_chat_or_transcript_is_read_or_refused_by_name(content: bytes, content_type: str | None) -> None:
    parsed_or_refused(content, content_type)


@given(files([PLAIN, HTML]), st.sampled_from([None, "text/plain", "text/html", "text/plain; charset=klingon"]))
@effort(600)
def test_a_damaged_text_is_read_or_refused_by_name(content: bytes, content_type: str | None) -> None:
    parsed_or_refused(content, content_type)


def parsed_or_refused(content: bytes, content_type: str | None) -> None:
    try:
        parse_transcript(content, content_type)
    except UnreadableTranscript as error:
        says_nothing_of(str(error))
