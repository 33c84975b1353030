"""One WAV file a channel, as a platform splits calls, into one multi-channel WAV as the files arrive. No HTTP here.

Samples are moved, never changed: what they sound like is media's.
"""

import re
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime

from compliance_pipeline.platforms.port import Media, MediaStream, Refused, TransferBroken

HEADER_LIMIT_BYTES = 64 * 1024
"""Of chunks before the sound; real ones have some hundred bytes."""

_PCM, _FLOAT, _A_LAW, _MU_LAW, _EXTENSIBLE = 1, 3, 6, 7, 0xFFFE
_UNTOLD_SIZE = 0xFFFFFFFF
_STREAMED_SIZE = 0x7FFFF000
"""From here on a size is a placeholder, as 0 is: who wrote the header did not know it (FFmpeg, SoX)."""
_CHUNK_NAME = re.compile(rb"[A-Za-z][A-Za-z0-9_ -]{3}")
LENGTHS_DIFFER_S, LENGTHS_DIFFER = 2.0, 0.05
"""Channels of one call may end so far apart, in seconds or as a part of the longest; beyond, one of them is cut off."""
_LARGEST = _UNTOLD_SIZE - 1


@dataclass(frozen=True, slots=True)
class _Format:
    """`fmt ` of a WAV file (RIFF MCI, 1991; RFC 2361 for the tags). rate: hertz; width: bytes a sample."""

    tag: int
    rate: int
    width: int
    bits: int

    @property
    def silence(self) -> bytes:
        if self.tag == _PCM and self.width == 1:
            return b"\x80"
        return {_MU_LAW: b"\xff", _A_LAW: b"\xd5"}.get(self.tag, b"\0") * self.width

    def header(self, channels: int, frames: int | None) -> bytes:
        """Everything before the sound. frames: None where the length is not known beforehand."""
        block = self.width * channels
        size = _UNTOLD_SIZE if frames is None else min(frames * block, _LARGEST)
        fmt = struct.pack("<HHIIHH", self.tag, channels, self.rate, self.rate * block, block, self.bits)
        chunks = b"fmt " + struct.pack("<I", len(fmt)) + fmt
        if self.tag != _PCM:
            fmt += struct.pack("<H", 0)
            fact = struct.pack("<I", _UNTOLD_SIZE if frames is None else min(frames, _LARGEST))
            chunks = b"fmt " + struct.pack("<I", len(fmt)) + fmt + b"fact" + struct.pack("<I", 4) + fact
        chunks = b"WAVE" + chunks + b"data" + struct.pack("<I", size)
        whole = _UNTOLD_SIZE if frames is None else min(len(chunks) + size + size % 2, _LARGEST)
        return b"RIFF" + struct.pack("<I", whole) + chunks


