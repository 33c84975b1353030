"""What every adapter of the platform port must do, whatever stands behind it. Subclass `PortSuite` once per adapter.
What one adapter alone does (its paths, its bodies) belongs to that adapter's own tests."""

import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import ClassVar

import pytest

from compliance_pipeline.contracts.event import RecordingEvent
from compliance_pipeline.contracts.work_item import SupervisorCallback, WorkItem
from compliance_pipeline.platforms.port import (
    Gone,
    Media,
    NotSupported,
    NotYet,
    Platform,
    PlatformError,
    Ready,
    Refused,
    TransferBroken,
    Unavailable,
)

Created = Callable[[str], int]

MOST_BYTES_A_CHUNK = 64 * 1024
TRIES = 5
MORE_THAN_TWO_PAGES = 201
"""Of a hundred, the largest page that any platform gives so far."""
CANARY = "canary-4111111111111111"
"""In everything that is sent; no error may tell it."""


@dataclass
class Stage(ABC):
    """A platform with recordings on it, and a look at it from behind. Times are aware.

    voice, chat: ready. not_ready: known, its media still to come; None where that does not exist. gone: never to have
    media. voice_media: the bytes of `voice`. conversation: the id of the one that `voice` is of, if there are any.
    available: what a listing must have, with when it became available.
    """

    platform: Platform
    voice: str
    voice_media: bytes
    chat: str
    not_ready: str | None
    gone: str
    conversation: str | None
    available: Mapping[str, datetime]

    @abstractmethod
    def add_chats(self, count: int) -> set[str]:
        """Chats that became available in the hour before `available`; what a listing calls them."""

    @abstractmethod
    def tags(self, recording_id: str) -> str:
        """All that stands on the platform as tags of the recording, as text."""

    @abstractmethod
    def tag_by_somebody_else(self, recording_id: str) -> str:
        """Tags it behind the adapter's back; returns what must be in `tags` from then on."""

    @abstractmethod
    def work_items(self, key: str) -> int:
        """How many have that key."""

    @abstractmethod
    def callbacks(self, key: str) -> int: ...

    @abstractmethod
    def lose_answers(self) -> None:
        """The next work item and the next callback that are created: their answers are lost on the way back."""

    @abstractmethod
    def is_protected(self, recording_id: str) -> bool: ...

    @abstractmethod
    def bearer_leaks(self) -> int:
        """How often a bearer token came to the media host."""

    @abstractmethod
    def failing(self) -> Iterator[AbstractContextManager[None]]:
        """Ways in which the platform fails; while one lasts, the adapter's methods can only fail or answer."""

    @abstractmethod
    def secrets(self) -> set[str]:
        """What no error may tell: tokens, client secrets, signatures, names of the customers' files."""


