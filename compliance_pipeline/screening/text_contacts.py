"""Telephone numbers and e-mail addresses in text. Pure; `phonenumbers` is asked about likely numbers only.

Which digits stand together belongs to `text_numerals`.
"""

import re
from collections.abc import Iterator, Sequence

from compliance_pipeline.screening.text_context import Conversation, is_called_other, last_cue
from compliance_pipeline.screening.text_numerals import Group

# Confidence, from the reliability table of benchmarks/text.py.
EMAIL, EMAIL_SAID = 0.98, 0.9
PHONE_INTERNATIONAL, PHONE_NAMED, PHONE_SHAPED, PHONE_DOUBTFUL = 0.98, 0.96, 0.93, 0.5

_LOCAL = "abcdefghijklmnopqrstuvwxyz0123456789.!#$%&'*+/=?^`{|}~-"
_DOMAIN = re.compile(r"@((?:[a-z0-9][a-z0-9-]{0,62}\.){1,8}([a-z]{2,24}))(?![a-z0-9-])")
_SAID = re.compile(
    r"\b(?P<local>[a-z0-9]{1,30}(?: (?:dot|underscore|dash|hyphen) [a-z0-9]{1,30}){0,3}) (?:at|\(at\)|\[at\]) "
    r"(?P<domain>[a-z0-9-]{1,40}(?: (?:dot|\(dot\)|\[dot\]) [a-z0-9-]{1,40}){0,2}) (?:dot|\(dot\)|\[dot\]) "
    r"(?P<top>com|org|net|edu|gov|info|io|co|uk|de|fr|es|it|nl|be|ch|at|eu|ca|au|ie|us|in|br|pl|se)\b"
)
_FILES = frozenset(
    ["png", "jpg", "jpeg", "gif", "svg", "webp", "pdf", "txt", "csv", "json", "html", "py", "zip", "mp3"]
)


def emails(text: str) -> Iterator[tuple[int, int, str, float]]:
    """(start, end, address, confidence) of each address in normalised text, spelled ('jane dot doe at ...') too."""
    if "@" in text:
        for match in _DOMAIN.finditer(text):
            head = text[max(0, match.start() - 64) : match.start()]
            local = head[len(head.rstrip(_LOCAL)) :].lstrip(".'-*/=|~`")
            if local and not local.endswith(".") and match[2] not in _FILES:
                yield match.start() - len(local), match.end(), f"{local}@{match[1]}", EMAIL
    if " dot " in text or "dot)" in text or "dot]" in text:
        for match in _SAID.finditer(text):
            address = f"{match['local']}@{match['domain']}.{match['top']}"
            address = re.sub(r" [(\[]?dot[)\]]? ", ".", address).replace(" underscore ", "-")
            yield *match.span(), re.sub(r" (?:dash|hyphen) ", "-", address), EMAIL_SAID


_WHOSE_NUMBER = "(?:my|your|his|her|best|daytime|work|home|office|callback|contact) number"
_PHONE_WORD = re.compile(
    r"\b(?:tele?phone|phone|tel|mobile|mob|cell(?:phone)?|ring|dial|sms|fax|whats ?app|text me|landline|hotline|handy"
    r"|telefon|tel[ée]fono|t[ée]l[ée]phone|call(?: me| us| him| her| back)?|reach (?:me|us|him|her)"
    rf"|{_WHOSE_NUMBER})\b"
)
_PHONE_BEHIND = re.compile(
    r"\W{0,4}(?:is |was )?(?:\(?(?:my|the|your|his|her|a|our) )?"
    r"(?:\w{1,10} )?(?:phone|mobile|cell|tel|telephone|landline|fax|whatsapp|callback)\b"
)
_TIGHT = " ()-./\u2011"
_DATES = ((4, 2, 2), (2, 2, 4), (1, 2, 4), (2, 1, 4), (1, 1, 4))
_WITH_TRUNK = ("GB", "DE", "FR", "AU", "NL", "IE", "CH", "AT", "BE", "SE", "IT", "IN", "IL", "JP", "NZ", "ZA")
_WITHOUT_TRUNK = {
    8: ("NO", "DK", "SG", "HK"),
    9: ("ES", "PL", "PT"),
    10: ("US", "IN", "MX", "BR", "IT"),
    11: ("US", "BR", "CN"),
}
_SHAPES: dict[tuple[int, ...], str] = {
    (3, 3, 4): "US",
    (1, 3, 3, 4): "US",
    (2, 2, 2, 2, 2): "FR",
    (3, 4, 4): "GB",
    (5, 6): "GB",
    (5, 3, 3): "GB",
    (4, 3, 4): "GB",
    (5, 5): "GB",
    (4, 3, 3): "AU",
    (3, 8): "DE",
    (4, 7): "DE",
    (4, 6): "DE",
}
"""How people in a country write their numbers: enough without a word such as 'phone'."""


