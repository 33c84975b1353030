"""Every adapter through the same behaviours: the folder, and both profiles against the sandbox over real HTTP,
each exchange held against the contract."""

import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import httpx
import pytest

from compliance_pipeline.platforms import cloud as cloud_adapter
from compliance_pipeline.platforms.cloud import CloudPlatform
from compliance_pipeline.platforms.folder import FolderPlatform
from compliance_pipeline.platforms.guide import CALLBACKS, RECORDS, GuidePlatform
from compliance_pipeline.platforms.port import PlatformError, Ready
from compliance_pipeline.platforms.transport import Transport
from compliance_pipeline.sandbox.calls import Kind, SyntheticRecording, make_recording
from compliance_pipeline.sandbox.cloud_state import CloudState, cloud_state
from compliance_pipeline.sandbox.platform import PlatformState
from compliance_pipeline_tests.contract.recorder import Recorder, conforming_sandbox
from compliance_pipeline_tests.platforms.port_suite import CANARY, PortSuite, Stage

CLIENT = ("compliance-service", "client-secret-canary-5e3a")
ENDED = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=2)
GONE = "00000000-0000-4000-8000-000000000001"
STATUSES = (401, 403, 404, 413, 429, 500)
BABBLE = tuple(
    text.replace("?", CANARY).encode()
    for text in (
        "<html>?</html>",
        '{"?": "?"}',
        '[{"id": {"?": 1}, "status": "?"}]',
        '{"id": "?", "entities": ["?"]}',
        "?",
    )
)


@pytest.fixture(scope="module")
def recordings() -> list[SyntheticRecording]:
    """A call, a chat, and a call whose media is still to come; the second ended a minute after the first."""
    kinds = (Kind.VOICE_CLEAN, Kind.CHAT_CLEAN, Kind.VOICE_TONES)
    return [make_recording(11, kind, ended_at=ENDED + timedelta(minutes=n)) for n, kind in enumerate(kinds)]


class TestFolder(PortSuite):
    @pytest.fixture
    def stage(self, tmp_path: Path, recordings: list[SyntheticRecording]) -> Iterator[Stage]:
        calls, home = tmp_path / "calls", tmp_path / "home"
        calls.mkdir()
        names = ("John Doe.wav", "John Doe.json", "removed.wav")
        for name, recording in zip(names, recordings, strict=True):
            (calls / name).write_bytes(recording.media)
            os.utime(calls / name, (recording.end_time.timestamp(),) * 2)
        platform = FolderPlatform(calls, home)
        by_name = {one.name: one for one in platform.recordings()}
        (calls / "removed.wav").unlink()
        voice, chat, removed = (by_name[name] for name in names)
        yield FolderStage(
            platform=platform,
            voice=voice.recording_id,
            voice_media=recordings[0].media,
            chat=chat.recording_id,
            not_ready=None,
            gone=removed.recording_id,
            conversation=None,
            available={one.recording_id: one.modified for one in (voice, chat, removed)},
            calls=calls,
            out=home / "remediations",
        )
        platform.close()

    def test_a_disk_that_takes_no_file_is_a_platform_error(self, stage: Stage) -> None:
        assert isinstance(stage, FolderStage)
        stage.out.parent.mkdir()
        stage.out.write_text("a file where the folder should be")
        for write in (
            lambda: stage.platform.tag(stage.voice, {"compliance_status": "VIOLATION_DETECTED"}),
            lambda: stage.platform.open_work_item(self.item),
        ):
            with pytest.raises(PlatformError):
                write()


