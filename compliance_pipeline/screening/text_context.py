"""What the words around a number say that it is: the turn before it, the question that it answers. Pure.

Which numbers there are belongs to `text_numerals`; what follows from the words belongs to the detectors.
"""

import re
from dataclasses import dataclass

from compliance_pipeline.screening.text_numerals import SPLIT_WITHIN_MS, at_word_start
from compliance_pipeline.screening.transcripts import Turn

_CARD_WORDS = (
    *(r"cards?\b", r"cc\b", r"visa\b", r"master ?card\b", r"amex\b", r"american express\b", r"discover\b"),
    *(r"diners\b", r"jcb\b", r"maestro\b", r"union ?pay\b", r"pan\b", r"credit\b", r"debit\b", r"cvv2?\b", r"cvc2?\b"),
    *(r"long number\b", r"number (?:on|across) the front\b"),
)
_OTHER_PLAIN = (
    "orders? ord tracking invoices? inv refs? reference tickets? booking confirmation shipments? parcel package serial"
    " imei iccid sim sku upc ean isbn barcode gtin policy claim transaction trans txn iban meter uuid ids? token trace"
    " request po coupon voucher licen[cs]e part model waybill consignment tel phone fax mobile epoch timestamp item"
    " product batch rma membership loyalty receipt quote job return label box log session message error meeting zoom"
    " webinar conference"
)
_NOT_BANK = (
    "gift loyalty library sim sd membership rewards? points club travel id business memory graphics boarding phone"
)
_OTHER_WORDS = (
    *(rf"{word}\b" for word in _OTHER_PLAIN.split()),
    *(rf"{word}[ -]cards?\b" for word in _NOT_BANK.split()),
    *(r"case(?<!in case)\b", r"s/n\b", r"account(?= id)\b"),
)
_CUE = re.compile(at_word_start([*_CARD_WORDS, *_OTHER_WORDS]))
_CARD = re.compile("|".join(_CARD_WORDS))
_OTHER_BEHIND = re.compile(
    r"\W{0,4}(?:(?:is|was|as|in|on|from|for|it's) )?(?:(?:my|the|your|a|an|our|its|this) )?"
    rf"(?:\w{{1,12}} )?{at_word_start(_OTHER_WORDS)}"
)
_ANOTHER_THING = re.compile(
    r"[.?!]\s|\b(?:with|using|onto|to|(?:transaction|charge|payment|purchase|paid|bought)s? (?:\w+ )?(?:on|from)) $"
)
"""'Order 48213. ...', 'the invoice was paid with ...': the word doesn't name the number that follows."""
BEFORE = 48
_PREFACE = 40
_QUESTION = 140
_ANY_DIGIT = re.compile(r"\b[0-9]")


def last_cue(text: str) -> str | None:
    """'card' or 'other', whichever is named last. A word for another number counts only in its own sentence."""
    last = None
    for last in _CUE.finditer(text):  # noqa: B007
        pass
    if last is None:
        return None
    if _CARD.match(last[0]):
        return "card"
    return None if _ANOTHER_THING.search(text, last.start()) else "other"


def names_card(text: str) -> bool:
    """Whether a card is named anywhere in the text."""
    return any(_CARD.match(match[0]) for match in _CUE.finditer(text))


def is_called_other(text: str, end: int) -> bool:
    """Whether the words right behind `end` name another number ('4111... is my order number')."""
    return bool(_OTHER_BEHIND.match(text, end, end + 50))


@dataclass(slots=True, repr=False)
class Conversation:
    """The turns and their normalised texts."""

    turns: tuple[Turn, ...]
    texts: list[str]

    def before(self, turn: int, start: int, floor: int = 0, width: int = BEFORE) -> str:
        """The words before an offset in a turn, back to `floor`."""
        return self.texts[turn][max(floor, start - width) : start]

    def question(self, turn: int, start: int, floor: int = 0) -> str:
        """What the other side said last before a turn that begins with the number at `start`; else nothing."""
        if start > _PREFACE or floor:
            return ""
        speaker, parts, asked = self.turns[turn].speaker, [], False
        for at in range(turn - 1, max(-1, turn - 5), -1):
            earlier = self.turns[at]
            if self.turns[turn].start_ms - earlier.start_ms > SPLIT_WITHIN_MS:
                break
            if earlier.speaker == speaker:
                if asked or _ANY_DIGIT.search(self.texts[at], max(0, len(self.texts[at]) - _QUESTION)):
                    break
                continue
            asked = True
            parts.append(self.texts[at][-_QUESTION:])
        return " ".join(reversed(parts))
