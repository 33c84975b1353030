"""The port over a directory of a user's own recordings; what remediation asks for becomes JSON files.

Nothing is ever written into the user's directory; reading what is inside a file belongs to media and screening.
"""

import base64
import errno
import hashlib
import json
import os
import stat
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from compliance_pipeline.contracts.event import Channel, RecordingEvent
from compliance_pipeline.contracts.work_item import SupervisorCallback, WorkItem
from compliance_pipeline.platforms.port import (
    Gone,
    Location,
    Media,
    NotSupported,
    NotYet,
    Ready,
    Refused,
    TransferBroken,
    Unavailable,
)
from compliance_pipeline.settings import Settings

CHUNK_BYTES = 64 * 1024

_TYPES = {
    ".wav": (Channel.VOICE, "audio/wav"),
    ".mp3": (Channel.VOICE, "audio/mpeg"),
    ".ogg": (Channel.VOICE, "audio/ogg"),
    ".opus": (Channel.VOICE, "audio/ogg"),
    ".webm": (Channel.VOICE, "audio/webm"),
    ".m4a": (Channel.VOICE, "audio/mp4"),
    ".flac": (Channel.VOICE, "audio/flac"),
    ".json": (Channel.CHAT, "application/json"),
    ".txt": (Channel.CHAT, "text/plain"),
    ".eml": (Channel.EMAIL, "message/rfc822"),
}
_TRANSCRIPTS = (".transcript.json", ".transcript.txt")
"""Behind the whole name of an audio file: `call.wav.transcript.json`. The first that is there counts."""


@dataclass(frozen=True, slots=True)
class FolderRecording:
    """One file to screen. `name`: path relative to the folder, in the user's words, so it can name a customer.

    recording_id: the same as long as path, size and modification time are, the transcript's too. Base32, not hex, so
    that no run of digits in it passes for a card number. size: bytes. modified: UTC. transcript: the file beside the
    audio that says what was said in it.
    """

    recording_id: str
    name: str = field(repr=False)
    path: Path = field(repr=False)
    channel: Channel
    size: int
    modified: datetime
    transcript: Path | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file or folder that is not screened, and why."""

    name: str = field(repr=False)
    why: str


class FileMediaStream:
    """An open file: chunks of 64 KiB. Raises TransferBroken when the file's size changes while it is read."""

    def __init__(self, file: BinaryIO, content_type: str | None) -> None:
        status = os.fstat(file.fileno())
        self._file = file
        self._size = status.st_size
        self.content_length: int | None = status.st_size
        self.content_type = content_type
        self.last_modified: datetime | None = datetime.fromtimestamp(status.st_mtime, UTC)

    def __iter__(self) -> Iterator[bytes]:
        received = 0
        try:
            while chunk := self._file.read(CHUNK_BYTES):
                received += len(chunk)
                yield chunk
        except OSError as error:
            raise TransferBroken(f"reading the file failed ({_reason(error)}) after {received} bytes") from None
        if received != self._size:
            raise TransferBroken(
                f"the file had {self._size} bytes when opened and gave {received}; is it being written?"
            )


