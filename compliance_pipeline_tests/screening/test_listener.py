"""Numbers put together from what is heard of a call: turns, pauses, read-backs, corrections; what settles and when."""

import random
import tracemalloc
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compliance_pipeline.contracts.policy import Detector, FindingKind
from compliance_pipeline.screening import dictation
from compliance_pipeline.screening.dictation import SPOKEN, Stretch, numbers_in
from compliance_pipeline.screening.findings import Finding, Symbol
from compliance_pipeline.screening.fingerprint import fingerprints
from compliance_pipeline.screening.listener import IsSpeech, NumberListener
from compliance_pipeline.screening.numbers import luhn_ok, mask_card

CARD, LENGTH, CODE = FindingKind.CARD_NUMBER, FindingKind.CARD_LENGTH_NUMBER, FindingKind.CARD_VERIFICATION_CODE
DIGITS, TONES = Detector.DIGITS, Detector.TONES
FINGERPRINT = fingerprints("a key for tests")
SPEAKERS = ("customer", "agent")

VISA = "4929834157203870"
FOURS = ("4929", "8341", "5720", "3870")
MISREAD = VISA[:-1] + "1"
AMEX = "378282246310005"

Turn = tuple[str, str]
"""Who, and what: digits, `#`; a space is half a second, `_` two seconds, `~` ten."""
Call = dict[str, list[Symbol]]
_PAUSES = {" ": 0.5, "_": 2.0, "~": 10.0}


def spoken(*turns: Turn, confidence: float = 0.95, step: float = 0.35) -> tuple[Call, float]:
    """One turn after the other; what each channel holds and how long it all takes."""
    call: Call = {speaker: [] for speaker in SPEAKERS}
    at = 1.0
    for speaker, text in turns:
        for char in text:
            if char in _PAUSES:
                at += _PAUSES[char]
                continue
            call[speaker].append(Symbol(char, at, at + 0.8 * step, confidence))
            at += step
        at += 0.5
    return call, at


def listen(
    call: Call, until: float, detector: Detector = DIGITS, is_speech: IsSpeech = lambda _speaker, _spans: True
) -> NumberListener:
    listener = NumberListener(FINGERPRINT, SPEAKERS, is_speech)
    for speaker, symbols in call.items():
        listener.hear(speaker, detector, symbols, until)
    return listener


def heard(*turns: Turn, detector: Detector = DIGITS) -> list[Finding]:
    listener = listen(*spoken(*turns), detector)
    listener.finish()
    return listener.findings()


def kinds(findings: Sequence[Finding]) -> list[FindingKind]:
    return [finding.kind for finding in findings]


def card_with(number: str, findings: Sequence[Finding]) -> Finding:
    (finding,) = [f for f in findings if f.fingerprint == FINGERPRINT(CARD, number)]
    return finding


# Said without trouble


@pytest.mark.parametrize("text", [VISA, " ".join(FOURS), "_".join(FOURS), AMEX, "3782 822463 10005"])
def test_a_card_number_in_one_go_or_in_its_groups_is_found(text: str) -> None:
    (card,) = heard(("customer", text))
    number = "".join(char for char in text if char.isdigit())
    assert (card.kind, card.masked, card.speaker, card.start_ms) == (CARD, mask_card(number), "customer", 1000)
    assert card.fingerprint == FINGERPRINT(CARD, number)
    assert card.confidence == 0.95


@pytest.mark.parametrize("text", [f"{VISA}#", f"1#{VISA}#", f"0{VISA}#", f"{VISA[:6]}_{VISA[6:]}"])
def test_a_keyed_card_number_is_all_but_certain(text: str) -> None:
    (card,) = heard(("customer", text), detector=TONES)
    assert (card.kind, card.detector, card.masked, card.confidence) == (CARD, TONES, mask_card(VISA), 0.99)


def test_more_digits_around_a_card_number_make_it_less_sure() -> None:
    (alone,) = heard(("customer", VISA))
    (tail,) = heard(("customer", f"{VISA}22"))
    (within,) = heard(("customer", f"12{VISA}22"))
    assert alone.confidence >= tail.confidence > within.confidence > 0.5


