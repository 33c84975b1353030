"""Phrases of a policy pack's lexicon in transcripts: notices, threats, requests, cues. Pure, linear time.

Numbers in text belong to `text`; which phrases must or must not be said belongs to the pack's rules.

A pattern is plain words, in lower case: `(this|the) call (is|may be) [being] recorded`. Parentheses hold alternatives,
brackets what may be left out, `...` stands for up to four words (none of them a negation). What is compared is not the
text but its words: without case and fillers ('um'), contractions written out ("we'll" is `we will`, "dont" is
`do not`), stutters said once. Sentence marks and commas may lie between two words of a pattern, not within `...`.
"""

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice, pairwise
from operator import eq

from compliance_pipeline.contracts.policy import Detector, FindingKind, Phrase
from compliance_pipeline.screening.findings import Finding
from compliance_pipeline.screening.transcripts import Transcript, Turn

SAME_BREATH_MS = 30_000
"""Turns of one speaker that begin further apart are not read as one."""
BACKCHANNEL_WORDS = 3
"""As much as the other party may say in between ('uh huh', 'yes okay')."""
GAP_WORDS = 4
NEGATION_WORDS = 4
LONGEST_WHOLE = 6
MARKS_WITHIN = 6
"""Sentence marks and commas that a match may have between its words."""


class PatternError(ValueError):
    """A pattern that can't be read; says which and where."""


# Text to words

_ODD = {ord(mark): "'" for mark in "’‘`´ʼ"} | dict.fromkeys([0xAD, 0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF])
_NOT_A_WORD = re.compile(r"[^\w'.,]|_")
# What is no letter, digit or apostrophe parts words.
_PUNCTUATION = {code: " " for code in range(128) if not chr(code).isalnum()} | {
    ord(mark): kept for marks, kept in ((".!?;:\n", "."), (",", ","), ("'", "'"), ("`", "'")) for mark in marks
}
# As bytes it takes a tenth of the time.
_ASCII = bytes(ord(_PUNCTUATION.get(code, chr(code).lower())) if code < 128 else code for code in range(256))
_FILLERS = "um umm uh uhh uhm er err erm ah eh hm hmm mm mmm"
_WRITTEN_OUT = {
    **dict.fromkeys(_FILLERS.split(), ""),
    **{"gonna": "going to", "wanna": "want to", "gotta": "got to", "lemme": "let me", "gimme": "give me"},
    **{"u": "you", "ur": "your", "pls": "please", "plz": "please", "im": "i am", "ive": "i have"},
    **{"youre": "you are", "youve": "you have", "youll": "you will", "theyll": "they will", "thats": "that is"},
    **{"whats": "what is", "whos": "who is", "theres": "there is", "heres": "here is", "theyre": "they are"},
    **{"cannot": "can not", "cant": "can not", "wont": "will not", "dont": "do not", "didnt": "did not"},
    **{"doesnt": "does not", "isnt": "is not", "arent": "are not", "wasnt": "was not", "wouldnt": "would not"},
    **{"shouldnt": "should not", "couldnt": "could not", "havent": "have not", "hasnt": "has not", "aint": "is not"},
    **{"won't": "will not", "can't": "can not", "shan't": "will not", "ain't": "is not", "let's": "let us"},
    **{"shall": "will"},
}
_ENDINGS = {"n't": " not", "'ll": " will", "'re": " are", "'ve": " have", "'m": " am", "'d": " would"}
_TAKES_IS = "it that this he she there here what who where call line conversation chat everything"
_IS_AFTER = frozenset(_TAKES_IS.split())
_MARKS = frozenset(".,")


def _word(token: str) -> str:
    """A token with an apostrophe, written out."""
    if token in _WRITTEN_OUT:
        return _WRITTEN_OUT[token]
    for ending, words in _ENDINGS.items():
        if token.endswith(ending):
            return token.removesuffix(ending) + words
    if token.endswith("'s"):
        stem = token.removesuffix("'s")
        return f"{stem} is" if stem in _IS_AFTER else f"{stem}s"
    return token.replace("'", "")


