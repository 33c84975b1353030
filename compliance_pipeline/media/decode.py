"""Media bytes to 8 kHz audio as they arrive, and whether all of it arrived. What the audio says is screening's."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from time import perf_counter
from typing import TYPE_CHECKING

from compliance_pipeline.platforms.port import MediaStream

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SAMPLE_RATE = 8000
BLOCK_SAMPLES = 2 * SAMPLE_RATE
MAX_WHOLE_FILE_BYTES = 512 * 2**20
_HEAD_BYTES = 8192
_TAIL_BYTES = 65_536 + 512  # an Ogg page is at most 65,307 bytes


class UnscreenableMedia(Exception):
    """The media can't be screened. `reason` is one word for tables, the message says what was seen."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason


class MediaReader:
    """A file-like view of a transfer for the decoder; counts and hashes, and measures the wait for the network."""

    def __init__(self, stream: MediaStream) -> None:
        self._chunks = iter(stream)
        self._pending = b""
        self._hash = sha256()
        self.size = 0
        self.head = b""
        self.tail = b""
        self.waited_s = 0.0

    def read(self, size: int) -> bytes:
        while not self._pending:
            chunk = self._receive()
            if chunk is None:
                return b""
            self._pending = chunk
        taken, self._pending = self._pending[:size], self._pending[size:]
        return taken

    def drain(self) -> None:
        """Receive what the decoder did not ask for, so that size and digest are those of the whole file."""
        self._pending = b""
        while self._receive() is not None:
            pass

    def rest(self) -> bytes:
        """All that is left, for formats that can't be decoded without seeking."""
        parts = [self._pending]
        self._pending = b""
        while (chunk := self._receive()) is not None:
            parts.append(chunk)
            if self.size > MAX_WHOLE_FILE_BYTES:
                raise UnscreenableMedia(
                    "too_large", f"the file must be held whole and is over {MAX_WHOLE_FILE_BYTES >> 20} MiB"
                )
        return b"".join(parts)

    def peek(self, size: int) -> bytes:
        while len(self._pending) < size and (chunk := self._receive()) is not None:
            self._pending += chunk
        return self._pending[:size]

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def _receive(self) -> bytes | None:
        started = perf_counter()
        chunk = next(self._chunks, None)
        self.waited_s += perf_counter() - started
        if chunk is None:
            return None
        self._hash.update(chunk)
        self.size += len(chunk)
        if len(self.head) < _HEAD_BYTES:
            self.head += chunk[: _HEAD_BYTES - len(self.head)]
        self.tail = chunk[-_TAIL_BYTES:] if len(chunk) >= _TAIL_BYTES else (self.tail + chunk)[-_TAIL_BYTES:]
        return chunk


@dataclass(slots=True)
class AudioFormat:
    """What the decoder made of the file; `duration_s` is what was decoded, not what a header claims."""

    container: str
    codec: str
    channels: int
    duration_s: float = 0.0
    damaged_packets: int = 0


