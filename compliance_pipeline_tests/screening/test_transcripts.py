"""Chat, plain text and mail to turns; damaged media is refused, never read as less."""

import json
from contextlib import suppress
from email.message import EmailMessage

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_pipeline.screening.transcripts import Turn, UnreadableTranscript, html_text, parse_transcript


def turns(data: bytes | str, content_type: str | None = None) -> list[tuple[str, int, str]]:
    parsed = parse_transcript(data if isinstance(data, bytes) else data.encode(), content_type)
    return [(turn.speaker, turn.start_ms, turn.text) for turn in parsed.turns]


def chat(*messages: dict[str, object]) -> bytes:
    return json.dumps({"messages": messages, "conversationId": "c"}).encode()


def test_a_chat_becomes_turns_with_offsets_from_its_first_message() -> None:
    data = chat(
        {"time": "2026-03-12T10:00:00Z", "participant": "agent", "text": "hello", "extra": 1},
        {"time": "2026-03-12T10:00:07.250Z", "participant": "customer", "text": "hi"},
        {"time": "2026-03-12T12:00:09+02:00", "participant": "customer", "text": "it is me"},
    )
    expected = [("agent", 0, "hello"), ("customer", 7250, "hi"), ("customer", 9000, "it is me")]
    assert turns(data, "application/json") == expected
    assert turns(data) == expected
    assert turns(data, "application/octet-stream") == expected


@pytest.mark.parametrize("times", [(5, 7.5), (1741775445, 1741775447.5), (1741775445000, 1741775447500)])
def test_times_may_be_seconds_or_the_epoch(times: tuple[float, float]) -> None:
    data = chat(*({"time": at, "participant": "agent", "text": "x"} for at in times))
    first, second = [start for _, start, _ in turns(data)]
    assert second - first == 2500
    assert first == (5000 if times[0] == 5 else 0)


def test_a_list_of_messages_and_other_usual_keys_are_read() -> None:
    data = json.dumps(
        [
            {"timestamp": "2026-03-12T10:00:00Z", "from": {"purpose": "external"}, "body": "hi"},
            {"timestamp": "2026-03-12T10:00:01Z", "from": {"purpose": "acd"}, "body": None},
            {"sender": "Jane Roe", "message": "hello"},
            {"sender": "John Doe", "message": "hello"},
            {"sender": "Jane Roe", "message": "bye"},
        ]
    )
    assert turns(data) == [
        ("customer", 0, "hi"),
        ("ivr", 1000, ""),
        ("0", 1000, "hello"),
        ("1", 1000, "hello"),
        ("0", 1000, "bye"),
    ]


def test_segments_have_ends_where_they_say_so() -> None:
    data = json.dumps(
        {
            "segments": [
                {"start": 0.5, "end": 2.25, "text": "hello"},
                {"start": 3, "end": 3, "text": "an end that is none"},
                {"start": 4, "end": {"a": 1}, "text": "nor is this"},
            ]
        }
    )
    ends = [(turn.start_ms, turn.end_ms) for turn in parse_transcript(data.encode()).turns]
    assert ends == [(500, 2250), (3000, None), (4000, None)]
    spoken = chat({"time": "2026-03-12T10:00:00Z", "endTime": "2026-03-12T10:00:01.5Z", "text": "hello"})
    assert parse_transcript(spoken).turns[0].end_ms == 1500


# --- calls, as Genesys Cloud's transcript URL gives them

EPOCH_MS = 1_741_775_445_000


def phrase(text: object, start: float | None = None, purpose: str | None = None, **more: object) -> dict[str, object]:
    given = {"text": text, "startTimeMs": start, "participantPurpose": purpose, **more}
    return {key: value for key, value in given.items() if value is not None or key == "text"}


def call(*phrases: dict[str, object], **more: object) -> bytes:
    return json.dumps({"conversationId": "c", "transcripts": [{"phrases": phrases}]} | more).encode()


