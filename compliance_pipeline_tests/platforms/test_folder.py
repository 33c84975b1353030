import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from compliance_pipeline.contracts.event import Channel, RecordingId
from compliance_pipeline.contracts.work_item import SupervisorCallback, WorkItem
from compliance_pipeline.platforms.folder import FolderPlatform, from_settings
from compliance_pipeline.platforms.port import Gone, Media, Platform, Ready, Refused, TransferBroken, Unavailable
from compliance_pipeline.settings import Settings

ITEM = WorkItem(
    key="file-abc/PCI-PAN/create_work_item",
    recording_id="file-abc",
    violation_type="PCI_PAN",
    queue="compliance_review_queue",
    priority="high",
    summary="411111******1111",
)
CALLBACK = SupervisorCallback(
    key="file-abc/PCI-PAN/supervisor_callback",
    recording_id="file-abc",
    queue="supervisor_callback_queue",
    scheduled_at=datetime(2026, 1, 2, tzinfo=UTC),
    reason="PCI-PAN",
)


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    folder = tmp_path / "calls"
    folder.mkdir()
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def put(folder: Path, name: str, data: bytes = b"data") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def names(platform: FolderPlatform) -> list[str]:
    return [recording.name for recording in platform.recordings()]


def reasons(platform: FolderPlatform) -> dict[str, str]:
    return {skipped.name: skipped.why for skipped in platform.skipped()}


def media_of(platform: Platform, recording_id: str) -> Media:
    location = platform.locate(recording_id)
    assert isinstance(location, Ready)
    return location.media


def test_a_folder_goes_round_trip(calls: Path, tmp_path: Path) -> None:
    data = bytes(range(256)) * 1000
    path = put(calls, "2024/call one.WAV", data)
    settings = Settings(home=tmp_path / "home", _env_file=None)
    platform = from_settings(calls, settings)
    (recording,) = platform.recordings()
    assert (recording.name, recording.channel, recording.size) == ("2024/call one.WAV", Channel.VOICE, len(data))
    assert recording.modified.timestamp() == pytest.approx(path.stat().st_mtime, abs=1e-3)
    with platform.open_media(media_of(platform, recording.recording_id)) as stream:
        chunks = list(stream)
        assert (stream.content_length, stream.content_type) == (len(data), "audio/wav")
        assert stream.last_modified is not None
        assert stream.last_modified.tzinfo is not None
    assert b"".join(chunks) == data
    assert max(map(len, chunks)) <= 64 * 1024


def test_each_suffix_has_its_channel(calls: Path, home: Path) -> None:
    for suffix in ("wav", "mp3", "ogg", "webm", "m4a", "flac", "opus", "json", "txt", "eml"):
        put(calls, f"x.{suffix}")
    channels = {r.path.suffix[1:]: r.channel for r in FolderPlatform(calls, home).recordings()}
    assert channels == dict.fromkeys(("wav", "mp3", "ogg", "webm", "m4a", "flac", "opus"), Channel.VOICE) | {
        "json": Channel.CHAT,
        "txt": Channel.CHAT,
        "eml": Channel.EMAIL,
    }


def test_two_files_with_the_same_base_name_are_two_recordings(calls: Path, home: Path) -> None:
    first, second = put(calls, "a/call.wav"), put(calls, "b/call.wav")
    os.utime(first, ns=(1, 1))
    os.utime(second, ns=(1, 1))
    platform = FolderPlatform(calls, home)
    ids = {recording.recording_id for recording in platform.recordings()}
    assert len(ids) == 2
    assert {media_of(platform, recording_id).url for recording_id in ids} == {first.as_uri(), second.as_uri()}


def test_another_process_gives_an_unchanged_file_the_same_id(calls: Path, home: Path) -> None:
    put(calls, "call.wav")
    code = (
        "import sys; from pathlib import Path; from compliance_pipeline.platforms.folder import FolderPlatform\n"
        "print(*(r.recording_id for r in FolderPlatform(Path(sys.argv[1]), Path(sys.argv[2])).recordings()))"
    )
    other = subprocess.run(
        [sys.executable, "-c", code, str(calls), str(home)], check=True, capture_output=True, text=True
    )
    assert other.stdout.split() == [r.recording_id for r in FolderPlatform(calls, home).recordings()]


