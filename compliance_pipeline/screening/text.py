"""Card numbers, verification codes and social security numbers in chats, mails and transcripts. Pure, linear time.

Reading the media belongs to `transcripts`; the arithmetic of numbers belongs to `numbers`.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate, groupby

from compliance_pipeline.contracts.policy import Detector, FindingKind
from compliance_pipeline.screening.findings import Finding
from compliance_pipeline.screening.numbers import (
    LONGEST_CARD,
    SHORTEST_CARD,
    Span,
    best_apart,
    card_spans,
    iin_brand,
    is_usual_length,
    looks_like_expiry,
    mask_all,
    mask_card,
    ssn_ok,
)
from compliance_pipeline.screening.transcripts import Transcript, Turn

# Confidence. Above 0.75-0.8 the default policy accuses, below it asks for review. Engineering values, checked on the
# labelled messages of the tests; not calibrated on real traffic.
CARD_NAMED, CARD_BARE, CARD_ODD_NAMED, CARD_DOUBTFUL = 0.97, 0.9, 0.85, 0.6
CODE_NAMED, CODE_ASKED, CODE_AFTER_CARD, CODE_DOUBTFUL = 0.95, 0.9, 0.8, 0.55
SSN_NAMED, SSN_WRITTEN, SSN_DOUBTFUL = 0.97, 0.85, 0.6

SPLIT_WITHIN_MS = 60_000


def screen_text(transcript: Transcript) -> list[Finding]:
    """What the transcript gives away, in order; a number said again, by whomever, is the same finding.

    start_ms and end_ms are the offsets of the turns in which the number begins and ends.
    """
    texts = [_normalised(turn.text) for turn in transcript.turns]
    found: dict[tuple[FindingKind, str], tuple[int, int, Finding]] = {}
    for run in _runs(transcript.turns, texts):
        if len(run) == 1 and len(run[0].digits) < 3:
            continue
        screen = _Screen(transcript.turns, texts, run)
        for kind, digits, group, last, confidence, masked in screen.numbers():
            first_turn = transcript.turns[group.turn]
            finding = Finding(
                kind,
                Detector.TEXT,
                first_turn.speaker,
                first_turn.start_ms,
                max(first_turn.start_ms, transcript.turns[last.turn].start_ms),
                confidence,
                masked,
            )
            known = found.get((kind, digits))
            if known is None or confidence > known[2].confidence:
                found[kind, digits] = (group.turn, group.start, finding)
    return [finding for *_, finding in sorted(found.values(), key=lambda entry: entry[:2])]


# Text to groups of digits

_INVISIBLE = dict.fromkeys(
    [0xAD, 0x34F, 0x61C, 0x180E, 0x20E3, 0xFEFF]
    + [
        code
        for first, last in ((0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0xFE00, 0xFE0F))
        for code in range(first, last + 1)
    ]
)
_DASHES = dict.fromkeys([*range(0x2010, 0x2016), 0x2043, 0x2212, 0xFE58, 0xFE63, 0xFF0D], "-")
_DOTS = dict.fromkeys([0xB7, 0x2022, 0x2219, 0x22C5, 0x30FB], ".")
_TIDY = _INVISIBLE | _DASHES | _DOTS
_FOREIGN_DIGIT = re.compile(r"(?![0-9])\d")


def _normalised(text: str) -> str:
    """Lower case, one kind of digit, dash and dot; nothing invisible. Offsets are not those of the original."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).translate(_TIDY)
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


def _by_first_letter(words: list[str]) -> str:
    """Alternatives of a pattern, grouped so that a letter which begins none of them is passed over at once."""
    letters = {
        letter: "|".join(sorted((word[1:] for word in grouped), key=len, reverse=True))
        for letter, grouped in groupby(words, key=lambda word: word[0])
    }
    return "|".join(f"{letter}(?:{rests})" for letter, rests in letters.items())


_TOKEN = re.compile(rf"\b(?:[0-9]++|{_by_first_letter(_WORDS)})\b")

_SEPARATORS = " \t\r\n.,-/|*~"
_LONGEST_SEPARATOR = 5
_LONGEST_FILLER = 40
_FILLERS = frozenset(
    _words(
        "um uh umm uhh er erm ah hmm and then dash hyphen space dot comma ok okay yes yeah yep sure so now next the"
        " rest last final first second other half part digits numbers of it is it's its are was that followed by again"
        " sorry wait finally starts begins ends with in plus after"
    )
)
_COUNTED = re.compile(r"[ -](?:digits?|numbers?|time)\b")
_ORDINAL = re.compile(r"\b(?:last|first|next|final|other)[ :]+$")


