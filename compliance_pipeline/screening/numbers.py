"""Card and social security numbers as digits: checks, masks, and digits in time turned into candidates. Pure.

How digits are heard or read belongs to the detectors; what a candidate means belongs to the policy.
"""

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from compliance_pipeline.contracts.policy import FindingKind
from compliance_pipeline.screening.findings import Symbol

Span = tuple[int, int]
"""[start, end) in a string of digits."""

SHORTEST_CARD, LONGEST_CARD = 13, 19

_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)


class Issuer(NamedTuple):
    """A range of issuer identification numbers (first six digits) and the lengths of its card numbers."""

    first: int
    last: int
    brand: str
    lengths: frozenset[int]
    usual: frozenset[int]
    """The lengths met in practice; the others exist on paper and match by chance more often than in earnest."""


def _issuer(first: int, last: int, brand: str, lengths: Iterable[int], usual: Iterable[int]) -> Issuer:
    return Issuer(first, last, brand, frozenset(lengths), frozenset(usual))


_16_19 = range(16, 20)
_ISSUERS = (
    _issuer(222100, 272099, "Mastercard", [16], [16]),
    _issuer(300000, 305999, "Diners Club", range(14, 20), [14, 16]),
    _issuer(309500, 309599, "Diners Club", range(14, 20), [14, 16]),
    _issuer(340000, 349999, "American Express", [15], [15]),
    _issuer(352800, 358999, "JCB", _16_19, [16]),
    _issuer(360000, 369999, "Diners Club", range(14, 20), [14]),
    _issuer(370000, 379999, "American Express", [15], [15]),
    _issuer(380000, 399999, "Diners Club", range(14, 20), [14, 16]),
    _issuer(400000, 499999, "Visa", [13, 16, 19], [16]),
    _issuer(501800, 501899, "Maestro", range(13, 20), [16, 18, 19]),
    _issuer(502000, 502099, "Maestro", range(13, 20), [16, 18, 19]),
    _issuer(503800, 503899, "Maestro", range(13, 20), [16, 18, 19]),
    _issuer(510000, 559999, "Mastercard", [16], [16]),
    _issuer(589300, 589399, "Maestro", range(13, 20), [16, 18, 19]),
    _issuer(601100, 601199, "Discover", _16_19, [16]),
    _issuer(620000, 622125, "UnionPay", _16_19, [16, 19]),
    _issuer(622126, 622925, "Discover", _16_19, [16, 19]),
    _issuer(622926, 629999, "UnionPay", _16_19, [16, 19]),
    _issuer(630400, 630499, "Maestro", range(13, 20), [16, 18, 19]),
    _issuer(644000, 659999, "Discover", _16_19, [16]),
    _issuer(675900, 675999, "Maestro", range(13, 20), [16, 18, 19]),
    _issuer(676100, 676399, "Maestro", range(13, 20), [16, 18, 19]),
)
"""ISO/IEC 7812-1 sets the form (up to 19 digits, Luhn); the ranges are those the networks publish, as collected in
https://en.wikipedia.org/wiki/Payment_card_number. Maestro: only the prefixes named there, since its nominal range
(50, 56-69) would take in most other numbers, and from 13 digits."""
_FIRSTS = tuple(issuer.first for issuer in _ISSUERS)


def issuer_of(digits: str) -> Issuer | None:
    """The issuer range of the first six of `digits`, whatever their length."""
    if len(digits) < 6:
        return None
    prefix = int(digits[:6])
    at = bisect_right(_FIRSTS, prefix) - 1
    return _ISSUERS[at] if at >= 0 and prefix <= _ISSUERS[at].last else None


def iin_brand(digits: str) -> str | None:
    """The card network whose ranges and lengths `digits` fits, or None. Says nothing about the check digit."""
    issuer = issuer_of(digits)
    return issuer.brand if issuer and len(digits) in issuer.lengths else None


def luhn_ok(digits: str) -> bool:
    """Whether the last digit is the Luhn check digit of the others (ISO/IEC 7812-1, annex B)."""
    total = sum(int(char) for char in digits[-1::-2]) + sum(_DOUBLED[int(char)] for char in digits[-2::-2])
    return bool(digits) and total % 10 == 0


def card_spans(digits: str, edges: Collection[int] | None = None) -> list[Span]:
    """Every stretch of `digits` that is a card number by issuer, length and check digit; stretches may overlap.

    edges: the offsets at which a number may start or end (default: any).
    """
    fitting = []
    for start in range(len(digits) - SHORTEST_CARD + 1) if edges is None else sorted(edges):
        if issuer := issuer_of(digits[start : start + 6]):
            ends = (start + length for length in sorted(issuer.lengths))
            fitting += [(start, end) for end in ends if (end <= len(digits) if edges is None else end in edges)]
    if not fitting:
        return []
    values = [int(char) for char in digits]
    sums = [
        [0, *accumulate(_DOUBLED[value] if at % 2 == parity else value for at, value in enumerate(values))]
        for parity in (0, 1)
    ]
    return [(start, end) for start, end in fitting if (sums[end % 2][end] - sums[end % 2][start]) % 10 == 0]


