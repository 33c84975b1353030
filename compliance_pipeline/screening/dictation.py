"""What digits said or keyed in turns amount to: numbers put together over pauses, read-backs and corrections. Pure.
When enough was heard to say so belongs to `listener`; check digits and issuers belong to `numbers`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, product
from statistics import median

from compliance_pipeline.contracts.policy import Detector, FindingKind
from compliance_pipeline.screening.findings import Symbol
from compliance_pipeline.screening.numbers import (
    FEWEST_UNVERIFIED,
    LONGEST_CARD,
    SHORTEST_CARD,
    iin_brand,
    is_usual_length,
    issuer_of,
    looks_like_expiry,
    luhn_ok,
)

ACROSS_S = 60.0
"""A number is put together over pauses up to here, whoever speaks meanwhile."""
CODE_WITHIN_S = 15.0
LEAST_BELIEF = 0.5
"""Less sure, and it is not called a card number."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How digits come from a detector.

    stretch_s, one_go_s: a longer pause ends a stretch, or parts what is said in one go.
    sure: the most that a number which verifies is believed.
    whole, within: of stretches of a card's length that begin like a card, or longer ones, how many hold a card.
    """

    stretch_s: float
    one_go_s: float
    sure: float
    whole: float
    within: float
    codes: tuple[float, float]
    """Belief in a code after an expiry date, and without one."""


SPOKEN = Manner(stretch_s=2.5, one_go_s=1.5, sure=0.95, whole=0.7, within=0.55, codes=(0.85, 0.7))
KEYED = Manner(stretch_s=6.0, one_go_s=6.0, sure=0.99, whole=0.95, within=0.93, codes=(0.95, 0.95))
MANNERS = {Detector.DIGITS: SPOKEN, Detector.TONES: KEYED}

# Of digits that begin like a card and have its length, so many are one (before the check digit, which one in ten
# others pass): a guess for telephone calls, to be replaced by a measured share.
_FOURS, _FOURS_APART, _EIGHTS, _ODD, _PHONE, _UNUSUAL = 0.7, 0.25, 0.2, 0.1, 0.03, 0.2
_CORRECTED, _CORRECTED_APART, _TWICE = 0.25, 0.08, 0.6
_CHANCE = 0.1
_READ_BACK_ODDS = 20.0
_MOST_READ_BACK = 0.98

_STRAY, _APART_S = 0.7, 0.5
_GROUP_PAUSE_S = 0.15
"""Above the usual pause between two digits: here a group ends."""
_CORRECTION_PAUSE_S, _LONGEST_CORRECTION_PAUSE_S = 0.4, 6.0
"""'No, sorry' takes longer than the first."""
_LONGEST_OVERLAP, _LONGEST_CORRECTION = 8, 4
_MOST_CHANGES = 2
_MOST_PATHS = 48
_SLOWEST, _LEAST_MEAN_CONFIDENCE = 0.8, 0.65
_DICTATED_PAUSE_S = 10.0
_SAME_NUMBER_S = 3.0


@dataclass(frozen=True, slots=True, repr=False)
class Stretch:
    """Digits of one speaker without a pause longer than the manner's; `ended` by a key such as `#`."""

    speaker: str
    symbols: tuple[Symbol, ...]
    ended: bool = False

    @property
    def start(self) -> float:
        return self.symbols[0].start

    @property
    def end(self) -> float:
        return self.symbols[-1].end


Place = tuple[str, float, float]
"""Speaker, start and end in seconds."""


@dataclass(slots=True, repr=False)
class Heard:
    """A number in a passage, with its digits: not to be kept, shown or logged.

    places: where it was said, in order of time. again: where it, or part of it, was said again or corrected.
    whole: in one go, verified, of the length that its network uses: nothing that follows takes it back.
    """

    kind: FindingKind
    digits: str
    confidence: float
    places: list[Place]
    again: list[Place] = field(default_factory=list)
    whole: bool = False

    @property
    def start(self) -> float:
        return self.places[0][1]

    @property
    def end(self) -> float:
        return max(end for _, _, end in self.places)


