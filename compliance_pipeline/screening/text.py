"""Card numbers, codes, identifiers, accounts, telephone numbers and addresses in chats, mails and transcripts.

Pure, linear time. Reading the media belongs to `transcripts`; the arithmetic of card numbers belongs to `numbers`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate

from compliance_pipeline.contracts.policy import Detector, FindingKind
from compliance_pipeline.screening.findings import Finding
from compliance_pipeline.screening.fingerprint import Fingerprint
from compliance_pipeline.screening.identifiers import Identifier, digit_identifiers, lettered_identifiers
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
from compliance_pipeline.screening.text_contacts import emails, phones
from compliance_pipeline.screening.text_context import BEFORE, Conversation, is_called_other, last_cue, names_card
from compliance_pipeline.screening.text_numerals import Group, at_word_start, is_correction, read
from compliance_pipeline.screening.transcripts import Transcript

# Confidence. Above 0.75-0.8 the default policy accuses, below it asks for review. Engineering values, held against
# the reliability table of benchmarks/text.py (generated messages); not calibrated on real traffic.
CARD_NAMED, CARD_GROUPED, CARD_BARE, CARD_CORRECTED, CARD_ODD_NAMED, CARD_DOUBTFUL = 0.98, 0.97, 0.93, 0.9, 0.85, 0.5
CARD_GROUPED_DOUBTFUL = 0.65
CODE_NAMED, CODE_ASKED, CODE_AFTER_CARD, CODE_DOUBTFUL = 0.95, 0.9, 0.8, 0.55
PIN_OF_CARD, PIN_NAMED = 0.95, 0.85
SSN_NAMED, SSN_WRITTEN, SSN_DOUBTFUL = 0.98, 0.8, 0.5


def screen_text(transcript: Transcript, fingerprint: Fingerprint | None = None) -> list[Finding]:
    """What the transcript gives away, in order; a number said again, by whomever, is the same finding.

    start_ms and end_ms: from the start of the turn in which the number begins to the end of the turn in which it ends
    (its start, where the end is not known). Card numbers show BIN and last four, nothing else shows a digit.
    """
    turns = transcript.turns
    reading = read(turns)
    mails = [turn for turn, text in enumerate(reading.texts) if "@" in text or " dot " in text]
    if not (reading.runs or reading.dense or mails):
        return []
    conversation = Conversation(turns, reading.texts)
    found: dict[tuple[FindingKind, str], Identifier] = {}
    taken: dict[int, list[Span]] = {}
    for number in _lettered(conversation, reading.dense, mails):
        for turn in range(number.turn, number.last_turn + 1):
            if turns[turn].speaker == turns[number.turn].speaker:
                start = number.start if turn == number.turn else 0
                end = number.end if turn == number.last_turn else len(reading.texts[turn])
                taken.setdefault(turn, []).append((start, end))
        _keep(found, number)
    for run in reading.runs:
        if (len(run) > 1 or len(run[0].digits) > 2) and not _lies_within(run, taken.get(run[0].turn)):
            for number in _Screen(conversation, run).numbers():
                spans = taken.get(number.turn)
                if spans is None or not any(start < number.end and number.start < end for start, end in spans):
                    _keep(found, number)
    ordered = sorted(found.values(), key=lambda number: (number.turn, number.start))
    return [_finding(number, conversation, fingerprint) for number in ordered]


def _lies_within(run: list[Group], spans: list[Span] | None) -> bool:
    """Whether all of a run is part of an identifier that was found."""
    head, last = run[0], run[-1]
    return bool(spans) and head.turn == last.turn and any(a <= head.start and last.end <= b for a, b in spans or ())


def _lettered(conversation: Conversation, dense: list[int], mails: list[int]) -> Iterator[Identifier]:
    for turn in mails:
        for start, end, address, confidence in emails(conversation.texts[turn]):
            yield Identifier(FindingKind.EMAIL_ADDRESS, address, turn, start, turn, end, confidence)
    yield from lettered_identifiers(conversation, dense)


def _keep(found: dict[tuple[FindingKind, str], Identifier], number: Identifier) -> None:
    known = found.get((number.kind, number.value))
    if known is None or number.confidence > known.confidence:
        found[number.kind, number.value] = number


def _finding(number: Identifier, conversation: Conversation, fingerprint: Fingerprint | None) -> Finding:
    first, last = conversation.turns[number.turn], conversation.turns[number.last_turn]
    return Finding(
        number.kind,
        Detector.TEXT,
        first.speaker,
        first.start_ms,
        max(first.start_ms, last.start_ms if last.end_ms is None else last.end_ms),
        number.confidence,
        _masked(number),
        fingerprint(number.kind, number.value) if fingerprint else None,
    )


def _masked(number: Identifier) -> str:
    if number.kind is FindingKind.CARD_NUMBER:
        return mask_card(number.value)
    if number.kind is FindingKind.EMAIL_ADDRESS:
        return "***@***"
    return "***" if number.kind is FindingKind.PHONE_NUMBER else mask_all(number.value)


# Runs to numbers

_AFTER_CARD = re.compile(r"\W{0,6}(?:exp|expir|valid|good thru|cvv|cvc|security code)")
_CODE_WORDS = (
    *(r"cvv2?\b", r"cvc2?\b", r"cv2\b", r"cvn\b", r"csc\b", r"signature strip\b"),
    r"card security (?:code|number|digits)\b",
    r"security (?:code|number|digits)\b",
    r"card (?:verification|validation|identification) (?:code|value|number)\b",
    *(
        rf"{word}(?: that(?:'s| is| are))? (?:on|from|at) the "
        r"(?:reverse|signature|back(?! of (?:the|my|your|a) (?!(?:\w+ )?card)))\b"
        for word in ("code", "numbers?", "digits?")
    ),
    r"back of (?:the|my|your|her|his) card\b",
)
_CODE = re.compile(at_word_start([*_CODE_WORDS, r"cid\b(?=.{0,12}$)"]))
_CODE_PERHAPS = re.compile(r"(?<!last )(?<!first )\b(?:three|3)[- ]digits?\b")
_CODE_AFTER = re.compile(
    rf"\)?[ ,]{{0,3}}(?:\(|is |was |for |as )(?:my |the |your |her |his )?(?:{'|'.join(_CODE_WORDS)})"
)
_ONE_TIME = re.compile(
    r"\b(?:one[- ]time|otp|2fa|sms|texted|text message|sent|e-?mailed|authenticator|app"
    r"|door|gate|alarm|building|log ?in|sign ?in)\b"
)
_PIN = re.compile(
    at_word_start(
        [
            r"pin(?: ?(?:code|number|no))?\b(?! (?:code )?(?:drop|point|board|up|down|it|the|that))",
            r"personal identification number",
            r"card(?:'s)? (?:pass ?code|pin)\b",
            *(
                rf"{word} code(?: (?:for|of|on) (?:the|my|your|her|his) (?:\w+ )?card|\b(?=.{{0,12}}\bcard))"
                for word in ("pass", "secret", "atm")
            ),
            r"passcode(?: (?:for|of|on) (?:the|my|your|her|his) (?:\w+ )?card|\b(?=.{0,12}\bcard))",
        ]
    )
)
_PIN_AFTER = re.compile(r"\)?[ ,]{0,3}(?:\(|is |was |as )(?:my |the |your |her |his )?(?:\w{1,8} ){0,2}pin\b")
_OTHER_PIN = re.compile(
    r"\b(?:sim|puk|door|gate|alarm|building|garage|entry|lock(?:er|box)?|safe|phone|tablet|laptop|voice ?mail|wi-?fi"
    r"|router|bluetooth|pair(?:ing)?|windows|app|portal|meeting|conference|zoom|teams|one[- ]time|otp|texted|sms"
    r"|parental|tv|address|city|village|post(?:al)?|district|state|delivery|parcel|pick ?up|order|connector)\b"
)
_OF_CARD = re.compile(r"\b(?:cards?|debit|credit|bank|atm|cash ?point|chip|visa|mastercard|account)\b")
_SENTENCE = re.compile(r"[.?!]\s")
_SSN = re.compile(r"\b(?:s\.? ?s\.? ?n\b|ss ?#|soc(?:ial)?\b(?! (?:media|network|worker|care|event|club|insurance)))")

_BREAK = re.compile(r"[\n:;,]")
_EXPIRY_AND_CODE, _SSN_DIGITS = 8, 9
_CODE_BEFORE = 45
_LONGEST_CORRECTED = 60
_MOST_CORRECTIONS = 3


@dataclass(slots=True, repr=False)
class _Screen:
    """Looks for numbers in one run, with the words around it."""

    conversation: Conversation
    run: list[Group]
    _cards: list[Span] = field(default_factory=list)

    @property
    def texts(self) -> list[str]:
        return self.conversation.texts

    def numbers(self) -> Iterator[Identifier]:
        if sum(len(group.digits) for group in self.run[:4]) < 3:
            return
        cards = list(self._card_numbers())
        whole = any(number.start == self.run[0].start and is_usual_length(number.value) for number in cards)
        if not whole and (corrected := list(self._corrected_cards())):
            cards = corrected
        yield from cards
        for first, last in self._segments():
            others = list(self._others(first, last))
            yield from others
            if not others:
                yield from self._codes(first, last)

    def _number(self, kind: FindingKind, first: int, after: int, confidence: float, value: str = "") -> Identifier:
        head, last = self.run[first], self.run[after - 1]
        value = value or "".join(group.digits for group in self.run[first:after])
        end = last.end if last.turn == head.turn else len(self.texts[head.turn])
        return Identifier(kind, value, head.turn, head.start, last.turn, end, confidence)

    def _others(self, first: int, last: int) -> Iterator[Identifier]:
        """Social security numbers, then other identifiers, then telephone numbers."""
        if self._count(first, last) < 7:
            return
        ssns = list(self._ssns(first, last)) if self._count(first, last) >= _SSN_DIGITS else []
        yield from ssns
        if ssns:
            return
        claimed: list[Span] = []
        for start, end, kind, value, confidence in digit_identifiers(self.run, first, last, self.conversation):
            claimed.append((start, end))
            yield self._number(kind, start, end, confidence, value)
        for start, end, value, confidence in phones(self.run, first, last, self.conversation):
            if not any(begin < end and start < after for begin, after in claimed):
                yield self._number(FindingKind.PHONE_NUMBER, start, end, confidence, value)

    # Cards

    def _card_numbers(self) -> Iterator[Identifier]:
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
            yield self._number(FindingKind.CARD_NUMBER, first, after, confidences[span])

    def _corrected_cards(self) -> Iterator[Identifier]:
        """A card number that verifies once what was taken back, or said back, is left out."""
        digits = sum(len(group.digits) for group in self.run)
        if digits <= SHORTEST_CARD or not 1 < len(self.run) <= _LONGEST_CORRECTED:
            return
        for kept in self._amended():
            for card in _Screen(self.conversation, kept)._card_numbers():
                if is_usual_length(card.value) and (card.start == kept[0].start or card.end == kept[-1].end):
                    self._cards[:] = [(0, len(self.run))]
                    yield card._replace(confidence=min(card.confidence, CARD_CORRECTED))
                    return

    def _amended(self) -> Iterator[list[Group]]:
        """The run without the groups that a correction replaces (as many digits as follow it, or fewer), or without
        turns that repeat the one before, or all before, as who reads back does."""
        at_turn: list[list[Group]] = []
        for group in self.run:
            if not at_turn or at_turn[-1][-1].turn != group.turn:
                at_turn.append([])
            at_turn[-1].append(group)
        kept: list[Group] = []
        before = ""
        for groups in at_turn:
            digits = "".join(group.digits for group in groups)
            if digits not in (before, "".join(group.digits for group in kept)):
                kept += groups
            before = digits
        if len(kept) < len(self.run):
            yield kept
        corrected = [at for at in range(1, len(self.run)) if is_correction(self._gap(at))][:_MOST_CORRECTIONS]
        if corrected:
            yield from self._replaced(corrected, self.run)

    def _replaced(self, corrected: list[int], run: list[Group]) -> Iterator[list[Group]]:
        *earlier, at = corrected
        stop = at - (earlier[-1] if earlier else 0)
        for count in range(1, min(4, stop) + 1):
            shorter = run[: at - count] + run[at:]
            if earlier:
                yield from self._replaced(earlier, shorter)
            else:
                yield shorter

    def _gap(self, at: int) -> str:
        """The words before a group, since the group before it in the turn."""
        group = self.run[at]
        return self.texts[group.turn][: group.start] if group.gap is None else group.gap

    def _card_confidence(self, first: int, after: int, card: str) -> float:
        groups = self.run[first:after]
        ordinary = is_usual_length(card) and self._is_written_like_a_card(first, after)
        text = self.texts[groups[-1].turn]
        gaps = {group.gap for group in groups[2:]}
        if len(groups) > 1 and groups[1].gap == "." and len(groups[0].digits) <= 3 and gaps != {"."}:
            return 0.0  # a decimal number
        cue = self._cue(groups[0])
        if _AFTER_CARD.match(text, groups[-1].end, groups[-1].end + 24):
            cue = "card"
        if cue != "card" and (self._is_glued(groups[0], groups[-1]) or is_called_other(text, groups[-1].end)):
            cue = "other"
        if cue == "card":
            return CARD_NAMED if ordinary else CARD_ODD_NAMED
        if not ordinary:
            spoken = any(group.spoken for group in groups)
            if not spoken and max(len(group.digits) for group in groups) < 3:
                return 0.0  # a list of small numbers
            return CARD_DOUBTFUL if cue is None and self._stands_alone(card) else 0.0
        if cue == "other" or self._is_in_a_list(first, after):
            return CARD_DOUBTFUL if len(groups) == 1 else CARD_GROUPED_DOUBTFUL
        return CARD_GROUPED if len(groups) > 1 else CARD_BARE

    def _is_written_like_a_card(self, first: int, after: int) -> bool:
        """Grouped as people group card numbers, or said in words, which come in any grouping."""
        groups = self.run[first:after]
        sizes = [len(group.digits) for group in groups]
        if any(group.spoken for group in groups):
            return True
        if set(sizes) == {1}:
            return len(self.run) <= 2 * LONGEST_CARD or first == 0 or after == len(self.run)
        if set(sizes[:-1]) in ({2}, {3}):
            return len(groups) == len(self.run) and len({group.gap for group in groups[1:]}) == 1
        return _is_usual_shape(sizes) or _is_usual_shape(_sizes_unbroken(groups))

    def _is_in_a_list(self, first: int, after: int) -> bool:
        """'4176, 4177, 4185, 4187, 4189': a comma parts the number's groups, and more of their size go on around it."""
        groups = self.run[first:after]
        gap = groups[1].gap if len(groups) > 1 else None
        if not gap or "," not in gap or groups[0].spoken:
            return False
        size = len(groups[0].digits)
        before = first > 0 and groups[0].gap == gap and len(self.run[first - 1].digits) == size
        behind = self.run[after : after + 1]
        return before or any(group.gap == gap and len(group.digits) == size for group in behind)

    def _stands_alone(self, card: str) -> bool:
        """Whether the run is hardly longer than the number, and no telephone number: lists of numbers hit by chance."""
        sizes = [len(group.digits) for group in self.run[: 2 * LONGEST_CARD]]
        phone = any(sizes[at : at + 3] == [3, 3, 4] for at in range(len(sizes)))
        return sum(sizes) <= len(card) + _EXPIRY_AND_CODE and not phone

    def _is_glued(self, first: Group, last: Group) -> bool:
        """Part of a longer name: `ORD-4111...`, a URL, a UUID, the decimals of a number."""
        text = self.texts[first.turn]
        before = text[max(0, first.start - 2) : first.start]
        if len(before) == 2 and before[1] in "-/=.+@" and before[0].isalnum():
            return True
        if before[-1:] in ("=", "+", "@", "&"):
            return True
        after = self.texts[last.turn][last.end : last.end + 2]
        return len(after) == 2 and after[0] in "-/=@" and after[1].isalpha()

    def _cue(self, group: Group) -> str | None:
        """The nearest word before the number that says what it is: 'card', 'other' or nothing."""
        head = self.run[0]
        if head.turn != group.turn or group.start - head.start > BEFORE:
            head = group
        before = self.conversation.before(head.turn, head.start, head.floor)
        cue = last_cue(before)
        if cue == "other" and group is not head and _BREAK.search(group.gap or ""):
            # 'this card for order 6384391: 4111 ...': the nearer word has had its number already.
            return "card" if names_card(before) else None
        return cue or last_cue(self._question(head))

    def _question(self, group: Group) -> str:
        return self.conversation.question(group.turn, group.start, group.floor)

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

    def _ssns(self, first: int, after: int) -> Iterator[Identifier]:
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
                yield self._number(FindingKind.GOVERNMENT_ID, start, end, confidence)

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
        before = self.conversation.before(group.turn, group.start, group.floor)
        if _SSN.search(before):
            return SSN_NAMED
        last = self.run[after - 1]
        other = last_cue(before) == "other" or is_called_other(self.texts[last.turn], last.end)
        if not other and _SSN.search(self._question(group)):
            return SSN_NAMED
        if after - first != 3 or not self._is_written_like_an_ssn(first):
            return 0.0
        dashed = "-" in (self.run[first + 1].gap or "")
        if other:
            return SSN_DOUBTFUL if dashed else 0.0
        return SSN_WRITTEN if dashed else SSN_DOUBTFUL

    # Verification codes

    def _codes(self, first: int, after: int) -> Iterator[Identifier]:
        for start, end in self._parts(first, after):
            code_end = self._code_end(start, end, 3, 4)
            confidence = self._code_confidence(start, code_end) if code_end > start else 0.0
            if not confidence and start == first:
                start, code_end, confidence = self._code_after_card(first, end)
            if confidence:
                yield self._number(FindingKind.CARD_VERIFICATION_CODE, start, code_end, confidence)
                continue
            code_end = self._code_end(start, end, 4, 6)
            if code_end > start and (confidence := self._pin_confidence(start, code_end)):
                yield self._number(FindingKind.CARD_PIN, start, code_end, confidence)

    def _code_end(self, start: int, end: int, shortest: int, longest: int) -> int:
        """After the groups from `start` that are as long as a code: the first alone, or all."""
        if shortest <= len(self.run[start].digits) <= longest:
            return start + 1
        return end if shortest <= self._count(start, end) <= longest else start

    def _pin_confidence(self, first: int, after: int) -> float:
        group, last = self.run[first], self.run[after - 1]
        text = self.texts[group.turn]
        before = text[max(group.floor, group.start - _CODE_BEFORE) : group.start]
        named = _PIN.search(before) or _PIN_AFTER.match(text, last.end, last.end + 40)
        asked = not named
        if not named:
            before = self._question(group)
            named = _PIN.search(before)
        if not named or last_cue(before[before.rfind("pin") + 3 :]) == "other":
            return 0.0
        sentence = _SENTENCE.split(text[max(0, group.start - 2 * _CODE_BEFORE) : group.start])[-1]
        around = f"{sentence} {before if asked else ''} {text[last.end : last.end + 30]}"
        if _OTHER_PIN.search(around) or text[last.end : last.end + 1] == "%":
            return 0.0
        return PIN_OF_CARD if _OF_CARD.search(around) else PIN_NAMED

    def _code_confidence(self, first: int, after: int) -> float:
        group, last = self.run[first], self.run[after - 1]
        text = self.texts[group.turn]
        before = text[max(group.floor, group.start - _CODE_BEFORE) : group.start]
        confidence = 0.0
        if _CODE.search(before) or _CODE_AFTER.match(self.texts[last.turn], last.end, last.end + 50):
            confidence = CODE_NAMED
        elif _CODE_PERHAPS.search(before):
            confidence = CODE_DOUBTFUL
        elif _CODE.search(question := self._question(group)) and not last_cue(before):
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


def _sizes_unbroken(groups: list[Group]) -> list[int]:
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