def test_two_card_numbers_in_one_go_are_two() -> None:
    assert [f.masked for f in heard(("customer", VISA + AMEX))] == [mask_card(VISA), mask_card(AMEX)]


# Pauses, turns, read-backs, corrections


@pytest.mark.parametrize(
    "turns",
    [
        [("customer", "~".join(FOURS))],
        [turn for four in FOURS for turn in (("customer", four), ("agent", four))],
        [turn for four in FOURS for turn in (("customer", f"{four}_"), ("agent", f"{four}~"))],
        [("customer", VISA[:8]), ("agent", f"_{VISA[:8]}_"), ("customer", VISA[8:])],
        [("customer", f"{VISA[:8]}~~{VISA[8:]}")],
        [("customer", f"{VISA[:8]}_"), ("agent", VISA[8:])],
        [("customer", f"{VISA[:8]}~"), ("agent", VISA)],
        [("customer", f"{FOURS[0]} {FOURS[1]} {FOURS[1]} {FOURS[2]} {FOURS[3]}")],
        [("customer", f"{FOURS[0]} {FOURS[0]} {FOURS[1]} {FOURS[2]} {FOURS[3]}")],
        [("customer", "4929 8341 51  5720 3870")],
        [("customer", "4929 8341 5720 3871  3870")],
        [("customer", "4929 8341 5730 _5720 3870")],
        [("customer", MISREAD), ("agent", f"_{VISA}")],
        [("customer", f"{VISA[:5]}0{VISA[6:]}_"), ("agent", f"{VISA[:9]}1{VISA[10:]}")],
    ],
)
def test_a_number_is_put_together_over_turns_pauses_repeats_and_corrections(turns: list[Turn]) -> None:
    (card,) = heard(*turns)
    assert card_with(VISA, [card]).kind is CARD
    assert 0.5 <= card.confidence <= 0.98


def test_a_read_back_that_agrees_makes_a_doubtful_number_sure_and_is_no_finding_of_its_own() -> None:
    (doubtful,) = heard(("customer", f"{VISA[:8]}~{VISA[8:]}"))
    (sure,) = heard(("customer", f"{VISA[:8]}~{VISA[8:]}"), ("agent", f"_{VISA[:8]}"))
    assert doubtful.confidence < 0.8 < sure.confidence
    assert (sure.speaker, sure.start_ms, sure.end_ms) == (doubtful.speaker, doubtful.start_ms, doubtful.end_ms)


def test_a_number_read_back_at_once_or_minutes_later_is_one_finding_at_its_first_time() -> None:
    for pause in ("_", "~" * 20):
        (card,) = heard(("customer", VISA + pause), ("agent", VISA))
        assert (card.speaker, card.start_ms) == ("customer", 1000)


def test_a_corrected_number_is_less_sure_than_one_said_right() -> None:
    (card,) = heard(("customer", "4929 8341 5720 3871  3870"))
    assert card.confidence < 0.8


def test_the_places_to_mask_hold_every_digit_of_a_number_its_read_backs_and_corrections() -> None:
    call, until = spoken(("customer", "4929 8341 5720 3871  3870_"), ("agent", f"{VISA}_"), ("customer", "3870"))
    listener = listen(call, until)
    (card,) = listener.finish()
    for symbols in call.values():
        for symbol in symbols:
            start, end = round(symbol.start * 1000), round(symbol.end * 1000)
            assert any(first <= start and end <= last for first, last in card.spans)


# What is no card


@pytest.mark.parametrize(
    "turns",
    [
        [("customer", "123456__0123456789")],
        [("customer", "415 555 0123_"), ("customer", "739402")],
        [("customer", f"{VISA[:8]}~~~~~~~{VISA[8:]}")],
        [("customer", f"{VISA[:8]}_{VISA[8:]}99")],
        [("customer", "123 456 7890 123456")],
        [("customer", VISA[:11])],
        [("customer", "")],
    ],
)
def test_other_numbers_one_after_the_other_are_no_card(turns: list[Turn]) -> None:
    assert CARD not in kinds(heard(*turns))