class _PageError(Exception):
    """A page or an XML document in place of a channel."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        super().__init__()
        self.chunks = chunks


class _Channel:
    """One mono WAV file on its way. buffer: sound that is not taken yet; taken: samples that are. expected: bytes of
    sound in the whole file, None where neither header nor host says."""

    def __init__(self, stream: MediaStream, number: int) -> None:
        self._chunks = iter(stream)
        self._number = number
        self._received = 0
        self._head = bytearray()
        self.format, declared = self._header()
        if 0 < declared < _STREAMED_SIZE:
            self.expected: int | None = declared
        elif stream.content_length is not None:
            self.expected = stream.content_length - (self._received - len(self._head))
        else:
            self.expected = None
        self._sound = self._read_sound()
        first = next(self._sound, None)
        self.ended = first is None
        self.buffer = bytearray(first or b"")
        self.taken = 0
        if self.ended:
            # Header-only files are served now and then: without sound, whatever their header promises.
            self.expected = 0

    @property
    def frames(self) -> int | None:
        return None if self.expected is None else self.expected // self.format.width

    def fill(self) -> None:
        """Have at least one sample, unless the sound has ended."""
        while not self.ended and len(self.buffer) < self.format.width:
            chunk = next(self._sound, None)
            self.ended = chunk is None
            self.buffer += chunk or b""

    def take(self, frames: int) -> bytes:
        """So many samples, those after the end silent."""
        width = self.format.width
        there = min(frames, len(self.buffer) // width)
        taken = bytes(self.buffer[: there * width])
        del self.buffer[: there * width]
        self.taken += there
        return taken + self.format.silence * (frames - there)

    def _rest(self) -> Iterator[bytes]:
        yield bytes(self._head)
        yield from self._chunks

    def _read_sound(self) -> Iterator[bytes]:
        """To the end of the file, beyond its sound too, so that a transfer that breaks off is told."""
        got = 0
        after, after_bytes = bytearray(), 0
        chunk: bytes | None = bytes(self._head)
        while chunk is not None:
            if self.expected is not None:
                rest = chunk[max(0, self.expected - got) :]
                after_bytes += len(rest)
                after += rest[: 9 - len(after)]
                chunk = chunk[: self.expected - got]
            got += len(chunk)
            if chunk:
                yield chunk
            chunk = next(self._chunks, None)
        if self.expected is None or not got:
            return
        if got < self.expected:
            raise TransferBroken(
                f"channel {self._number}: ends after {got} of the {self.expected} bytes of sound that its header says"
            )
        # An odd size is followed by a byte of padding (RIFF MCI, 1991).
        padding = self.expected % 2
        if after_bytes - padding >= 8 and not _starts_a_chunk(bytes(after[padding:]), after_bytes - padding):
            raise TransferBroken(
                f"channel {self._number}: {after_bytes} bytes follow the {self.expected} bytes of sound that its "
                "header says, and are no chunk"
            )

    def _header(self) -> tuple[_Format, int]:
        """The format, and the size of the sound that the header says; `_head` then starts with the sound."""
        if self._need(4) and bytes(self._head[:4]) != b"RIFF":
            if bytes(self._head[:16]).lstrip()[:1] == b"<":
                raise _PageError(self._rest())
            raise Refused(f"channel {self._number}: not a WAV file")
        self._skip(8)
        if not self._need(4) or bytes(self._head[:4]) != b"WAVE":
            raise Refused(f"channel {self._number}: a RIFF file that is not WAVE")
        self._skip(4)
        found: _Format | None = None
        while True:
            if not self._need(8):
                raise TransferBroken(f"channel {self._number}: ends within its header")
            name, size = bytes(self._head[:4]), int.from_bytes(self._head[4:8], "little")
            self._skip(8)
            if name == b"data":
                if found is None:
                    raise Refused(f"channel {self._number}: the WAV file does not say its format")
                return found, size
            if size > HEADER_LIMIT_BYTES or self._received - len(self._head) > HEADER_LIMIT_BYTES:
                raise Refused(f"channel {self._number}: a WAV header of more than {HEADER_LIMIT_BYTES} bytes")
            if not self._need(size):
                raise TransferBroken(f"channel {self._number}: ends within its header")
            if name == b"fmt ":
                found = self._format(bytes(self._head[:size]))
            self._skip(size + size % 2)

    def _format(self, fmt: bytes) -> _Format:
        if len(fmt) < 16:
            raise Refused(f"channel {self._number}: the WAV file's format is cut short")
        tag, channels, rate, _, block, bits = struct.unpack_from("<HHIIHH", fmt)
        if tag == _EXTENSIBLE and len(fmt) >= 26:
            tag = int.from_bytes(fmt[24:26], "little")
        if channels != 1:
            raise Refused(f"channel {self._number}: its file has {channels} channels, not one")
        if tag not in (_PCM, _FLOAT, _A_LAW, _MU_LAW) or not 1 <= block <= 8 or not rate:
            raise Refused(f"channel {self._number}: WAV format {tag} with {block} bytes a sample can't be joined")
        return _Format(tag, rate, block, bits)

    def _need(self, size: int) -> bool:
        while len(self._head) < size:
            if not self._pull():
                return False
        return True

    def _skip(self, size: int) -> None:
        if self._need(size):
            del self._head[:size]
        else:
            self._head.clear()

    def _pull(self) -> bool:
        chunk = next(self._chunks, None)
        if chunk is None:
            return False
        self._received += len(chunk)
        self._head += chunk
        return True


def _starts_a_chunk(data: bytes, size_bytes: int) -> bool:
    """Whether a chunk that fits can start there: its name, and its size."""
    return bool(_CHUNK_NAME.match(data)) and int.from_bytes(data[4:8], "little") + 8 <= size_bytes


class InterleavedStream:
    """The channels as one WAV file. Holds one chunk a channel at most. A channel that is shorter ends in silence.

    content_length: bytes, None where the length of a channel is not known beforehand. Raises TransferBroken, with the
    sound given, where a channel breaks off, ends before its header's promise or goes on after it, or ends much earlier
    than another; Refused where their formats differ or can't be joined.
    A page in place of a channel is given as it is, for whoever decodes it to judge.
    """

    def __init__(self, streams: Sequence[MediaStream]) -> None:
        self.content_length: int | None = None
        self.content_type: str | None = None
        self.last_modified: datetime | None = max(
            (stream.last_modified for stream in streams if stream.last_modified), default=None
        )
        self._page: Iterator[bytes] | None = None
        try:
            self._channels = [_Channel(stream, number) for number, stream in enumerate(streams)]
        except _PageError as page:
            self._page = page.chunks
            return
        self._format = self._channels[0].format
        for number, channel in enumerate(self._channels):
            if channel.format != self._format:
                raise Refused(f"channel {number} has another format or sample rate than channel 0")
        lengths = [channel.frames for channel in self._channels]
        self._frames = None if None in lengths else max(length or 0 for length in lengths)
        self._header = self._format.header(len(streams), self._frames)
        block = self._format.width * len(streams)
        self.content_length = None if self._frames is None else len(self._header) + self._frames * block
        self.content_type = "audio/wav"

    def __iter__(self) -> Iterator[bytes]:
        import numpy as np

        if self._page is not None:
            yield from self._page
            return
        yield self._header
        width = self._format.width
        while True:
            for channel in self._channels:
                channel.fill()
            live = [len(channel.buffer) // width for channel in self._channels if not channel.ended]
            frames = min(live) if live else max(len(channel.buffer) // width for channel in self._channels)
            if not frames:
                break
            parts = [np.frombuffer(channel.take(frames), np.uint8).reshape(-1, width) for channel in self._channels]
            yield np.stack(parts, axis=1).tobytes()
        self._compare_lengths()

    def _compare_lengths(self) -> None:
        lengths = [channel.taken for channel in self._channels]
        longest, shortest = max(lengths), min(lengths)
        number, rate = lengths.index(shortest), self._format.rate
        if longest and not shortest:
            raise TransferBroken(f"channel {number} is a header without sound, and another is not")
        if longest - shortest > max(LENGTHS_DIFFER_S * rate, LENGTHS_DIFFER * longest):
            raise TransferBroken(
                f"channel {number} ends after {shortest / rate:.1f} s, and another after {longest / rate:.1f} s"
            )


@contextmanager
def open_channels(
    open_media: Callable[[str], AbstractContextManager[MediaStream]], media: Media
) -> Iterator[InterleavedStream]:
    """All of `media.channels` at once, as one stream; `open_media` opens one URL."""
    with ExitStack() as stack:
        yield InterleavedStream([stack.enter_context(open_media(url)) for url in media.channels])