@dataclass(slots=True, repr=False)
class _Group:
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


def _groups(text: str, turn: int) -> Iterator[_Group]:
    tokens: list[_Token] = [(match[0], *match.span()) for match in _TOKEN.finditer(text)]
    at = floor = 0
    while at < len(tokens):
        word, start, end = tokens[at]
        if word[0] in "0123456789":
            digits, after = word, at + 1
        else:
            digits, after = _numeral(tokens, at, text)
            end = tokens[after - 1][2]
        if len(digits) <= 2 and digits and _is_a_count(text, start, end):
            digits = ""
        if digits:
            yield _Group(digits, word != digits, turn, start, end, floor, text[floor:start] if floor else None)
            floor = end
        at = after


def _is_a_count(text: str, start: int, end: int) -> bool:
    """'the last four are', 'three digits': how many, not which."""
    return bool(_COUNTED.match(text, end) or _ORDINAL.search(text[max(0, start - 8) : start]))


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


def _only_fillers(text: str) -> bool:
    words = text.replace(",", " ").replace(".", " ").replace("-", " ").replace(":", " ").replace("?", " ").split()
    return all(word in _FILLERS or word in _UNITS or word == "…" for word in words)


def _runs(turns: tuple[Turn, ...], texts: list[str]) -> list[list[_Group]]:
    """Groups that may belong to one number: near each other in a turn, or carried over to the speaker's next turn."""
    runs: list[list[_Group]] = []
    carried: dict[str, list[_Group]] = {}
    for at, text in enumerate(texts):
        run: list[_Group] | None = None
        for group in _groups(text, at):
            if run is not None and _joins(group.gap or ""):
                run.append(group)
                continue
            previous = carried.pop(turns[at].speaker, None) if run is None else None
            if previous and _carries_on(turns, texts, previous[-1], group):
                run = previous
                run.append(group)
            else:
                run = [group]
                runs.append(run)
        if run is not None:
            carried[turns[at].speaker] = run
    return runs


def _carries_on(turns: tuple[Turn, ...], texts: list[str], last: _Group, group: _Group) -> bool:
    return (
        turns[group.turn].start_ms - turns[last.turn].start_ms <= SPLIT_WITHIN_MS
        and len(texts[last.turn]) - last.end <= _LONGEST_FILLER
        and group.start <= _LONGEST_FILLER
        and _only_fillers(texts[last.turn][last.end :].strip("!)\"'"))
        and _only_fillers(texts[group.turn][: group.start].strip("(\"'"))
    )


# Runs to numbers

_CARD_WORD = (
    r"(?:credit|debit|bank|payment|my|your|the|new|other)? ?cards?\b|cc\b|visa\b|master ?card\b|amex\b"
    r"|american express\b|discover\b|diners\b|jcb\b|maestro\b|union ?pay\b|pan\b|credit\b|debit\b|cvv2?\b|cvc2?\b"
    r"|long number\b|number (?:on|across) the front\b"
)
_OTHER_WORD = (
    r"orders?\b|tracking\b|invoices?\b|inv\b|ref\b|refs\b|reference\b|(?<!in )case\b|tickets?\b|booking\b"
    r"|confirmation\b|shipments?\b|parcel\b|package\b|serial\b|s/n\b|imei\b|iccid\b|sim\b|sku\b|upc\b|ean\b|isbn\b|barcode\b"
    r"|gtin\b|policy\b|claim\b|transaction\b|trans\b|txn\b|iban\b|meter\b|uuid\b|ids?\b|token\b"
    r"|trace\b|request\b|po\b|coupon\b|voucher\b|licen[cs]e\b|part\b|model\b|waybill\b|consignment\b|tel\b|phone\b|fax\b"
    r"|mobile\b|epoch\b|timestamp\b|item\b|product\b|batch\b|rma\b|membership\b|loyalty\b|account\b(?= id)"
)
_CUE = re.compile(rf"\b(?:(?P<card>{_CARD_WORD})|(?P<other>{_OTHER_WORD}))")
_AFTER_CARD = re.compile(r"\W{0,6}(?:exp|expir|valid|good thru|cvv|cvc|security code)")
_CODE_WORD = (
    r"(?:cvv2?|cvc2?|cv2|cvn|csc|(?:card )?security (?:code|number|digits)"
    r"|card (?:verification|validation|identification) (?:code|value|number)"
    r"|(?:code|numbers?|digits?)(?: that(?:'s| is| are))? (?:on|from|at) the (?:back|reverse|signature)"
    r"|back of (?:the|my|your|her|his) card|signature strip)\b"
)
_CODE = re.compile(rf"\b{_CODE_WORD}|\bcid\b(?=.{{0,12}}$)")
_CODE_PERHAPS = re.compile(r"(?<!last )(?<!first )\b(?:three|3)[- ]digits?\b")
_CODE_AFTER = re.compile(rf"\)?[ ,]{{0,3}}(?:\(|is |was |for |as )(?:my |the |your |her |his )?{_CODE_WORD}")
_ONE_TIME = re.compile(
    r"\b(?:one[- ]time|otp|2fa|sms|texted|text message|sent|e-?mailed|authenticator|app"
    r"|door|gate|alarm|building|log ?in|sign ?in)\b"
)
_SSN = re.compile(r"\b(?:s\.? ?s\.? ?n\b|ss ?#|soc(?:ial)?\b(?! (?:media|network|worker|care|event|club)))")

