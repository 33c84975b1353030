import io
import json
import re
import wave
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Event
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compliance_pipeline.contracts.event import Channel, Direction, EventType
from compliance_pipeline.contracts.policy import Annotation
from compliance_pipeline.contracts.verdict import VerdictValue
from compliance_pipeline.contracts.work_item import SupervisorCallback, WorkItem
from compliance_pipeline.platforms import cloud
from compliance_pipeline.platforms.cloud import (
    BATCHES,
    CALLBACKS,
    CONVERSATIONS,
    DETAILS,
    PROTECTION,
    QUEUES,
    TRANSCRIPTS,
    WORK_ITEMS,
    WORK_TYPES,
    WORKBINS,
    CloudPlatform,
)
from compliance_pipeline.platforms.port import (
    Gone,
    Media,
    NotYet,
    Platform,
    PlatformError,
    PlatformHeld,
    Ready,
    Refused,
    Unavailable,
)
from compliance_pipeline.platforms.transport import Transport
from compliance_pipeline.screening.engine import EmbeddedEngine, facts_of
from compliance_pipeline.screening.policy import evaluate, judge, load_policy
from compliance_pipeline.screening.transcripts import SMALL_IMAGE_BYTES, parse_transcript
from compliance_pipeline_tests.contract.conformance import check_exchange
from compliance_pipeline_tests.platforms.loopback import CLIENT, Asked, Reply, Server, no, ok

pytestmark = pytest.mark.usefixtures("by_the_contract")

POLICY = load_policy()
ENGINE = EmbeddedEngine(POLICY, "the key of these tests")
CONVERSATION = "c0000000-0000-4000-8000-000000000001"
RECORDING = "d0000000-0000-4000-8000-000000000001"
ID = f"{CONVERSATION}:{RECORDING}"
SESSION = "e0000000-0000-4000-8000-000000000001"
PATH = f"{CONVERSATIONS}/{CONVERSATION}"
LIST = f"{PATH}/recordings"
METADATA = f"{PATH}/recordingmetadata"
NOTES = f"{LIST}/{RECORDING}/annotations"
TRANSCRIPT = f"{TRANSCRIPTS}/{CONVERSATION}/communications/{SESSION}/transcripturl"
NOW = datetime(2026, 3, 4, 12, tzinfo=UTC)
TAGS = {"compliance_status": "VIOLATION_DETECTED", "violation_type": "PCI_PAN"}
ITEM = WorkItem(
    key=f"{ID}/PCI-DTMF/create_work_item",
    recording_id=ID,
    violation_type="PCI_MID_CAPTURE",
    queue="compliance_review_queue",
    priority="high",
    summary="PCI-DTMF at 12.5 s: 411111******1111",
)
CALLBACK = SupervisorCallback(
    key=f"{ID}/PCI-DTMF/supervisor_callback",
    recording_id=ID,
    queue="supervisor_callback_queue",
    scheduled_at=NOW,
    reason="PCI-DTMF at 12.5 s: 411111******1111",
)
MISSING = Reply(
    403,
    json.dumps(
        {"code": "missing.permissions", "status": 403, "message": "missing speechAndTextAnalytics:data:view"}
    ).encode(),
    {"Content-Type": "application/json"},
)


class CloudServer(Server):
    """The part of Genesys Cloud that the adapter asks, over what the fields hold. Answers are held to the contract."""

    def __init__(self) -> None:
        self.recordings: dict[str, list[dict[str, Any]]] = {}
        self.notes: dict[str, list[dict[str, Any]]] = {}
        self.external_tags: dict[str, str | None] = {}
        self.conversations: list[dict[str, Any]] = []
        self.work_items: list[dict[str, Any]] = []
        self.names = {
            "queues": {"compliance_review_queue": "q-1", "supervisor_callback_queue": "q-2"},
            "worktypes": {"Compliance review": "t-1"},
            "workbins": {"Compliance": "b-1"},
        }
        self.callbacks: list[dict[str, Any]] = []
        self.analytics_lags = False
        self.media: dict[str, Reply] = {}
        super().__init__()

    def answer(self, asked: Asked) -> Reply:
        if asked.path == "/oauth/token":
            return ok({"access_token": "token-canary", "expires_in": 3600, "token_type": "bearer"})
        if asked.path.startswith("/media/"):
            return self.media.get(asked.path, no(404))
        if asked.headers.get("authorization") != "Bearer token-canary":
            return no(401)
        with self.lock:
            body = self._api(asked)
        if body is None:
            return no(404)
        check_exchange("cloud", asked.method, asked.path, query(asked), parsed(asked), 200, body)
        return ok(body)

    def _api(self, asked: Asked) -> Any:
        if asked.path == QUEUES:
            return {"entities": self._named("queues", asked.query["name"])}
        if asked.path in (f"{WORK_TYPES}/query", f"{WORKBINS}/query"):
            (only,) = asked.json["filters"]
            return {"entities": self._named(asked.path.split("/")[-2], only["values"][0])}
        if asked.path == f"{WORK_ITEMS}/query":
            wanted = {one["name"]: one["values"][0] for one in asked.json["filters"]}
            assert wanted.keys() & {"typeId", "queueId", "workbinId", "assigneeId"}
            return {"entities": [one for one in self.work_items if one["externalTag"] == wanted["externalTag"]]}
        if asked.path == WORK_ITEMS:
            self.work_items.append({"id": f"item-{len(self.work_items) + 1}", "externalTag": asked.json["externalTag"]})
            return self.work_items[-1]
        if asked.path == CALLBACKS:
            return self._call_back(asked.json)
        if asked.path == DETAILS:
            page = asked.json["paging"]
            assert asked.json["order"] == "desc"
            found = self._by_end(asked.json["interval"]) if "segmentFilters" not in asked.json else self._called()
            start = (page["pageNumber"] - 1) * page["pageSize"]
            return {"conversations": found[start : start + page["pageSize"]], "totalHits": len(found)}
        if asked.path == PROTECTION:
            return {"failedUpdates": []}
        return self._of_conversation(asked)

    def _of_conversation(self, asked: Asked) -> Any:
        conversation, _, rest = asked.path.removeprefix(f"{CONVERSATIONS}/").partition("/")
        recordings = self.recordings.get(conversation)
        if rest == "" and conversation in self.external_tags:
            return {
                "id": conversation,
                "startTime": "2026-03-04T11:00:00.000Z",
                "participants": [],
                "externalTag": self.external_tags[conversation],
            }
        if rest == "tags":
            self.external_tags[conversation] = asked.json["externalTag"]
            return {}
        if rest == "recordings":
            return recordings
        if rest == "recordingmetadata" and recordings is not None:
            unsaid = ("mediaUris", "transcript", "emailTranscript", "messagingTranscript", "estimatedTranscodeTimeMs")
            return [{key: value for key, value in one.items() if key not in unsaid} for one in recordings]
        if rest.endswith("/annotations"):
            notes = self.notes.setdefault(rest.split("/")[1], [])
            if asked.method == "GET":
                return notes
            notes.append({"id": f"note-{len(notes) + 1}", **asked.json})
            return notes[-1]
        return None

    def _named(self, kind: str, name: str) -> list[dict[str, Any]]:
        return [{"id": id_, "name": there} for there, id_ in self.names[kind].items() if there == name]

    def _by_end(self, interval: str) -> list[dict[str, Any]]:
        """Those that started on a day of the interval; unfinished ones where the test has put them."""
        since, until = interval.split("/")
        of_interval = [one for one in self.conversations if since[:10] <= one["conversationStart"][:10] <= until[:10]]
        ends = iter(
            sorted(
                (one for one in of_interval if one["conversationEnd"]),
                key=lambda one: datetime.fromisoformat(one["conversationEnd"]),
                reverse=True,
            )
        )
        return [next(ends) if one["conversationEnd"] else one for one in of_interval]

    def _call_back(self, body: Mapping[str, Any]) -> dict[str, Any]:
        self.callbacks.append({"conversationId": f"callback-{len(self.callbacks) + 1}", **body})
        id_ = self.callbacks[-1]["conversationId"]
        return {"conversation": {"id": id_}, "callbackIdentifiers": [{"type": "ACD", "id": f"{id_}-1"}]}

    def _called(self) -> list[dict[str, Any]]:
        return (
            []
            if self.analytics_lags
            else [
                {
                    "conversationId": one["conversationId"],
                    "participants": [
                        {"sessions": [{"mediaType": "callback", "callbackUserName": one["callbackUserName"]}]}
                    ],
                }
                for one in self.callbacks
            ]
        )

    def api_calls(self) -> list[tuple[str, str]]:
        return [(asked.method, asked.path) for asked in self.asked if asked.path.startswith("/api/")]


