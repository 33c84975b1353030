"""Many recordings cheaply: a pool that is made once and given out again under fresh ids, times and participants."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final

from compliance_pipeline.sandbox.calls import (
    Kind,
    PlannedRecording,
    SyntheticRecording,
    make_recording,
    recording_id_of,
)

_MIX: Final = {
    Kind.CHAT_CLEAN: 10,
    Kind.CHAT_CARD: 6,
    Kind.CHAT_SSN: 4,
    Kind.CHAT_CVV: 3,
    Kind.CHAT_IBAN: 3,
    Kind.CHAT_NHS: 3,
    Kind.CHAT_LOOKALIKE: 4,
    Kind.EMAIL_CLEAN: 6,
    Kind.EMAIL_CARD: 6,
    Kind.VOICE_CLEAN: 5,
    Kind.VOICE_TONES: 3,
    Kind.VOICE_DIGITS: 2,
    Kind.VOICE_CVV: 2,
    Kind.VOICE_THREAT: 1,
    Kind.VOICE_LOOKALIKE: 2,
}
"""60: mostly text, which costs a screening engine little."""


@dataclass(frozen=True, slots=True)
class _Reissued(PlannedRecording):
    pool: tuple[SyntheticRecording, ...] = field(default=(), repr=False)

    def make(self, ended_at: datetime) -> SyntheticRecording:
        """Of the pool, by seed; media and transcript are the pool's own bytes, so memory does not grow with them.

        Times and ids inside the media stay the pool's.
        """
        base = self.pool[self.seed % len(self.pool)]
        agent, *others = base.participants
        return replace(
            base,
            recording_id=self.recording_id,
            start_time=ended_at - (base.end_time - base.start_time),
            end_time=ended_at,
            participants=({**agent, "id": recording_id_of(self.seed, Kind.VOICE_CLEAN)}, *others),
        )


def soak_plan(seed: int, *, rate_per_s: float, seconds: float) -> Iterator[PlannedRecording]:
    """`rate_per_s` recordings a second, evenly, for `seconds`. The pool is made first, which takes some
    seconds of speech synthesis."""
    rng = random.Random(f"soak:{seed}")
    kinds = [kind for kind, number in _MIX.items() for _ in range(number)]
    rng.shuffle(kinds)
    made_at = datetime.now(UTC)
    pool = tuple(make_recording(seed * 1000 + number, kind, ended_at=made_at) for number, kind in enumerate(kinds))
    for number in range(round(rate_per_s * seconds)):
        at = seed * 10_000_000 + number * len(pool) + rng.randrange(len(pool))
        yield _Reissued(
            seed=at,
            kind=pool[at % len(pool)].kind,
            at_s=round(number / rate_per_s, 3),
            lag_s=round(rng.uniform(0.2, 1.0), 3),
            pool=pool,
        )