_BREAK = re.compile(r"[\n:;,]")
_SENTENCE_END = re.compile(r"[.?!]\s")
_EXPIRY_AND_CODE = 8
_BEFORE = 60
_CODE_BEFORE = 45
_PREFACE = 40
_QUESTION = 140

_Number = tuple[FindingKind, str, _Group, _Group, float, str]


@dataclass(slots=True, repr=False)
class _Screen:
    """Looks for numbers in one run, with the words around it."""

    turns: tuple[Turn, ...]
    texts: list[str]
    run: list[_Group]
    _cards: list[tuple[int, int]] = field(default_factory=list)

    def numbers(self) -> Iterator[_Number]:
        if sum(len(group.digits) for group in self.run[:4]) < 3:
            return
        yield from self._card_numbers()
        for first, last in self._segments():
            ssns = list(self._ssns(first, last))
            yield from ssns
            if not ssns:
                yield from self._codes(first, last)

    # Cards

    def _card_numbers(self) -> Iterator[_Number]:
        groups = self.run
        digits = "".join(group.digits for group in groups)
        if len(digits) < SHORTEST_CARD:
            return
        edges = accumulate((len(group.digits) for group in groups), initial=0)
        at_edge = {edge: number for number, edge in enumerate(edges)}

        def confidence(span: Span) -> float:
            return self._card_confidence(at_edge[span[0]], at_edge[span[1]], digits[slice(*span)])

        def rank(span: Span) -> tuple[float, ...]:
            start, end = span
            return is_usual_length(digits[start:end]), confidences[span], end - start, -start

        confidences = {span: confidence(span) for span in card_spans(digits, at_edge)}
        plausible = [span for span, sure in confidences.items() if sure >= CARD_DOUBTFUL]
        for span in best_apart(plausible, rank):
            first, after = at_edge[span[0]], at_edge[span[1]]
            self._cards.append((first, after))
            card = digits[slice(*span)]
            yield FindingKind.CARD_NUMBER, card, groups[first], groups[after - 1], confidences[span], mask_card(card)

    def _card_confidence(self, first: int, after: int, card: str) -> float:
        groups = self.run[first:after]
        ordinary = is_usual_length(card) and self._is_written_like_a_card(first, after)
        text = self.texts[groups[-1].turn]
        cue = self._cue(groups[0])
        if _AFTER_CARD.match(text, groups[-1].end, groups[-1].end + 24):
            cue = "card"
        if cue != "card" and self._is_glued(groups[0], groups[-1]):
            cue = "other"
        if cue == "card":
            return CARD_NAMED if ordinary else CARD_ODD_NAMED
        if not ordinary:
            return CARD_DOUBTFUL if cue is None and self._stands_alone(card) else 0.0
        return CARD_BARE if cue is None else CARD_DOUBTFUL

    def _is_written_like_a_card(self, first: int, after: int) -> bool:
        """Grouped as people group card numbers, or said in words, which come in any grouping."""
        groups = self.run[first:after]
        sizes = [len(group.digits) for group in groups]
        if any(group.spoken for group in groups):
            return True
        if set(sizes) == {1}:
            return len(self.run) <= 2 * LONGEST_CARD or first == 0 or after == len(self.run)
        if set(sizes[:-1]) in ({2}, {3}):
            return len(groups) == len(self.run)
        return _is_usual_shape(sizes) or _is_usual_shape(_sizes_unbroken(groups))

    def _stands_alone(self, card: str) -> bool:
        """Whether the run is hardly longer than the number, and no telephone number: lists of numbers hit by chance."""
        sizes = [len(group.digits) for group in self.run[: 2 * LONGEST_CARD]]
        phone = any(sizes[at : at + 3] == [3, 3, 4] for at in range(len(sizes)))
        return sum(sizes) <= len(card) + _EXPIRY_AND_CODE and not phone

    def _is_glued(self, first: _Group, last: _Group) -> bool:
        """Part of a longer name: `ORD-4111...`, a URL, a UUID, the decimals of a number."""
        text = self.texts[first.turn]
        before = text[max(0, first.start - 2) : first.start]
        if len(before) == 2 and before[1] in "-/=.+@" and before[0].isalnum():
            return True
        if before[-1:] in ("=", "+", "@", "&"):
            return True
        after = self.texts[last.turn][last.end : last.end + 2]
        return len(after) == 2 and after[0] in "-/=@" and after[1].isalpha()

    def _cue(self, group: _Group) -> str | None:
        """The nearest word before the number that says what it is: 'card', 'other' or nothing."""
        head = self.run[0]
        if head.turn != group.turn or group.start - head.start > _BEFORE:
            head = group
        before = self.texts[head.turn][max(head.floor, head.start - _BEFORE) : head.start]
        cue = self._last_cue(before)
        if cue == "other" and group is not head and _BREAK.search(group.gap or ""):
            # 'this card for order 6384391: 4111 ...': the nearer word has had its number already.
            return "card" if any(match["card"] for match in _CUE.finditer(before)) else None
        return cue or self._last_cue(self._question(head))

    @staticmethod
    def _last_cue(text: str) -> str | None:
        """A word for another number counts only in the sentence that it is in."""
        last = next(reversed(list(_CUE.finditer(text))), None)
        if last is None or (last.lastgroup == "other" and _SENTENCE_END.search(text, last.end())):
            return None
        return last.lastgroup

    def _question(self, group: _Group) -> str:
        """What the other side said last before a turn that begins with this number; else nothing."""
        if group.start > _PREFACE or group.floor:
            return ""
        speaker, parts, asked = self.turns[group.turn].speaker, [], False
        for at in range(group.turn - 1, max(-1, group.turn - 5), -1):
            turn = self.turns[at]
            if self.turns[group.turn].start_ms - turn.start_ms > SPLIT_WITHIN_MS:
                break
            if turn.speaker == speaker:
                if asked or _TOKEN.search(self.texts[at], max(0, len(self.texts[at]) - _QUESTION)):
                    break
                continue
            asked = True
            parts.append(self.texts[at][-_QUESTION:])
        return " ".join(reversed(parts))

    # What is left beside the cards

    def _segments(self) -> Iterator[tuple[int, int]]:
        start = 0
        for first, after in [*self._cards, (len(self.run), len(self.run))]:
            if start < first:
                yield start, first
            start = after

    def _parts(self, first: int, after: int) -> Iterator[tuple[int, int]]:
        """Parted where a turn ends or the words announce other digits ('... and the three digits are ...')."""
        start = first
        for at in range(first + 1, after + 1):
            if at == after or self.run[at].gap is None or "digit" in (self.run[at].gap or ""):
                yield start, at
                start = at

    # Social security numbers

    def _ssns(self, first: int, after: int) -> Iterator[_Number]:
        parts = list(self._parts(first, after))
        whole = parts if len(parts) == 1 else [*parts, (first, after)]
        spans = dict.fromkeys(
            [
                *((at, at + 3) for at in range(first, after - 2) if self._is_written_like_an_ssn(at)),
                *((at, at + 1) for at in range(first, after) if len(self.run[at].digits) == 9),
                *(part for part in whole if self._count(*part) == 9),
            ]
        )
        for start, end in spans:
            digits = "".join(group.digits for group in self.run[start:end])
            confidence = self._ssn_confidence(start, end) if ssn_ok(digits) else 0.0
            if confidence:
                yield (
                    FindingKind.GOVERNMENT_ID,
                    digits,
                    self.run[start],
                    self.run[end - 1],
                    confidence,
                    mask_all(digits),
                )

    def _count(self, first: int, after: int) -> int:
        """How many digits; 10 stands for any number above 9."""
        total = 0
        for group in self.run[first:after][:10]:
            total += len(group.digits)
        return min(total, 10)

    def _is_written_like_an_ssn(self, at: int) -> bool:
        groups = self.run[at : at + 3]
        if [len(group.digits) for group in groups] != [3, 2, 4]:
            return False
        gap = groups[1].gap
        if gap is None or gap != groups[2].gap or gap.strip() not in ("", "-", "."):
            return False
        before = self.texts[groups[0].turn][max(0, groups[0].start - 1) : groups[0].start]
        following = self.texts[groups[2].turn][groups[2].end : groups[2].end + 2]
        glued_after = len(following) == 2 and following[0] in "-." and following[1].isalnum()
        return before not in ("-", ".", "/", "+") and not glued_after

    def _ssn_confidence(self, first: int, after: int) -> float:
        """0.0: nothing says that it is one."""
        group = self.run[first]
        text = self.texts[group.turn]
        before = text[max(group.floor, group.start - _BEFORE) : group.start]
        if _SSN.search(before):
            return SSN_NAMED
        other = self._last_cue(before) == "other"
        if not other and _SSN.search(self._question(group)):
            return SSN_NAMED
        if after - first != 3 or not self._is_written_like_an_ssn(first):
            return 0.0
        dashed = "-" in (self.run[first + 1].gap or "")
        if other:
            return SSN_DOUBTFUL if dashed else 0.0
        return SSN_WRITTEN if dashed else SSN_DOUBTFUL

    # Verification codes

    def _codes(self, first: int, after: int) -> Iterator[_Number]:
        for start, end in self._parts(first, after):
            if 3 <= len(self.run[start].digits) <= 4:
                code_end = start + 1
            elif 3 <= self._count(start, end) <= 4:
                code_end = end
            else:
                code_end = start
            confidence = self._code_confidence(start, code_end) if code_end > start else 0.0
            if not confidence and start == first:
                start, code_end, confidence = self._code_after_card(first, end)
            if confidence:
                digits = "".join(group.digits for group in self.run[start:code_end])
                groups = self.run[start], self.run[code_end - 1]
                yield FindingKind.CARD_VERIFICATION_CODE, digits, *groups, confidence, mask_all(digits)

    def _code_confidence(self, first: int, after: int) -> float:
        group, last = self.run[first], self.run[after - 1]
        text = self.texts[group.turn]
        before = text[max(group.floor, group.start - _CODE_BEFORE) : group.start]
        confidence = 0.0
        if _CODE.search(before) or _CODE_AFTER.match(self.texts[last.turn], last.end, last.end + 50):
            confidence = CODE_NAMED
        elif _CODE_PERHAPS.search(before):
            confidence = CODE_DOUBTFUL
        elif not self._last_cue(before):
            question = self._question(group)
            if _CODE.search(question):
                confidence, before = CODE_ASKED, question
        if confidence and "card" not in before and not _CODE_IS_CARDS.search(before):
            around = before + text[last.end : last.end + _CODE_BEFORE]
            if _ONE_TIME.search(around):
                return 0.0
        return confidence

    def _code_after_card(self, first: int, after: int) -> tuple[int, int, float]:
        """A code right behind a card number (and its expiry date) in the same message, as in `4111... 12/27 123`."""
        card = next((self.run[a:b] for a, b in self._cards if b == first), None)
        if card is None or card[-1].turn != self.run[first].turn:
            return first, first, 0.0
        sizes = [len(group.digits) for group in self.run[first:after]]
        at = first
        if looks_like_expiry(self.run[at].digits) and len(sizes) > 1:
            at += 1
        elif len(sizes) > 2 and sizes[0] <= 2 and sizes[1] in (2, 4) and 1 <= int(self.run[at].digits) <= 12:
            at += 2
        length = 4 if iin_brand("".join(group.digits for group in card)) == "American Express" else 3
        if at < after and len(self.run[at].digits) == length:
            return at, at + 1, CODE_AFTER_CARD if at > first else CODE_DOUBTFUL
        return first, first, 0.0


def _sizes_unbroken(groups: list[_Group]) -> list[int]:
    """The sizes of the groups, were a line or a message not to end in the middle of one."""
    sizes: list[int] = []
    for group in groups:
        if sizes and (group.gap is None or "\n" in group.gap):
            sizes[-1] += len(group.digits)
        else:
            sizes.append(len(group.digits))
    return sizes


def _is_usual_shape(sizes: list[int]) -> bool:
    return min(sizes[:-1], default=4) >= 4 or (len(sizes) <= 4 and sum(sizes) >= 4 * len(sizes))


_CODE_IS_CARDS = re.compile(r"\b(?:cvv2?|cvc2?|cv2|csc|back|signature)\b")