def query(asked: Asked) -> dict[str, list[str]]:
    return {key: [value] for key, value in asked.query.items()}


def parsed(asked: Asked) -> Any:
    return json.loads(asked.body) if asked.body else None


@pytest.fixture
def server() -> Iterator[CloudServer]:
    server = CloudServer()
    yield server
    server.stop()
    for asked in server.asked:
        if asked.path.startswith("/api/"):
            check_exchange("cloud", asked.method, asked.path, query(asked), parsed(asked), None, None)
        else:
            assert not asked.path.startswith("/media/") or "authorization" not in asked.headers


class Ticking:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Ticking:
    return Ticking()


@pytest.fixture
def platform(server: CloudServer, clock: Ticking) -> Iterator[CloudPlatform]:
    transport = Transport(server.url, *CLIENT, backoff_s=0.001)
    platform = CloudPlatform(
        transport, work_item_type="Compliance review", workbin=None, supervisor_number="+12025550123", now=clock
    )
    port: Platform = platform
    assert port.delivery_failures(NOW) is None
    yield platform
    platform.close()


def call(**fields: Any) -> dict[str, Any]:
    return {
        "id": RECORDING,
        "conversationId": CONVERSATION,
        "media": "audio",
        "fileState": "AVAILABLE",
        "startTime": "2026-03-04T11:00:00.000Z",
        "endTime": "2026-03-04T11:01:00.000Z",
        "mediaUris": {"0": {"mediaUri": "https://media.test/a.wav"}},
        "annotations": [],
    } | fields


def wav(sound: bytes) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, 8000, 0, "NONE", ""))
        writer.writeframes(sound)
    return file.getvalue()


def uris(*keys: str) -> dict[str, dict[str, str]]:
    return {key: {"mediaUri": f"https://media.test/{key}.wav"} for key in keys}


# Locating


def test_a_recording_is_found_in_its_conversations_list_with_one_request(
    server: CloudServer, platform: CloudPlatform
) -> None:
    server.recordings[CONVERSATION] = [call(id="another", mediaUris=uris("9")), call()]
    location = platform.locate(ID)
    assert isinstance(location, Ready)
    assert (location.media.url, location.media.channels) == ("https://media.test/a.wav", ())
    assert (location.transcript, location.speakers, location.annotations) == (None, (), frozenset())
    assert server.api_calls() == [("GET", LIST)]
    assert server.asked[-1].query == {"maxWaitMs": "5000", "formatId": "WAV"}


@pytest.mark.parametrize(
    ("given_uris", "url", "channels"),
    [
        (uris("S"), "https://media.test/S.wav", ()),
        (uris("1"), "https://media.test/1.wav", ()),
        (uris("1", "0"), "https://media.test/0.wav", ("https://media.test/0.wav", "https://media.test/1.wav")),
        (uris("0", "1", "S"), "https://media.test/S.wav", ()),
        ({"0": {"mediaUri": None}, "1": {"mediaUri": None}} | uris("S"), "https://media.test/S.wav", ()),
    ],
)
def test_the_media_are_one_file_or_one_a_channel(
    server: CloudServer,
    platform: CloudPlatform,
    given_uris: dict[str, Any],
    url: str,
    channels: tuple[str, ...],
) -> None:
    server.recordings[CONVERSATION] = [call(mediaUris=given_uris)]
    location = platform.locate(ID)
    assert isinstance(location, Ready)
    assert (location.media.url, location.media.channels) == (url, channels)


@pytest.mark.parametrize(
    ("reply", "after_s"),
    [
        (Reply(202), None),
        (Reply(202, headers={"Retry-After": "7"}), 7.0),
        (ok([], 202), None),
        (ok([call(mediaUris=None, estimatedTranscodeTimeMs=2500)], 202), 2.5),
        (ok([call(mediaUris=None)], 202), None),
        (ok([call(mediaUris={})]), None),
        (ok([call(mediaUris=uris("0") | {"1": None})]), None),
        (ok([call(mediaUris={"0": {"mediaUri": None}} | uris("1"))]), None),
        (ok([call(mediaUris=None, estimatedTranscodeTimeMs=800)]), 0.8),
        (ok([]), None),
        (ok([call(id="another")]), None),
        (no(404), None),
    ],
)
def test_media_that_are_not_there_yet_are_asked_for_again(
    server: CloudServer, platform: CloudPlatform, reply: Reply, after_s: float | None
) -> None:
    server.plan("GET", LIST, reply)
    location = platform.locate(ID)
    assert isinstance(location, NotYet)
    assert location.after_s == after_s
    server.recordings[CONVERSATION] = [call()]
    assert isinstance(platform.locate(ID), Ready)


def test_of_a_202_what_is_there_already_is_used(server: CloudServer, platform: CloudPlatform) -> None:
    server.plan("GET", LIST, ok([call(), call(id="another", mediaUris=None)], 202))
    assert isinstance(platform.locate(ID), Ready)


@pytest.mark.parametrize(
    ("state", "kind", "why"),
    [
        ("AVAILABLE", Ready, ""),
        ("RESTORED", Ready, ""),
        ("UPLOADING", NotYet, "UPLOADING"),
        ("RESTORING", NotYet, "RESTORING"),
        ("THAWING", NotYet, "THAWING"),
        ("4111 1111", NotYet, "not a word"),
        ("ARCHIVED", Gone, "restore it"),
        ("DELETED", Gone, "deleted"),
        ("ERROR", Gone, "failed"),
    ],
)
def test_each_file_state_has_its_outcome_unknown_ones_too(
    server: CloudServer, platform: CloudPlatform, state: str, kind: type, why: str
) -> None:
    server.plan("GET", LIST, ok([call(fileState=state)]))
    location = platform.locate(ID)
    assert isinstance(location, kind)
    assert why in getattr(location, "why", "")
    assert getattr(location, "after_s", None) == (60.0 if state == "RESTORING" else None)


@pytest.mark.parametrize("fields", [{"media": "screen"}, {"mediaSubtype": "Screen"}])
def test_a_screen_recording_is_not_screened_and_says_so(
    server: CloudServer, platform: CloudPlatform, fields: dict[str, str]
) -> None:
    server.recordings[CONVERSATION] = [call(**fields)]
    assert platform.locate(ID) == Gone("a screen recording: this engine hears and reads, it does not watch")


def test_a_conversations_id_has_no_media(server: CloudServer, platform: CloudPlatform) -> None:
    assert isinstance(platform.locate(CONVERSATION), Gone)
    assert server.asked == []


def test_a_malformed_answer_is_worth_another_try_and_is_not_quoted(
    server: CloudServer, platform: CloudPlatform
) -> None:
    server.plan("GET", LIST, ok([call(annotations="4111111111111111")]), ok({"card": "4111111111111111"}))
    for _ in range(2):
        with pytest.raises(Unavailable, match="malformed") as caught:
            platform.locate(ID)
        assert "4111" not in str(caught.value)
    server.plan("GET", LIST, ok([call(id="another", annotations=7), "text", call()]))
    assert isinstance(platform.locate(ID), Ready)


PAUSE = {"type": "pause", "realtimeLocation": 20000, "location": 20000, "durationMs": 10000}