def spans(data: bytes) -> list[tuple[str, int, int | None, str]]:
    return [(t.speaker, t.start_ms, t.end_ms, t.text) for t in parse_transcript(data, "application/json").turns]


def test_a_call_becomes_utterances_with_times_from_its_start() -> None:
    data = {
        "organizationId": "o",
        "conversationId": "c",
        "communicationId": "m",
        "mediaType": "call",
        "conversationStartTime": EPOCH_MS - 60_000,
        "startTime": EPOCH_MS,
        "duration": {"milliseconds": 12_000},
        "transcripts": [
            {
                "transcriptId": "t",
                "language": "en-us",
                "startTime": EPOCH_MS + 10,
                "phrases": [
                    phrase("hello", EPOCH_MS + 500, "internal", duration={"milliseconds": 900}, stability=1.0)
                    | {"words": [{"word": "hello", "startTimeMs": EPOCH_MS + 500, "confidence": 0.7}]},
                    phrase("press one", EPOCH_MS + 100, "ivr"),
                    phrase("hi", EPOCH_MS + 2_000, "external", duration={"milliseconds": 0}),
                ],
            },
            {"phrases": [phrase("goodbye", EPOCH_MS + 9_000, "agent", duration={"milliseconds": 400.4})]},
        ],
    }
    expected = [
        ("ivr", 100, None, "press one"),
        ("agent", 500, 1400, "hello"),
        ("customer", 2000, None, "hi"),
        ("agent", 9000, 9400, "goodbye"),
    ]
    assert spans(json.dumps(data).encode()) == expected
    assert parse_transcript(json.dumps(data).encode()) == parse_transcript(json.dumps(data).encode(), "text/plain")


@pytest.mark.parametrize("purpose", ["ivr", "ACD", "bot", "workflow", "voicemail"])
def test_machines_are_the_ivr(purpose: str) -> None:
    assert spans(call(phrase("x", 1, purpose)))[0][0] == "ivr"


def test_who_has_no_known_purpose_gets_a_number_and_no_name() -> None:
    speakers = [
        speaker for speaker, *_ in spans(call(phrase("x", 1, "Jane Roe"), phrase("y", 2), phrase("z", 3, "agent")))
    ]
    assert speakers == ["0", "1", "agent"]


def test_times_may_start_at_nought_or_be_given_as_offsets() -> None:
    assert [start for _, start, *_ in spans(call(phrase("x", 4500), phrase("y", 9000), startTime=EPOCH_MS))] == [
        4500,
        9000,
    ]
    offsets = [phrase("x", offset={"milliseconds": 4500}), phrase("y"), phrase("z", offset={"milliseconds": 9000})]
    assert [start for _, start, *_ in spans(call(*offsets))] == [4500, 4500, 9000]
    parts = {"startTime": EPOCH_MS, "transcripts": [{"startTime": EPOCH_MS + 1000, "phrases": offsets[:1]}]}
    assert spans(json.dumps(parts).encode())[0][1] == 5500


def test_without_a_start_of_the_call_the_first_utterance_is_it() -> None:
    assert [start for _, start, *_ in spans(call(phrase("x", EPOCH_MS + 7), phrase("y", EPOCH_MS + 1007)))] == [0, 1000]
    early = call(phrase("before the start", EPOCH_MS - 300, duration={"milliseconds": 500}), startTime=EPOCH_MS)
    assert spans(early)[0][1] == 0


NUMBERS = st.one_of(st.none(), st.integers(), st.floats(), st.text(max_size=3))