class FolderPlatform:
    """A directory (or one file) of recordings.

    home: our own data folder. Remediations go to `<home>/remediations/{tags,work_items,callbacks}/`; nothing in
    `home` counts as a recording, even where it lies in the user's directory.
    """

    name = "folder"
    callback_lag_s = 0.0

    def __init__(self, path: Path, home: Path) -> None:
        self._path = path.expanduser().resolve()
        self._home = home.expanduser().resolve()
        self._out = self._home / "remediations"
        self._lock = threading.Lock()
        if not self._path.exists():
            raise Refused(f"{path}: there is no such file or folder")

    def recordings(self) -> list[FolderRecording]:
        """What the folder holds, by name. The folder is listed once, when first asked."""
        return list(self._listing[0])

    def skipped(self) -> list[Skipped]:
        """What is in the folder and is not screened, by name; hidden files are not mentioned."""
        return list(self._listing[1])

    def locate(self, recording_id: str) -> Location:
        recording = self._by_id.get(recording_id)
        if recording is None:
            return Gone("no such file in the folder: it was removed, renamed or changed since it was listed")
        try:
            now = _recording(recording.path, recording.name)
        except OSError as error:
            return Gone(f"the file can't be found any more ({_reason(error)})")
        if now != recording:
            return Gone("the file has changed since it was listed; scan the folder again")
        return Ready(_media(recording.path), _media(recording.transcript) if recording.transcript else None)

    @contextmanager
    def open_media(self, media: Media) -> Iterator[FileMediaStream]:
        """Open a file that `locate` named. Raises Refused where it can't be read, Unavailable where it is gone."""
        path = self._by_url.get(media.url)
        if path is None:
            raise Refused("the media is not a file of this folder's listing")
        try:
            # Never through a link swapped in since the listing, and never waiting on a pipe.
            file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
        except FileNotFoundError:
            raise Unavailable("the file is gone; locate the recording again") from None
        except OSError as error:
            raise Refused(f"the file can't be read ({_reason(error)}); check its permissions") from None
        with file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Refused("the media is not a regular file")
            yield FileMediaStream(file, media.content_type)

    def prefetch(self, recording_ids: Sequence[str]) -> None:
        """Files need no asking."""

    def recordings_of(self, conversation_id: str) -> NotYet:  # noqa: ARG002
        """A folder has files, no conversations."""
        return NotYet("a folder has no conversations")

    def list_available(self, since: datetime, until: datetime) -> Iterator[RecordingEvent]:
        """By the time that a file was last written."""
        for recording in self._listing[0]:
            if since <= recording.modified < until:
                yield RecordingEvent(
                    recording_id=recording.recording_id,
                    media_uri=f"file:{recording.recording_id}",
                    event_time=recording.modified,
                    channel=recording.channel,
                )

    def protect(self, recording_ids: Sequence[str], *, protected: bool) -> None:  # noqa: ARG002
        raise NotSupported("a folder's files are the user's own: nothing here deletes them")

    def purge(self, recording_id: str) -> None:  # noqa: ARG002
        raise NotSupported("a folder's files are the user's own: delete the file yourself")

    def tag(self, recording_id: str, tags: Mapping[str, str], at_ms: int | None = None) -> None:  # noqa: ARG002
        path = self._file("tags", recording_id)
        with self._lock:
            present = json.loads(path.read_text())["tags"] if path.exists() else {}
            if any(present.get(key) != value for key, value in tags.items()):
                _write(path, {"recordingId": recording_id, "tags": present | dict(tags)})

    def open_work_item(self, item: WorkItem) -> str:
        return self._once("work_items", item.key, item.model_dump(mode="json"))

    def request_callback(self, callback: SupervisorCallback) -> str:
        return self._once("callbacks", callback.key, callback.model_dump(mode="json"))

    def delivery_failures(self, since: datetime) -> None:  # noqa: ARG002
        """Nothing is delivered: the folder is read."""
        return

    def close(self) -> None:
        pass

    def _once(self, kind: str, key: str, content: Mapping[str, Any]) -> str:
        path = self._file(kind, key)
        with self._lock:
            if not path.exists():
                _write(path, content)
        return f"{kind}/{path.name}"

    def _file(self, kind: str, key: str) -> Path:
        name = quote(key, safe="")
        if len(name) > 200:
            name = _digest(key)
        return self._out / kind / f"{name}.json"

    @cached_property
    def _by_id(self) -> dict[str, FolderRecording]:
        return {recording.recording_id: recording for recording in self._listing[0]}

    @cached_property
    def _by_url(self) -> dict[str, Path]:
        files = [path for r in self._listing[0] for path in (r.path, r.transcript) if path]
        return {path.as_uri(): path for path in files}

    @cached_property
    def _listing(self) -> tuple[list[FolderRecording], list[Skipped]]:
        found: list[FolderRecording] = []
        skipped: list[Skipped] = []
        for path in self._walk(skipped):
            name = path.name if path == self._path else path.relative_to(self._path).as_posix()
            taken = self._take(path, name)
            if isinstance(taken, Skipped):
                skipped.append(taken)
            else:
                found.append(taken)
        beside = {other for r in found if r.transcript for other in _transcripts_of(r.path)}
        used = {r.transcript for r in found}
        skipped += [
            Skipped(r.name, "another transcript of the same audio is used") for r in found if r.path in beside - used
        ]
        found = [r for r in found if r.path not in beside]
        return sorted(found, key=lambda r: r.name), sorted(skipped, key=lambda s: s.name)

    def _walk(self, skipped: list[Skipped]) -> Iterator[Path]:
        if not self._path.is_dir():
            yield self._path
            return

        def name(path: str) -> str:
            return os.path.relpath(path, self._path)

        def unlisted(error: OSError) -> None:
            skipped.append(Skipped(name(str(error.filename)), f"the folder can't be listed ({_reason(error)})"))

        for folder, subfolders, files in os.walk(self._path, onerror=unlisted):
            here = Path(folder)
            subfolders[:] = [sub for sub in subfolders if not sub.startswith(".") and not self._ours(here / sub)]
            links = (str(here / sub) for sub in subfolders if (here / sub).is_symlink())
            skipped.extend(Skipped(name(link), "a link to a folder is not followed") for link in links)
            yield from (here / file for file in files if not file.startswith("."))

    def _ours(self, folder: Path) -> bool:
        return folder in (self._home, self._out)

    def _take(self, path: Path, name: str) -> FolderRecording | Skipped:
        if path.suffix.lower() not in _TYPES:
            return Skipped(name, f"unknown type '{path.suffix}'" if path.suffix else "no suffix to tell the type by")
        try:
            target = path.resolve(strict=True)
            if path.is_symlink() and not target.is_relative_to(self._path):
                return Skipped(name, "a link that leaves the folder is not followed")
            if target.suffix.lower() not in _TYPES:
                return Skipped(name, f"a link to a file of unknown type '{target.suffix}'")
            if not target.is_file():
                return Skipped(name, "not a regular file")
            return _recording(target, name)
        except OSError as error:
            return Skipped(name, f"can't be read ({_reason(error)})")
        except RuntimeError:
            return Skipped(name, "a link that leads to itself")