def decode_audio(reader: MediaReader) -> tuple[AudioFormat, Iterator["NDArray[np.float32]"]]:
    """Open the media and return its format and an iterator of blocks, float32 of shape (channels, samples), 8 kHz.

    Nothing waits for the whole file (MP4 with its index at the end excepted). One or two channels: more are mixed
    down. Raises UnscreenableMedia, and lets TransferBroken through; `AudioFormat` is complete when the iterator is.
    """
    import av

    head = reader.peek(64)
    if not head:
        raise UnscreenableMedia("empty", "the platform served no bytes")
    if head.lstrip()[:1] == b"<":
        raise UnscreenableMedia("not_audio", "a page or XML document was served in place of audio")
    source = BytesIO(reader.rest()) if head[4:8] == b"ftyp" else reader
    try:
        container = av.open(source, mode="r", options={"probesize": "16384", "analyzeduration": "0"}, buffer_size=16384)
    except av.error.FFmpegError:
        raise UnscreenableMedia("unknown_format", "no decoder knows this format") from None
    if not container.streams.audio:
        container.close()
        raise UnscreenableMedia("no_audio", f"a {container.format.name} file without an audio track")
    stream = container.streams.audio[0]
    channels = 2 if stream.channels == 2 else 1
    audio = AudioFormat(container.format.name, stream.codec_context.name, channels)

    def blocks() -> Iterator["NDArray[np.float32]"]:
        import numpy as np

        resampler = av.AudioResampler(format="fltp", layout="stereo" if channels == 2 else "mono", rate=SAMPLE_RATE)
        held: list[NDArray[np.float32]] = []
        held_samples = 0
        with container:
            for frame in _frames(container, stream, audio):
                for resampled in resampler.resample(frame):
                    held.append(resampled.to_ndarray().astype(np.float32, copy=False))
                    held_samples += held[-1].shape[1]
                if held_samples >= BLOCK_SAMPLES:
                    audio.duration_s += held_samples / SAMPLE_RATE
                    yield np.concatenate(held, axis=1)
                    held, held_samples = [], 0
        held += [resampled.to_ndarray().astype(np.float32, copy=False) for resampled in resampler.resample(None)]
        if held:
            block = np.concatenate(held, axis=1)
            audio.duration_s += block.shape[1] / SAMPLE_RATE
            yield block
        reader.drain()

    return audio, blocks()


def _frames(container, stream, audio: AudioFormat):  # type: ignore[no-untyped-def]
    """Decoded frames; a damaged packet costs itself, not the rest of the call."""
    from av.error import EOFError as EndOfFile
    from av.error import FFmpegError

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except EndOfFile:
            return
        except FFmpegError:
            audio.damaged_packets += 1
            return
        if packet is None:
            return
        try:
            yield from packet.decode()
        except EndOfFile:
            return
        except FFmpegError:
            audio.damaged_packets += 1


def missing_bytes(reader: MediaReader) -> bool | None:
    """Whether the container itself says that its end is missing; None where it does not say.

    Looks at the WAV data chunk's size (0 and 0xFFFFFFFF mean unknown), the Ogg end-of-stream flag, the Matroska
    segment size and the MP3 Xing/Info byte count.
    """
    head, size = reader.head, reader.size
    if head[:4] == b"RIFF":
        return _wav_is_short(head, size)
    if head[:4] == b"OggS":
        page = reader.tail.rfind(b"OggS")
        return page < 0 or page + 5 >= len(reader.tail) or not reader.tail[page + 5] & 4
    if head[:4] == b"\x1aE\xdf\xa3":
        return _matroska_is_short(head, size)
    return _mp3_is_short(head, size)


def _wav_is_short(head: bytes, size: int) -> bool | None:
    at = 12
    while at + 8 <= len(head):
        name, length = head[at : at + 4], struct.unpack_from("<I", head, at + 4)[0]
        if name == b"data":
            return None if length in (0, 0xFFFFFFFF) else at + 8 + length > size
        at += 8 + length + (length & 1)
    return None


def _matroska_is_short(head: bytes, size: int) -> bool | None:
    at = head.find(b"\x18\x53\x80\x67") + 4
    if at < 4 or at >= len(head) or not head[at]:
        return None
    width = 9 - head[at].bit_length()
    unknown = (1 << 7 * width) - 1
    length = int.from_bytes(head[at : at + width], "big") & unknown
    return None if length == unknown else at + width + length > size


def _mp3_is_short(head: bytes, size: int) -> bool | None:
    at = max(head.find(b"Xing"), head.find(b"Info"))
    if at < 0 or at + 16 > len(head):
        return None
    flags = struct.unpack_from(">I", head, at + 4)[0]
    if not flags & 2:
        return None
    return bool(struct.unpack_from(">I", head, at + 8 + (4 if flags & 1 else 0))[0] > size)
