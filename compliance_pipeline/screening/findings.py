"""What detectors pass on. Raw digits live in `Symbol` inside the engine only; a `Finding` never carries them."""

from dataclasses import dataclass

from compliance_pipeline.contracts.policy import Detector, FindingKind


@dataclass(frozen=True, slots=True)
class Symbol:
    """One heard or typed digit (or `*`, `#`, `A`-`D` of a keypad); times in seconds from the recording's start."""

    char: str
    start: float
    end: float
    confidence: float

    def __repr__(self) -> str:
        return f"Symbol(<hidden>, {self.start:.2f}-{self.end:.2f} s, {self.confidence:.2f})"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a detector found, safe to store and to show.

    masked: card numbers at most BIN (6) and last four, everything else fully masked (PCI DSS 4.0.1, 3.4.1).
    speaker: 'agent', 'customer' or the channel's index ('0', '1') where the platform does not say.
    fingerprint: keyed digest of the number (PCI DSS 4.0.1, 3.5.1.1), the same wherever it is said again.
    phrase: the lexicon's entry, for `PHRASE` only.
    spans: all places where its digits were said, in milliseconds; read-backs and corrections included.
    located: False where start and end are not those of what was found, only of where it must lie behind.
    """

    kind: FindingKind
    detector: Detector
    speaker: str
    start_ms: int
    end_ms: int
    confidence: float
    masked: str
    fingerprint: str | None = None
    phrase: str | None = None
    located: bool = True
    spans: tuple[tuple[int, int], ...] = ()