class PortSuite:
    """The behaviours. A subclass gives `stage` (a fixture) and has to be named Test..."""

    item: ClassVar[WorkItem] = WorkItem(
        key="rec-1/PCI-DTMF/create_work_item",
        recording_id="rec-1",
        violation_type="PCI_MID_CAPTURE",
        queue="compliance_review_queue",
        priority="high",
        summary=f"PCI-DTMF at 12.5 s: {CANARY}",
    )
    callback: ClassVar[SupervisorCallback] = SupervisorCallback(
        key="rec-1/PCI-DTMF/supervisor_callback",
        recording_id="rec-1",
        queue="supervisor_callback_queue",
        scheduled_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        reason=f"PCI-DTMF {CANARY}",
    )

    # --- locate and media

    def test_what_is_ready_is_located(self, stage: Stage) -> None:
        assert isinstance(stage.platform.locate(stage.voice), Ready)
        assert isinstance(stage.platform.locate(stage.chat), Ready)

    def test_what_has_no_media_yet_is_not_ready_yet(self, stage: Stage) -> None:
        if stage.not_ready is None:
            pytest.skip("this platform's recordings are there or not there")
        assert isinstance(stage.platform.locate(stage.not_ready), NotYet)

    def test_what_will_never_have_media_is_gone(self, stage: Stage) -> None:
        location = stage.platform.locate(stage.gone)
        assert isinstance(location, Gone)
        assert location.why

    def test_what_nobody_has_heard_of_is_not_ready_or_gone_and_no_error(self, stage: Stage) -> None:
        unheard = "00000000-0000-4000-8000-000000000000"
        location = stage.platform.locate(f"{unheard}:{unheard}" if ":" in stage.voice else unheard)
        assert isinstance(location, NotYet | Gone)

    def test_media_streams_whole_in_small_chunks_and_says_how_long_it_is(self, stage: Stage) -> None:
        content, declared, content_type = _read(stage.platform, _ready(stage, stage.voice).media)
        assert content == stage.voice_media
        assert declared == len(stage.voice_media)
        assert content_type == "audio/wav"

    def test_a_chat_streams_whole_and_says_how_long_it_is(self, stage: Stage) -> None:
        content, declared, _ = _read(stage.platform, _ready(stage, stage.chat).media)
        assert content
        assert declared == len(content)

    def test_media_can_be_opened_again_after_locating_again(self, stage: Stage) -> None:
        for _ in range(2):
            assert _read(stage.platform, _ready(stage, stage.voice).media)[0] == stage.voice_media

    def test_neither_media_nor_transcript_is_asked_for_with_the_bearer_token(self, stage: Stage) -> None:
        for recording_id in (stage.voice, stage.chat):
            location = _ready(stage, recording_id)
            _read(stage.platform, location.media)
            if location.transcript:
                _read(stage.platform, location.transcript)
        assert stage.bearer_leaks() == 0

    def test_a_signed_url_is_in_no_repr(self, stage: Stage) -> None:
        location = _ready(stage, stage.voice)
        assert location.media.url not in repr(location)

    def test_what_was_not_located_can_not_be_opened(self, stage: Stage) -> None:
        for url in ("http://169.254.169.254/latest/meta-data/", "file:///etc/passwd", f"gopher://example.org/{CANARY}"):
            with pytest.raises(PlatformError) as caught, stage.platform.open_media(Media(url)):
                pass
            assert CANARY not in _told(caught.value)

    # --- prefetch and listings

    def test_prefetching_changes_nothing_but_speed_and_never_raises(self, stage: Stage) -> None:
        stage.platform.prefetch([])
        stage.platform.prefetch([stage.voice, stage.chat, stage.gone, *(f"{stage.voice}{n}" for n in range(12))])
        assert _read(stage.platform, _ready(stage, stage.voice).media)[0] == stage.voice_media
        assert isinstance(stage.platform.locate(stage.gone), Gone)

    def test_the_recordings_of_a_conversation_are_told_or_not_known_yet(self, stage: Stage) -> None:
        unheard = stage.platform.recordings_of("00000000-0000-4000-8000-000000000000")
        assert isinstance(unheard, NotYet)
        if stage.conversation is None:
            return
        events = stage.platform.recordings_of(stage.conversation)
        assert isinstance(events, tuple)
        assert stage.voice in [event.recording_id for event in events]
        assert {event.conversation_id for event in events} == {stage.conversation}
        assert not any(event.is_conversation for event in events)

    def test_what_became_available_is_listed_once_each(self, stage: Stage) -> None:
        first, last = min(stage.available.values()), max(stage.available.values())
        events = list(stage.platform.list_available(first - timedelta(hours=1), last + timedelta(hours=1)))
        assert sorted(event.recording_id for event in events) == sorted(stage.available)
        told = {event.recording_id: _time(event) for event in events}
        # Platforms tell times in milliseconds.
        assert all(abs(told[name] - at) < timedelta(milliseconds=1) for name, at in stage.available.items())

    def test_a_listing_has_its_first_moment_and_not_its_last(self, stage: Stage) -> None:
        first, last = min(stage.available.values()), max(stage.available.values())
        listed = list(stage.platform.list_available(first - timedelta(hours=1), last + timedelta(hours=1)))
        moments = sorted({_time(event) for event in listed})
        edges = [moments[0] - timedelta(hours=1), *moments, moments[-1] + timedelta(hours=1)]
        windows = [
            sorted(event.recording_id for event in stage.platform.list_available(since, until))
            for since, until in pairwise(edges)
        ]
        assert windows[0] == []
        assert windows[1:] == [
            sorted(event.recording_id for event in listed if event.event_time == moment) for moment in moments
        ]

    def test_a_listing_of_many_pages_has_all_of_them_once(self, stage: Stage) -> None:
        added = stage.add_chats(MORE_THAN_TWO_PAGES)
        assert len(added) == MORE_THAN_TWO_PAGES
        until = min(stage.available.values())
        listed = [event.recording_id for event in stage.platform.list_available(until - timedelta(hours=1), until)]
        assert sorted(listed) == sorted(added)

    def test_an_hour_in_which_nothing_became_available_lists_nothing(self, stage: Stage) -> None:
        before = min(stage.available.values()) - timedelta(days=30)
        assert list(stage.platform.list_available(before, before + timedelta(hours=1))) == []

    # --- remediation

    def test_a_tag_is_written_and_others_tags_are_kept(self, stage: Stage) -> None:
        theirs = stage.tag_by_somebody_else(stage.voice)
        stage.platform.tag(stage.voice, {"compliance_status": "VIOLATION_DETECTED"}, at_ms=1500)
        assert theirs in stage.tags(stage.voice)
        assert "VIOLATION_DETECTED" in stage.tags(stage.voice)

    def test_a_tag_is_merged_with_our_earlier_ones(self, stage: Stage) -> None:
        stage.platform.tag(stage.voice, {"compliance_status": "VIOLATION_DETECTED"})
        stage.platform.tag(stage.voice, {"violation_type": "PCI_MID_CAPTURE"})
        assert "VIOLATION_DETECTED" in stage.tags(stage.voice)
        assert "PCI_MID_CAPTURE" in stage.tags(stage.voice)

    def test_tagging_twice_is_tagging_once(self, stage: Stage) -> None:
        tags = {"compliance_status": "VIOLATION_DETECTED", "violation_type": "PCI_MID_CAPTURE"}
        stage.platform.tag(stage.voice, tags, at_ms=1500)
        once = stage.tags(stage.voice)
        stage.platform.tag(stage.voice, tags, at_ms=1500)
        assert stage.tags(stage.voice) == once

    def test_tagging_one_recording_leaves_the_others_alone(self, stage: Stage) -> None:
        before = stage.tags(stage.chat)
        stage.platform.tag(stage.voice, {"compliance_status": "VIOLATION_DETECTED"})
        assert stage.tags(stage.chat) == before

    def test_a_work_item_is_there_once_for_its_key(self, stage: Stage) -> None:
        assert stage.platform.open_work_item(self.item) == stage.platform.open_work_item(self.item)
        other = self.item.model_copy(update={"key": "rec-2/PCI-DTMF/create_work_item"})
        assert stage.platform.open_work_item(other) != stage.platform.open_work_item(self.item)
        assert (stage.work_items(self.item.key), stage.work_items(other.key)) == (1, 1)

    def test_a_callback_is_there_once_for_its_key(self, stage: Stage) -> None:
        assert stage.platform.request_callback(self.callback) == stage.platform.request_callback(self.callback)
        other = self.callback.model_copy(update={"key": "rec-2/PCI-DTMF/supervisor_callback"})
        assert stage.platform.request_callback(other) != stage.platform.request_callback(self.callback)
        assert (stage.callbacks(self.callback.key), stage.callbacks(other.key)) == (1, 1)

    def test_a_callback_can_be_for_later(self, stage: Stage) -> None:
        later = self.callback.model_copy(update={"scheduled_at": datetime.now(UTC) + timedelta(hours=1)})
        assert stage.platform.request_callback(later) == stage.platform.request_callback(later)
        assert stage.callbacks(later.key) == 1

    def test_a_lost_answer_makes_no_second_work_item_or_callback(self, stage: Stage) -> None:
        stage.lose_answers()
        item = _tried(lambda: stage.platform.open_work_item(self.item))
        callback = _tried(lambda: stage.platform.request_callback(self.callback))
        assert (stage.work_items(self.item.key), stage.callbacks(self.callback.key)) == (1, 1)
        assert stage.platform.open_work_item(self.item) == item
        assert stage.platform.request_callback(self.callback) == callback

    def test_a_legal_hold_is_set_and_lifted_or_refused(self, stage: Stage) -> None:
        try:
            stage.platform.protect([stage.voice], protected=True)
        except NotSupported:
            return
        assert stage.is_protected(stage.voice)
        assert not stage.is_protected(stage.chat)
        stage.platform.protect([stage.voice], protected=False)
        assert not stage.is_protected(stage.voice)

    def test_what_is_purged_is_gone_alone_and_once_or_the_platform_has_no_such_thing(self, stage: Stage) -> None:
        try:
            stage.platform.purge(stage.voice)
        except NotSupported:
            return
        assert isinstance(stage.platform.locate(stage.voice), Gone)
        assert isinstance(stage.platform.locate(stage.chat), Ready)
        stage.platform.purge(stage.voice)
        stage.platform.purge(stage.gone)

    def test_failed_deliveries_are_counted_or_not_known(self, stage: Stage) -> None:
        assert stage.platform.delivery_failures(datetime.now(UTC) - timedelta(hours=1)) in (0, None)

    # --- errors

    def test_whatever_fails_is_a_platform_error_that_tells_no_secret(self, stage: Stage) -> None:
        ready = _ready(stage, stage.voice)
        since = min(stage.available.values())
        asked: list[Callable[[], object]] = [
            lambda: stage.platform.locate(stage.voice),
            lambda: stage.platform.recordings_of(stage.conversation or stage.voice),
            lambda: list(stage.platform.list_available(since, since + timedelta(hours=1))),
            lambda: _read(stage.platform, ready.media),
            lambda: stage.platform.tag(stage.voice, {"compliance_status": CANARY}),
            lambda: stage.platform.open_work_item(self.item),
            lambda: stage.platform.request_callback(self.callback),
            lambda: stage.platform.protect([stage.voice], protected=True),
            lambda: stage.platform.purge(stage.voice),
            lambda: stage.platform.delivery_failures(since),
        ]
        raised: list[PlatformError] = []
        for failing in stage.failing():
            with failing:
                stage.platform.prefetch([f"{stage.voice}{n}" for n in range(12)])
                for ask in asked:
                    try:
                        ask()
                    except PlatformError as error:
                        raised.append(error)
        assert {type(error) for error in raised} & {Refused, Unavailable, TransferBroken}
        secrets = stage.secrets() | {CANARY, ready.media.url}
        assert not [error for error in raised for secret in secrets if secret in _told(error)]
        assert all(str(error) for error in raised)


def _ready(stage: Stage, recording_id: str) -> Ready:
    location = stage.platform.locate(recording_id)
    assert isinstance(location, Ready), location
    return location


def _read(platform: Platform, media: Media) -> tuple[bytes, int | None, str | None]:
    with platform.open_media(media) as stream:
        chunks = list(stream)
        assert all(0 < len(chunk) <= MOST_BYTES_A_CHUNK for chunk in chunks)
        return b"".join(chunks), stream.content_length, stream.content_type


def _tried(create: Callable[[], str]) -> str:
    """As the pipeline tries: again later, where the platform could not say what became of it."""
    for _ in range(TRIES - 1):
        try:
            return create()
        except Unavailable:
            continue
    return create()


def _time(event: RecordingEvent) -> datetime:
    assert event.event_time
    return event.event_time


def _told(error: BaseException) -> str:
    """Everything that a log of the error would hold, without the lines of source that a traceback quotes."""
    text = "".join(traceback.format_exception(error)) + repr(error) + str(error)
    return "\n".join(line for line in text.splitlines() if not line.startswith("    "))
