"""Turns of a transcript to groups of digits, however they are written or said, and groups to runs. Pure, linear time.

What a run of digits amounts to belongs to `text`; identifiers with letters in them belong to `identifiers`.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from compliance_pipeline.screening.transcripts import Turn

SPLIT_WITHIN_MS = 60_000

# Text to groups of digits

_INVISIBLE = [
    *(0xAD, 0x34F, 0x61C, 0x180E, 0x20E3, 0xFEFF),
    *range(0x200B, 0x2010),
    *range(0x202A, 0x202F),
    *range(0x2060, 0x2070),
    *range(0xFE00, 0xFE10),
]
_DASHES = [*range(0x2010, 0x2016), 0x2043, 0x2212, 0xFE58, 0xFE63, 0xFF0D]
_DOTS = [0xB7, 0x2022, 0x2219, 0x22C5, 0x30FB]
_TIDY = dict.fromkeys(_INVISIBLE) | dict.fromkeys(_DASHES, "-") | dict.fromkeys(_DOTS, ".") | {0x2019: "'"}
_UNTIDY = re.compile(f"[{''.join(map(chr, _TIDY))}]")
_FOREIGN_DIGIT = re.compile(r"(?![0-9])\d")
_ADJOINING = re.compile(r"[a-z][0-9]|[0-9][a-z]")
_STUCK = re.compile(r"\b(cards?|visa|mastercard|amex|cc|number|no|pan)(?=[0-9]{4})")
_STUCK_BEHIND = re.compile(r"(?<=[0-9]{4})(?=(?:exp|cvv|cvc|thanks)\b)")


def normalised(text: str) -> str:
    """Lower case, one kind of digit, dash and dot; nothing invisible. Offsets are not those of the original."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
        if _UNTIDY.search(text):
            text = text.translate(_TIDY)
        if not text.isascii():
            text = _FOREIGN_DIGIT.sub(lambda match: str(unicodedata.decimal(match[0])), text)
    return text.lower().replace("_", "-")


def _words(text: str) -> list[str]:
    return text.split()


_ZERO = frozenset(_words("zero oh o nought naught aught nil"))
_UNITS = {word: at for at, word in enumerate(_words("one two three four five six seven eight nine"), 1)}
_TEENS = {
    word: at
    for at, word in enumerate(
        _words("ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"), 10
    )
}
_TENS = {word: 10 * at for at, word in enumerate(_words("twenty thirty forty fifty sixty seventy eighty ninety"), 2)}
_TENS["fourty"] = 40
_TIMES = {"double": 2, "triple": 3, "treble": 3, "quadruple": 4}
_PLURALS = {
    word: str(at) for at, word in enumerate(_words("zeros ones twos threes fours fives sixes sevens eights nines"))
} | {"zeroes": "0"}
_SCALES = {"hundred": 100, "thousand": 1000}
_WORDS = sorted({*_ZERO, *_UNITS, *_TEENS, *_TENS, *_TIMES, *_PLURALS, *_SCALES})


def at_word_start(patterns: Iterable[str]) -> str:
    """A pattern for any of these patterns (each begins with a letter) where a word starts.

    It begins with a set of characters, not with `\\b`: the engine then skips the rest of the text at several times the
    speed, and looks back for the start of a word, then at the patterns of that letter, only where one is possible.
    """
    by_letter = groupby(sorted(patterns), key=lambda pattern: pattern[0])
    rests = {letter: sorted((p[1:] for p in group), key=len, reverse=True) for letter, group in by_letter}
    branches = "|".join(f"(?<={letter})(?:{'|'.join(rest)})" for letter, rest in rests.items())
    return rf"[{''.join(rests)}](?<!\w[0-9a-z])(?:{branches})"


_DIGITS = re.compile(r"[0-9](?<!\w[0-9])[0-9]*+\b")
_TOKEN = re.compile(rf"(?:{at_word_start([*_WORDS, *(f'{digit}[0-9]*+' for digit in range(10))])})\b")

_SEPARATORS = " \t\r\n.,-/|*~()>"
_LONGEST_SEPARATOR = 5
_LONGEST_FILLER = 40
_SHORT = 24
_FILLERS = frozenset(
    _words(
        "um uh umm uhh er erm ah hmm and then dash hyphen space dot comma ok okay yes yeah yep sure so now next the"
        " rest last final first second other half part digits numbers of it is it's its are was that followed by again"
        " sorry wait finally starts begins ends with in plus after"
    )
)
_FILLERS |= {*_UNITS, "…"}
_CORRECTIONS = frozenset(_words("no nope sorry wait correction oops actually mistake mean meant scratch rather"))
_AMID_CORRECTIONS = frozenset(_words("i i'm my bad that that's not should be make let me to say said was for instead"))
_WITHIN = _FILLERS | _CORRECTIONS | _AMID_CORRECTIONS
_COUNTED = re.compile(r"[ -](?:digits?|numbers?|time)\b")
_BEFORE_COUNT = ("t", "l", "r", " ", ":")
_ORDINAL = re.compile(r"\b(?:last|first|next|final|other)[ :]+$")