@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "text": st.one_of(st.text(max_size=8), NUMBERS),
                "startTimeMs": NUMBERS,
                "participantPurpose": st.one_of(st.none(), st.text(max_size=5)),
                "duration": st.one_of(NUMBERS, st.fixed_dictionaries({"milliseconds": NUMBERS})),
                "offset": st.one_of(NUMBERS, st.fixed_dictionaries({"milliseconds": NUMBERS})),
            },
        ),
        max_size=4,
    ),
    NUMBERS,
)
def test_any_phrases_are_read_in_order_or_refused(phrases: list[dict[str, object]], start: object) -> None:
    with suppress(UnreadableTranscript):
        found = spans(json.dumps({"startTime": start, "transcripts": [{"phrases": phrases}]}).encode())
        assert len(found) == len(phrases)
        assert [at for _, at, *_ in found] == sorted(at for _, at, *_ in found)
        assert all(at >= 0 and (end is None or end > at) for _, at, end, _ in found)


def test_plain_text_with_speakers_becomes_turns() -> None:
    text = "[00:05] Agent: hello\nhow are you\n\n[01:02:03] Customer: fine\nCard number: none\nSpeaker 2: who?"
    assert turns(text, "text/plain") == [
        ("agent", 5_000, "hello\nhow are you\n"),
        ("customer", 3_723_000, "fine\nCard number: none"),
        ("0", 3_723_000, "who?"),
    ]