def test_what_two_people_key_is_not_one_number() -> None:
    assert heard(("customer", VISA[:8]), ("agent", VISA[8:]), detector=TONES) == []


def test_keys_that_end_an_entry_part_two_numbers() -> None:
    assert heard(("customer", f"{VISA[:8]}#{VISA[8:]}#"), detector=TONES) == []
    (card,) = heard(("customer", f"{VISA[:8]}~{VISA[8:]}"), detector=TONES)
    assert card.confidence < 0.8


@pytest.mark.parametrize(
    "text",
    [
        MISREAD,
        "123456789012",
        "_".join([*FOURS[:3], MISREAD[12:]]),
        "4929_831_5720_3870",
        "4929 8341___5720 3871",
        "_".join(FOURS[:3]),
    ],
)
def test_a_number_as_long_as_a_cards_that_does_not_verify_is_for_review(text: str) -> None:
    (found,) = heard(("customer", text))
    assert found.kind is LENGTH
    assert set(found.masked) == {"*"}
    assert 0.6 <= found.confidence <= 0.75


def test_a_misread_number_read_back_group_by_group_is_for_review() -> None:
    groups = (*FOURS[:3], MISREAD[12:])
    (found,) = heard(*[turn for four in groups for turn in (("customer", f"_{four}_"), ("agent", f"_{four}_"))])
    assert found.kind is LENGTH


def test_an_unverified_number_is_the_surer_the_clearer_its_digits() -> None:
    confidences = []
    for clear in (0.66, 0.8, 0.9, 1.0):
        listener = listen(*spoken(("customer", MISREAD), confidence=clear))
        (finding,) = listener.findings()
        confidences.append(finding.confidence)
    assert confidences == sorted(confidences)
    assert len(set(confidences)) == 4
    assert listen(*spoken(("customer", MISREAD), confidence=0.6)).findings() == []


def test_a_mistyped_card_is_a_number_of_its_length_and_an_account_number_is_nothing() -> None:
    assert kinds(heard(("customer", f"{MISREAD}#"), detector=TONES)) == [LENGTH]
    assert heard(("customer", "1234567890123456#"), detector=TONES) == []


def test_a_doubtful_digit_that_stands_apart_does_not_shift_the_number() -> None:
    number = "4732983868533591"
    call, until = spoken(("customer", f"5 {number}"))
    stray, *rest = call["customer"]
    doubtful = Symbol(stray.char, stray.start, stray.end, 0.5)
    (card,) = listen({"customer": [doubtful, *rest], "agent": []}, until).findings()
    assert card.start_ms == round(rest[0].start * 1000)


# Codes


@pytest.mark.parametrize(
    ("turns", "confidence"),
    [
        ([("customer", f"{VISA}_123")], 0.7),
        ([("customer", f"{VISA}~123")], 0.7),
        ([("customer", f"{VISA}_1227_123")], 0.85),
        ([("customer", f"{VISA}1227123")], 0.85),
        ([("customer", f"{VISA}_"), ("agent", f"{VISA}_"), ("customer", "123")], 0.7),
        ([("customer", f"{AMEX}_1227_9876")], 0.85),
        ([("customer", f"{MISREAD}_1227_123")], 0.6),
    ],
)
def test_a_code_said_after_a_card_number_is_found(turns: list[Turn], confidence: float) -> None:
    _, code = heard(*turns)
    assert (code.kind, set(code.masked), code.confidence) == (CODE, {"*"}, confidence)
    assert code.fingerprint is None