@pytest.mark.parametrize(
    ("notes", "expected"),
    [
        (None, None),
        ([], set()),
        ([PAUSE | {"reason": "SecurePause"}], {Annotation.SECURE_PAUSE}),
        ([PAUSE | {"reason": "Pause"}], {Annotation.SECURE_PAUSE}),
        ([PAUSE | {"reason": "Hold"}, PAUSE | {"reason": "FlowOrQueue"}], set()),
        ([{"type": "bookmark", "location": 5, "description": "SecurePause"}], set()),
        ([PAUSE | {"reason": "SecurePause", "durationMs": 40000}], {Annotation.PAUSE_NOT_RESUMED}),
        ([PAUSE | {"reason": "SecurePause", "durationMs": None}], {Annotation.PAUSE_NOT_RESUMED}),
        ([{"annotations": [PAUSE | {"reason": "SecurePause"}]}], {Annotation.SECURE_PAUSE}),
        (
            [PAUSE | {"reason": "SecurePause"}, PAUSE | {"reason": "Pause", "realtimeLocation": 50000}],
            {Annotation.SECURE_PAUSE, Annotation.PAUSE_NOT_RESUMED},
        ),
    ],
)
def test_pauses_are_told_apart_by_whether_they_ended_before_the_recording(
    server: CloudServer, platform: CloudPlatform, notes: list[dict[str, Any]] | None, expected: set[Annotation] | None
) -> None:
    server.recordings[CONVERSATION] = [call(annotations=notes)]
    location = platform.locate(ID)
    assert isinstance(location, Ready)
    assert location.annotations == expected


# Words


def read(platform: CloudPlatform, location: object) -> list[tuple[str, int, str]]:
    assert isinstance(location, Ready)
    assert "4111" not in repr(location)
    with platform.open_media(location.media) as stream:
        data = b"".join(stream)
        assert stream.content_length == len(data)
        return [(turn.speaker, turn.start_ms, turn.text) for turn in parse_transcript(data, stream.content_type).turns]


def verdict(platform: CloudPlatform, location: object, channel: Channel) -> tuple[VerdictValue, str | None]:
    """What follows for the recording, and why it was not screened to its end."""
    assert isinstance(location, Ready)
    with platform.open_media(location.media) as stream:
        screening = ENGINE.screen(stream, channel)
    outcomes = evaluate(screening.findings, facts_of(screening, channel), POLICY)
    return judge(ID, "c-1", outcomes, screening.unscreenable).verdict, screening.unscreenable


def test_a_chat_comes_with_the_answer(server: CloudServer, platform: CloudPlatform) -> None:
    chat = [
        {"body": "Hello", "utc": "2026-03-04T11:00:00.000Z", "participantPurpose": "agent", "bodyType": "STANDARD"},
        {"body": "4111 1111 1111 1111", "utc": "2026-03-04T11:00:05.500Z", "participantPurpose": "customer"},
        {"message": "no time", "utc": "yesterday", "senderCommunicationId": "someone"},
        {"body": None},
    ]
    server.recordings[CONVERSATION] = [call(media="chat", transcript=chat, mediaUris=None, sessionId=SESSION)]
    assert read(platform, platform.locate(ID))[:3] == [
        ("agent", 0, "Hello"),
        ("customer", 5500, "4111 1111 1111 1111"),
        ("0", 5500, "no time"),
    ]
    assert server.api_calls() == [("GET", LIST)]


def test_messages_come_with_their_buttons_and_cards(server: CloudServer, platform: CloudPlatform) -> None:
    messages = [
        {"timestamp": "2026-03-04T11:00:00.000Z", "purpose": "customer", "messageText": "my card"},
        {
            "timestamp": "2026-03-04T11:00:01.000Z",
            "purpose": "agent",
            "cards": [{"title": "4111", "actions": [{"text": "1111", "payload": "x"}]}],
            "buttonResponse": {"text": "Yes", "payload": "y"},
        },
    ]
    server.recordings[CONVERSATION] = [call(media="message", messagingTranscript=messages, mediaUris=None)]
    location = platform.locate(ID)
    assert read(platform, location) == [("customer", 0, "my card"), ("agent", 1000, "4111\n1111\nYes")]
    assert verdict(platform, location, Channel.CHAT) == (VerdictValue.NO_VIOLATION, None)


PICTURE = "https://media.test/card.jpg"


@pytest.mark.parametrize(
    "more",
    [
        {"messageMediaAttachments": [{"mediaType": "image/jpeg", "url": PICTURE, "name": "card.jpg"}]},
        {"messageMediaAttachments": [{"url": PICTURE}]},
        {"messageStickerAttachments": [{"url": PICTURE}]},
        {"story": {"type": "Reply", "url": PICTURE}},
        {"cards": [{"title": "Look", "image": PICTURE}]},
        {"roadsideAssistance": {"photos": [{"imageUrl": PICTURE}]}},
    ],
)
def test_media_in_a_message_that_nobody_read_keeps_it_from_being_clean(
    server: CloudServer, platform: CloudPlatform, more: dict[str, Any]
) -> None:
    messages = [{"messageText": "Here is my card", "purpose": "customer"} | more]
    server.recordings[CONVERSATION] = [call(media="message", messagingTranscript=messages, mediaUris=None)]
    said = verdict(platform, platform.locate(ID), Channel.CHAT)
    assert said == (VerdictValue.UNSCREENABLE, "unread_attachment")
    messages[0]["messageText"] = "My card is 4111 1111 1111 1111"
    assert verdict(platform, platform.locate(ID), Channel.CHAT)[0] is VerdictValue.VIOLATION_DETECTED


@pytest.mark.parametrize(
    "more",
    [
        {"paymentRequest": {"requestTitle": "Order", "lineItems": [{"label": "4111 1111 1111 1111"}]}},
        {"interactiveApplication": {"receivedMessage": {"title": "4111 1111 1111 1111"}}},
        {"roadsideAssistance": {"vehicle": {"notes": "4111 1111 1111 1111"}}},
        {"datePicker": {"subtitle": "4111 1111 1111 1111"}},
        {"aNewKindOfPart": ["4111 1111 1111 1111"]},
    ],
)
def test_every_text_that_a_message_shows_is_read(
    server: CloudServer, platform: CloudPlatform, more: dict[str, Any]
) -> None:
    messages = [{"purpose": "customer", "id": "5500005555555559", "timestamp": "2026-03-04T11:00:00.000Z"} | more]
    server.recordings[CONVERSATION] = [call(media="message", messagingTranscript=messages, mediaUris=None)]
    found = (VerdictValue.VIOLATION_DETECTED, VerdictValue.REVIEW_REQUIRED)
    assert verdict(platform, platform.locate(ID), Channel.CHAT)[0] in found
    messages = [{"purpose": "customer", "messageText": "Hello", "id": "5500005555555559"}]
    server.recordings[CONVERSATION] = [call(media="message", messagingTranscript=messages, mediaUris=None)]
    assert verdict(platform, platform.locate(ID), Channel.CHAT) == (VerdictValue.NO_VIOLATION, None)


def mailed(text: str, *attachments: dict[str, Any], html: str | None = None) -> dict[str, Any]:
    mail = {"subject": "My order", "textBody": text, "htmlBody": html, "attachments": list(attachments)}
    return call(media="email", emailTranscript=[mail], mediaUris=None)


@pytest.mark.parametrize(
    "attached",
    [
        {"name": "card.txt", "contentType": "text/plain", "contentLength": 20},
        {"name": "card.html", "contentType": "text/html"},
        {"name": "card.json", "contentType": "application/json", "contentLength": 20},
        {"name": "card.pdf", "contentType": "application/pdf", "contentLength": 900},
        {"name": "card.eml", "contentType": "message/rfc822", "contentLength": 900},
        {"name": "card.zip", "contentType": "what is this"},
        {"name": "photo.jpg", "contentType": "image/jpeg", "contentLength": 900},
        {"name": "image001.jpg", "contentType": "image/jpeg", "contentLength": SMALL_IMAGE_BYTES + 1},
        {"name": "image001.jpg", "contentType": "image/jpeg"},
        {},
    ],
)
def test_an_attachment_that_was_not_fetched_keeps_a_mail_from_being_clean(
    server: CloudServer, platform: CloudPlatform, attached: dict[str, Any]
) -> None:
    server.recordings[CONVERSATION] = [mailed("Here is my card.", attached)]
    said = verdict(platform, platform.locate(ID), Channel.EMAIL)
    assert said == (VerdictValue.UNSCREENABLE, "unread_attachment")
    server.recordings[CONVERSATION] = [mailed("My card is 4111 1111 1111 1111.", attached)]
    assert verdict(platform, platform.locate(ID), Channel.EMAIL)[0] is VerdictValue.VIOLATION_DETECTED