def phones(
    run: Sequence[Group], first: int, after: int, conversation: Conversation
) -> Iterator[tuple[int, int, str, float]]:
    """(first group, after the last, E.164 number, confidence) of each telephone number among the groups of a run."""
    start = first
    while start < after:
        end, digits = start + 1, len(run[start].digits)
        while end < after and _is_tight(run[end], run[end - 1], run[start].spoken) and digits <= 24:
            digits += len(run[end].digits)
            end += 1
        if 7 <= digits <= 24:
            yield from _in_chunk(run, start, end, conversation)
        start = end


def _is_tight(group: Group, before: Group, spoken: bool) -> bool:
    if spoken and group.spoken:
        return True
    gap = group.gap
    if gap is None:
        return before.spoken or len(before.digits) <= 6
    return len(gap) <= 3 and not gap.strip(_TIGHT)


def _in_chunk(
    run: Sequence[Group], start: int, end: int, conversation: Conversation
) -> Iterator[tuple[int, int, str, float]]:
    """One number as a rule; several, apart by a space, where their shapes say so."""
    if found := _phone(run, start, end, conversation):
        yield start, end, *found
        return
    sizes = _shape(run, start, end)
    at = 0
    while at < len(sizes):
        size = next((size for size in (5, 4, 3, 2) if at + size <= len(sizes) and sizes[at : at + size] in _SHAPES), 0)
        if size and (found := _phone(run, start + at, start + at + size, conversation)):
            yield start + at, start + at + size, *found
        else:
            size = 1
        at += size


def _shape(run: Sequence[Group], start: int, end: int) -> tuple[int, ...]:
    return tuple(len(group.digits) for group in run[start:end])


def _phone(run: Sequence[Group], start: int, end: int, conversation: Conversation) -> tuple[str, float] | None:
    head, last = run[start], run[end - 1]
    digits = "".join(group.digits for group in run[start:end])
    if not 7 <= len(digits) <= 15:
        return None
    text = conversation.texts[head.turn]
    lead = text[max(0, head.start - 2) : head.start]
    plus = lead[-1:] == "+" or lead == "+(" or (digits.startswith("00") and len(digits) >= 11)
    if not plus and lead[-1:] in ("-", "/", "=", "#", ".", ":", "$", "€", "£") and lead != ": " and not _opens(lead):
        return None
    tail = conversation.texts[last.turn][last.end : last.end + 2]
    if len(tail) == 2 and tail[0] in "-/:=%@." and tail[1].isalnum():
        return None
    if plus:
        if end - start > 2 and run[start + 1].digits == "0" and run[start + 1].gap == " (":
            digits = head.digits + "".join(group.digits for group in run[start + 2 : end])
        number = _valid("+" + digits.removeprefix("00"), None)
        return (number, PHONE_INTERNATIONAL) if number else None
    shape = _shape(run, start, end)
    if shape[:3] in _DATES or (len(digits) < 9 and digits[0] in "012"):
        return None
    written = _SHAPES.get(shape)
    mobile = digits.startswith("07") and len(digits) == 11
    before = conversation.before(head.turn, head.start, head.floor)
    behind = conversation.texts[last.turn]
    named = bool(_PHONE_BEHIND.match(behind, last.end, last.end + 40))
    words = [match.end() for match in _PHONE_WORD.finditer(before)]
    asked = not words and bool(_PHONE_WORD.search(conversation.question(head.turn, head.start, head.floor)))
    if not (named or words or asked or written or mobile):
        return None
    other = last_cue(before[words[-1] if words else 0 :]) == "other" or is_called_other(behind, last.end)
    if named or ((words or asked) and not other):
        regions = _WITH_TRUNK if digits[0] == "0" else _WITHOUT_TRUNK.get(len(digits), ())
        for region in regions:
            if number := _valid(digits, region):
                return number, PHONE_NAMED
        return None
    if written is None or head.spoken:
        return _bare(digits, shape, other)
    if written != "US" and digits[0] != "0":
        return None
    bracketed = lead[-1:] == "("
    if other and not bracketed:
        return None
    if shape == (3, 3, 4) and not bracketed and not _same_gaps(run[start + 1 : end]):
        return None
    number = _valid(digits, written)
    return (number, PHONE_SHAPED) if number else None


def _bare(digits: str, shape: tuple[int, ...], other: bool) -> tuple[str, float] | None:
    """Digits that only by their beginning look like a British mobile number."""
    if other or len(shape) > 3 or len(digits) != 11 or digits[:2] != "07":
        return None
    number = _valid(digits, "GB")
    return (number, PHONE_DOUBTFUL) if number else None


def _opens(lead: str) -> bool:
    return lead[-1:] in (".", ":") and len(lead) == 2 and not lead[0].isdigit()


def _same_gaps(groups: Sequence[Group]) -> bool:
    return len({group.gap for group in groups}) == 1


def _valid(number: str, region: str | None) -> str | None:
    """E.164, if the number is one that could be in use."""
    import phonenumbers

    try:
        parsed = phonenumbers.parse(number, region)
    except phonenumbers.NumberParseException:
        return None
    if not phonenumbers.is_valid_number(parsed):
        return None
    return f"+{parsed.country_code}{phonenumbers.national_significant_number(parsed)}"