def _words(text: str) -> list[str]:
    """Words, '.' for the end of a sentence, and ','."""
    text = text.replace("...", " ")
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text.translate(_ODD).replace("…", " ")).replace("...", " ")
        text = _NOT_A_WORD.sub(" ", text.lower().translate(_PUNCTUATION))
    else:
        text = text.encode().translate(_ASCII).decode()
    if "." in text:
        text = text.replace(".", " . ")
    if "," in text:
        text = text.replace(",", " , ")
    words = text.split()
    contracted = "'" in text
    if contracted:
        words = [_word(word) if "'" in word else word for word in words]
    if contracted or not _SHORT_FORMS.isdisjoint(words):
        words = " ".join([_WRITTEN_OUT.get(word, word) for word in words]).split()
    if any(map(eq, words, islice(words, 1, None))):
        words = words[:1] + [word for before, word in pairwise(words) if word != before or _may_repeat(word)]
    return words


_SHORT_FORMS = frozenset(_WRITTEN_OUT)


def _may_repeat(word: str) -> bool:
    """A letter or digit may, as in 'c v v'."""
    return len(word) == 1 and word not in _MARKS


# Patterns

_PATTERN_TOKEN = re.compile(r"\s*(\.\.\.|[()\[\]|]|[a-z0-9']+)")
_MARK = "(?:[.,] )*"
_GAP = rf"(?:(?<!\. )(?!(?:not|never) )[^ .,]+ (?:, )*){{0,{GAP_WORDS}}}?"
# How often a word turns up, roughly: the rarest words of a pattern are those to look it up by.
_FREQUENT = {
    1000: "a and are be can do for have i in is it me my not of on please that the this to was we will with you your",
    100: "about after again all also am an any as at been before being but by could did does else from get give go"
    " going good great had has he hello help her here him his how if just know let like look make may might minute"
    " moment more must need never new no now ok okay old one or our out put right say see send she should so some sure"
    " take tell than thank thanks their them then there they time today up us want were what when which who would yes",
    10: "account address anything back call calls card code day date email everything home line long name number order"
    " pay payment phone week year",
}
_FREQUENCY = {word: frequency for frequency, words in _FREQUENT.items() for word in words.split()}


def _frequency(words: frozenset[str]) -> int:
    return sum(_FREQUENCY.get(word, 1) for word in words)


@dataclass(frozen=True, slots=True)
class _Part:
    """A piece of a pattern: its regex, its greatest length in words, and words of which it must hold one (or none
    such are known)."""

    regex: str
    longest: int
    anchors: frozenset[str] | None


def _sequence(parts: list[_Part]) -> _Part:
    anchors = [part.anchors for part in parts if part.anchors]
    return _Part(
        "".join(part.regex for part in parts),
        sum(part.longest for part in parts),
        min(anchors, key=_frequency, default=None),
    )