@dataclass(slots=True, repr=False)
class Group:
    """Digits written or said as one. floor: the end of the group before it in the same turn.

    gap: the text between it and the group before it in the run (None: first of its turn).
    """

    digits: str
    spoken: bool
    turn: int
    start: int
    end: int
    floor: int
    gap: str | None


_Token = tuple[str, int, int]


def _groups(text: str, turn: int, has_words: bool) -> tuple[str, list[Group]]:
    """The text with its number words as digits, and the groups of digits in it."""
    if not has_words:
        groups = []
        floor = 0
        for match in _DIGITS.finditer(text):
            start, end = match.span()
            if end - start > 2 or not _is_a_count(text, start, end):
                groups.append(Group(match[0], False, turn, start, end, floor, text[floor:start] if floor else None))
                floor = end
        return text, groups
    said = list(_numbers(text))
    pieces: list[str] = []
    groups = []
    read = written = floor = 0
    for digits, spoken, start, end in said:
        pieces += text[read:start], digits
        written += start - read
        gap = text[read:start] if floor else None
        groups.append(Group(digits, spoken, turn, written, written + len(digits), floor, gap))
        read, written = end, written + len(digits)
        floor = written
    return "".join([*pieces, text[read:]]), groups


def _numbers(text: str) -> Iterator[tuple[str, bool, int, int]]:
    """(digits, whether in words, start, end) of each number."""
    tokens: list[_Token] = [(match[0], *match.span()) for match in _TOKEN.finditer(text)]
    at = 0
    while at < len(tokens):
        word, start, end = tokens[at]
        if word[0] in "0123456789":
            digits, after = word, at + 1
        else:
            digits, after = _numeral(tokens, at, text)
            end = tokens[after - 1][2]
        if digits and (len(digits) > 2 or not _is_a_count(text, start, end)):
            yield digits, word != digits, start, end
        at = after


def _is_a_count(text: str, start: int, end: int) -> bool:
    """'the last four are', 'three digits': how many, not which."""
    return bool(
        (text[end : end + 1] in (" ", "-") and _COUNTED.match(text, end))
        or (text[max(0, start - 2) : start - 1] in _BEFORE_COUNT and _ORDINAL.search(text[max(0, start - 8) : start]))
    )


def _numeral(tokens: list[_Token], at: int, text: str) -> tuple[str, int]:
    """The digits of the number words from `at`, and the token after them.

    'forty one' 41, 'oh' 0, 'double four' 44, 'three zeros' 000, 'four thousand one hundred eleven' 4111.
    """
    word = tokens[at][0]

    def near(other: int, *joints: str) -> str:
        """The token `other` if it follows the one before it at once (or after a joint such as ' and ')."""
        if other >= len(tokens):
            return ""
        gap = text[tokens[other - 1][2] : tokens[other][1]]
        return tokens[other][0] if gap in (" ", "-", *joints) else ""

    def small(other: int, first: str) -> tuple[int, int]:
        """1-99 in words."""
        if first in _TENS:
            unit = _UNITS.get(near(other + 1), 0)
            return _TENS[first] + unit, other + (2 if unit else 1)
        value = _UNITS.get(first) or _TEENS.get(first) or 0
        return value, other + (1 if value else 0)

    if word in _TIMES:
        digit = _digit(near(at + 1))
        return (digit * _TIMES[word], at + 2) if digit else ("", at + 1)
    if word in _ZERO:
        alone = word in ("o", "oh") and not (
            (at and _is_number(tokens[at - 1][0]) and near(at, ", "))
            or (at + 1 < len(tokens) and _is_number(near(at + 1, ", ")))
        )
        return "" if alone else "0", at + 1
    value, after = small(at, word)
    if not value:
        return "", at + 1
    if after == at + 1 and 2 <= value <= 9 and near(after) in _PLURALS:
        return _PLURALS[tokens[after][0]] * value, after + 1
    for scale in _SCALES:
        if near(after) == scale:
            value, after = value * _SCALES[scale], after + 1
            more, then = small(after, near(after, " and "))
            if scale == "hundred" or near(then) != "hundred":
                value, after = value + more, then
            else:
                rest, last = small(then + 1, near(then + 1, " and "))
                value, after = value + more * 100 + rest, last
    return str(value), after