def best_apart(spans: Iterable[Span], rank: Callable[[Span], tuple[float, ...]]) -> list[Span]:
    """The spans that don't overlap a better one (higher rank), in order of place. Spans of at most 19 digits."""
    taken: set[int] = set()
    kept = []
    for start, end in sorted(spans, key=rank, reverse=True):
        if taken.isdisjoint(range(start, end)):
            taken.update(range(start, end))
            kept.append((start, end))
    return sorted(kept)


def card_numbers(digits: str) -> list[Span]:
    """The card numbers in a run of digits, apart from each other, the most plausible first to take its place.

    A length that its network hardly uses (a 13-digit Visa) counts only when it is the whole run: within a longer run
    one in ten fits by chance.
    """

    def rank(span: Span) -> tuple[float, ...]:
        start, end = span
        edge = (start == 0) + (end == len(digits))
        return is_usual_length(digits[start:end]), edge, end - start, -start

    spans = card_spans(digits)
    return best_apart([s for s in spans if s == (0, len(digits)) or is_usual_length(digits[slice(*s)])], rank)


def is_usual_length(card: str) -> bool:
    issuer = issuer_of(card)
    return issuer is not None and len(card) in issuer.usual


_NEVER_ISSUED_TO_ONE = frozenset({"078051120", "219099999", "457555462"})


def ssn_ok(digits: str) -> bool:
    """Whether nine digits can be somebody's social security number.

    SSA, https://www.ssa.gov/employer/randomization.html: no area 000, 666 or 900-999, no group 00, no serial 0000.
    Numbers printed in advertisements (078-05-1120, 219-09-9999, 457-55-5462) and one digit nine times are nobody's.
    """
    if len(digits) != 9 or digits in _NEVER_ISSUED_TO_ONE or len(set(digits)) == 1:
        return False
    area, group, serial = digits[:3], digits[3:5], digits[5:]
    return area not in ("000", "666") and area[0] != "9" and group != "00" and serial != "0000"


def mask_card(digits: str) -> str:
    """A card number that may be shown (PCI DSS 4.0.1, 3.4.1: at most BIN and last four): `411111******1111`.

    At least six digits stay hidden, as in a 16-digit number; so shorter ones show less of the front.
    """
    front, back = max(0, min(6, len(digits) - 10)), 4 if len(digits) >= 10 else 0
    return digits[:front] + "*" * (len(digits) - front - back) + digits[len(digits) - back :]


def mask_all(digits: str) -> str:
    return "*" * len(digits)


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a run of keyed or spoken digits amounts to. Times in seconds from the recording's start."""

    kind: FindingKind
    start_s: float
    end_s: float
    digits_count: int
    masked: str
    brand: str | None
    confidence: float


KEYED_CARD, SPOKEN_CARD = 0.99, 0.95
CODE_WITHIN_S = 15.0
ONE_GO_PAUSE_S = 1.5
"""A longer pause parts what was said: 'my order is ...', the agent's question, '... and my phone is ...' would
otherwise be one number as long as a card's."""
CARD_ACROSS_PAUSES = 0.7
STRAY, APART_S = 0.7, 0.5
FEWEST_UNVERIFIED = 12
_PIECES_AFTER_CARD = 4
"""How many entries after a card number are looked at for its code: expiry, postcode, a menu key, the code."""


def tone_candidates(symbols: Sequence[Symbol], max_gap_s: float = 6.0) -> list[Candidate]:
    """Card numbers keyed as tones, and the verification codes keyed after them.

    symbols: in order of time, of one channel. `#`, `*`, `A`-`D` or a pause above `max_gap_s` end an entry. Entries of
    13-19 digits that begin like a card number but don't verify are CARD_LENGTH_NUMBER.
    """
    found = []
    entries = _entries(symbols, max_gap_s)
    for at, entry in enumerate(entries):
        digits = _text(entry)
        spans = card_numbers(digits)
        for number, (start, end) in enumerate(spans, 1):
            card = entry[start:end]
            found.append(_card(card, KEYED_CARD))
            pieces = _split_tail(entry[end : spans[number][0] if number < len(spans) else None])
            if number == len(spans):
                pieces += entries[at + 1 : at + 1 + _PIECES_AFTER_CARD]
            if code := _code_after(card, pieces[:_PIECES_AFTER_CARD]):
                found.append(code)
        if not spans and SHORTEST_CARD <= len(digits) <= LONGEST_CARD and issuer_of(digits):
            found.append(_unverified(entry))
    return found