@pytest.mark.parametrize(
    ("keys", "confidence"),
    [
        (f"{VISA}#123#", 0.95),
        (f"{VISA}#1227#123#", 0.95),
        (f"{VISA}#1227#94105#123#", 0.95),
        (f"{VISA}123#", 0.95),
        (f"{VISA}1227123#", 0.95),
        (f"{VISA}~123", 0.95),
        (f"{VISA}#9876#", 0.6),
        (f"{AMEX}#9876#", 0.95),
        (f"{AMEX}#0127#9876#", 0.95),
        (f"{AMEX}#0127#", 0.6),
    ],
)
def test_a_code_keyed_after_a_card_number_is_found(keys: str, confidence: float) -> None:
    _, code = heard(("customer", keys), detector=TONES)
    assert (code.kind, code.confidence) == (CODE, confidence)


@pytest.mark.parametrize(
    "text",
    [f"{VISA}_1227", f"{VISA}_12345", f"{VISA}~~123", f"{VISA}_415_5550123", f"{VISA}_3870", f"123~{VISA}"],
)
def test_other_digits_after_a_card_number_are_no_code(text: str) -> None:
    assert kinds(heard(("customer", text))) == [CARD]


# What settles, and when


def test_a_number_in_one_go_settles_after_a_pause_and_a_doubtful_one_after_a_minute() -> None:
    whole, end = spoken(("customer", VISA))
    assert listen(whole, end).settled() == []
    assert kinds(listen(whole, end + 3).settled()) == [CARD]
    apart, end = spoken(("customer", f"{VISA[:8]}~{VISA[8:]}"))
    assert listen(apart, end + 50).settled() == []
    assert kinds(listen(apart, end + 61).settled()) == [CARD]


def test_thirteen_digits_that_verify_are_taken_back_when_sixteen_were_said() -> None:
    thirteen, sixteen = "4222222222222", "4222222222222477"
    assert luhn_ok(sixteen)
    call, until = spoken(("customer", sixteen))
    early = listen({"customer": call["customer"][:13], "agent": []}, call["customer"][12].end)
    assert [f.masked for f in early.findings()] == [mask_card(thirteen)]
    assert early.settled() == []
    early.hear("customer", DIGITS, call["customer"][13:], until)
    assert [f.masked for f in early.findings()] == [mask_card(sixteen)]


def pieces_of(call: Call, until: float, cuts: Sequence[float]) -> Iterator[tuple[str, list[Symbol], float]]:
    before = 0.0
    for cut in [*sorted(cuts), until]:
        for speaker, symbols in call.items():
            yield speaker, [symbol for symbol in symbols if before <= symbol.start < cut], cut
        before = cut


groups = st.lists(st.sampled_from([*FOURS, VISA, MISREAD, VISA[:8], VISA[8:], "123", "1227", "5", "#", "4155550123"]))
pauses = st.sampled_from(["", " ", "_", "~", "~" * 7])
talk = st.lists(st.tuples(st.sampled_from(SPEAKERS), groups.map("".join), pauses), max_size=14)


@settings(max_examples=150, deadline=None)
@given(talk, st.lists(st.floats(0, 200), max_size=12), st.sampled_from([DIGITS, TONES]))
def test_the_chunks_make_no_difference_and_what_is_settled_stays(
    turns: list[tuple[str, str, str]], cuts: list[float], detector: Detector
) -> None:
    call, until = spoken(*[(speaker, pause + text) for speaker, text, pause in turns])
    at_once = listen(call, until, detector)
    found = at_once.finish()
    listener = NumberListener(FINGERPRINT, SPEAKERS)
    settled: list[Finding] = []
    for speaker, symbols, cut in pieces_of(call, until, [cut for cut in cuts if cut < until]):
        listener.hear(speaker, detector, symbols, cut)
        now = listener.settled()
        assert set(settled) <= set(now) <= set(listener.findings())
        settled = now
    assert listener.finish() == found
    assert set(settled) <= set(listener.settled())
    assert listener.settled() == listener.findings() == at_once.findings()


