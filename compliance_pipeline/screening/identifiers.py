"""Identifiers of states, health services and banks in text: what they look like, what they are called, their checks.

Nearly all checks are python-stdnum's. Card and US social security numbers belong to `numbers` and `text`.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import NamedTuple

from compliance_pipeline.contracts.policy import FindingKind
from compliance_pipeline.screening.text_context import Conversation, last_cue
from compliance_pipeline.screening.text_numerals import SPLIT_WITHIN_MS, Group, at_word_start

# Confidence, from the reliability table of benchmarks/text.py.
IBAN, NAMED, PASSPORT_NAMED = 0.99, 0.97, 0.9
DOUBTED = 0.5
"""The form and the check fit, but the words say that it is another number."""

Check = Callable[[str], bool]


def _stdnum(module: str) -> Check:
    """The check of a python-stdnum module, imported when it is first needed."""

    def check(number: str) -> bool:
        return bool(import_module(f"stdnum.{module}").is_valid(number))

    return check


def luhn(number: str) -> bool:
    return _stdnum("luhn")(number)


def australian_medicare(number: str) -> bool:
    """Ten digits (eleven with the person's place on the card): the ninth is the weighted sum of the first eight."""
    weighted = sum(int(digit) * weight for digit, weight in zip(number, (1, 3, 7, 9, 1, 3, 7, 9), strict=False))
    return number[0] in "23456" and weighted % 10 == int(number[8])


def german_health_insurance(number: str) -> bool:
    """A letter and nine digits (Krankenversichertennummer, GKV-Spitzenverband): Luhn's sum with the letter as 01-26."""
    digits = f"{ord(number[0].lower()) - 96:02d}{number[1:]}"
    products = (int(digit) * (1 + at % 2) for at, digit in enumerate(digits[:10]))
    return sum(product // 10 + product % 10 for product in products) % 10 == int(digits[10])


class _Digits(NamedTuple):
    """An identifier of digits alone. usual: the group sizes that tell it without its name, and how surely."""

    kind: FindingKind
    lengths: tuple[int, ...]
    check: Check
    cues: tuple[str, ...]
    usual: tuple[int, ...] = ()
    bare: float = 0.0


_STATE, _HEALTH = FindingKind.GOVERNMENT_ID, FindingKind.HEALTH_ID

# A check digit lets one number in ten or eleven through: those need their name. Two check digits or a date of birth
# with a check, written in the usual groups, don't.
_DIGITS = (
    _Digits(_HEALTH, (10,), _stdnum("gb.nhs"), (r"n\.?h\.?s\b(?! (?:app|staff|line))",)),
    _Digits(_HEALTH, (10, 11), australian_medicare, (r"medicare",)),
    _Digits(
        _HEALTH,
        (10,),
        luhn,
        (
            r"ohip",
            r"ontario health",
            r"health card",
        ),
    ),
    _Digits(
        _HEALTH,
        (10,),
        _stdnum("ca.bc_phn"),
        (
            r"phn",
            r"personal health",
            r"care ?card",
            r"services card",
        ),
    ),
    _Digits(
        _STATE,
        (9,),
        _stdnum("ca.sin"),
        (
            r"s\.?i\.?n\b\.?",
            r"social insurance",
        ),
    ),
    _Digits(
        _STATE,
        (9,),
        _stdnum("us.itin"),
        (
            r"itin",
            r"tax(?:payer)? id\w*",
        ),
    ),
    _Digits(
        _STATE,
        (8, 9),
        _stdnum("au.tfn"),
        (
            r"tfn",
            r"tax file",
        ),
    ),
    _Digits(
        _STATE,
        (11,),
        _stdnum("de.idnr"),
        (
            r"steuer\S*",
            r"idnr",
            r"identifikationsnummer",
            r"german tax",
            r"tax id\w*",
        ),
    ),
    _Digits(
        _STATE,
        (15,),
        _stdnum("fr.nir"),
        (
            r"nir",
            r"s[ée]curit[ée] sociale",
            r"insee",
            r"french social",
        ),
        (1, 2, 2, 2, 3, 3, 2),
        0.9,
    ),
    _Digits(
        _STATE,
        (9,),
        _stdnum("nl.bsn"),
        (
            r"bsn",
            r"burgerservice\w*",
            r"sofi",
        ),
    ),
    _Digits(
        _STATE,
        (11,),
        _stdnum("be.nn"),
        (
            r"rijksregister\w*",
            r"registre national",
            r"niss",
            r"insz",
        ),
        (2, 2, 2, 3, 2),
        0.9,
    ),
    _Digits(
        _STATE,
        (10, 12),
        _stdnum("se.personnummer"),
        (
            r"personnummer",
            r"swedish (?:personal|id)",
        ),
    ),
    _Digits(
        _STATE,
        (11,),
        _stdnum("no.fodselsnummer"),
        (
            r"f[oø]dselsnummer",
            r"norwegian id",
        ),
        (6, 5),
        0.8,
    ),
    _Digits(_STATE, (10,), _stdnum("dk.cpr"), (r"cpr",)),
    _Digits(_STATE, (11,), _stdnum("pl.pesel"), (r"pesel",)),
    _Digits(
        _STATE,
        (9,),
        _stdnum("pt.nif"),
        (
            r"nif",
            r"contribuinte",
        ),
    ),
    _Digits(_STATE, (11,), _stdnum("br.cpf"), (r"cpf",), (3, 3, 3, 2), 0.9),
    _Digits(
        _STATE,
        (12,),
        _stdnum("in_.aadhaar"),
        (
            r"aadha?ar",
            r"uidai",
        ),
    ),
    _Digits(
        _STATE,
        (13,),
        _stdnum("za.idnr"),
        (
            r"south african? id",
            r"rsa id",
        ),
    ),
    _Digits(
        _STATE,
        (13,),
        _stdnum("ch.ssn"),
        (
            r"ahv",
            r"avs\b",
        ),
        (3, 4, 4, 2),
        0.9,
    ),
    _Digits(
        _STATE,
        (13,),
        _stdnum("kr.rrn"),
        (
            r"rrn",
            r"resident registration",
        ),
        (6, 7),
        0.6,
    ),
)
_CUES = [re.compile(at_word_start(form.cues)) for form in _DIGITS]
_ANY_CUE = re.compile(at_word_start({cue for form in _DIGITS for cue in form.cues}))
_MOST_DIGITS, _LEADING = 15, 4
_DATES = ((2, 2, 4), (4, 2, 2))
_PASSPORT = re.compile(r"\bpassports?\b(?! (?:office|photo|fee|control|application|renewal))|\bpass(?:eport|aporte)\b")


def digit_identifiers(
    run: Sequence[Group], first: int, after: int, conversation: Conversation
) -> Iterator[tuple[int, int, FindingKind, str, float]]:
    """(first group, after the last, kind, digits, confidence) of what is named before these groups, or shaped so."""
    head = run[first]
    if len(head.digits) > _MOST_DIGITS and after - first == 1:
        return
    before = conversation.before(head.turn, head.start, head.floor)
    asked = before + " | " + conversation.question(head.turn, head.start, head.floor)
    named = (
        [form for form, cue in zip(_DIGITS, _CUES, strict=True) if cue.search(asked)] if _ANY_CUE.search(asked) else []
    )
    passport = "pass" in asked and bool(_PASSPORT.search(asked))
    end = first
    if named or passport:
        for start in range(first, min(after, first + _LEADING)):
            if start >= end and (found := _named(run, start, after, named, passport and start == first)):
                yield found
                end = found[1]
    sizes = tuple(len(group.digits) for group in run[first:after])
    for at, size in enumerate(sizes):
        for count in _SHAPE_SIZES.get(size, ()):
            if (forms := _SHAPED.get(sizes[at : at + count])) and first + at >= end:
                start, stop = first + at, first + at + count
                if found := _shaped(run, start, stop, forms, conversation):
                    yield found
                    end = stop


_Found = tuple[int, int, FindingKind, str, float]


def _named(run: Sequence[Group], start: int, after: int, named: list[_Digits], passport: bool) -> _Found | None:
    total = 0
    for stop in range(start + 1, min(after, start + _MOST_DIGITS) + 1):
        total += len(run[stop - 1].digits)
        if total > _MOST_DIGITS:
            break
        digits = "".join(group.digits for group in run[start:stop])
        for form in named:
            if total in form.lengths and form.check(digits):
                return start, stop, form.kind, digits, NAMED
        dated = tuple(len(group.digits) for group in run[start:stop]) in _DATES
        if passport and stop == after and total in (8, 9) and not dated:
            return start, stop, _STATE, digits, PASSPORT_NAMED
    return None


def _shaped(
    run: Sequence[Group], start: int, stop: int, forms: list[_Digits], conversation: Conversation
) -> _Found | None:
    head, *rest = run[start:stop]
    digits = "".join(group.digits for group in run[start:stop])
    if len(set(digits)) < 3 or any(group.gap not in (" ", "-", ".", "/") for group in rest):
        return None
    for form in forms:
        if form.check(digits):
            other = last_cue(conversation.before(head.turn, head.start, head.floor)) == "other"
            return start, stop, form.kind, digits, DOUBTED if other else form.bare
    return None


_SHAPED: dict[tuple[int, ...], list[_Digits]] = {}
for _form in _DIGITS:
    if _form.usual:
        _SHAPED.setdefault(_form.usual, []).append(_form)


_SHAPE_SIZES = {
    size: {len(form.usual) for form in _DIGITS if form.usual[:1] == (size,)}
    for size in {form.usual[0] for form in _DIGITS if form.usual}
}


class _Lettered(NamedTuple):
    """An identifier with letters in it. bare: how surely its form and check tell it without its name; 0: not at all."""

    kind: FindingKind
    form: str
    written: re.Pattern[str]
    check: Check
    cue: re.Pattern[str]
    bare: float


def _form_of(kind: FindingKind, written: str, check: Check, cue: str, bare: float) -> _Lettered:
    pattern = re.compile(rf"(?<![\w@/=-])(?<!\d[.:]){written}(?![\w@]|[-/=]\w)")
    return _Lettered(kind, written, pattern, check, re.compile(cue), bare)


def _any(number: str) -> bool:
    return bool(number)


_MBI_LETTER = "[ac-hj-km-np-rt-y]"
_LETTERED = (
    # https://www.gov.uk/hmrc-internal-manuals/national-insurance-manual/nim39110
    _form_of(
        _STATE,
        r"(?!bg|gb|kn|nk|nt|tn|zz)[a-ceghj-prstw-z][a-ceghj-npr-tw-z][ -]?\d\d[ -]?\d\d[ -]?\d\d[ -]?[a-d]",
        _any,
        r"\bnino\b|national insurance|\bn\.?i\.?(?: (?:number|no)|\b)",
        0.75,
    ),
    # CMS, 'Understanding the MBI format': no S, L, O, I, B, Z.
    _form_of(
        _HEALTH,
        rf"[1-9]{_MBI_LETTER}(?:{_MBI_LETTER}|\d)\d[ -]?{_MBI_LETTER}(?:{_MBI_LETTER}|\d)\d[ -]?"
        rf"{_MBI_LETTER}{{2}}\d\d",
        _any,
        r"medicare|\bmbi\b",
        0.75,
    ),
    _form_of(
        _HEALTH, r"[a-z] ?\d{3} ?\d{3} ?\d{3}", german_health_insurance, r"krankenv|versichert|kvnr|gesundheits", 0
    ),
    _form_of(
        _STATE,
        r"(?:\d{8}|\d{2}\.\d{3}\.\d{3})[ -]?[a-z]",
        _stdnum("es.dni"),
        r"\bdni\b|\bnif\b|documento|spanish id",
        0.8,
    ),
    _form_of(_STATE, r"[xyz][ -]?\d{7}[ -]?[a-z]", _stdnum("es.nie"), r"\bnie\b|extranjero", 0.85),
    _form_of(
        _STATE,
        r"[a-z]{3} ?[a-z]{3} ?[\da-z]{2}[a-z][\da-z]{2} ?[a-z][\da-z]{3}[a-z]",
        _stdnum("it.codicefiscale"),
        r"codice|fiscal",
        0.95,
    ),
    _form_of(_STATE, r"\d{7}[ -]?[a-w][a-ilwt]?", _stdnum("ie.pps"), r"\bppsn?\b|personal public service", 0),
    _form_of(_STATE, r"\d{6}[-+a]\d{3}[\da-y]", _stdnum("fi.hetu"), r"\bhetu\b|henkil", 0.9),
    _form_of(_STATE, r"[a-z]{4}\d{6}[hmx][a-z]{5}[\da-z]\d", _stdnum("mx.curp"), r"\bcurp\b", 0.95),
    _form_of(_STATE, r"[a-z]{5}\d{4}[a-z]", _stdnum("in_.pan"), r"\bpan\b|income tax", 0),
    _form_of(_STATE, r"\d{17}[\dx]", _stdnum("cn.ric"), r"chinese id|resident identity|身份证", 0.9),
)
_ANY_LETTERED = re.compile(rf"(?<![\w@/=-])(?:{'|'.join(form.form for form in _LETTERED)})")
_MIXED = re.compile(r"\d(?:[ -]?[a-z]\b|[a-z]{2}\b|\d{5}[-+]\d{3}|\d{16})|[a-z]\d|\b[a-z] \d")
"""Digits and letters side by side, as in every one of these: a cheaper question, asked first."""
_ANY_DIGIT = re.compile(r"[0-9]")
_NEAR = 20
_LETTERS_BEFORE = 12
"""How far before its first digit an identifier may begin."""
_PASSPORT_NUMBER = re.compile(
    r"(?:(?:number|no|num|nr|is|it's|it is|its|the|my|has|with|of|card|reads|as|to|=|#|:|;|\?|,|\.|-)[ \n:#.]*"
    r"|[ \n:#.]){0,8}"
    r"(?P<number>(?=(?:[a-z]{0,2}[ -]?)(?:\d[ -]?){5})[a-z]{0,2}[ -]?\d(?:[ -]?[a-z\d]){5,8})(?![a-z\d])"
)
_DATE = re.compile(r"\d{1,2}[ -]\d{1,2}[ -](?:19|20)?\d\d|(?:19|20)\d\d[ -]\d\d[ -]\d\d")

_IBAN_START = re.compile(r"([a-y])(?<![a-z\d@][a-z])[ .-]?([a-z])[ .:-]{0,2}\d[ .-]?\d")
_IBAN_REST = re.compile(r"(?:[ \t\n.,:/()>-]{0,4}[a-z\d]){14,36}")
_IBAN_COUNTRY = re.compile(
    r"a[delotz]|b[aeghiry]|c[hryz]|d[ejko]|e[egs]|f[ikor]|g[beilrt]|h[nru]|i[elqst]|jo|k[wz]|l[bcituvy]|m[cdeknrtu]"
    r"|n[ilo]|om|p[klst]|qa|r[osu]|s[acdeikmotv]|t[lnr]|ua|v[ag]|xk|ye"
)
_ENGLISH_WORDS = ("at", "be", "is", "it", "me", "no", "so")
_SEPARATOR = re.compile(r"[^a-z\d]+")
_CARRIED_WORDS = re.compile(r"^\W*(?:(?:and|then|so|ok|okay|yes|um|uh|er|sorry|next|rest|the|is|followed|by)\W+)*")
_LONGEST_IBAN, _SHORTEST_IBAN, _MOST_TURNS = 34, 15, 8


class Identifier(NamedTuple):
    """What was found, still in the clear: stays within the text screen.

    value: letters and digits without separators. start, end: in the turns' normalised texts.
    """

    kind: FindingKind
    value: str
    turn: int
    start: int
    last_turn: int
    end: int
    confidence: float

    def __repr__(self) -> str:
        return f"Identifier({self.kind}, turn {self.turn})"


def lettered_identifiers(conversation: Conversation, turns: Sequence[int]) -> Iterator[Identifier]:
    """IBANs, passport numbers and other identifiers with letters in them, in the given turns."""
    for turn in turns:
        text = conversation.texts[turn]
        first = digit.start() if (digit := _ANY_DIGIT.search(text)) else len(text)
        start = max(0, first - _LETTERS_BEFORE)
        yield from _ibans(conversation, turn, start)
        if _MIXED.search(text, max(0, first - len("a "))) and _ANY_LETTERED.search(text, start):
            for form in _LETTERED:
                yield from _of_form(form, conversation, turn, start)
        yield from _passports(conversation, turn)


def _of_form(form: _Lettered, conversation: Conversation, turn: int, start: int) -> Iterator[Identifier]:
    for match in form.written.finditer(conversation.texts[turn], start):
        value = _SEPARATOR.sub("", match[0])
        if not form.check(value):
            continue
        before = conversation.before(turn, match.start())
        if form.cue.search(f"{before} | {conversation.question(turn, match.start())}"):
            confidence = NAMED
        else:
            other = "code" in before[-_NEAR:] or last_cue(before) == "other"
            confidence = min(form.bare, DOUBTED) if other else form.bare
        if confidence:
            yield Identifier(form.kind, value, turn, match.start(), turn, match.end(), confidence)


def _passports(conversation: Conversation, turn: int) -> Iterator[Identifier]:
    text = conversation.texts[turn]
    starts = [match.end() for match in _PASSPORT.finditer(text)] if "pass" in text else []
    if not starts and "pass" in (asked := conversation.question(turn, 0)) and _PASSPORT.search(asked):
        starts = [0]
    for start in starts:
        if (match := _PASSPORT_NUMBER.match(text, start)) and not _DATE.match(match["number"].strip()):
            value = _SEPARATOR.sub("", match["number"])
            if sum(map(str.isdigit, value)) >= 5:
                yield Identifier(_STATE, value, turn, match.start("number"), turn, match.end(), PASSPORT_NAMED)


def _ibans(conversation: Conversation, turn: int, start: int) -> Iterator[Identifier]:
    text = conversation.texts[turn]
    done = 0
    for match in _IBAN_START.finditer(text, start):
        country = match[1] + match[2]
        if match.start() < done or not _IBAN_COUNTRY.match(country):
            continue
        is_word = country in text[match.start() : match.end()] and text[match.end(2)] == " "
        if is_word and country in _ENGLISH_WORDS and "iban" not in text:
            continue
        stream, ends = _stream(conversation, turn, match.start())
        if not _IBAN_REST.match(stream):
            continue
        value = ""
        offset = 0
        candidates: list[tuple[str, int]] = []
        for word in _SEPARATOR.split(stream):
            value += word
            if len(value) > _LONGEST_IBAN:
                break
            offset = stream.index(word, offset) + len(word)
            if len(value) >= _SHORTEST_IBAN:
                candidates.append((value, offset))
        for written, length in candidates:
            if iban := _verified_iban(written):
                last_turn, end = next((at, stop + length - into) for into, at, stop in reversed(ends) if length > into)
                yield Identifier(FindingKind.BANK_ACCOUNT, iban, turn, match.start(), last_turn, end, IBAN)
                done = end if last_turn == turn else len(text)
                break


_IBAN_DIGITS = {ord(char): str(int(char, 36)) for char in "abcdefghijklmnopqrstuvwxyz"}


def _verified_iban(value: str) -> str | None:
    """The IBAN, if its check fits; a letter O that was read as a zero in the bank's code is put back."""
    for tried in dict.fromkeys((value, value[:4] + value[4:8].replace("0", "o") + value[8:])):
        if int((tried[4:] + tried[:4]).translate(_IBAN_DIGITS)) % 97 == 1 and _stdnum("iban")(tried):
            return tried
    return None


def _stream(conversation: Conversation, turn: int, start: int) -> tuple[str, list[tuple[int, int, int]]]:
    """The text from `start`, going on in the speaker's next turns while it is too short for an IBAN.

    Also (offset in the stream, turn, offset in the turn) of each piece.
    """
    turns, texts = conversation.turns, conversation.texts
    stream = texts[turn][start : start + 4 * _LONGEST_IBAN]
    ends = [(0, turn, start)]
    last = turn
    for at in range(turn + 1, min(len(turns), turn + 1 + _MOST_TURNS)):
        if len(_SEPARATOR.sub("", stream)) >= _LONGEST_IBAN:
            break
        if turns[at].speaker != turns[turn].speaker:
            continue
        spoke = turns[last]
        if turns[at].start_ms - (spoke.start_ms if spoke.end_ms is None else spoke.end_ms) > SPLIT_WITHIN_MS:
            break
        into = _CARRIED_WORDS.match(texts[at])
        begin = into.end() if into else 0
        ends.append((len(stream) + 1, at, begin))
        stream += " " + texts[at][begin : begin + 2 * _LONGEST_IBAN]
        last = at
    return stream, ends
