"""Card and social security numbers as digits: checks, issuers and masks. Pure.
How digits that were heard are put together belongs to `dictation`; what a number means belongs to the policy."""

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable
from itertools import accumulate
from typing import NamedTuple

Span = tuple[int, int]
"""[start, end) in a string of digits."""

SHORTEST_CARD, LONGEST_CARD = 13, 19
FEWEST_UNVERIFIED = 12
"""Digits that are as good as a card number's, one of them unheard."""

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


def looks_like_expiry(digits: str) -> bool:
    """MMYY of a card that is or was lately in use."""
    return len(digits) == 4 and "01" <= digits[:2] <= "12" and "20" <= digits[2:] <= "49"