@pytest.mark.parametrize(("suffix", "content_type"), [("json", "application/json"), ("txt", "text/plain")])
def test_a_transcript_beside_the_audio_belongs_to_it(calls: Path, home: Path, suffix: str, content_type: str) -> None:
    audio = put(calls, "a/call.wav", b"audio")
    put(calls, f"a/call.wav.transcript.{suffix}", b"words")
    put(calls, f"b/call.wav.transcript.{suffix}", b"without its audio")
    put(calls, "a/call.mp3", b"other audio")
    for path in (calls, audio):
        platform = FolderPlatform(path, home)
        assert (
            names(platform)
            == (["a/call.mp3", "a/call.wav", f"b/call.wav.transcript.{suffix}"], ["call.wav"])[path == audio]
        )
        (call,) = (recording for recording in platform.recordings() if recording.path == audio)
        location = platform.locate(call.recording_id)
        assert isinstance(location, Ready)
        assert location.transcript
        assert (location.transcript.content_type, location.speakers) == (content_type, ())
        with platform.open_media(location.transcript) as stream:
            assert b"".join(stream) == b"words"
        with platform.open_media(location.media) as stream:
            assert b"".join(stream) == b"audio"


def test_of_two_transcripts_of_a_call_one_is_used_and_the_other_is_reported(calls: Path, home: Path) -> None:
    put(calls, "call.wav")
    used, other = put(calls, "call.wav.transcript.json"), put(calls, "call.wav.transcript.txt")
    platform = FolderPlatform(calls, home)
    assert [recording.transcript for recording in platform.recordings()] == [used]
    assert reasons(platform) == {other.name: "another transcript of the same audio is used"}


def test_a_call_that_gets_another_transcript_is_another_recording(calls: Path, home: Path) -> None:
    put(calls, "call.wav")
    ids = [FolderPlatform(calls, home).recordings()[0].recording_id]
    transcript = put(calls, "call.wav.transcript.json", b"one")
    platform = FolderPlatform(calls, home)
    ids.append(platform.recordings()[0].recording_id)
    transcript.write_bytes(b"another")
    assert isinstance(platform.locate(ids[-1]), Gone)
    ids.append(FolderPlatform(calls, home).recordings()[0].recording_id)
    assert len(set(ids)) == 3


def test_a_transcript_that_is_a_link_is_not_read(calls: Path, home: Path, tmp_path: Path) -> None:
    put(calls, "call.wav")
    (calls / "call.wav.transcript.json").symlink_to(put(tmp_path, "secret.json"))
    platform = FolderPlatform(calls, home)
    assert [recording.transcript for recording in platform.recordings()] == [None]
    assert "leaves the folder" in reasons(platform)["call.wav.transcript.json"]
    with pytest.raises(Refused), platform.open_media(Media((calls / "call.wav.transcript.json").as_uri())):
        pass


def test_a_name_as_long_as_the_file_system_takes_can_be_read(calls: Path, home: Path) -> None:
    name = "x" * 251 + ".wav"
    put(calls, name)
    assert names(FolderPlatform(calls, home)) == [name]


def test_a_changed_file_is_another_recording_and_the_listed_one_is_gone(calls: Path, home: Path) -> None:
    path = put(calls, "call.wav", b"before")
    platform = FolderPlatform(calls, home)
    (before,) = platform.recordings()
    path.write_bytes(b"after this")
    assert isinstance(platform.locate(before.recording_id), Gone)
    (after,) = FolderPlatform(calls, home).recordings()
    assert after.recording_id != before.recording_id


def test_a_removed_file_and_an_unknown_id_are_gone(calls: Path, home: Path) -> None:
    path = put(calls, "call.wav")
    platform = FolderPlatform(calls, home)
    (recording,) = platform.recordings()
    media = media_of(platform, recording.recording_id)
    path.unlink()
    assert isinstance(platform.locate(recording.recording_id), Gone)
    assert isinstance(platform.locate("file-unknown"), Gone)
    with pytest.raises(Unavailable), platform.open_media(media):
        pass