def spoken_candidates(runs: Sequence[Sequence[Symbol]]) -> list[Candidate]:
    """What each dense run of at least 12 spoken digits amounts to.

    Said in one go: card numbers (0.95; 0.85 in the middle of more digits), or 12 digits and more that don't verify
    (0.60-0.75 by how sure the digits are). Without a card number in one go, what was said between pauses may verify
    together (0.7, for review: two other numbers said one after the other do so by chance).
    """
    found = []
    for run in runs:
        pieces = _entries(run, ONE_GO_PAUSE_S)
        cards = [card for piece in pieces for card in _spoken_cards(_unstray(piece)) or _spoken_cards(piece)]
        cards = cards or [_card(joined, CARD_ACROSS_PAUSES) for joined in _joined_cards(pieces)]
        found += cards or [_unverified(piece) for piece in pieces if len(piece) >= FEWEST_UNVERIFIED]
    return found


def _spoken_cards(piece: Sequence[Symbol]) -> list[Candidate]:
    digits = _text(piece)
    return [
        _card(piece[start:end], SPOKEN_CARD if start == 0 or end == len(digits) else SPOKEN_CARD - 0.1)
        for start, end in card_numbers(digits)
    ]


def _unstray(piece: Sequence[Symbol]) -> Sequence[Symbol]:
    """Without doubtful digits that stand apart at either end: a word before the number that sounds like a digit.

    With it, one number in ten verifies a digit too early.
    """
    first, last = 0, len(piece) - 1
    while first < last and piece[first].confidence < STRAY and piece[first + 1].start - piece[first].end > APART_S:
        first += 1
    while first < last and piece[last].confidence < STRAY and piece[last].start - piece[last - 1].end > APART_S:
        last -= 1
    return piece[first : last + 1]


def _joined_cards(pieces: Sequence[Sequence[Symbol]]) -> list[list[Symbol]]:
    """Neighbouring pieces that are, put together whole, one card number."""
    cards = []
    for first in range(len(pieces)):
        joined: list[Symbol] = []
        for piece in pieces[first:]:
            joined += piece
            if len(joined) > LONGEST_CARD:
                break
            if card_numbers(_text(joined)) == [(0, len(joined))]:
                cards.append(list(joined))
                break
    return cards


def _text(symbols: Sequence[Symbol]) -> str:
    return "".join(symbol.char for symbol in symbols)


def _entries(symbols: Sequence[Symbol], max_gap_s: float) -> list[list[Symbol]]:
    entries: list[list[Symbol]] = [[]]
    for symbol in symbols:
        if not symbol.char.isdigit():
            entries.append([])
            continue
        if entries[-1] and symbol.start - entries[-1][-1].end > max_gap_s:
            entries.append([])
        entries[-1].append(symbol)
    return [entry for entry in entries if entry]


def _card(symbols: Sequence[Symbol], confidence: float) -> Candidate:
    digits = _text(symbols)
    return Candidate(
        FindingKind.CARD_NUMBER,
        symbols[0].start,
        symbols[-1].end,
        len(digits),
        mask_card(digits),
        iin_brand(digits),
        confidence,
    )


def _unverified(symbols: Sequence[Symbol]) -> Candidate:
    digits = _text(symbols)
    mean = sum(symbol.confidence for symbol in symbols) / len(symbols)
    sure = min(1.0, max(0.0, (mean - 0.65) / 0.35))
    return Candidate(
        FindingKind.CARD_LENGTH_NUMBER,
        symbols[0].start,
        symbols[-1].end,
        len(digits),
        mask_all(digits),
        None,
        round(0.60 + 0.15 * sure, 3),
    )


def looks_like_expiry(digits: str) -> bool:
    """MMYY of a card that is or was lately in use."""
    return len(digits) == 4 and "01" <= digits[:2] <= "12" and "20" <= digits[2:] <= "49"


def _split_tail(rest: list[Symbol]) -> list[list[Symbol]]:
    """What was keyed on after a card number without a pause: expiry and code together are two pieces."""
    if len(rest) in (7, 8) and looks_like_expiry(_text(rest[:4])):
        return [rest[:4], rest[4:]]
    return [rest] if rest else []


def _code_after(card: Sequence[Symbol], pieces: list[list[Symbol]]) -> Candidate | None:
    """The verification code among the entries keyed after a card number: 4 digits for American Express, else 3.

    Four digits of another network are an expiry date if they read as one, else a PIN or code all the same, but less
    sure.
    """
    is_amex = iin_brand(_text(card)) == "American Express"
    end = card[-1].end
    for at, piece in enumerate(pieces):
        if piece[0].start - end > CODE_WITHIN_S:
            return None
        digits = _text(piece)
        end = piece[-1].end
        if len(digits) == 3:
            confidence = 0.8 if is_amex else 0.95
        elif len(digits) == 4:
            more = any(
                len(later) in (3, 4) and later[0].start - end <= CODE_WITHIN_S for later in pieces[at + 1 : at + 2]
            )
            expiry = looks_like_expiry(digits)
            if expiry and (more or not is_amex):
                continue
            confidence = 0.6 if expiry or not is_amex else 0.95
        else:
            continue
        return Candidate(
            FindingKind.CARD_VERIFICATION_CODE, piece[0].start, end, len(digits), mask_all(digits), None, confidence
        )
    return None
