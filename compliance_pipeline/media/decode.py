"""Media bytes to 8 kHz audio as they arrive, and whether all of it arrived. What the audio says is screening's."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from time import perf_counter
from typing import TYPE_CHECKING, Any

from compliance_pipeline.platforms.port import MediaStream

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SAMPLE_RATE = 8000
BLOCK_SAMPLES = 2 * SAMPLE_RATE
MAX_WHOLE_FILE_BYTES = 512 * 2**20
MAX_AUDIO_S = 12 * 3600.0
"""Of silence, a file of 3 kB lasts an hour."""
LEAST_RATE_HZ = 1000
"""Below it one frame becomes gigabytes at 8 kHz: FLAC knows 65,535 samples a frame, and 1 Hz."""
HIGHEST_RATE_HZ = 768_000
"""Nothing records at more; the resampler's filter for 500 MHz, by a damaged WAV header, took 10 s."""
_HEAD_BYTES = 8192
_TAIL_BYTES = 2 * 65_307  # an Ogg page's largest size: wherever the file ends, its last page begins in here
_LEAST_GAP_S = 0.02
_LONGEST_FILL_S = 60.0
_FORMATS = "wav,mp3,ogg,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,flac"
"""Nothing else is tried: FFmpeg's playlist formats would open files and addresses that the media names."""


class UnscreenableMedia(Exception):
    """The media can't be screened. `reason` is one word for tables, the message says what was seen."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason


class MediaReader:
    """A file-like view of a transfer for the decoder; counts and hashes, and measures the wait for the network.

    What the stream raises, every call raises again, so that a break is never taken for the end. Only `read` gives an
    end: FFmpeg reads on after errors, and PyAV then drops the exception. Ask `check` or `drain` after the decoder.
    """

    def __init__(self, stream: MediaStream) -> None:
        self._chunks = iter(stream)
        self._pending = b""
        self._hash = sha256()
        self.size = 0
        self.head = b""
        self.tail = b""
        self.waited_s = 0.0
        self._failure: Exception | None = None

    def read(self, size: int) -> bytes:
        while not self._pending:
            try:
                chunk = self._receive()
            except Exception:
                return b""
            if chunk is None:
                return b""
            self._pending = chunk
        taken, self._pending = self._pending[:size], self._pending[size:]
        return taken

    def check(self) -> None:
        """Raise what the stream raised, if it did."""
        if self._failure:
            raise self._failure

    def drain(self) -> None:
        """Receive what the decoder did not ask for, so that size and digest are those of the whole file."""
        self._pending = b""
        while self._receive() is not None:
            pass

    def rest(self, limit: int = MAX_WHOLE_FILE_BYTES) -> bytes:
        """All that is left, for what can't be read piece by piece. Raises UnscreenableMedia above `limit` bytes."""
        parts = [self._pending]
        self._pending = b""
        while (chunk := self._receive()) is not None:
            parts.append(chunk)
            if self.size > limit:
                raise UnscreenableMedia("too_large", f"it must be held whole and is over {limit >> 20} MiB")
        return b"".join(parts)

    def peek(self, size: int) -> bytes:
        while len(self._pending) < size and (chunk := self._receive()) is not None:
            self._pending += chunk
        return self._pending[:size]

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def _receive(self) -> bytes | None:
        self.check()
        started = perf_counter()
        try:
            chunk = next(self._chunks, None)
        except Exception as error:
            self._failure = error
            raise
        finally:
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
    """What the decoder made of the file; `duration_s` is what was decoded, not what a header claims.

    lost_s: sound missing in the middle, by holes in the time line and by packets that could not be decoded; and what a
    WAV file holds behind the sound that it says it has.
    cut_short: the file's own index or duration says that there was more.
    """

    container: str
    codec: str
    channels: int
    duration_s: float = 0.0
    lost_s: float = 0.0
    cut_short: bool = False