FILE_NAMES = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=30
).filter(lambda name: not name.startswith(".") and len(name.encode()) < 200)


@settings(max_examples=60, deadline=None)
@given(name=FILE_NAMES)
def test_any_file_name_gives_a_valid_id_that_does_not_tell_it_and_can_be_read(name: str) -> None:
    with tempfile.TemporaryDirectory() as made:
        calls = Path(made) / "calls"
        put(calls, f"{name}.wav", b"data")
        platform = FolderPlatform(calls, Path(made) / "home")
        (recording,) = platform.recordings()
        TypeAdapter(RecordingId).validate_python(recording.recording_id)
        assert not re.search(r"\d{12}", recording.recording_id)
        assert re.fullmatch(r"file-[a-z2-7]{24}", recording.recording_id)
        with platform.open_media(media_of(platform, recording.recording_id)) as stream:
            assert b"".join(stream) == b"data"


def test_a_file_name_that_is_not_utf8_can_be_read(calls: Path, home: Path) -> None:
    path = os.fsencode(calls) + b"/caf\xe9.wav"
    with open(path, "wb") as file:  # noqa: PTH123
        file.write(b"data")
    platform = FolderPlatform(calls, home)
    (recording,) = platform.recordings()
    with platform.open_media(media_of(platform, recording.recording_id)) as stream:
        assert b"".join(stream) == b"data"


def test_what_is_not_screened_is_reported_and_hidden_files_are_not(calls: Path, home: Path) -> None:
    put(calls, "call.wav")
    put(calls, "sub/notes.docx")
    put(calls, "README")
    put(calls, ".DS_Store")
    put(calls, ".hidden/call.wav")
    os.mkfifo(calls / "pipe.wav")
    platform = FolderPlatform(calls, home)
    assert names(platform) == ["call.wav"]
    assert reasons(platform).keys() == {"sub/notes.docx", "README", "pipe.wav"}
    assert "docx" in reasons(platform)["sub/notes.docx"]


def test_links_that_leave_the_folder_are_refused(calls: Path, home: Path, tmp_path: Path) -> None:
    outside = put(tmp_path, "outside/secret.wav")
    real = put(calls, "real.wav")
    (calls / "leaves.wav").symlink_to(outside)
    (calls / "leaves-too").symlink_to(outside.parent)
    (calls / "broken.wav").symlink_to(calls / "nowhere.wav")
    (calls / "loop.wav").symlink_to(calls / "loop.wav")
    (calls / "stays.wav").symlink_to(real)
    platform = FolderPlatform(calls, home)
    assert names(platform) == ["real.wav", "stays.wav"]
    assert reasons(platform).keys() == {"leaves.wav", "leaves-too", "broken.wav", "loop.wav"}
    with pytest.raises(Refused), platform.open_media(Media(outside.as_uri())):
        pass
    with pytest.raises(Refused), platform.open_media(Media(f"file://{calls}/../outside/secret.wav")):
        pass


def test_a_link_swapped_in_after_the_listing_is_not_followed(calls: Path, home: Path, tmp_path: Path) -> None:
    path = put(calls, "call.wav")
    platform = FolderPlatform(calls, home)
    media = media_of(platform, platform.recordings()[0].recording_id)
    path.unlink()
    path.symlink_to(put(tmp_path, "outside.wav"))
    with pytest.raises(Refused), platform.open_media(media):
        pass


def test_a_single_file_works_as_path(calls: Path, home: Path) -> None:
    path = put(calls, "call.wav")
    put(calls, "other.wav")
    platform = FolderPlatform(path, home)
    assert names(platform) == ["call.wav"]
    with platform.open_media(media_of(platform, platform.recordings()[0].recording_id)) as stream:
        assert b"".join(stream) == b"data"