def _digit(word: str) -> str:
    if word in _ZERO:
        return "0"
    return str(_UNITS[word]) if word in _UNITS else word if len(word) == 1 and word.isdigit() else ""


def _is_number(word: str) -> bool:
    return bool(_digit(word)) or word in _TEENS or word in _TENS or word in _TIMES or word.isdigit()


# Groups to runs


def _joins(gap: str) -> bool:
    if len(gap) <= _LONGEST_SEPARATOR:
        if not gap.strip(_SEPARATORS):
            return True
    elif len(gap) > _LONGEST_FILLER:
        return False
    return _only_fillers(gap)


_SPLIT = str.maketrans(dict.fromkeys(",.-:?!;", " "))


def _only_fillers(text: str) -> bool:
    """Words that may stand within a number, a correction ('no, sorry, I meant') included."""
    words = text.translate(_SPLIT).split()
    return all(word in _FILLERS for word in words) or (
        not _CORRECTIONS.isdisjoint(words) and all(word in _WITHIN for word in words)
    )


def is_correction(gap: str) -> bool:
    """Whether the words between two groups take back what was said before ('no, sorry')."""
    return len(gap) > len(" no") and not _CORRECTIONS.isdisjoint(gap.translate(_SPLIT).split())


class Reading(NamedTuple):
    """texts: of the turns, normalised, number words as digits. runs: the groups that may belong to one number, near
    each other in a turn or carried over to the speaker's next. dense: turns with digits enough for an identifier.
    """

    texts: list[str]
    runs: list[list[Group]]
    dense: list[int]


def read(turns: tuple[Turn, ...]) -> Reading:
    """Only turns that may hold or carry on a number are read closely; the others' texts are only normalised."""
    texts: list[str] = []
    runs: list[list[Group]] = []
    dense: list[int] = []
    carried: dict[str, list[Group]] = {}
    for at, turn in enumerate(turns):
        text = normalised(turn.text)
        plain = text.encode("ascii", "replace")
        words = plain.translate(_PLAIN).split()
        said = bytes(map(_SAID.__contains__, words))
        numerals = said.count(1)
        digits = len(plain) - len(plain.translate(None, b"0123456789"))
        if not numerals and not digits:
            texts.append(text)
            continue
        if digits + numerals >= 5 or (digits >= 2 and _IBAN_BEGUN.search(text, max(0, len(text) - _SHORT))):
            dense.append(at)
        elif digits < 3 and numerals + bool(digits) < 3 and b"\1\1" not in said and not _may_carry(words):
            texts.append(text)
            continue
        if digits >= 12 and _ADJOINING.search(text):
            text = _STUCK_BEHIND.sub(" ", _STUCK.sub(r"\1 ", text))
        text, groups = _groups(text, at, numerals > 0)
        texts.append(text)
        run: list[Group] | None = None
        for group in groups:
            if run is not None and _joins(group.gap or ""):
                run.append(group)
                continue
            previous = carried.pop(turn.speaker, None) if run is None else None
            if previous and _carries_on(turns, texts, previous[-1], group):
                run = previous
                run.append(group)
            else:
                run = [group]
                runs.append(run)
        if run is not None:
            carried[turn.speaker] = run
    return Reading(texts, runs, dense)


_IBAN_BEGUN = re.compile(r"\b[a-z] ?[a-z] ?\d ?\d[a-z0-9 -]{0,12}$")
_PLAIN = bytes(code if chr(code).isalnum() and code < 128 else 32 for code in range(256))
_SAID = frozenset(word.encode() for word in _WORDS)
_WITHIN_BYTES = frozenset(" ".join(_WITHIN).encode("ascii", "replace").translate(_PLAIN).split())


def _may_carry(words: list[bytes]) -> bool:
    """Whether a number may go on from the turn before, or into the next."""
    for ordered in (words, reversed(words)):
        for word in ordered:
            if word in _SAID or word.isdigit():
                return True
            if word not in _WITHIN_BYTES:
                break
    return False


def _carries_on(turns: tuple[Turn, ...], texts: list[str], last: Group, group: Group) -> bool:
    spoke = turns[last.turn]
    return (
        turns[group.turn].start_ms - (spoke.start_ms if spoke.end_ms is None else spoke.end_ms) <= SPLIT_WITHIN_MS
        and len(texts[last.turn]) - last.end <= _LONGEST_FILLER
        and group.start <= _LONGEST_FILLER
        and _only_fillers(texts[last.turn][last.end :].strip("!)\"'"))
        and _only_fillers(texts[group.turn][: group.start].strip("(\"'"))
    )
