"""The speech gate: how much of a stretch of sound is speech, asked only where digits were heard (music sings digits).
What was heard belongs to `digits`; what it amounts to belongs to `listener`."""

from collections import deque
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from compliance_pipeline.screening.networks import network

SAMPLE_RATE: Final = 8000
GATE: Final = 0.05
"""Below this share of speech a stretch of digits is music, noise or tones. Measured in models/SILERO_VAD.md."""
KEPT_S: Final = 120.0
"""How long back sound is kept for the gate: a stretch of digits and what it may still be joined with."""
SPEECH_MODEL_SHA: Final = "00f9d26fd83d14056efb87f17ec2966e2a262ed4f0fbd781a6766f7257578b4a"
"""SHA-256 of the model that this code was measured with; no other is loaded."""

_FRAME, _CONTEXT = 256, 32
_LIKELY = 0.5
_AROUND_S = 0.5
# RMS of the loudest 50 ms: a quiet line is brought to the level at which the model hears speech best
_SPEECH, _MOST_GAIN = 0.15, 30.0

Samples = NDArray[np.float32]


def gate_version() -> str:
    """Names the gate's model in an engine's version."""
    return f"speech-{SPEECH_MODEL_SHA[:12]}"


def speech_share(samples: Samples) -> float:
    """The share (0 to 1) of 32 ms frames that are speech; `samples` are mono float32 in [-1, 1] at 8 kHz.

    Nothing or silence is 0. Raises ModelError. Half a second around what is asked about does it good.
    """
    level = _loudest(samples)
    if level < 1e-5:
        return 0.0
    count = -(-len(samples) // _FRAME)
    frames = np.zeros((count, _CONTEXT + _FRAME), np.float32)
    body = np.zeros(count * _FRAME, np.float32)
    body[: len(samples)] = samples * np.float32(min(_SPEECH / level, _MOST_GAIN))
    frames[:, _CONTEXT:] = body.reshape(count, _FRAME)
    frames[1:, :_CONTEXT] = frames[:-1, -_CONTEXT:]
    chances = network("silero_vad_8k.onnx", SPEECH_MODEL_SHA).run(None, {"frames": frames})[0]
    return float((chances > _LIKELY).mean())


class RecentSound:
    """The last `KEPT_S` seconds of one channel at 16 bits (1.9 MB at most, beyond the chunk that it is given)."""

    def __init__(self, kept_s: float = KEPT_S) -> None:
        self._kept = round(kept_s * SAMPLE_RATE)
        self._chunks: deque[NDArray[np.int16]] = deque()
        self._from = self._until = 0

    def feed(self, samples: Samples) -> None:
        """Takes mono float32 in [-1, 1] at 8 kHz, in chunks of any size."""
        self._chunks.append(np.round(np.clip(samples, -1, 1) * 32767).astype(np.int16))
        self._until += len(samples)
        while self._chunks and self._from + len(self._chunks[0]) <= self._until - self._kept:
            self._from += len(self._chunks.popleft())

    @property
    def size_bytes(self) -> int:
        return sum(chunk.nbytes for chunk in self._chunks)

    def is_speech(self, spans: Sequence[tuple[float, float]]) -> bool:
        """Whether the stretches (start and end in seconds), taken together, hold speech.

        True where one of them is no longer kept: what nobody can tell any more is not to hide a finding.
        """
        sound = []
        for start, end in spans:
            first = max(0, round((start - _AROUND_S) * SAMPLE_RATE))
            last = min(self._until, round((end + _AROUND_S) * SAMPLE_RATE))
            if first < self._from or last <= first:
                return True
            sound.append(self._sound(first, last))
        return speech_share(np.concatenate(sound)) >= GATE

    def _sound(self, first: int, last: int) -> Samples:
        parts, at = [], self._from
        for chunk in self._chunks:
            parts.append(chunk[max(0, first - at) : max(0, last - at)])
            at += len(chunk)
        return np.concatenate(parts).astype(np.float32) / np.float32(32767)


def _loudest(samples: Samples) -> float:
    """RMS of the loudest 50 ms."""
    if len(samples) < 400:
        return 0.0
    blocks = samples[: len(samples) // 400 * 400].reshape(-1, 400)
    return float(np.sqrt(np.einsum("ij,ij->i", blocks, blocks).max() / 400))