def is_digits(symbols: Sequence[Symbol]) -> bool:
    """Whether symbols are clear enough, on average, to be digits that somebody said or keyed."""
    return len(symbols) >= 3 and sum(s.confidence for s in symbols) / len(symbols) >= _LEAST_MEAN_CONFIDENCE


def numbers_in(stretches: Sequence[Stretch], detector: Detector) -> list[Heard]:
    """The numbers in stretches that follow each other (by start); equal numbers are one, at its first time."""
    if sum(len(stretch.symbols) for stretch in stretches) < FEWEST_UNVERIFIED:
        return []
    passage = _Passage(stretches, MANNERS[detector], detector)
    cards = passage.cards()
    return passage.as_heard(cards)


def _believe(prior: float, tests: int) -> float:
    """That a number which verifies is a card, when so many that begin like one were tried (Bayes)."""
    chance = min(1.0, _CHANCE * max(1, tests))
    return prior / (prior + (1 - prior) * chance)


@dataclass(slots=True, repr=False)
class _Path:
    """Digits put together (by index), those passed over, and how often something was changed."""

    digits: tuple[int, ...]
    text: str
    again: tuple[int, ...] = ()
    changes: int = 0


@dataclass(slots=True, repr=False)
class _Card:
    digits: tuple[int, ...]
    text: str
    belief: float
    again: tuple[int, ...] = ()
    whole: bool = False
    changes: int = 0