@dataclass
class FolderStage(Stage):
    calls: Path
    out: Path

    def add_chats(self, count: int) -> set[str]:
        at = (min(self.available.values()) - timedelta(minutes=30)).timestamp()
        names = {f"chat {number}.json" for number in range(count)}
        for name in names:
            (self.calls / name).write_text("[]")
            os.utime(self.calls / name, (at, at))
        # A folder is listed once.
        platform = self.platform = FolderPlatform(self.calls, self.out.parent)
        return {one.recording_id for one in platform.recordings() if one.name in names}

    def tags(self, recording_id: str) -> str:
        file = self.out / "tags" / f"{recording_id}.json"
        return file.read_text() if file.exists() else ""

    def tag_by_somebody_else(self, recording_id: str) -> str:
        (self.out / "tags").mkdir(parents=True)
        told = {"recordingId": recording_id, "tags": {"vip": "reviewed by quality"}}
        (self.out / "tags" / f"{recording_id}.json").write_text(json.dumps(told))
        return "reviewed by quality"

    def work_items(self, key: str) -> int:
        return self._with_key("work_items", key)

    def callbacks(self, key: str) -> int:
        return self._with_key("callbacks", key)

    def _with_key(self, kind: str, key: str) -> int:
        return sum(json.loads(file.read_text())["key"] == key for file in (self.out / kind).iterdir())

    def lose_answers(self) -> None:
        """Nothing is between us and the disk."""

    def is_protected(self, recording_id: str) -> bool:
        raise AssertionError("a folder refuses")

    def bearer_leaks(self) -> int:
        return 0

    def failing(self) -> Iterator[AbstractContextManager[None]]:
        yield self._moved()

    @contextmanager
    def _moved(self) -> Iterator[None]:
        away = self.calls.with_name("away")
        self.calls.rename(away)
        yield
        away.rename(self.calls)

    def secrets(self) -> set[str]:
        return {"John Doe", str(self.calls)}


@dataclass
class SandboxStage(Stage):
    """Of both profiles: what differs is where work items, callbacks and tags lie."""

    state: PlatformState
    recorder: Recorder

    def add_chats(self, count: int) -> set[str]:
        at = min(self.available.values()) - timedelta(minutes=30)
        chat = make_recording(13, Kind.CHAT_CLEAN, ended_at=at)
        copies = [replace(chat, recording_id=str(UUID(int=number))) for number in range(count)]
        held = [self.state.add(one, available_at=at, known_at=at) for one in copies]
        return {one.conversation_id if self.conversation else one.address for one in held}

    def bearer_leaks(self) -> int:
        return self.state.counts["bearer leaked"]

    def failing(self) -> Iterator[AbstractContextManager[None]]:
        yield from (self._answering(status) for status in (*STATUSES, None))
        yield from (self._babbling(body) for body in BABBLE)

    @contextmanager
    def _answering(self, status: int | None) -> Iterator[None]:
        """Every request to the API and the media host; None: the connection is dropped."""
        self.state.fail_next("/", status, times=100_000)
        yield
        self.state.faults.clear()

    @contextmanager
    def _babbling(self, body: bytes) -> Iterator[None]:
        self.recorder.babble = body
        yield
        self.recorder.babble = None

    def secrets(self) -> set[str]:
        location = self.platform.locate(self.voice)
        assert isinstance(location, Ready)
        (signature,) = parse_qs(urlsplit(location.media.url).query)["token"]
        assert self.recorder.secrets, "the adapter has signed in"
        return {CLIENT[1], signature.rpartition(".")[2], *self.recorder.secrets}


@contextmanager
def sandbox(state: PlatformState, recordings: list[SyntheticRecording]) -> Iterator[tuple[Recorder, dict[str, Any]]]:
    """The sandbox with the recordings on it, and what every stage of it is told."""
    with conforming_sandbox(state) as recorder:
        voice, chat, late = recordings
        held = [
            state.add(voice, available_at=voice.end_time, known_at=voice.start_time),
            state.add(chat, available_at=chat.end_time, known_at=chat.start_time),
            state.add(late, available_at=late.end_time, known_at=late.start_time, status="restoring"),
        ]
        yield (
            recorder,
            {
                "voice": held[0].address,
                "chat": held[1].address,
                "not_ready": held[2].address,
                "voice_media": voice.media,
                "state": state,
                "recorder": recorder,
            },
        )


class TestGuide(PortSuite):
    @pytest.fixture
    def stage(self, recordings: list[SyntheticRecording]) -> Iterator[Stage]:
        state = PlatformState(*CLIENT)
        with ExitStack() as stack:
            recorder, told = stack.enter_context(sandbox(state, recordings))
            gone = make_recording(12, Kind.VOICE_CLEAN, ended_at=ENDED - timedelta(days=9))
            transport = Transport(recorder.url, *CLIENT, backoff_s=0.001)
            yield GuideStage(
                platform=GuidePlatform(transport),
                gone=state.add(gone, available_at=gone.end_time, status="deleted").address,
                conversation=None,
                available={one.recording_id: one.end_time for one in recordings[:2]},
                **told,
            )
            transport.close()


