"""Real media for tests: sound, encoded by PyAV, and served from memory as a platform's stream would be."""

import io
from collections.abc import Iterator
from datetime import datetime
from typing import cast

import av
import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]
CODECS = {
    "wav": ("wav", "pcm_s16le"),
    "mulaw": ("wav", "pcm_mulaw"),
    "mp3": ("mp3", "libmp3lame"),
    "ogg": ("ogg", "libopus"),
    "webm": ("webm", "libopus"),
    "m4a": ("ipod", "aac"),
    "flac": ("flac", "flac"),
}


class MemoryStream:
    """A transfer of `data` in pieces of `chunk` bytes; raises `breaks` after `breaks_at` bytes. `sent`: bytes given."""

    def __init__(
        self,
        data: bytes,
        *,
        chunk: int = 4096,
        content_type: str | None = None,
        breaks: Exception | None = None,
        breaks_at: int | None = None,
    ) -> None:
        self.content_length: int | None = len(data)
        self.content_type = content_type
        self.last_modified: datetime | None = None
        self.sent = 0
        self._data, self._chunk, self._breaks = data, chunk, breaks
        self._end = len(data) if breaks_at is None else breaks_at

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, self._end, self._chunk):
            piece = self._data[start : min(start + self._chunk, self._end)]
            self.sent += len(piece)
            yield piece
        if self._breaks:
            raise self._breaks


def sound(seconds: float, channels: int = 1) -> Samples:
    """A tone of its own in each channel with a little noise, so that no codec leaves anything out."""
    t = np.arange(round(seconds * 8000)) / 8000
    noise = np.random.default_rng(7).normal(0, 0.02, (channels, len(t)))
    return (np.stack([0.3 * np.sin(2 * np.pi * 440 * (at + 1) * t) for at in range(channels)]) + noise).astype("f4")


def encoded(kind: str, samples: Samples, comment: str | None = None) -> bytes:
    """`samples` (channels, n) at 8 kHz as a file of one of CODECS; an m4a has its index at the end."""
    container, codec = CODECS[kind]
    layout = "stereo" if len(samples) == 2 else "mono"
    pcm = np.round(np.clip(samples, -1, 1) * 32767).astype(np.int16)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        if comment:
            output.metadata["comment"] = comment
        stream = cast(av.AudioStream, output.add_stream(codec, rate=8000, layout=layout))
        for start in range(0, pcm.shape[1], 8000):
            interleaved = np.ascontiguousarray(pcm[:, start : start + 8000].T.reshape(1, -1))
            frame = av.AudioFrame.from_ndarray(interleaved, format="s16", layout=layout)
            frame.sample_rate = 8000
            frame.pts = start
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def video_without_audio() -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="webm") as output:
        stream = output.add_stream("libvpx", rate=5)
        stream.width = stream.height = 32
        for _ in range(3):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        output.mux(stream.encode(None))
    return buffer.getvalue()