def from_settings(path: Path, settings: Settings) -> FolderPlatform:
    return FolderPlatform(path, settings.home)


def _recording(path: Path, name: str) -> FolderRecording:
    status = path.stat()
    identity = f"{path}\0{status.st_size}\0{status.st_mtime_ns}"
    channel = _TYPES[path.suffix.lower()][0]
    transcript = next(iter(_transcripts_of(path)), None) if channel is Channel.VOICE else None
    if transcript:
        said = transcript.stat()
        identity += f"\0{transcript.name}\0{said.st_size}\0{said.st_mtime_ns}"
    return FolderRecording(
        recording_id="file-" + _digest(identity),
        name=name,
        path=path,
        channel=channel,
        size=status.st_size,
        modified=datetime.fromtimestamp(status.st_mtime, UTC),
        transcript=transcript,
    )


def _transcripts_of(audio: Path) -> list[Path]:
    """The transcripts beside an audio file; a link is none, for it may lead out of the folder."""
    return [path for suffix in _TRANSCRIPTS if _is_file(path := audio.with_name(audio.name + suffix))]


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:  # not there, or a name longer than the file system takes
        return False


def _media(path: Path) -> Media:
    return Media(path.as_uri(), _TYPES[path.suffix.lower()][1])


def _digest(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
    return base64.b32encode(digest[:15]).decode("ascii").lower()


def _reason(error: OSError) -> str:
    """Why, without the path that `str(error)` carries."""
    return errno.errorcode.get(error.errno, "unknown") if error.errno else type(error).__name__


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """All of the file or none of it, whenever the process dies. Raises Unavailable."""
    try:
        _replace(path, content)
    except OSError as error:
        raise Unavailable(f"{path.name} can't be written ({_reason(error)}); check the data folder's disk") from None


def _replace(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, made = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        Path(made).replace(path)
    except BaseException:
        Path(made).unlink(missing_ok=True)
        raise