@pytest.mark.parametrize(
    "attached",
    [
        {"name": "image001.png", "contentType": "image/png", "contentLength": 6000},
        {"name": "logo.png", "contentType": "image/png", "contentLength": SMALL_IMAGE_BYTES},
        {"attachmentId": "logo@example", "contentType": "image/gif; x=y", "contentLength": 10},
        {"name": "signature.asc", "contentType": "application/pgp-signature", "contentLength": 800},
        {"name": "empty.pdf", "contentType": "application/pdf", "contentLength": 0},
    ],
)
def test_the_logo_of_a_signature_does_not(
    server: CloudServer, platform: CloudPlatform, attached: dict[str, Any]
) -> None:
    html = '<img src="cid:logo.png"><img src="cid:logo@example">'
    server.recordings[CONVERSATION] = [mailed("Where is my order?", attached, html=html)]
    assert verdict(platform, platform.locate(ID), Channel.EMAIL) == (VerdictValue.NO_VIOLATION, None)


def test_e_mails_come_as_mail_with_what_was_attached_named_by_kind_only(
    server: CloudServer, platform: CloudPlatform
) -> None:
    mails = [
        {
            "subject": "Bill\r\nBcc: x",
            "textBody": "Number: 4111 1111 1111 1111\n",
            "from": {"email": "jane@example.com"},
            "attachments": [{"name": "jane.pdf", "contentType": "application/pdf"}, {"contentType": "text/plain"}],
        },
        {"subject": "Re: Bill", "htmlBody": "<p>Thank <b>you</b></p>\ud83d"},
    ]
    for taken in (mails[:1], mails):
        server.plan("GET", LIST, Reply(200, json.dumps([call(media="email", emailTranscript=taken)]).encode()))
        location = platform.locate(ID)
        words = " ".join(" ".join(text.split()) for _, _, text in read(platform, location))
        assert isinstance(location, Ready)
        assert location.media.content
        assert "Number: 4111 1111 1111 1111" in words
        assert "Bill Bcc: x" in words
        assert b"jane" not in location.media.content
        unread = parse_transcript(location.media.content, location.media.content_type).unread
        assert unread == ("application/pdf", "text/plain")
    assert "Re: Bill" in words
    assert "Thank you" in words


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=200).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(subject=TEXT, body=TEXT, said=TEXT)
def test_no_word_of_a_mail_or_a_chat_is_lost_on_the_way_to_screening(subject: str, body: str, said: str) -> None:
    mail = cloud._mail([cloud._Mail.model_validate({"subject": subject, "textBody": body})])
    words = [" ".join(turn.text.split()) for turn in parse_transcript(mail, "message/rfc822").turns]
    assert " ".join(body.split()) in words
    assert " ".join(subject.split()) in words
    chat = cloud._media(cloud._Recording(id="r", media="chat", transcript=[cloud._ChatMessage(body=said)]))
    assert chat
    assert chat.content
    assert [turn.text for turn in parse_transcript(chat.content, chat.content_type).turns] == [said]


def test_a_chat_without_its_messages_is_not_there_yet(server: CloudServer, platform: CloudPlatform) -> None:
    server.recordings[CONVERSATION] = [call(media="chat", mediaUris=uris("0"))]
    assert isinstance(platform.locate(ID), NotYet)


def test_an_e_mail_without_its_text_is_taken_as_a_file_or_says_why_not(
    server: CloudServer, platform: CloudPlatform
) -> None:
    server.plan("GET", LIST, ok([call(media="email")]))
    location = platform.locate(ID)
    assert isinstance(location, Ready)
    assert location.media.content_type == "message/rfc822"
    too_large = call(media="email", mediaUris=None, recordingErrorStatus="EMAIL_TRANSCRIPT_TOO_LARGE")
    server.recordings[CONVERSATION] = [too_large]
    location = platform.locate(ID)
    assert isinstance(location, NotYet)
    assert "too large" in location.why


# Transcripts of calls


def test_a_call_has_its_transcript_where_the_platform_made_one(server: CloudServer, platform: CloudPlatform) -> None:
    server.recordings[CONVERSATION] = [call(sessionId=SESSION)]
    server.plan("GET", TRANSCRIPT, ok({"url": "https://media.test/t.json"}), no(404), ok({"url": None}))
    transcripts = []
    for _ in range(3):
        location = platform.locate(ID)
        assert isinstance(location, Ready)
        transcripts.append(location.transcript)
    assert transcripts == [Media("https://media.test/t.json"), None, None]
    assert len(server.calls("GET", TRANSCRIPT)) == 3


def test_a_missing_permission_for_transcripts_is_remembered_for_a_while(
    server: CloudServer, platform: CloudPlatform, clock: Ticking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cloud, "ASK_AGAIN_S", 0.0)
    server.recordings[CONVERSATION] = [call(sessionId=SESSION)]
    server.plan("GET", TRANSCRIPT, MISSING, MISSING, ok({"url": "https://media.test/t.json"}))
    for _ in range(3):
        location = platform.locate(ID)
        assert isinstance(location, Ready)
        assert location.transcript is None
    assert len(server.calls("GET", TRANSCRIPT)) == 2
    clock.now += cloud.PERMISSION_MEMORY
    location = platform.locate(ID)
    assert isinstance(location, Ready)
    assert location.transcript


def test_a_permission_for_transcripts_that_is_missing_for_a_moment_costs_no_transcript(
    server: CloudServer, platform: CloudPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cloud, "ASK_AGAIN_S", 0.0)
    server.recordings[CONVERSATION] = [call(sessionId=SESSION)]
    server.plan("GET", TRANSCRIPT, MISSING, ok({"url": "https://media.test/t.json"}))
    location = platform.locate(ID)
    assert isinstance(location, Ready)
    assert location.transcript


def test_a_transcript_that_can_not_be_had_for_now_does_not_keep_the_sound_from_being_screened(
    server: CloudServer, platform: CloudPlatform, caplog: pytest.LogCaptureFixture
) -> None:
    server.recordings[CONVERSATION] = [call(sessionId=SESSION)]
    server.plan("GET", TRANSCRIPT, *[no(503)] * 5)
    location = platform.locate(ID)
    assert isinstance(location, Ready)
    assert location.transcript is None
    assert f"recording {ID}: its transcript" in caplog.text


def test_a_transcript_waits_where_the_budget_of_requests_is_spent(server: CloudServer, platform: CloudPlatform) -> None:
    server.recordings[CONVERSATION] = [call(sessionId=SESSION)]
    server.plan("GET", TRANSCRIPT, *[no(429)] * 5)
    with pytest.raises(PlatformHeld):
        platform.locate(ID)


# Batches


IDS = [f"c-{n}:r-{n}" for n in range(12)]


def batch(server: CloudServer, *answers: Reply, job: str = "job-1") -> None:
    server.plan("POST", BATCHES, ok({"id": job}))
    server.plan("GET", f"{BATCHES}/{job}", *answers)


def result(n: int, **fields: Any) -> dict[str, Any]:
    made = {"resultUrl": f"https://media.test/{n}.ogg", "contentType": "audio/ogg", "errorMsg": None}
    return {"conversationId": f"c-{n}", "recordingId": f"r-{n}"} | made | fields


def many_calls(server: CloudServer) -> None:
    for n in range(12):
        server.recordings[f"c-{n}"] = [call(id=f"r-{n}", conversationId=f"c-{n}")]


def url_of(platform: CloudPlatform, recording_id: str) -> str:
    location = platform.locate(recording_id)
    assert isinstance(location, Ready)
    return location.media.url


def test_a_batch_is_awaited_by_its_status_and_each_result_is_used_once(
    server: CloudServer, platform: CloudPlatform
) -> None:
    many_calls(server)
    batch(
        server,
        ok({"status": "InProgress", "expectedResultCount": 1, "resultCount": 1, "results": [result(0)]}),
        ok(
            {
                "status": "Completed",
                "expectedResultCount": 12,
                "resultCount": 11,
                "errorCount": 1,
                "results": [*(result(n) for n in range(11)), result(11, errorMsg="no such recording")],
            }
        ),
    )
    platform.prefetch([*IDS, IDS[0]])
    (asked,) = server.calls("POST", BATCHES)
    assert [one["recordingId"] for one in asked.json["batchDownloadRequestList"]] == [f"r-{n}" for n in range(12)]
    assert url_of(platform, IDS[10]) == "https://media.test/10.ogg"
    assert ("GET", f"{CONVERSATIONS}/c-10/recordings") not in server.api_calls()
    assert url_of(platform, IDS[10]) == "https://media.test/a.wav"
    assert url_of(platform, IDS[11]) == "https://media.test/a.wav"