def test_a_path_that_is_not_there_is_refused(calls: Path, home: Path) -> None:
    with pytest.raises(Refused, match=r"no such file or folder"):
        FolderPlatform(calls / "nowhere", home)


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A folder that a user without privileges can list, with the test running as that user: root reads everything."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    root = os.geteuid() == 0
    yield folder
    if root:
        os.seteuid(0)
    (folder / "closed").chmod(0o755)
    shutil.rmtree(folder)


def test_an_unreadable_file_is_listed_and_refused_when_opened(as_nobody: Path, home: Path) -> None:
    put(as_nobody, "closed/in.wav")
    put(as_nobody, "call-4111111111111111.wav").chmod(0)
    (as_nobody / "closed").chmod(0)
    if os.geteuid() == 0:
        os.seteuid(65534)
    platform = FolderPlatform(as_nobody, home)
    (recording,) = platform.recordings()
    media = media_of(platform, recording.recording_id)
    with pytest.raises(Refused, match="EACCES") as caught, platform.open_media(media):
        pass
    assert "4111" not in str(caught.value)
    assert "EACCES" in reasons(platform)["closed"]


@pytest.mark.parametrize("during", [b"da", b"data and more"])
def test_a_file_that_changes_while_it_is_read_is_a_broken_transfer(calls: Path, home: Path, during: bytes) -> None:
    path = put(calls, "call.wav")
    platform = FolderPlatform(calls, home)
    media = media_of(platform, platform.recordings()[0].recording_id)
    with platform.open_media(media) as stream:
        path.write_bytes(during)
        with pytest.raises(TransferBroken, match="had 4 bytes"):
            list(stream)


def test_remediations_become_files_in_our_own_folder_once(calls: Path, home: Path) -> None:
    put(calls, "call.wav")
    before = sorted(calls.rglob("*"))
    platform: Platform = FolderPlatform(calls, home)
    item, callback = platform.open_work_item(ITEM), platform.request_callback(CALLBACK)
    platform.tag("file-abc", {"compliance_status": "VIOLATION_DETECTED"})
    platform.tag("file-abc", {"violation_type": "PCI_PAN"})
    again: Platform = FolderPlatform(calls, home)
    assert again.open_work_item(ITEM) == item
    later = CALLBACK.model_copy(update={"scheduled_at": datetime(2027, 1, 1, tzinfo=UTC)})
    assert again.request_callback(later) == callback
    out = home / "remediations"
    assert json.loads((out / item).read_text()) == ITEM.model_dump(mode="json")
    assert json.loads((out / callback).read_text()) == CALLBACK.model_dump(mode="json")
    assert json.loads((out / "tags" / "file-abc.json").read_text())["tags"] == {
        "compliance_status": "VIOLATION_DETECTED",
        "violation_type": "PCI_PAN",
    }
    assert len([path for path in home.rglob("*") if path.is_file()]) == 3
    assert sorted(calls.rglob("*")) == before


@settings(max_examples=25, deadline=None)
@example(keys={"a/b", "a%2Fb"})
@given(keys=st.sets(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=400), max_size=4))
def test_each_key_has_a_file_of_its_own_inside_our_folder(keys: set[str]) -> None:
    with tempfile.TemporaryDirectory() as made:
        (Path(made) / "calls").mkdir()
        home = Path(made) / "home"
        platform = FolderPlatform(Path(made) / "calls", home)
        for key in keys:
            platform.open_work_item(ITEM.model_copy(update={"key": key}))
        written = [json.loads(path.read_text())["key"] for path in (home / "remediations/work_items").glob("*")]
        assert sorted(written) == sorted(keys)


def test_our_own_data_inside_the_users_folder_is_not_screened(calls: Path) -> None:
    put(calls, "call.wav")
    put(calls, "var/inbox.json")
    platform = FolderPlatform(calls, calls / "var")
    platform.open_work_item(ITEM)
    assert names(platform) == ["call.wav"]
    assert reasons(platform) == {}


def test_recordings_kept_inside_our_own_folder_are_screened(home: Path) -> None:
    put(home, "calls/call.wav")
    platform = FolderPlatform(home / "calls", home)
    assert names(platform) == ["call.wav"]
