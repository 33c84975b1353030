"""Evidence clips: a few seconds around a finding, cut from a stream, silenced where they are sensitive, and checked.
In memory only: what is sensitive, what still sounds like digits, and where clips are kept is not decided here."""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from compliance_pipeline.media.decode import SAMPLE_RATE, MediaReader, UnscreenableMedia, decode_audio

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

AROUND_MS = 10_000
PAD_MS = 250
MAX_SPAN_MS = 120_000
"""No number takes longer to say, with questions in between; a longer span would make the clip half the call."""
ROUNDS = 4

_PER_MS = SAMPLE_RATE // 1000

Span = tuple[int, int]
"""[start, end) in milliseconds."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A finding's clip. start_ms, end_ms: where the finding lies; `sensitive`: all that must not be heard in the clip,
    unpadded. Both from the recording's start."""

    number: int
    start_ms: int
    end_ms: int
    sensitive: tuple[Span, ...]

    @property
    def clip_ms(self) -> Span:
        """As far as the recording goes on for so long."""
        return max(0, self.start_ms - AROUND_MS), self.end_ms + AROUND_MS


@dataclass(frozen=True, slots=True)
class Clip:
    """A verified clip: FLAC, 8 kHz, all channels. start_ms, end_ms: from the recording's start."""

    number: int
    start_ms: int
    end_ms: int
    content: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Refusal:
    """No clip can be shown of this finding, and why."""

    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class Remains:
    """What is still heard in a masked clip, from the clip's start.

    spans: digits too few to be a number on their own. whole_number: something that is a finding by itself.
    """

    spans: tuple[Span, ...] = ()
    whole_number: bool = False


Screener = Callable[[bytes], Remains]
"""Hears an encoded clip."""


class MemoryMedia:
    """Media in memory as a `MediaStream`."""

    last_modified: datetime | None = None

    def __init__(self, content: bytes, content_type: str | None = None) -> None:
        self.content_length: int | None = len(content)
        self.content_type = content_type
        self._content = content

    def __iter__(self) -> Iterator[bytes]:
        # In pieces: the reader copies what is left of a piece with each read.
        for at in range(0, len(self._content), 65_536):
            yield self._content[at : at + 65_536]


def make_clips(
    blocks: Iterable["NDArray[np.float32]"], wanted: Sequence[Wanted], screener: Screener
) -> Iterator[Clip | Refusal]:
    """A verified clip of each of `wanted`, or why there is none; in no particular order.

    blocks: the recording, float32 of shape (channels, samples), 8 kHz, in order. Of it no more is held than the
    longest clip and a block. Reads `blocks` to its end and lets through what it raises.
    """
    cuttable = []
    for one in wanted:
        if not 0 <= one.start_ms <= one.end_ms:
            yield Refusal(one.number, "the span runs backwards")
        elif one.end_ms - one.start_ms > MAX_SPAN_MS:
            yield Refusal(one.number, f"the span is over {MAX_SPAN_MS // 1000} s long")
        else:
            cuttable.append(one)
    for at, samples in cut(blocks, [one.clip_ms for one in cuttable]):
        one = cuttable[at]
        start_ms, _ = one.clip_ms
        end_ms = start_ms + samples.shape[1] // _PER_MS
        if one.start_ms >= end_ms or one.end_ms > end_ms + PAD_MS:
            yield Refusal(one.number, "the span lies outside the recording")
            continue
        content = masked_clip(samples, [(start - start_ms, end - start_ms) for start, end in one.sensitive], screener)
        yield Refusal(one.number, content) if isinstance(content, str) else Clip(one.number, start_ms, end_ms, content)


def cut(blocks: Iterable["NDArray[np.float32]"], spans: Sequence[Span]) -> Iterator[tuple[int, "NDArray[np.float32]"]]:
    """Each of `spans` (by index) as soon as it is there; what the recording ends before is shorter, or empty."""
    import numpy as np

    waiting = set(range(len(spans)))
    held: NDArray[np.float32] | None = None
    held_from = 0

    def piece(at: int, held: "NDArray[np.float32]") -> "NDArray[np.float32]":
        start, end = (max(0, ms * _PER_MS - held_from) for ms in spans[at])
        return held[:, start:end].copy()

    for block in blocks:
        held = block if held is None else np.concatenate([held, block], axis=1)
        reached = held_from + held.shape[1]
        for at in sorted(at for at in waiting if spans[at][1] * _PER_MS <= reached):
            yield at, piece(at, held)
            waiting.discard(at)
        needed_from = min((spans[at][0] * _PER_MS for at in waiting), default=reached)
        drop = min(max(needed_from - held_from, 0), held.shape[1])
        # A copy: a view would keep the whole recording alive.
        held, held_from = held[:, drop:].copy(), held_from + drop
    for at in sorted(waiting):
        yield at, piece(at, held if held is not None else np.zeros((1, 0), np.float32))


def masked_clip(samples: "NDArray[np.float32]", sensitive: Sequence[Span], screener: Screener) -> bytes | str:
    """The clip as FLAC once nothing is heard in it any more, or the reason why it is refused.

    Digits outside the spans are silenced too (an expiry date, a read-back), and the clip is heard again. A whole
    number outside them means that the spans are not those of what was found: nothing of such a clip is trusted.
    """
    import numpy as np

    masked = silenced(samples, sensitive)
    for _ in range(ROUNDS):
        pcm = to_pcm(masked)
        content = encode(pcm)
        try:
            decoded = decode(content)
        except UnscreenableMedia:
            return "the masked clip can't be decoded"
        if not np.array_equal(to_pcm(decoded), pcm):
            return "the masked clip does not decode to what was encoded"
        remains = screener(content)
        if remains.whole_number:
            return "a number is still heard outside the masked spans"
        if not remains.spans:
            return content
        masked = silenced(masked, remains.spans)
    return "digits are still heard after masking"


def silenced(samples: "NDArray[np.float32]", spans: Iterable[Span]) -> "NDArray[np.float32]":
    """A copy with silence in every channel wherever a span, padded by PAD_MS, falls into it."""
    masked = samples.copy()
    for start_ms, end_ms in spans:
        masked[:, max(0, (start_ms - PAD_MS) * _PER_MS) : max(0, (end_ms + PAD_MS) * _PER_MS)] = 0
    return masked


def to_pcm(samples: "NDArray[np.float32]") -> "NDArray[np.int16]":
    import numpy as np

    return np.clip(np.round(samples * 32768), -32768, 32767).astype(np.int16)


def encode(pcm: "NDArray[np.int16]") -> bytes:
    """FLAC (RFC 9639): lossless, so that silence stays silence, and played by browsers. The same bytes for the same
    samples; no time, no name and no tag in it."""
    import av
    import numpy as np

    layout = "stereo" if len(pcm) == 2 else "mono"
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="flac", container_options={"fflags": "+bitexact"}) as output:
        stream: Any = output.add_stream("flac", rate=SAMPLE_RATE, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(pcm.T.reshape(1, -1)), format="s16", layout=layout)
        frame.sample_rate = SAMPLE_RATE
        frame.pts = 0
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def decode(content: bytes) -> "NDArray[np.float32]":
    """All samples of a short file, (channels, samples) at 8 kHz. Raises UnscreenableMedia."""
    import numpy as np

    _, blocks = decode_audio(MediaReader(MemoryMedia(content)))
    return np.concatenate(list(blocks), axis=1)