def decode_audio(reader: MediaReader) -> tuple[AudioFormat, Iterator["NDArray[np.float32]"]]:
    """Open the media and return its format and an iterator of blocks, float32 of shape (channels, samples), 8 kHz.

    Nothing waits for the whole file, MP4 excepted (its index is mostly at the end). One or two channels: more are
    mixed down. Holes in the time line are silence, so that times are those of the recording. `AudioFormat` is
    complete when the iterator is. Both raise UnscreenableMedia, the iterator also after MAX_AUDIO_S, and let through
    what the stream raises.
    """
    import av

    head = reader.peek(64)
    if not head:
        raise UnscreenableMedia("empty", "the platform served no bytes")
    if head.lstrip()[:1] == b"<":
        raise UnscreenableMedia("not_audio", "a page or XML document was served in place of audio")
    source: MediaReader | BytesIO = reader
    cut_short = False
    if head[4:8] == b"ftyp":
        whole = reader.rest()
        source, cut_short = BytesIO(whole), _mp4_is_short(whole)
    try:
        container = av.open(
            source,
            mode="r",
            options={"probesize": "16384", "analyzeduration": "0", "format_whitelist": _FORMATS},
            buffer_size=16384,
            metadata_errors="replace",
        )
    except av.error.FFmpegError:
        reader.check()
        if cut_short:
            raise UnscreenableMedia("truncated", "an MP4 file that ends before its index") from None
        raise UnscreenableMedia("unknown_format", "no decoder knows this format") from None
    stream = next((stream for stream in container.streams.audio if stream.codec_context), None)
    if stream is None:
        container.close()
        reader.check()
        raise UnscreenableMedia("no_audio", f"a {container.format.name} file without an audio track that can be read")
    channels = 2 if stream.channels == 2 else 1
    audio = AudioFormat(container.format.name, stream.codec_context.name, channels, cut_short=cut_short)

    def blocks() -> Iterator["NDArray[np.float32]"]:
        import numpy as np

        held: list[NDArray[np.float32]] = []
        held_samples = 0
        with container:
            for samples in _samples(container, stream, audio):
                held.append(samples)
                held_samples += samples.shape[1]
                if held_samples >= BLOCK_SAMPLES:
                    audio.duration_s += held_samples / SAMPLE_RATE
                    yield _finite(np.concatenate(held, axis=1))
                    held, held_samples = [], 0
                    if audio.duration_s > MAX_AUDIO_S:
                        raise UnscreenableMedia("too_long", f"it lasts longer than {MAX_AUDIO_S / 3600:g} hours")
            if held_samples:
                audio.duration_s += held_samples / SAMPLE_RATE
                yield _finite(np.concatenate(held, axis=1))
            declared_s = _declared_s(container, stream)
        reader.drain()
        audio.lost_s += _unheard_share(reader) * audio.duration_s
        audio.cut_short |= declared_s is not None and audio.duration_s < declared_s - 0.5
        if not audio.duration_s:
            short = audio.cut_short or missing_bytes(reader)
            raise UnscreenableMedia("truncated" if short else "no_audio", "a header without sound")

    return audio, blocks()


def _finite(block: "NDArray[np.float32]") -> "NDArray[np.float32]":
    """Damaged floating-point audio holds values that would poison everything computed from them."""
    import numpy as np

    return np.clip(np.nan_to_num(block, copy=False), -1, 1, out=block)


def _samples(container: Any, stream: Any, audio: AudioFormat) -> Iterator["NDArray[np.float32]"]:
    """Decoded sound at 8 kHz; damaged media may change its format midway, hence a resampler for each format."""
    import av
    import numpy as np

    def new_resampler() -> av.AudioResampler:
        return av.AudioResampler(format="fltp", layout="stereo" if audio.channels == 2 else "mono", rate=SAMPLE_RATE)

    def resampled(frame: av.AudioFrame | None) -> Iterator["NDArray[np.float32]"]:
        yield from (out.to_ndarray().astype(np.float32, copy=False) for out in resampler.resample(frame))

    resampler, shape = new_resampler(), None
    for gap_s, frame in _frames(container, stream, audio):
        if gap_s:
            yield np.zeros((audio.channels, round(min(gap_s, _LONGEST_FILL_S) * SAMPLE_RATE)), np.float32)
        try:
            if shape != (shape := (frame.format.name, frame.layout.name, frame.sample_rate)):
                yield from resampled(None)
                resampler = new_resampler()
            yield from resampled(frame)
        except av.error.FFmpegError:
            audio.lost_s += frame.samples / frame.sample_rate
            shape, resampler = None, new_resampler()
    yield from resampled(None)


def _frames(container: Any, stream: Any, audio: AudioFormat) -> Iterator[tuple[float, Any]]:
    """Decoded frames, each with the seconds missing before it; a damaged packet costs itself, not the rest."""
    from av.error import EOFError as EndOfFile
    from av.error import FFmpegError

    expected_s: float | None = None
    undecoded_s = good_s = 0.0
    good_bytes = 0
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except EndOfFile:
            break
        except FFmpegError:
            audio.cut_short = True
            break
        if packet is None:
            break
        try:
            frames = packet.decode()
        except EndOfFile:
            break
        except FFmpegError:
            # The MP3 parser makes one packet of everything up to the next frame that it can read.
            by_size = packet.size * good_s / good_bytes if good_bytes else 0.0
            undecoded_s += max(by_size, float((packet.duration or 0) * packet.time_base))
            continue
        good_bytes += packet.size
        for frame in frames:
            if not LEAST_RATE_HZ <= frame.sample_rate <= HIGHEST_RATE_HZ:
                raise UnscreenableMedia("not_audio", f"{frame.sample_rate} samples a second are no sound")
            gap_s = 0.0
            length_s = frame.samples / frame.sample_rate
            if frame.pts is not None:
                at_s = float(frame.pts * frame.time_base)
                if expected_s is not None and at_s - expected_s > _LEAST_GAP_S:
                    gap_s = at_s - expected_s
                expected_s = at_s
            if expected_s is not None:
                expected_s += length_s
            good_s += length_s
            audio.lost_s += max(gap_s, undecoded_s)
            undecoded_s = 0.0
            yield gap_s, frame
    audio.lost_s += undecoded_s