def test_plain_text_without_speakers_is_one_turn() -> None:
    assert turns("4111 1111\n1111 1111") == [("0", 0, "4111 1111\n1111 1111")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_any_usual_encoding_is_read(encoding: str) -> None:
    assert turns("déjà vu, 12 €".encode(encoding), "text/plain") == [("0", 0, "déjà vu, 12 €")]


def mail(**content: str) -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "a@example.com", "b@example.com", content.get("subject", "")
    message.set_content(content["body"])
    return message


def test_a_mail_becomes_its_subject_and_its_texts() -> None:
    message = mail(subject="My card", body="see below")
    message.add_alternative("<p>see <b>be</b>low</p><script>var x = 1</script>", subtype="html")
    message.add_attachment("a,b\n1,2\n", subtype="csv", filename="a.csv")
    message.add_attachment(b"\x89PNG", maintype="image", subtype="png", filename="a.png")
    message.add_attachment(mail(subject="Inner", body="forwarded words"))
    parsed = parse_transcript(message.as_bytes())
    assert [turn.text.strip() for turn in parsed.turns] == [
        "My card\nInner",
        "see below",
        "see below",
        "a,b\n1,2",
        "forwarded words",
    ]
    assert parsed.unread == ("image/png",)
    assert parse_transcript(message.as_bytes(), "message/rfc822") == parsed


def test_a_part_that_lies_elsewhere_is_unread_whatever_its_kind() -> None:
    message = mail(subject="My card", body="see below")
    for kind, size in (("text/plain", "20"), ("image/png", "20"), ("image/png", "99999"), ("image/png", "?")):
        away = EmailMessage()
        away["Content-Type"], away["Content-ID"] = kind, "<logo@example>"
        message.add_attachment(away, subtype="external-body", params={"access-type": "x-test", "size": size})
    parsed = parse_transcript(message.as_bytes())
    assert parsed.unread == ("text/plain", "image/png", "image/png")
    assert [turn.text.strip() for turn in parsed.turns] == ["My card", "see below"]


@pytest.mark.parametrize("attachments", [None, [], {}, ""])
def test_a_message_without_attachments_leaves_nothing_unread(attachments: object) -> None:
    assert parse_transcript(chat({"text": "hello", "attachments": attachments})).unread == ()


@pytest.mark.parametrize("attachments", [[{"contentType": "image/jpeg"}], [{"contentType": "4111 1111"}], [7], "a.pdf"])
def test_a_messages_attachments_are_unread_and_named_by_kind_only(attachments: object) -> None:
    (kind,) = parse_transcript(chat({"text": "hello", "attachments": attachments})).unread
    assert kind in ("image/jpeg", "application/octet-stream")
    with pytest.raises(UnreadableTranscript, match="no words, only"):
        parse_transcript(chat({"text": "", "attachments": attachments}))


def test_encoded_mail_is_decoded() -> None:
    data = (
        b"From: a@example.com\r\nSubject: =?utf-8?q?caf=C3=A9?=\r\nMIME-Version: 1.0\r\n"
        b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: base64\r\n\r\n"
        b"NDExMSAxMTExIDExMTEgMTExMQ==\r\n"
    )
    assert [text for *_, text in turns(data)] == ["café", "4111 1111 1111 1111"]


@pytest.mark.parametrize("charset", ["no-such-charset", "utf-8", "us-ascii"])
def test_a_mail_with_a_wrong_charset_is_still_read(charset: str) -> None:
    data = f"From: a@b.c\nSubject: s\nContent-Type: text/plain; charset={charset}\n\ncaf".encode() + b"\xe9 4111"
    assert turns(data)[1] == ("0", 0, "café 4111")


def test_html_parts_words_where_a_reader_sees_them_apart() -> None:
    html = "<style>p{}</style><table><tr><td>4111</td><td>11&#49;1</td></tr></table>1<b>11</b>1<br>1111"
    assert html_text(html).split() == ["4111", "1111", "1111", "1111"]


@pytest.mark.parametrize(
    ("data", "content_type", "says"),
    [
        (b"", None, "empty"),
        (b" \r\n\t", "application/json", "empty"),
        (b'{"messages": [{"time": "2026', "application/json", "JSON"),
        (b'{"messages": []}', None, "no words"),
        (b'{"messages": [{"text": ""}]}', None, "no words"),
        (b'{"error": "not found"}', None, "messages"),
        (b'{"messages": [{"text": {"a": 1}}]}', None, "messages.0"),
        (b'"text"', "application/json", "messages"),
        (b'{"transcripts": []}', None, "no words"),
        (b'{"transcripts": [{"phrases": []}]}', None, "no words"),
        (b'{"transcripts": [{"words": []}]}', None, "transcripts.0.phrases"),
        (b'{"transcripts": [{"phrases": [{"startTimeMs": 1}]}]}', None, "phrases.0.text"),
        (b'{"transcripts": [{"phrases": [{"text": "4111", "startTimeMs": "x"}]}]}', None, "phrases.0.startTimeMs"),
        (b'{"transcripts": "4111"}', None, "transcripts"),
        (b"[" * 100_000, "application/json", "JSON"),
        (b"plain words", "application/json", "JSON"),
        (bytes(range(256)) * 10, "text/plain", "binary"),
        (b"\xff\xfea", "text/plain", "UTF-16"),
        (b"\n\n", "message/rfc822", "empty"),
        (b"From: a@b.c\nSubject:\nContent-Type: image/png\n\nx", "message/rfc822", "image/png"),
        (b"<html><script>1</script></html>", "text/html", "no words"),
    ],
)
def test_damaged_media_is_refused_with_a_reason_and_without_its_content(
    data: bytes, content_type: str | None, says: str
) -> None:
    with pytest.raises(UnreadableTranscript, match=says) as refused:
        parse_transcript(data, content_type)
    assert refused.value.__cause__ is None
    assert len(refused.value.reason) < 200


def test_a_chat_that_can_not_be_read_does_not_show_its_text_in_the_error() -> None:
    with pytest.raises(UnreadableTranscript) as refused:
        parse_transcript(chat({"text": ["4111111111111111"]}))
    assert "4111" not in f"{refused.value!r}"


def test_a_turn_does_not_show_its_text() -> None:
    assert "4111" not in repr(Turn("customer", 0, "4111111111111111"))


@given(
    st.one_of(st.binary(max_size=400), st.text(max_size=200).map(str.encode)),
    st.sampled_from([None, "application/json", "text/plain", "message/rfc822", "text/html"]),
    st.sampled_from(
        [b"", b"From: a@b.c\nSubject: s\nContent-Type: multipart/mixed; boundary=x\n\n--x\n", b'{"messages": [']
    ),
)
def test_any_bytes_are_read_or_refused(data: bytes, content_type: str | None, head: bytes) -> None:
    with suppress(UnreadableTranscript):
        parse_transcript(head + data, content_type)