@dataclass
class GuideStage(SandboxStage):
    def tags(self, recording_id: str) -> str:
        return json.dumps(self.state.held[recording_id].tags)

    def tag_by_somebody_else(self, recording_id: str) -> str:
        self.state.held[recording_id].tags.append({"key": "vip", "value": "reviewed by quality"})
        return "reviewed by quality"

    def work_items(self, key: str) -> int:
        return sum(item["record"]["key"] == key for item in self.state.work_items)

    def callbacks(self, key: str) -> int:
        return sum(callback["data"]["key"] == key for callback in self.state.callbacks)

    def lose_answers(self) -> None:
        self.recorder.lose_next("POST", RECORDS)
        self.recorder.lose_next("POST", CALLBACKS)

    def is_protected(self, recording_id: str) -> bool:
        raise AssertionError("the guide's platform refuses")


class TestCloud(PortSuite):
    @pytest.fixture
    def stage(self, recordings: list[SyntheticRecording], monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
        monkeypatch.setattr(cloud_adapter, "BATCH_WAIT_S", 0.5)  # a batch that babbles is never done
        state = PlatformState(*CLIENT, profile="cloud")
        cloud = cloud_state(state)
        cloud.analytics_lag_s = 0
        with ExitStack() as stack:
            recorder, told = stack.enter_context(sandbox(state, recordings))
            deleted = make_recording(12, Kind.VOICE_CLEAN, ended_at=ENDED + timedelta(minutes=9))
            gone = state.add(deleted, available_at=deleted.end_time, status="deleted")
            transport = Transport(recorder.url, *CLIENT, backoff_s=0.001)
            platform = CloudPlatform(
                transport, work_item_type="Compliance review", workbin="Compliance", supervisor_number="+13175550199"
            )
            yield CloudStage(
                platform=platform,
                gone=gone.address,
                conversation=told["voice"].partition(":")[0],
                # Analytics knows conversations, not which of them have media.
                available={one.conversation_id: one.recording.end_time for one in state.held.values()},
                cloud=cloud,
                **told,
            )
            transport.close()


@dataclass
class CloudStage(SandboxStage):
    cloud: CloudState

    def tags(self, recording_id: str) -> str:
        conversation, _, recording = recording_id.partition(":")
        return json.dumps([self.cloud.external_tags.get(conversation), self.cloud.annotations.get(recording)])

    def tag_by_somebody_else(self, recording_id: str) -> str:
        self.cloud.external_tags[recording_id.partition(":")[0]] = "crm-case-7"
        return "crm-case-7"

    def work_items(self, key: str) -> int:
        return sum(item["externalTag"] == key for item in self.cloud.work_items.values())

    def callbacks(self, key: str) -> int:
        return sum(callback["data"]["key"] == key for callback in self.state.callbacks)

    def lose_answers(self) -> None:
        self.recorder.lose_next("POST", cloud_adapter.WORK_ITEMS)
        self.recorder.lose_next("POST", cloud_adapter.CALLBACKS)

    def is_protected(self, recording_id: str) -> bool:
        return recording_id.partition(":")[0] in self.cloud.protected


def test_the_sandbox_sees_a_bearer_token_that_comes_to_its_media_host(recordings: list[SyntheticRecording]) -> None:
    state = PlatformState(*CLIENT)
    with sandbox(state, recordings) as (_, told):
        httpx.get(state.media_url(told["voice"]), headers={"Authorization": "Bearer x"})
    assert state.counts["bearer leaked"] == 1


def test_an_exchange_that_is_not_by_the_contract_fails_the_test_that_made_it(
    recordings: list[SyntheticRecording],
) -> None:
    def invent() -> None:
        with sandbox(PlatformState(*CLIENT), recordings) as (recorder, told):
            transport = Transport(recorder.url, *CLIENT)
            transport.request("PATCH", f"/api/v2/recordings/{told['voice']}", json={"tags": [], "invented": 1})
            transport.close()

    with pytest.raises(AssertionError, match="unexpected"):
        invent()