class _Parser:
    """Recursive descent over one pattern. Raises PatternError."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._tokens: list[str] = []
        at = 0
        while pattern[at:].strip():
            match = _PATTERN_TOKEN.match(pattern, at)
            if not match:
                raise self._error(f"{pattern[at:].strip()[0]!r} has no meaning in a pattern")
            self._tokens.append(match[1])
            at = match.end()
        self._at = 0

    def _error(self, what: str) -> PatternError:
        return PatternError(f"pattern '{self._pattern}': {what}")

    def parse(self) -> _Part:
        part = self._alternatives("")
        if part.anchors is None:
            raise self._error("needs at least one word that can't be left out")
        return part

    def _alternatives(self, closing: str) -> _Part:
        options = [self._items()]
        while self._peek() == "|":
            self._at += 1
            options.append(self._items())
        if self._peek() != closing:
            raise self._error(f"{closing or 'the end'} is missing" if closing else f"stray {self._peek()!r}")
        self._at += 1
        if any(not option.longest for option in options):
            raise self._error("an alternative is empty")
        if len(options) == 1:
            return options[0]
        anchors = [option.anchors for option in options]
        return _Part(
            f"(?:{'|'.join(option.regex for option in options)})",
            max(option.longest for option in options),
            None if None in anchors else frozenset(word for option in anchors for word in option or ()),
        )

    def _items(self) -> _Part:
        parts: list[_Part] = []
        while (piece := self._peek()) not in ("", "|", ")", "]"):
            self._at += 1
            if piece == "...":
                parts.append(_Part(_GAP, GAP_WORDS, None))
            elif piece == "(":
                parts.append(self._alternatives(")"))
            elif piece == "[":
                inner = self._alternatives("]")
                parts.append(_Part(f"(?:{inner.regex})?", inner.longest, None))
            else:
                parts += [_Part(f"{word} {_MARK}", 1, frozenset([word])) for word in _words(piece)]
        return _sequence(parts)

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""


# Lexicon


@dataclass(frozen=True, slots=True)
class Lexicon:
    """Phrases, compiled. by_word: for a word, the patterns that can only match where such a word stands."""

    phrases: Mapping[str, Phrase]
    by_word: Mapping[str, "_Lookup"]
    whole: tuple[tuple[str, re.Pattern[str]], ...]
    unless: Mapping[str, re.Pattern[str]]


@dataclass(frozen=True, slots=True)
class _Lookup:
    """reach: in words, how far around its word a match can lie. patterns: with the phrase of each."""

    reach: int
    patterns: tuple[tuple[str, re.Pattern[str]], ...]


def compile_lexicon(phrases: Mapping[str, Phrase]) -> Lexicon:
    """Raises PatternError that names the phrase."""
    by_word: dict[str, dict[str, list[_Part]]] = {}
    whole: list[tuple[str, re.Pattern[str]]] = []
    unless: dict[str, re.Pattern[str]] = {}
    for name, phrase in phrases.items():
        try:
            parts = [_Parser(pattern).parse() for pattern in phrase.patterns]
            alone = [_Parser(pattern).parse() for pattern in phrase.whole_message]
            taken_back = [_Parser(pattern).parse() for pattern in phrase.unless]
        except PatternError as error:
            raise PatternError(f"phrase {name}: {error}") from None
        for part in parts:
            for word in part.anchors or ():
                by_word.setdefault(word, {}).setdefault(name, []).append(part)
        if alone:
            whole.append((name, _compiled(alone)))
        if taken_back:
            unless[name] = _compiled(taken_back)
    return Lexicon(
        phrases,
        {
            word: _Lookup(
                MARKS_WITHIN + max(part.longest for parts in named.values() for part in parts),
                tuple((name, _compiled(parts)) for name, parts in named.items()),
            )
            for word, named in by_word.items()
        },
        tuple(whole),
        unless,
    )


def _compiled(parts: list[_Part]) -> re.Pattern[str]:
    return re.compile(rf"(?<![^ ])(?:{'|'.join(part.regex for part in parts)})")


# Transcript to findings


@dataclass(slots=True, repr=False)
class _Stretch:
    """Neighbouring turns of one speaker as words; `starts[n]` is the index of the first word of `turns[n]`."""

    turns: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def turn_of(self, word: int) -> int:
        return self.turns[bisect_right(self.starts, word) - 1]


def find_phrases(transcript: Transcript, lexicon: Lexicon) -> list[Finding]:
    """The lexicon's phrases in order of time; each place once a phrase. Times are those of the turns (ms).

    A phrase may run over turns of one speaker that follow each other but for a word or two of the other party.
    """
    found: dict[tuple[int, int, str], Finding] = {}
    for stretch in _stretches(transcript.turns):
        for name, first, last in _matches(stretch, lexicon):
            begins, ends = stretch.turn_of(first), stretch.turn_of(last)
            if lexicon.phrases[name].answered and not _is_answered(transcript.turns, ends):
                continue
            found[begins, first, name] = _finding(name, lexicon, transcript.turns[begins], transcript.turns[ends])
    return [finding for _, finding in sorted(found.items(), key=lambda entry: entry[0])]


def _finding(name: str, lexicon: Lexicon, begins: Turn, ends: Turn) -> Finding:
    phrase = lexicon.phrases[name]
    end_ms = ends.start_ms if ends.end_ms is None else ends.end_ms
    return Finding(
        FindingKind.PHRASE,
        Detector.PHRASES,
        begins.speaker,
        begins.start_ms,
        max(begins.start_ms, end_ms),
        phrase.confidence,
        f"[{phrase.description}]",
        phrase=name,
    )


def _is_answered(turns: tuple[Turn, ...], asked: int) -> bool:
    return any(turn.speaker != turns[asked].speaker for turn in turns[asked + 1 : asked + 3])


def _stretches(turns: tuple[Turn, ...]) -> Iterator[_Stretch]:
    growing: dict[str, _Stretch] = {}
    for at, turn in enumerate(turns):
        words = _words(turn.text)
        if not words:
            continue
        stretch = growing.pop(turn.speaker, None)
        if len(words) > BACKCHANNEL_WORDS:
            yield from growing.values()
            growing = {}
        if stretch and turn.start_ms - turns[stretch.turns[-1]].start_ms > SAME_BREATH_MS:
            yield stretch
            stretch = None
        stretch = growing[turn.speaker] = stretch or _Stretch()
        stretch.turns.append(at)
        stretch.starts.append(len(stretch.words))
        stretch.words += words
    yield from growing.values()


def _matches(stretch: _Stretch, lexicon: Lexicon) -> Iterator[tuple[str, int, int]]:
    """Phrase, first and last word."""
    words, by_word = stretch.words, lexicon.by_word
    reached: dict[str, int] = {}
    hits = () if by_word.keys().isdisjoint(words) else [at for at, word in enumerate(words) if word in by_word]
    for at in hits:
        lookup = by_word[words[at]]
        begin = max(0, at - lookup.reach)
        window = " ".join(words[begin : at + lookup.reach + 1]) + " "
        for name, pattern in lookup.patterns:
            for match in pattern.finditer(window):
                first = begin + window.count(" ", 0, match.start())
                last = begin + window.count(" ", 0, match.end()) - 1
                if not first <= at <= last or first <= reached.get(name, -1):
                    continue
                if _taken_back(lexicon, name, words, first, window, match):
                    continue
                reached[name] = last
                while words[last] in _MARKS:
                    last -= 1
                yield name, first, last
    if lexicon.whole:
        yield from _whole_messages(stretch, lexicon)


def _taken_back(lexicon: Lexicon, name: str, words: list[str], first: int, window: str, match: re.Match[str]) -> bool:
    if lexicon.phrases[name].negatable:
        for word in reversed(words[max(0, first - NEGATION_WORDS) : first]):
            if word in _MARKS:
                break
            if word in _NEGATIONS:
                return True
    unless = lexicon.unless.get(name)
    return unless is not None and any(
        other.start() < match.end() and match.start() < other.end() for other in unless.finditer(window)
    )


_NEGATIONS = frozenset({"not", "never", "nobody", "nor", "without"})


def _whole_messages(stretch: _Stretch, lexicon: Lexicon) -> Iterator[tuple[str, int, int]]:
    for begin, after in pairwise([*stretch.starts, len(stretch.words)]):
        if after - begin <= LONGEST_WHOLE:
            message = " ".join(word for word in stretch.words[begin:after] if word not in _MARKS) + " "
            for name, pattern in lexicon.whole:
                if pattern.fullmatch(message):
                    yield name, begin, after - 1