class _Passage:
    def __init__(self, stretches: Sequence[Stretch], manner: Manner, detector: Detector) -> None:
        self.manner = manner
        self.detector = detector
        self.symbols = [symbol for stretch in stretches for symbol in stretch.symbols]
        self.speakers = [stretch.speaker for stretch in stretches for _ in stretch.symbols]
        self.text = "".join(symbol.char for symbol in self.symbols)
        self.pieces: list[range] = []
        """What was said in one go."""
        self.ended: set[int] = set()
        """Pieces after which a key said that the entry is complete."""
        self.groups: list[range] = []
        self.piece_of_group: list[int] = []
        at = 0
        for stretch in stretches:
            for piece in self._parted(range(at, at + len(stretch.symbols)), manner.one_go_s):
                gaps = [self._gap(i) for i in piece[1:]]
                pause = (median(gaps) if gaps else 0.0) + _GROUP_PAUSE_S
                groups = list(self._parted(piece, pause))
                self.groups += groups
                self.piece_of_group += [len(self.pieces)] * len(groups)
                self.pieces.append(piece)
            if stretch.ended:
                self.ended.add(len(self.pieces) - 1)
            at += len(stretch.symbols)
        self.piece_of = [number for number, piece in enumerate(self.pieces) for _ in piece]

    def _gap(self, at: int) -> float:
        return self.symbols[at].start - self.symbols[at - 1].end

    def _parted(self, span: range, pause: float) -> Iterator[range]:
        first = span.start
        for at in span[1:]:
            if self._gap(at) > pause:
                yield range(first, at)
                first = at
        yield range(first, span.stop)

    def _said(self, span: Sequence[int]) -> str:
        return "".join(self.text[i] for i in span)

    # Cards

    def cards(self) -> list[_Card]:
        """Card numbers that share no digit, the likeliest first to take its digits; in order of time."""
        found = [card for piece in self.pieces for card in self._in_one_go(piece)]
        kept: list[_Card] = []
        taken: set[int] = set()

        def keep(cards: list[_Card]) -> None:
            wider = [{*card.digits, *card.again} for card in cards if card.again and card.belief >= LEAST_BELIEF]
            cards = [card for card in cards if not any({*card.digits} < cover for cover in wider) or card.again]
            for card in sorted(cards, key=lambda card: (-card.belief, card.changes, -len(card.digits), card.digits)):
                if card.belief >= LEAST_BELIEF and taken.isdisjoint(card.digits):
                    taken.update(card.digits)
                    kept.append(card)

        # What verifies as a whole stands whatever is said later; it has to, to be reported at once.
        keep([card for card in found if card.whole])
        free = [g for g, span in enumerate(self.groups) if taken.isdisjoint(span)]
        found = [self._confirmed(card) for card in found if not card.whole]
        for speaker in dict.fromkeys(self.speakers):
            found += self._joined([g for g in free if self.speakers[self.groups[g].start] == speaker], turns=False)
        if len(set(self.speakers)) > 1 and self.detector is Detector.DIGITS:  # nobody keys another's number on
            found += self._joined(free, turns=True)
        # Of two that verify, the one that explains the digits beside it as said twice: the other does so by chance.
        keep([*found, *self._two_readings()])
        return sorted(kept, key=lambda card: self.symbols[card.digits[0]].start)

    def _in_one_go(self, piece: range) -> Iterator[_Card]:
        if len(piece) < SHORTEST_CARD or (self.detector is Detector.DIGITS and not self._is_dense(piece)):
            return
        for span in dict.fromkeys([self._unstray(piece), piece]):
            text = self._said(span)
            if iin_brand(text) and luhn_ok(text):
                usual = is_usual_length(text)
                two = self.detector is Detector.DIGITS and self._is_phone_and_more(span)
                prior = _EIGHTS if two else self.manner.whole if usual else _UNUSUAL
                belief = min(self.manner.sure, _believe(prior, 1))
                if usual and not two and belief > self.manner.sure - 0.05:
                    belief = self.manner.sure
                whole = usual and not two and len(text) == _longest_usual(text)
                yield _Card(tuple(span), text, belief, whole=whole)
                return
        fits: list[tuple[range, bool]] = []
        for start in piece:
            issuer = issuer_of(self._said(range(start, min(start + 6, piece.stop))))
            ends = [start + length for length in sorted(issuer.usual)] if issuer else []
            fits += [
                (range(start, end), start == piece.start or end == piece.stop) for end in ends if end <= piece.stop
            ]
        edges = sum(edge for _, edge in fits)
        for span, edge in fits:
            text = self._said(span)
            if luhn_ok(text):
                prior = self.manner.whole if edge else self.manner.within
                if self.detector is Detector.DIGITS and self._is_phone_and_more(piece):
                    prior = _EIGHTS
                belief = min(self.manner.sure, _believe(prior, edges if edge else len(fits)))
                yield _Card(tuple(span), text, belief)

    def _is_dense(self, piece: range) -> bool:
        """Spoken at 0.8 digits a second or faster, and heard clearly on average."""
        symbols = self.symbols[piece.start : piece.stop]
        return is_digits(symbols) and len(symbols) >= _SLOWEST * (symbols[-1].end - symbols[0].start)

    def _is_phone_and_more(self, span: range) -> bool:
        """Grouped as 3-3-4 digits before or after others: a telephone number, and another one in the same breath."""
        return _holds_a_phone(self._sizes(span))

    def _unstray(self, piece: range) -> range:
        """Without doubtful digits that stand apart at either end: a word that sounds like a digit."""
        first, last = piece.start, piece.stop - 1
        while first < last and self.symbols[first].confidence < _STRAY and self._gap(first + 1) > _APART_S:
            first += 1
        while first < last and self.symbols[last].confidence < _STRAY and self._gap(last) > _APART_S:
            last -= 1
        return range(first, last + 1)

    def _joined(self, groups: list[int], *, turns: bool) -> list[_Card]:
        """Cards from neighbouring groups of one speaker, or of several in turn, over pauses and corrections."""
        tried: dict[str, _Path] = {}
        verified: list[_Path] = []
        for at in range(len(groups)):
            for path in self._paths(groups[at:], turns=turns):
                text = path.text
                if len(text) < SHORTEST_CARD or not is_usual_length(text):
                    continue
                tried.setdefault(text, path)
                if luhn_ok(text) and (not turns or len({self.speakers[i] for i in path.digits}) > 1):
                    verified.append(path)
        cards = []
        for path in verified:
            text = path.text
            rivals = sum(
                rival.changes <= path.changes
                and rival.digits[0] <= path.digits[-1]
                and rival.digits[-1] >= path.digits[0]
                for rival in tried.values()
            )
            prior = self._prior_of_shape(path, turns=turns)
            belief = min(self.manner.sure, _believe(prior, rivals))
            cards.append(self._confirmed(_Card(path.digits, text, belief, path.again, changes=path.changes)))
        return cards

    def _paths(self, groups: list[int], *, turns: bool) -> Iterator[_Path]:
        """Every way of putting the groups together from the first one on, as long as a card may become of it."""
        first = self.groups[groups[0]]
        paths = [_Path(tuple(first), self._said(first))]
        yield from paths
        end = self.symbols[first[-1]].end
        previous = groups[0]
        for group in groups[1:]:
            span = self.groups[group]
            pause = self.symbols[span.start].start - end
            if pause > ACROSS_S or (
                self.piece_of_group[previous] in self.ended
                and self.piece_of_group[previous] != self.piece_of_group[group]
            ):
                return
            end, previous = max(end, self.symbols[span[-1]].end), group
            said = self._said(span)
            longer = [new for path in paths for new in self._continued(path, span, said, pause, turns=turns)]
            paths = [path for path in longer if self._may_become_a_card(path)][:_MOST_PATHS]
            if not paths:
                return
            yield from paths

    def _continued(self, path: _Path, span: range, said: str, pause: float, *, turns: bool) -> Iterator[_Path]:
        text = path.text
        if turns and self.speakers[span.start] != self.speakers[path.digits[-1]] and len(said) >= 3 and said in text:
            yield _Path(path.digits, text, path.again + tuple(span), path.changes)
            return
        fits = len(text) < 6 or issuer_of(text) is not None
        if fits:
            yield _Path(path.digits + tuple(span), text + said, path.again, path.changes)
        if path.changes == _MOST_CHANGES or pause < _GROUP_PAUSE_S:
            return
        for length in range(1, min(_LONGEST_OVERLAP, len(text) - 1) + 1):
            head, tail = said[:length], text[-length:]
            if len(head) < length:
                break
            repeated = head == tail and length >= 2
            corrected = (
                not repeated
                and length <= _LONGEST_CORRECTION
                and pause >= _CORRECTION_PAUSE_S
                and (length > 1 or len(said) == 1 or pause >= 2 * _CORRECTION_PAUSE_S)
                and sum(a != b for a, b in zip(head, tail, strict=True)) == 1
            )
            if (repeated or corrected) and (fits or len(text) - length < 6):
                kept, dropped = path.digits[:-length], path.digits[-length:]
                yield _Path(kept + tuple(span), text[:-length] + said, path.again + dropped, path.changes + 1)

    def _may_become_a_card(self, path: _Path) -> bool:
        """Not longer than one; and one whose first digits no issuer has can only be mended early on."""
        return len(path.text) <= LONGEST_CARD and (len(path.text) < 14 or issuer_of(path.text) is not None)

    def _prior_of_shape(self, path: _Path, *, turns: bool) -> float:
        """How likely a card is by how it was parted: in fours, as on the card, or like two other numbers."""
        sizes = self._sizes(path.digits)
        if _holds_a_phone(sizes):
            return _PHONE
        said = sorted((*path.digits, *path.again))
        pause = max(self.symbols[b].start - self.symbols[a].end for a, b in pairwise(said))
        apart = turns or pause > self.manner.stretch_s
        if path.changes:
            return _CORRECTED_APART if turns or pause > _LONGEST_CORRECTION_PAUSE_S else _CORRECTED
        count = sum(sizes)
        if sizes in ([4, 6, 5], [4, 6, 4], [4] * (count // 4), [*[4] * (count // 4), count % 4]):
            return _FOURS_APART if apart else _FOURS
        return _EIGHTS if all(size % 4 == 0 for size in sizes[:-1]) else _ODD

    def _sizes(self, digits: Sequence[int]) -> list[int]:
        """Of the pieces, or of the groups if it was all said in one go."""
        sizes = [1]
        single = len({self.piece_of[i] for i in digits}) == 1
        starts = {span.start for span in (self.groups if single else self.pieces)}
        for before, at in pairwise(digits):
            if at in starts or at != before + 1:
                sizes.append(1)
            else:
                sizes[-1] += 1
        return sizes

    def _two_readings(self) -> list[_Card]:
        """A number said twice and misread at different places: the reading that verifies."""
        long = [
            piece
            for piece in self.pieces
            if SHORTEST_CARD <= len(piece) <= LONGEST_CARD and iin_brand(self._said(piece))
        ]
        cards = []
        for at, one in enumerate(long):
            for two in long[at + 1 :]:
                if len(one) != len(two) or not is_usual_length(self._said(one)):
                    continue
                differ = [i for i in range(len(one)) if self.text[one[i]] != self.text[two[i]]]
                if not 2 <= len(differ) <= 3:
                    continue
                choices = product(*[(one[i], two[i]) if i in differ else (one[i],) for i in range(len(one))])
                fitting = [digits for digits in choices if luhn_ok(self._said(digits))]
                if len(fitting) == 1:
                    text = self._said(fitting[0])
                    # the first time it was said; the second counts as said again
                    cards.append(_Card(tuple(one), text, _believe(_TWICE, 2 ** len(differ)), tuple(two), changes=1))
        return cards

    def _confirmed(self, card: _Card) -> _Card:
        """Surer where a group of it was read back, or said again."""
        own = {*card.digits}
        begun = self.symbols[card.digits[0]].start
        said_by = {self.speakers[i] for i in card.digits}
        for span in self.groups:
            said = self._said(span)
            other = self.speakers[span.start] not in said_by
            if (
                len(said) >= 4
                and said in card.text
                and (other or len(said) >= 8)
                and self.symbols[span.start].start > begun
                and own.isdisjoint(span)
            ):
                odds = card.belief / (1 - card.belief) * _READ_BACK_ODDS
                card.belief = max(card.belief, min(_MOST_READ_BACK, odds / (1 + odds)))
                break
        return card

    # What it amounts to

    def as_heard(self, cards: list[_Card]) -> list[Heard]:
        taken = {i for card in cards for i in (*card.digits, *card.again)}
        heard: list[Heard] = []
        by_digits: dict[str, Heard] = {}
        for card in cards:
            if known := by_digits.get(card.text):
                known.again += self._places(card.digits) + self._places(card.again)
                if not known.whole:
                    known.confidence = max(known.confidence, card.belief, min(_MOST_READ_BACK, self.manner.sure))
                continue
            number = Heard(
                FindingKind.CARD_NUMBER,
                card.text,
                round(card.belief, 3),
                self._places(card.digits),
                self._places(card.again),
                card.whole,
            )
            by_digits[card.text] = number
            heard.append(number)
        again = self._said_again(heard, taken)
        for number in self._unverified(taken | again):
            twin = next((h for h in heard if _alike(h.digits, number.digits)), None)
            if twin is None:
                heard.append(number)
            elif number.start < twin.start and not twin.whole:
                twin.again += twin.places
                twin.places = number.places
            else:
                twin.again += number.places
        used = taken | again
        codes = [code for card in cards for code in self._code_after(card.digits, card.text, used, verified=True)]
        for number in heard:
            if number.kind is FindingKind.CARD_LENGTH_NUMBER and issuer_of(number.digits):
                last = max(i for i, s in enumerate(self.symbols) if s.end <= number.end)
                codes += self._code_after((last,), number.digits, used, verified=False)
        seen: set[tuple[str, float]] = set()
        for code in codes:
            if (code.digits, code.start) not in seen:
                seen.add((code.digits, code.start))
                heard.append(code)
        return sorted(heard, key=lambda number: (number.start, number.kind))

    def _places(self, digits: Sequence[int]) -> list[Place]:
        places: list[Place] = []
        before = -2
        for i in sorted(digits):
            symbol, speaker = self.symbols[i], self.speakers[i]
            if i == before + 1 and places[-1][0] == speaker and self.piece_of[i] == self.piece_of[before]:
                places[-1] = (speaker, places[-1][1], symbol.end)
            else:
                places.append((speaker, symbol.start, symbol.end))
            before = i
        return places

    def _said_again(self, heard: list[Heard], taken: set[int]) -> set[int]:
        again: set[int] = set()
        for span in [*self.pieces, *self.groups]:
            said = self._said(span)
            if len(said) >= 4 and taken.isdisjoint(span) and again.isdisjoint(span):
                for number in heard:
                    if said in number.digits:
                        number.again += self._places(span)
                        again.update(span)
                        break
        return again

    def _unverified(self, used: set[int]) -> Iterator[Heard]:
        """12 digits and more that don't verify: in one go, or in fours over pauses, or with each group read back."""
        rest: list[int] = []
        for number, piece in enumerate(self.pieces):
            if not used.isdisjoint(piece):
                continue
            text = self._said(piece)
            if self.detector is Detector.TONES:
                if SHORTEST_CARD <= len(piece) <= LONGEST_CARD and issuer_of(text):
                    yield self._length(piece)
            elif len(piece) >= FEWEST_UNVERIFIED:
                if self._is_dense(piece) and (issuer_of(text) or not self._is_phone_and_more(piece)):
                    yield self._length(piece)
            elif len(piece) <= 8:
                rest.append(number)
        if self.detector is Detector.DIGITS:
            for speaker in dict.fromkeys(self.speakers):
                own = [n for n in rest if self.speakers[self.pieces[n].start] == speaker]
                yield from self._dictated(own)

    def _dictated(self, pieces: list[int]) -> Iterator[Heard]:
        run: list[int] = []
        for number in [*pieces, None]:
            if number is not None and (not run or self._goes_on(run[-1], number)):
                run.append(number)
                continue
            digits = [i for n in run for i in self.pieces[n]]
            sizes = [len(self.pieces[n]) for n in run]
            parts = [len(group) for group, n in zip(self.groups, self.piece_of_group, strict=True) if n in run]
            fours = _in_fours(sizes) or _in_fours(parts)
            least = 1 if all(size % 4 == 0 for size in sizes) else 2
            confirmed = sum(self._read_back(n) for n in run) >= least
            if (
                FEWEST_UNVERIFIED <= len(digits) <= LONGEST_CARD
                and issuer_of(self._said(digits))
                and (fours or confirmed or self._is_steady(run, sizes))
            ):
                yield self._length(digits)
            run = [number] if number is not None else []

    def _is_steady(self, run: list[int], sizes: list[int]) -> bool:
        """Several short pieces with short pauses, unlike two other numbers one after the other."""
        spans = [self.pieces[n] for n in run]
        pauses = [self.symbols[b.start].start - self.symbols[a[-1]].end for a, b in pairwise(spans)]
        short = len(run) >= 3 and max(sizes) <= 6 and max(pauses) <= self.manner.stretch_s
        return short and not _holds_a_phone(sizes)

    def _goes_on(self, before: int, piece: int) -> bool:
        pause = self.symbols[self.pieces[piece].start].start - self.symbols[self.pieces[before][-1]].end
        return pause <= (ACROSS_S if self._read_back(before) else _DICTATED_PAUSE_S)

    def _read_back(self, piece: int) -> bool:
        span = self.pieces[piece]
        said = self._said(span)
        return any(
            self._said(other) == said and self.speakers[other.start] != self.speakers[span.start]
            for other in self.pieces
            if self.symbols[other.start].start > self.symbols[span.start].start
        )

    def _length(self, digits: Sequence[int]) -> Heard:
        """0.60-0.75 by how clearly its digits were heard."""
        mean = sum(self.symbols[i].confidence for i in digits) / len(digits)
        sure = min(1.0, max(0.0, (mean - 0.65) / 0.35))
        confidence = round(0.60 + 0.15 * sure, 3)
        return Heard(FindingKind.CARD_LENGTH_NUMBER, self._said(digits), confidence, self._places(digits))

    # Codes

    def _code_after(self, card: Sequence[int], text: str, used: set[int], *, verified: bool) -> Iterator[Heard]:
        """The verification code said or keyed after a card number: 4 digits for American Express, else 3."""
        is_amex = iin_brand(text) == "American Express"
        end, speaker, last = self.symbols[card[-1]].end, self.speakers[card[-1]], card[-1]
        dated = False
        for span in self._after(last):
            said = self._said(span)
            start = self.symbols[span.start].start
            if start - end > CODE_WITHIN_S:
                return
            end = max(end, self.symbols[span[-1]].end)
            if not used.isdisjoint(span) or self.speakers[span.start] != speaker or _part_of(said, text):
                if len(said) >= FEWEST_UNVERIFIED and not _part_of(said, text):
                    return
                continue
            later = [other for other in self._after(span[-1]) if self.speakers[other.start] == speaker]
            follows = later[0] if later and self.symbols[later[0].start].start - end <= CODE_WITHIN_S else None
            if looks_like_expiry(said) and (not is_amex or (follows is not None and len(follows) in (3, 4))):
                dated = True
                continue
            if len(said) not in (3, 4):
                dated |= len(said) == 6 and looks_like_expiry(said[:2] + said[4:])
                continue
            more = follows is not None and len(follows) > 3 and self._gap(follows.start) <= _SAME_NUMBER_S
            if more and self.detector is Detector.DIGITS:
                return  # the first digits of a telephone number or the like
            confidence = self.manner.codes[0 if dated else 1]
            if len(said) == 4 and (looks_like_expiry(said) or not is_amex):
                confidence = 0.6
            elif len(said) == 3 and is_amex:
                confidence -= 0.15
            if not verified:
                confidence = 0.6 if dated else 0.0
            if confidence >= LEAST_BELIEF:
                yield Heard(FindingKind.CARD_VERIFICATION_CODE, said, round(confidence, 3), self._places(span))
            return

    def _after(self, last: int) -> list[range]:
        """The pieces after a digit, by time; the rest of its own piece first, an expiry date in it apart."""
        piece = self.pieces[self.piece_of[last]]
        tail = range(last + 1, piece.stop)
        spans = [tail] if tail else []
        if len(tail) in (7, 8) and looks_like_expiry(self._said(tail[:4])):
            spans = [tail[:4], tail[4:]]
        end = self.symbols[last].end
        return spans + [p for p in self.pieces if p.start > last and self.symbols[p.start].start >= end - 0.5]


def _longest_usual(card: str) -> int:
    issuer = issuer_of(card)
    return max(issuer.usual) if issuer else 0


def _in_fours(sizes: list[int]) -> bool:
    """As on the card: 4-4-4-4, or 4-6-5."""
    return set(sizes[:-1]) in ({4}, {4, 6}) and sizes[-1] in (3, 4, 5)


def _holds_a_phone(sizes: list[int]) -> bool:
    return any(sizes[at : at + 3] == [3, 3, 4] for at in range(len(sizes))) or (10 in sizes and len(sizes) > 1)


def _part_of(said: str, number: str) -> bool:
    """Read back from the number; three digits stand somewhere in it by chance too often."""
    return number.endswith(said) if len(said) == 3 else said in number


def _alike(one: str, two: str) -> bool:
    """Equal but for misread digits."""
    return len(one) == len(two) and sum(a != b for a, b in zip(one, two, strict=True)) <= 3