def test_a_call_full_of_digits_takes_bounded_memory_and_work_that_follows_the_digits() -> None:
    rng = random.Random(1)
    listener = NumberListener(FINGERPRINT, SPEAKERS)
    at = 0.0
    tracemalloc.start()
    try:
        for block in range(200):
            for speaker in SPEAKERS:
                symbols = [Symbol(rng.choice("0123456789"), at + n * 0.4, at + n * 0.4 + 0.3, 0.9) for n in range(14)]
                listener.hear(speaker, DIGITS, symbols, at + 6)
            at += 6
            if block == 60:
                early = tracemalloc.get_traced_memory()[0]
        late = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert late < early + 200_000
    assert listener.settled()


# Generated calls


def with_check_digit(body: str) -> str:
    return next(body + check for check in "0123456789" if luhn_ok(body + check))


def a_card(rng: random.Random) -> str:
    first = rng.choice(["4", "51", "55", "2221", "34", "37", "6011"])
    length = 15 if first in ("34", "37") else 16
    return with_check_digit(first + "".join(rng.choices("0123456789", k=length - 1 - len(first))))


def in_groups(number: str, rng: random.Random) -> list[str]:
    if len(number) == 15:
        return [number[:4], number[4:10], number[10:]]
    size = rng.choice([2, 4, 4, 4, 8])
    return [number[at : at + size] for at in range(0, 16, size)]


def plain(number: str, rng: random.Random) -> list[Turn]:
    return [("customer", rng.choice(["", " ", " ", "  "]).join(in_groups(number, rng)))]


def read_back(number: str, rng: random.Random) -> list[Turn]:
    return [*plain(number, rng), ("agent", f"_{' '.join(in_groups(number, rng))}")]


def group_by_group(number: str, rng: random.Random) -> list[Turn]:
    fours = [number[at : at + 4] for at in range(0, len(number), 4)]
    return [turn for four in fours for turn in (("customer", f"_{four}"), ("agent", f" {four}"))]


def interrupted(number: str, rng: random.Random) -> list[Turn]:
    cut = 4 * rng.randint(1, 3)
    return [("customer", f"{number[:cut]}{rng.choice(['_', '~', '~~'])}"), ("customer", number[cut:])]


def corrected(number: str, rng: random.Random) -> list[Turn]:
    fours = [number[at : at + 4] for at in range(0, len(number), 4)]
    at = rng.randrange(1, len(fours))
    where = rng.randrange(len(fours[at]))
    wrong = fours[at][:where] + str((int(fours[at][where]) + rng.randint(1, 9)) % 10) + fours[at][where + 1 :]
    return [("customer", " ".join([*fours[:at], f"{wrong} ", *fours[at:]]))]


def repeated(number: str, rng: random.Random) -> list[Turn]:
    fours = [number[at : at + 4] for at in range(0, len(number), 4)]
    at = rng.randrange(len(fours))
    return [("customer", " ".join([*fours[: at + 1], *fours[at:]]))]


def noisy(turns: list[Turn], rng: random.Random) -> list[Turn]:
    """With a telephone number minutes before and an order number minutes after."""
    phone = "".join(rng.choices("0123456789", k=10))
    order = "".join(rng.choices("0123456789", k=rng.randint(5, 9)))
    return [("agent", f"{phone}{'~' * 8}"), *turns, ("customer", f"{'~' * 8}{order}")]


STORIES: list[tuple[Callable[[str, random.Random], list[Turn]], float]] = [
    (plain, 0.99),
    (read_back, 0.99),
    (group_by_group, 0.98),
    (interrupted, 0.97),
    (repeated, 0.9),
    (corrected, 0.75),
]


@pytest.mark.parametrize(("story", "least"), STORIES)
def test_the_planted_number_is_found_in_generated_calls(
    story: Callable[[str, random.Random], list[Turn]], least: float
) -> None:
    rng = random.Random(7)
    exact = 0
    for _ in range(100):
        number = a_card(rng)
        findings = [f for f in heard(*noisy(story(number, rng), rng)) if f.kind in (CARD, LENGTH)]
        assert findings, "a number as long as a card's was said, read as it may be"
        exact += any(f.fingerprint == FINGERPRINT(CARD, number) for f in findings)
    assert exact >= 100 * least