def _declared_s(container: Any, stream: Any) -> float | None:
    """How long the file says that it is; WAV's is left to `missing_bytes`, which knows when the size is a guess."""
    if container.format.name == "wav":
        return None
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return container.duration / 1e6 if container.duration else None


def missing_bytes(reader: MediaReader) -> bool | None:
    """Whether the container itself says that its end is missing; None where it does not say.

    Looks at the WAV data chunk's size (0 and 0xFFFFFFFF mean unknown), the Ogg end-of-stream flag, the Matroska
    segment size and the MP3 Xing/Info byte count. MP4 is not looked at here: see `AudioFormat.cut_short`.
    """
    head, size = reader.head, reader.size
    if head[:4] == b"RIFF":
        return _wav_is_short(head, size)
    if head[:4] == b"OggS":
        return _ogg_is_short(reader.tail)
    if head[:4] == b"\x1aE\xdf\xa3":
        return _matroska_is_short(head, size)
    if head[:3] == b"ID3" or head[:1] == b"\xff":
        return _mp3_is_short(head, size)
    return None


def _wav_is_short(head: bytes, size: int) -> bool | None:
    sound = _wav_sound(head)
    return None if sound is None else sum(sound) > size


def _wav_sound(head: bytes) -> tuple[int, int] | None:
    """Where a WAV file's sound begins, and how many bytes it has; None where the file does not say."""
    at = 12
    while at + 8 <= len(head):
        name, length = head[at : at + 4], struct.unpack_from("<I", head, at + 4)[0]
        if name == b"data":
            return None if length in (0, 0xFFFFFFFF) else (at + 8, length)
        at += 8 + length + (length & 1)
    return None


def _unheard_share(reader: MediaReader) -> float:
    """Bytes behind a WAV file's sound that are no chunks of their own, as a share of the sound's: no decoder reads
    them, and somebody may have put the rest of the call there."""
    sound = _wav_sound(reader.head) if reader.head[:4] == b"RIFF" else None
    if sound is None:
        return 0.0
    at = sum(sound) + (sound[1] & 1)
    while at < reader.size:
        begin = at - (reader.size - len(reader.tail))
        name = reader.tail[begin : begin + 4] if begin >= 0 else b""
        if len(name) < 4 or name == b"data" or not name.isascii() or not name.decode().isprintable():
            break
        length = int.from_bytes(reader.tail[begin + 4 : begin + 8], "little")
        at += 8 + length + (length & 1)
    return max(0, reader.size - at) / max(sound[1], 1)


def _ogg_is_short(tail: bytes) -> bool:
    """Whether the last page is cut or is not marked as the last (RFC 3533, 6)."""
    page = tail[max(tail.rfind(b"OggS"), 0) :]
    if len(page) < 27 or not page[5] & 4:
        return True
    segments = page[26]
    return len(page) < 27 + segments + sum(page[27 : 27 + segments])


def _mp4_is_short(whole: bytes) -> bool:
    """Whether the last box is cut (ISO/IEC 14496-12, 4.2)."""
    at = 0
    while at + 8 <= len(whole):
        length = int.from_bytes(whole[at : at + 4], "big")
        if length == 1:
            length = int.from_bytes(whole[at + 8 : at + 16], "big")
        elif length == 0:
            return False
        at += max(length, 8)
    return at != len(whole)


def _matroska_is_short(head: bytes, size: int) -> bool | None:
    at = head.find(b"\x18\x53\x80\x67") + 4
    if at < 4 or at >= len(head) or not head[at]:
        return None
    width = 9 - head[at].bit_length()
    unknown = (1 << 7 * width) - 1
    length = int.from_bytes(head[at : at + width], "big") & unknown
    return None if length == unknown else at + width + length > size


def _mp3_is_short(head: bytes, size: int) -> bool | None:
    tag = 0
    if head[:3] == b"ID3" and len(head) >= 10:
        tag = 10 + (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9])
    at = max(head.find(b"Xing", tag), head.find(b"Info", tag))
    if at < 0 or at + 16 > len(head):
        return None
    flags = struct.unpack_from(">I", head, at + 4)[0]
    if not flags & 2:
        return None
    return bool(tag + struct.unpack_from(">I", head, at + 8 + (4 if flags & 1 else 0))[0] > size)