def test_the_verdict_does_not_depend_on_the_way_the_media_came(server: CloudServer, platform: CloudPlatform) -> None:
    many_calls(server)
    server.recordings["c-0"][0] |= {"sessionId": SESSION, "annotations": [PAUSE | {"reason": "SecurePause"}]}
    server.recordings["c-1"][0] |= {"fileState": "DELETED"}
    path = f"{TRANSCRIPTS}/c-0/communications/{SESSION}/transcripturl"
    server.plan("GET", path, *[ok({"url": "https://media.test/t.json"})] * 2)
    batch(server, ok({"status": "Completed", "results": [result(n) for n in range(12)]}))
    platform.prefetch(IDS)
    located = [platform.locate(IDS[0]) for _ in range(2)]
    assert all(isinstance(one, Ready) for one in located)
    fetched, asked = [one for one in located if isinstance(one, Ready)]
    assert (fetched.media.url, fetched.transcript, fetched.annotations) == (
        "https://media.test/0.ogg",
        asked.transcript,
        asked.annotations,
    )
    assert fetched.annotations == frozenset({Annotation.SECURE_PAUSE})
    assert isinstance(platform.locate(IDS[1]), Gone)


def test_the_metadata_of_a_conversation_is_asked_for_once_for_all_that_a_batch_has_of_it(
    server: CloudServer, platform: CloudPlatform, clock: Ticking
) -> None:
    server.recordings["c-0"] = [call(id=f"r-{n}", conversationId="c-0") for n in range(12)]
    ids = [f"c-0:r-{n}" for n in range(12)]
    results = [result(n, conversationId="c-0") for n in range(12)]
    batch(server, ok({"status": "Completed", "results": results}))
    platform.prefetch(ids)
    path = f"{CONVERSATIONS}/c-0/recordingmetadata"
    assert [url_of(platform, one) for one in ids] == [f"https://media.test/{n}.ogg" for n in range(12)]
    assert len(server.calls("GET", path)) == 1
    batch(server, ok({"status": "Completed", "results": results}), job="job-2")
    platform.prefetch(ids)
    server.recordings["c-0"][0]["fileState"] = "DELETED"
    assert isinstance(platform.locate(ids[0]), Gone), "what was known before the batch is not used for it"
    clock.now += cloud.BATCH_FRESH + timedelta(seconds=1)
    assert url_of(platform, ids[1]) == "https://media.test/a.wav"
    assert len(server.calls("GET", path)) == 2


def test_an_old_result_of_a_batch_is_not_used(server: CloudServer, platform: CloudPlatform, clock: Ticking) -> None:
    many_calls(server)
    batch(server, ok({"status": "Completed", "results": [result(0)]}))
    platform.prefetch(IDS)
    clock.now += timedelta(minutes=2)
    assert url_of(platform, IDS[0]) == "https://media.test/a.wav"


def test_words_in_a_batch_are_zipped_and_taken_from_the_recording_itself(
    server: CloudServer, platform: CloudPlatform
) -> None:
    many_calls(server)
    server.recordings["c-0"] = [call(id="r-0", media="chat", transcript=[{"body": "Hello"}])]
    server.recordings["c-1"] = [call(id="r-1", media="email", emailTranscript=None)]
    zipped = [result(0, contentType="application/zip"), result(1, contentType="message/rfc822"), result(2)]
    batch(server, ok({"status": "Completed", "results": zipped}))
    platform.prefetch(IDS)
    assert url_of(platform, IDS[0]) == "inline:r-0"
    assert url_of(platform, IDS[1]) == "https://media.test/1.ogg"