def test_a_number_with_a_misread_digit_is_at_least_for_review() -> None:
    rng = random.Random(8)
    for story in (plain, read_back):
        for _ in range(60):
            number = a_card(rng)
            at = rng.randrange(6, len(number))
            wrong = number[:at] + str((int(number[at]) + rng.randint(1, 9)) % 10) + number[at + 1 :]
            turns = [(speaker, text) for speaker, text in story(wrong, rng)]
            assert any(f.kind in (CARD, LENGTH) for f in heard(*noisy(turns, rng)))


def test_telephone_and_order_numbers_are_rarely_taken_for_cards() -> None:
    """20 calls of 5 minutes with 20 numbers each: of the false cards none is sure, and few are for review."""
    rng = random.Random(9)
    sure = doubtful = 0
    for _ in range(20):
        turns = []
        for _ in range(20):
            digits = "".join(rng.choices("0123456789", k=rng.choice([4, 5, 6, 8, 10, 10, 10])))
            text = f"{digits[:3]} {digits[3:6]} {digits[6:]}" if len(digits) == 10 else digits
            turns.append((rng.choice(SPEAKERS), text + rng.choice(["_", "~", "~~"])))
        cards = [f for f in heard(*turns) if f.kind is CARD]
        sure += sum(card.confidence >= 0.8 for card in cards)
        doubtful += sum(card.confidence < 0.8 for card in cards)
    assert sure <= 1
    assert doubtful <= 12


# The gate, and what is shown


def test_digits_in_what_is_no_speech_are_no_finding_and_keys_are_not_asked_about() -> None:
    asked: list[tuple[str, Sequence[tuple[float, float]]]] = []

    def music(speaker: str, spans: Sequence[tuple[float, float]]) -> bool:
        asked.append((speaker, spans))
        return False

    call, until = spoken(("customer", VISA))
    listener = listen(call, until, is_speech=music)
    listener.finish()
    assert listener.findings() == []
    ((speaker, ((start, end),)),) = asked
    assert (speaker, start) == ("customer", 1.0)
    assert end == call["customer"][-1].end
    assert kinds(listen(call, until, TONES, music).findings()) == [CARD]
    assert len(asked) == 1


@settings(max_examples=60, deadline=None)
@given(talk, st.sampled_from([DIGITS, TONES]))
def test_no_finding_shows_the_digits_it_stands_for(turns: list[tuple[str, str, str]], detector: Detector) -> None:
    for finding in heard(*[(speaker, pause + text) for speaker, text, pause in turns], detector=detector):
        assert finding.end_ms >= finding.start_ms
        shown = [char for char in finding.masked if char != "*"]
        assert len(shown) <= (10 if finding.kind is CARD else 0)
        assert finding.masked.count("*") >= min(6, len(finding.masked))


def test_nothing_in_between_shows_digits() -> None:
    call, until = spoken(("customer", VISA))
    stretch = Stretch("customer", tuple(call["customer"]))
    (number,) = numbers_in([stretch], DIGITS)
    for thing in (stretch, number, listen(call, until), call["customer"][0]):
        assert VISA[6:12] not in repr(thing)
        assert "49298" not in repr(thing)


def test_one_in_ten_numbers_verify_by_chance_and_belief_says_so() -> None:
    """Of dictated numbers in fours that begin like a card, of which so many are cards, those found are so often one."""
    rng = random.Random(3)
    right = found = 0
    for _ in range(400):
        number = a_card(rng)
        real = rng.random() < SPOKEN.whole
        if not real:
            number = number[:6] + "".join(rng.choices("0123456789", k=len(number) - 6))
        for card in heard(("customer", " ".join(number[at : at + 4] for at in range(0, len(number), 4)))):
            if card.kind is CARD and card.confidence >= 0.9:
                found += 1
                right += real
    assert found > 200
    assert right / found == pytest.approx(0.95, abs=0.03)
    assert dictation.LEAST_BELIEF == 0.5