def test_a_batch_that_fails_or_never_ends_costs_some_seconds_and_nothing_else(
    server: CloudServer, platform: CloudPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    many_calls(server)
    monkeypatch.setattr(cloud, "BATCH_WAIT_S", 0.3)
    too_many = json.dumps({"code": "batch.download.too.many.items", "status": 400}).encode()
    server.plan("POST", BATCHES, Reply(400, too_many))
    platform.prefetch(IDS)
    batch(server, no(404), job="job-2")
    platform.prefetch(IDS)
    partly = ok({"status": "InProgress", "expectedResultCount": 1, "resultCount": 1, "results": [result(3)]})
    batch(server, *[partly] * 5, job="job-3")
    platform.prefetch(IDS)
    assert url_of(platform, IDS[3]) == "https://media.test/a.wav"


def test_a_recording_of_which_a_batch_has_a_part_is_not_taken_from_it(
    server: CloudServer, platform: CloudPlatform
) -> None:
    many_calls(server)
    two_files = [result(0), result(0, resultUrl="https://media.test/0-1.ogg")]
    half = [result(1), result(1, resultUrl=None, errorMsg="no such file")]
    batch(server, ok({"status": "Completed", "results": [*two_files, *half, result(2)]}))
    platform.prefetch(IDS)
    urls = [url_of(platform, IDS[n]) for n in range(3)]
    assert urls == ["https://media.test/a.wav", "https://media.test/a.wav", "https://media.test/2.ogg"]


def test_few_recordings_are_not_worth_a_batch_and_many_go_by_the_hundred(
    server: CloudServer, platform: CloudPlatform
) -> None:
    platform.prefetch([*IDS[:9], *(f"c-{n}" for n in range(50))])
    assert server.asked == []
    for job in ("job-1", "job-2", "job-3"):
        batch(server, ok({"status": "Completed", "results": []}), job=job)
    platform.prefetch([f"c-{n}:r-{n}" for n in range(201)])
    sizes = [len(asked.json["batchDownloadRequestList"]) for asked in server.calls("POST", BATCHES)]
    assert sizes == [100, 100, 1]


# Listing


def test_a_conversations_recordings_are_announced_by_its_metadata(server: CloudServer, platform: CloudPlatform) -> None:
    assert isinstance(platform.recordings_of(CONVERSATION), NotYet)
    server.recordings[CONVERSATION] = []
    assert isinstance(platform.recordings_of(CONVERSATION), NotYet)
    server.recordings[CONVERSATION] = [
        call(),
        call(id="r-2", media="chat", startTime="soon", endTime=None),
        call(id="r-3", media="email"),
        call(id="r-4", media="screen"),
        call(id="r-5", startTime="2026-03-04T12:00:00Z", media="message"),
    ]
    events = platform.recordings_of(CONVERSATION)
    assert not isinstance(events, NotYet)
    assert [(event.recording_id, event.channel) for event in events] == [
        (ID, Channel.VOICE),
        (f"{CONVERSATION}:r-2", Channel.CHAT),
        (f"{CONVERSATION}:r-3", Channel.EMAIL),
        (f"{CONVERSATION}:r-4", Channel.VOICE),
        (f"{CONVERSATION}:r-5", Channel.CHAT),
    ]
    assert {(event.event, event.conversation_id, event.event_time) for event in events} == {
        (EventType.COMPLETED, CONVERSATION, None)
    }
    assert events[0].end_time == datetime(2026, 3, 4, 11, 1, tzinfo=UTC)
    assert (events[1].start_time, events[4].start_time) == (None, None)
    server.plan("GET", METADATA, ok([call(id="a b")]))
    with pytest.raises(Unavailable, match="malformed at id"):
        platform.recordings_of(CONVERSATION)


def ended(
    n: int,
    at: datetime | None,
    *recorded: bool | None,
    media: str = "voice",
    lasted: timedelta = timedelta(minutes=5),
) -> dict[str, Any]:
    sessions = [{"mediaType": media} | ({} if one is None else {"recording": one}) for one in recorded]
    return {
        "conversationId": f"conversation-{n}",
        "conversationStart": ((at or NOW) - lasted).isoformat(),
        "conversationEnd": at.isoformat() if at else None,
        "originatingDirection": "inbound",
        "participants": [{"sessions": sessions}],
    }


def test_the_sweep_lists_what_ended_in_the_hours_and_may_be_recorded(
    server: CloudServer, platform: CloudPlatform
) -> None:
    since, until = NOW - timedelta(hours=2), NOW
    server.conversations = [
        ended(2, until, True),
        ended(1, since, True, False),
        ended(4, None, True),
        ended(5, since, False, None),
        ended(6, since, None, None, media="message"),
        ended(7, since, False),
        ended(8, since, False, False, media="email"),
        ended(1, since, True, False),
        *(ended(n, since, True, media="email") for n in range(100, 300)),
        ended(3, since - timedelta(seconds=1), True),
    ]
    events = list(platform.list_available(since, until))
    assert [event.recording_id for event in events[:4]] == [f"conversation-{n}" for n in (1, 5, 6, 8)]
    assert len(events) == 204
    assert all(event.is_conversation and event.event_time == since for event in events)
    assert [events[n].channel for n in (0, 2, 3)] == [Channel.VOICE, Channel.CHAT, Channel.EMAIL]
    assert {event.direction for event in events} == {Direction.INBOUND}
    asked = server.calls("POST", DETAILS)
    assert [one.json["paging"] for one in asked] == [{"pageSize": 100, "pageNumber": n} for n in (1, 2, 3)]
    assert {one.json["interval"] for one in asked} == {"2026-02-01T12:00:00.000Z/2026-03-04T12:00:00.000Z"}


def test_flags_of_sound_say_nothing_about_a_conversation_that_was_written_as_well(
    server: CloudServer, platform: CloudPlatform
) -> None:
    at = NOW - timedelta(minutes=1)
    both = ended(1, at, False)
    both["participants"][0]["sessions"].append({"mediaType": "message", "recording": False})
    server.conversations = [both, ended(2, at, False, media="callback"), ended(3, at)]
    assert [event.recording_id for event in platform.list_available(NOW - timedelta(hours=1), NOW)] == [
        "conversation-1",
        "conversation-3",
    ]


def test_a_sweep_costs_what_ended_in_its_hours_however_much_there_was_before(
    server: CloudServer, platform: CloudPlatform
) -> None:
    since = NOW - timedelta(hours=2)
    server.conversations = [
        *(ended(n, NOW - timedelta(minutes=5), True) for n in range(150)),
        *(ended(n, since - timedelta(minutes=n), True) for n in range(1000, 5000)),
    ]
    assert len(list(platform.list_available(since, NOW))) == 150
    assert len(server.calls("POST", DETAILS)) == 3


@pytest.mark.parametrize("where", ["first", "last", "among"])
def test_unfinished_conversations_are_passed_over_wherever_the_platform_sorts_them(
    server: CloudServer, platform: CloudPlatform, where: str
) -> None:
    since = NOW - timedelta(hours=2)
    finished = [ended(n, NOW - timedelta(minutes=5), True) for n in range(120)]
    finished += [ended(n, since - timedelta(minutes=n), True) for n in range(1000, 1200)]
    unfinished = [ended(n, None, True) for n in range(2000, 2250)]
    server.conversations = {
        "first": [*unfinished, *finished],
        "last": [*finished, *unfinished],
        "among": [*finished[:50], *unfinished, *finished[50:]],
    }[where]
    assert len(list(platform.list_available(since, NOW))) == 120


def test_a_conversation_of_several_days_is_swept_when_it_ends(server: CloudServer, platform: CloudPlatform) -> None:
    since = NOW - timedelta(hours=2)
    server.conversations = [
        ended(1, NOW - timedelta(minutes=5), None, media="email", lasted=timedelta(days=days)) for days in (25, 40)
    ]
    assert [event.start_time for event in platform.list_available(since, NOW)] == [NOW - timedelta(days=25, minutes=5)]


def test_a_long_sweep_asks_day_by_day_and_lists_each_conversation_once(
    server: CloudServer, platform: CloudPlatform
) -> None:
    ends = [NOW - timedelta(days=days) for days in (0.5, 3, 8, 9.5)]
    server.conversations = [ended(n, at, True) for n, at in enumerate(ends)]
    events = list(platform.list_available(NOW - timedelta(days=9, hours=1), NOW))
    assert sorted(event.recording_id for event in events) == [f"conversation-{n}" for n in range(3)]
    intervals = [one.json["interval"].split("/") for one in server.calls("POST", DETAILS)]
    lengths = {datetime.fromisoformat(end) - datetime.fromisoformat(start) for start, end in intervals}
    assert lengths == {timedelta(days=31)}
    assert len(intervals) == 10


# Media


def test_two_channel_files_are_heard_as_one_stereo_file_and_see_no_token(
    server: CloudServer, platform: CloudPlatform
) -> None:
    kind = {"Content-Type": "audio/wav"}
    server.media = {
        "/media/0": Reply(200, wav(b"\x01\x02" * 2), kind),
        "/media/1": Reply(200, wav(b"\x11\x12" * 2), kind),
    }
    both = {key: {"mediaUri": f"{server.url}/media/{key}"} for key in "01"}
    server.recordings[CONVERSATION] = [call(mediaUris=both)]
    location = platform.locate(ID)
    assert isinstance(location, Ready)
    with platform.open_media(location.media) as stream:
        data = b"".join(stream)
        assert stream.content_length == len(data)
    with wave.open(io.BytesIO(data)) as file:
        assert (file.getnchannels(), file.readframes(9)) == (2, b"\x01\x02\x11\x12" * 2)
    server.plan("GET", "/media/1", Reply(200, wav(b"\x11\x12" * 2), kind, cut=46))
    with pytest.raises(Unavailable), platform.open_media(location.media) as stream:
        list(stream)
    with platform.open_media(Media(f"{server.url}/media/0")) as stream:
        assert b"".join(stream) == wav(b"\x01\x02" * 2)


def test_an_expired_url_is_worth_locating_again(server: CloudServer, platform: CloudPlatform) -> None:
    server.media["/media/0"] = Reply(403, b"<?xml?><Error><Message>Request has expired</Message></Error>")
    with pytest.raises(Unavailable, match="expired"), platform.open_media(Media(f"{server.url}/media/0")):
        pass


# Tags


def test_a_violation_is_marked_at_its_place_and_on_the_conversation_once(
    server: CloudServer, platform: CloudPlatform
) -> None:
    server.external_tags[CONVERSATION] = None
    for _ in range(2):
        platform.tag(ID, TAGS, 12500)
    (note,) = server.notes[RECORDING]
    assert note["location"] == 12500
    assert note["description"] == "compliance_status=VIOLATION_DETECTED; violation_type=PCI_PAN; at_ms=12500"
    assert server.external_tags == {CONVERSATION: "compliance:VIOLATION_DETECTED:PCI_PAN"}
    assert len(server.calls("PUT", f"{PATH}/tags")) == 1
    for at_ms in (30000, 125, 1250):
        platform.tag(ID, TAGS, at_ms)
    assert [note["location"] for note in server.notes[RECORDING]] == [12500, 30000, 125, 1250]


def test_a_conversation_that_is_slow_to_tag_keeps_no_other_waiting(
    server: CloudServer, platform: CloudPlatform
) -> None:
    others = [str(UUID(int=n)) for n in range(8)]
    server.external_tags = dict.fromkeys([CONVERSATION, *others])
    asked, go_on = Event(), Event()

    def slow(one: Asked) -> Reply:
        asked.set()
        assert go_on.wait(20)
        return server.answer(one)

    server.plan("GET", PATH, slow)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(platform.tag, ID, TAGS, 1)
        assert asked.wait(20)
        try:
            for conversation in others:
                pool.submit(platform.tag, f"{conversation}:r-1", TAGS, 1).result(20)
        finally:
            go_on.set()
        first.result(20)
    assert set(server.external_tags.values()) == {"compliance:VIOLATION_DETECTED:PCI_PAN"}


def test_the_gravest_recording_of_a_conversation_names_it(server: CloudServer, platform: CloudPlatform) -> None:
    server.external_tags[CONVERSATION] = ""
    review = {"compliance_status": "REVIEW_REQUIRED", "violation_type": "PCI_CVV"}
    seen = []
    for recording, tags in (("r-1", review), ("r-2", TAGS), ("r-3", review), ("r-4", TAGS | {"violation_type": "PII"})):
        platform.tag(f"{CONVERSATION}:{recording}", tags, 0)
        seen.append(server.external_tags[CONVERSATION])
    assert seen == [
        "compliance:REVIEW_REQUIRED:PCI_CVV",
        "compliance:VIOLATION_DETECTED:PCI_PAN",
        "compliance:VIOLATION_DETECTED:PCI_PAN",
        "compliance:VIOLATION_DETECTED:PCI_PAN,PII",
    ]


def test_somebody_elses_tag_is_kept_and_the_annotation_says_it_all(
    server: CloudServer, platform: CloudPlatform
) -> None:
    server.external_tags[CONVERSATION] = "crm-4711"
    platform.tag(ID, TAGS, 1)
    assert server.external_tags[CONVERSATION] == "crm-4711"
    assert len(server.notes[RECORDING]) == 1


def test_an_annotation_whose_answer_is_lost_is_not_made_twice(server: CloudServer, platform: CloudPlatform) -> None:
    server.external_tags[CONVERSATION] = None

    def made_and_dropped(asked: Asked) -> Reply:
        server.answer(asked)
        return Reply(drop=True)

    server.plan("POST", NOTES, made_and_dropped)
    platform.tag(ID, TAGS, 5)
    assert len(server.notes[RECORDING]) == 1
    server.plan("POST", NOTES, Reply(drop=True))
    with pytest.raises(Unavailable):
        platform.tag(ID, TAGS, 6)
    platform.tag(ID, TAGS, 6)
    assert len(server.notes[RECORDING]) == 2


STATUS = st.sampled_from(["REVIEW_REQUIRED", "VIOLATION_DETECTED"])
KIND = st.from_regex(r"\A[A-Z][A-Z0-9_]{0,30}\Z")


@settings(max_examples=100, deadline=None)
@given(said=st.lists(st.tuples(STATUS, KIND), min_size=1, max_size=12))
def test_an_external_tag_is_never_lessened_and_saying_it_again_changes_nothing(said: list[tuple[str, str]]) -> None:
    tag = ""
    for status, kind in said:
        tag = cloud._gravest(tag, status, kind)
        assert cloud._gravest(tag, status, kind) == tag
        assert len(tag) <= cloud.KEY_LIMIT
    gravest = max(said, key=lambda one: one[0] == "VIOLATION_DETECTED")[0]
    assert tag.startswith(f"compliance:{gravest}:")


# Work items


def test_a_work_item_is_made_once_with_ids_for_names_that_are_resolved_once(
    server: CloudServer, platform: CloudPlatform
) -> None:
    assert [platform.open_work_item(ITEM) for _ in range(2)] == ["item-1", "item-1"]
    (asked,) = server.calls("POST", WORK_ITEMS)
    assert asked.json == {
        "name": "Compliance: PCI_MID_CAPTURE",
        "typeId": "t-1",
        "queueId": "q-1",
        "priority": 1000,
        "description": f"{ITEM.summary}\nRecording {ID}",
        "externalTag": ITEM.key,
    }
    for path in (("GET", QUEUES), ("POST", f"{WORK_TYPES}/query")):
        assert len(server.calls(*path)) == 1


def test_a_work_item_says_when_it_is_due(server: CloudServer, platform: CloudPlatform) -> None:
    platform.open_work_item(ITEM.model_copy(update={"due_at": datetime(2026, 3, 2, 9, 30, tzinfo=UTC)}))
    (asked,) = server.calls("POST", WORK_ITEMS)
    assert asked.json["dateDue"] == "2026-03-02T09:30:00.000Z"


def test_a_work_item_whose_answer_is_lost_or_that_conflicts_is_found_not_made_again(
    server: CloudServer, platform: CloudPlatform
) -> None:
    def made_and(reply: Reply) -> Any:
        def planned(asked: Asked) -> Reply:
            server.answer(asked)
            return reply

        return planned

    for n, reply in enumerate((Reply(drop=True), no(502), no(409)), 1):
        server.plan("POST", WORK_ITEMS, made_and(reply))
        item = ITEM.model_copy(update={"key": f"{ID}/{n}/create_work_item"})
        assert platform.open_work_item(item) == f"item-{n}"
    assert len(server.work_items) == 3


def test_a_work_item_that_was_not_made_is_a_failure_and_the_next_try_makes_it(
    server: CloudServer, platform: CloudPlatform
) -> None:
    server.plan("POST", WORK_ITEMS, no(500))
    with pytest.raises(Unavailable):
        platform.open_work_item(ITEM)
    assert server.work_items == []
    assert platform.open_work_item(ITEM) == "item-1"
    server.work_items.clear()
    assert platform.open_work_item(ITEM) == "item-1"
    server.plan("POST", WORK_ITEMS, no(413))
    with pytest.raises(Refused):
        platform.open_work_item(ITEM.model_copy(update={"key": "another"}))


def test_a_long_key_is_shortened_always_to_the_same(server: CloudServer, platform: CloudPlatform) -> None:
    long = ITEM.model_copy(update={"key": "k" * 300, "summary": "s" * 900})
    assert platform.open_work_item(long) == platform.open_work_item(long)
    (asked,) = server.calls("POST", WORK_ITEMS)
    assert re.fullmatch(r"compliance:[a-z2-7]{24}", asked.json["externalTag"])
    assert len(asked.json["description"]) == 512
    assert platform.open_work_item(long.model_copy(update={"key": "k" * 299})) == "item-2"


def test_a_query_is_read_to_its_last_page(server: CloudServer, platform: CloudPlatform) -> None:
    found = {"id": "item-9", "externalTag": ITEM.key}
    other = {"id": "item-8", "externalTag": "another"}
    server.plan(
        "POST",
        f"{WORK_ITEMS}/query",
        ok({"entities": [other], "after": "a"}),
        ok({"entities": [], "after": "b"}),
        ok({"entities": [found]}),
    )
    assert platform.open_work_item(ITEM) == "item-9"
    assert [one.json.get("after") for one in server.calls("POST", f"{WORK_ITEMS}/query")] == [None, "a", "b"]


@pytest.mark.parametrize(
    ("kind", "setting"),
    [("queues", "COMPLIANCE_COMPLIANCE_QUEUE"), ("worktypes", "COMPLIANCE_WORK_ITEM_TYPE")],
)
def test_a_name_that_is_not_there_is_refused_with_its_setting(
    server: CloudServer, platform: CloudPlatform, kind: str, setting: str
) -> None:
    names = server.names[kind]
    server.names[kind] = {}
    with pytest.raises(Refused, match=f"shows no .*{setting}"):
        platform.open_work_item(ITEM)
    server.names[kind] = names
    assert platform.open_work_item(ITEM) == "item-1"


def test_names_are_resolved_for_the_check_the_workbin_where_one_is_set(
    server: CloudServer, platform: CloudPlatform
) -> None:
    queues = [ITEM.queue, CALLBACK.queue]
    expected: dict[str, Any] = {
        f"queue '{ITEM.queue}'": "q-1",
        f"queue '{CALLBACK.queue}'": "q-2",
        "worktype 'Compliance review'": "t-1",
    }
    assert platform.names(queues) == expected
    with_bin = CloudPlatform(
        Transport(server.url, *CLIENT, backoff_s=0.001),
        work_item_type="Compliance review",
        workbin="Compliance",
        supervisor_number=None,
    )
    assert with_bin.names(queues) == expected | {"workbin 'Compliance'": "b-1"}
    server.names["worktypes"].clear()
    unknown = CloudPlatform(
        Transport(server.url, *CLIENT, backoff_s=0.001),
        work_item_type="Nothing",
        workbin=None,
        supervisor_number=None,
    )
    found = unknown.names(["nowhere", ITEM.queue])
    assert [isinstance(one, Refused) for one in found.values()] == [True, False, True]
    assert found[f"queue '{ITEM.queue}'"] == "q-1"
    unknown.close()
    with_bin.open_work_item(ITEM)
    assert server.calls("POST", WORK_ITEMS)[0].json["workbinId"] == "b-1"
    server.plan("GET", QUEUES, ok({"entities": [{"id": "x", "name": "two"}, {"id": "y", "name": "two"}]}))
    with pytest.raises(Refused, match=r"more than one \(2\) queue named 'two'"):
        with_bin.resolve_queue("two")
    with_bin.close()


# Callbacks


def test_a_callback_is_asked_for_once(server: CloudServer, platform: CloudPlatform) -> None:
    later = CALLBACK.model_copy(update={"scheduled_at": NOW + timedelta(hours=1)})
    assert [platform.request_callback(one) for one in (later, CALLBACK)] == ["callback-1", "callback-1"]
    (asked,) = server.calls("POST", CALLBACKS)
    assert asked.json == {
        "callbackNumbers": ["+12025550123"],
        "queueId": "q-2",
        "callbackUserName": asked.json["callbackUserName"],
        "callbackScheduledTime": "2026-03-04T13:00:00.000Z",
        "data": {"key": CALLBACK.key, "recordingId": ID, "reason": CALLBACK.reason},
    }
    assert re.fullmatch(r"Compliance PCI-DTMF [a-z2-7]{24}", asked.json["callbackUserName"])


def test_a_time_that_has_passed_is_left_out(server: CloudServer, platform: CloudPlatform, clock: Ticking) -> None:
    clock.now += timedelta(seconds=1)
    platform.request_callback(CALLBACK)
    assert "callbackScheduledTime" not in server.calls("POST", CALLBACKS)[0].json


def test_a_callback_whose_answer_is_lost_is_looked_up_by_a_later_try(
    server: CloudServer, platform: CloudPlatform
) -> None:
    def made_and_dropped(asked: Asked) -> Reply:
        server.answer(asked)
        return Reply(drop=True)

    server.analytics_lags = True
    server.plan("POST", CALLBACKS, made_and_dropped)
    with pytest.raises(Unavailable, match="look it up") as caught:
        platform.request_callback(CALLBACK)
    assert caught.value.after_s == platform.callback_lag_s == 900
    server.analytics_lags = False
    assert platform.request_callback(CALLBACK) == "callback-1"
    assert len(server.callbacks) == 1
    other = CALLBACK.model_copy(update={"key": f"{ID}/OTHER/supervisor_callback"})
    assert platform.request_callback(other) == "callback-2"
    start, end = server.calls("POST", DETAILS)[-1].json["interval"].split("/")
    assert datetime.fromisoformat(start) <= NOW - timedelta(days=3)
    assert datetime.fromisoformat(end) > NOW


def test_a_callback_whose_answer_is_lost_is_found_at_once_where_analytics_has_it(
    server: CloudServer, platform: CloudPlatform
) -> None:
    def made_and_dropped(asked: Asked) -> Reply:
        server.answer(asked)
        return Reply(drop=True)

    server.plan("POST", CALLBACKS, made_and_dropped)
    assert platform.request_callback(CALLBACK) == "callback-1"


def test_a_callback_is_not_made_again_before_the_lag_where_it_can_not_be_looked_up_either(
    server: CloudServer, platform: CloudPlatform
) -> None:
    server.plan("POST", CALLBACKS, Reply(drop=True))
    server.plan("POST", DETAILS, ok({"totalHits": 0}), *[no(503)] * 5)
    with pytest.raises(Unavailable, match="look it up") as caught:
        platform.request_callback(CALLBACK)
    assert caught.value.after_s == 900


def test_without_a_number_no_supervisor_is_called_and_the_setting_is_named(server: CloudServer) -> None:
    platform = CloudPlatform(Transport(server.url, *CLIENT), work_item_type="t", workbin=None, supervisor_number=None)
    with pytest.raises(Refused, match="COMPLIANCE_SUPERVISOR_NUMBER"):
        platform.request_callback(CALLBACK)
    assert server.asked == []
    platform.close()


# Legal hold


def test_a_legal_hold_covers_conversations_by_the_hundred(server: CloudServer, platform: CloudPlatform) -> None:
    ids = [f"{UUID(int=n)}:r-{m}" for n in range(150) for m in range(2)]
    platform.protect(ids, protected=True)
    platform.protect(ids[:1], protected=False)
    asked = server.calls("PUT", PROTECTION)
    assert [len(one.json["conversationIds"]) for one in asked] == [100, 50, 1]
    assert [one.query["protect"] for one in asked] == ["true", "true", "false"]


def test_a_legal_hold_that_failed_for_some_says_so(server: CloudServer, platform: CloudPlatform) -> None:
    failed = [{"errorCode": "not.found", "errorMessage": "4111111111111111"}, {"errorCode": "4111111111111111"}]
    server.plan("PUT", PROTECTION, ok({"failedUpdates": failed}))
    with pytest.raises(Refused, match=r"2 of 120 .* \(not\.found\)") as caught:
        platform.protect([f"c-{n}" for n in range(120)], protected=True)
    assert "4111" not in str(caught.value)
    assert len(server.calls("PUT", PROTECTION)) == 2


# Purge

ONE, ONE_METADATA = f"{PATH}/recordings/{RECORDING}", f"{METADATA}/{RECORDING}"
ARCHIVED_UNTIL = "2026-06-01T00:00:00.000Z"


def purge(server: CloudServer, platform: CloudPlatform, taken: Reply, **fields: Any) -> Any:
    """What was put, when the metadata has these fields."""
    server.plan("GET", ONE_METADATA, ok({"id": RECORDING} | fields))
    server.plan("PUT", ONE, taken)
    platform.purge(ID)
    return [one.json for one in server.calls("PUT", ONE)]


def test_a_purge_sets_the_delete_date_to_now_and_leaves_the_archive_date(
    server: CloudServer, platform: CloudPlatform
) -> None:
    taken = ok({"id": RECORDING, "deleteDate": "2026-03-04T12:00:00.000Z"})
    [put] = purge(server, platform, taken, fileState="ARCHIVED", archiveDate=ARCHIVED_UNTIL)
    assert put == {"deleteDate": "2026-03-04T12:00:00.000Z", "archiveDate": ARCHIVED_UNTIL}


@pytest.mark.parametrize("fields", [{"fileState": "DELETED"}, {"deleteDate": "2026-03-04T11:59:00.000Z"}])
def test_what_is_deleted_or_due_to_be_is_not_purged_again(
    server: CloudServer, platform: CloudPlatform, fields: dict[str, str]
) -> None:
    assert purge(server, platform, no(500), **fields) == []


def test_a_recording_that_is_not_there_is_purged_already(server: CloudServer, platform: CloudPlatform) -> None:
    server.plan("GET", ONE_METADATA, no(404))
    platform.purge(ID)
    assert server.calls("PUT", ONE) == []


def test_a_later_delete_date_of_the_platform_s_own_is_brought_forward(
    server: CloudServer, platform: CloudPlatform
) -> None:
    taken = ok({"id": RECORDING, "deleteDate": "2026-03-04T12:00:00.000Z"})
    assert len(purge(server, platform, taken, deleteDate="2027-03-04T12:00:00.000Z")) == 1


@pytest.mark.parametrize("taken", [{}, {"deleteDate": None}, {"deleteDate": "2027-03-04T12:00:00.000Z"}])
def test_a_purge_that_the_platform_did_not_take_is_an_error(
    server: CloudServer, platform: CloudPlatform, taken: dict[str, Any]
) -> None:
    with pytest.raises(Refused, match="no delete date"):
        purge(server, platform, ok({"id": RECORDING} | taken))


def test_a_conversation_s_id_is_not_purged(server: CloudServer, platform: CloudPlatform) -> None:
    with pytest.raises(Refused, match="only recordings"):
        platform.purge(CONVERSATION)
    assert server.asked == []


def test_every_method_raises_only_the_ports_errors_when_the_platform_answers_nonsense(
    server: CloudServer, platform: CloudPlatform
) -> None:
    nonsense = ok({"id": {"4111111111111111": []}, "entities": 4111111111111111, "conversations": "x"})
    tries = (
        ("GET", LIST, lambda: platform.locate(ID)),
        ("GET", METADATA, lambda: platform.recordings_of(CONVERSATION)),
        ("POST", DETAILS, lambda: list(platform.list_available(NOW - timedelta(hours=1), NOW))),
        ("GET", NOTES, lambda: platform.tag(ID, TAGS, 1)),
        ("GET", ONE_METADATA, lambda: platform.purge(ID)),
        ("POST", f"{WORK_TYPES}/query", lambda: platform.open_work_item(ITEM)),
        ("GET", QUEUES, lambda: platform.request_callback(CALLBACK)),
    )
    for method, path, ask in tries:
        server.plan(method, path, nonsense)
        with pytest.raises(PlatformError) as caught:
            ask()
        assert "4111" not in str(caught.value)
