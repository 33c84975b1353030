"""The text detectors, on tables of real-world spellings, properties, and seeded messages with known truth."""

import time
import uuid
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.text import UNITS, Found, Labelled, corpus, ours, scores, verdicts, with_check_digit
from compliance_pipeline.contracts.policy import Detector, FindingKind
from compliance_pipeline.screening.findings import Finding
from compliance_pipeline.screening.fingerprint import fingerprints
from compliance_pipeline.screening.text import screen_text
from compliance_pipeline.screening.transcripts import Transcript, Turn

CARD, CODE, SSN = FindingKind.CARD_NUMBER, FindingKind.CARD_VERIFICATION_CODE, FindingKind.GOVERNMENT_ID
PIN = FindingKind.CARD_PIN
ACCUSES = 0.8
"""The confidence from which the default pack calls a card number a violation."""


def screen(*turns: str | tuple[str, int, str]) -> list[Finding]:
    return screen_text(
        Transcript(
            tuple(Turn("customer", at, turn) if isinstance(turn, str) else Turn(*turn) for at, turn in enumerate(turns))
        )
    )


def kinds(*turns: str | tuple[str, int, str]) -> list[FindingKind]:
    return [finding.kind for finding in screen(*turns)]


@pytest.mark.parametrize(
    "text",
    [
        "4111111111111111",
        "my card is 4111 1111 1111 1111 thanks",
        "4111-1111-1111-1111",
        "4111.1111.1111.1111",
        "4111  1111 - 1111  1111",
        "4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1",
        "4-1-1-1-1-1-1-1-1-1-1-1-1-1-1-1",
        "4111 1111\n1111 1111",
        "4111 1111 11\n11 1111",
        "> you wrote:\n> my card is 4111 1111\n> 1111 1111\n\nthanks",
        ">> 4111 1111\n>> 1111 1111",
        "4111, 1111, 1111, 1111",
        "４１１１ １１１１ １１１１ １１１１",
        "٤١١١ ١١١١ ١١١١ ١١١١",
        "4111\u200b1111\u200b1111\u200b1111",
        "4111\u20111111\u20111111\u20111111",
        "4\ufe0f\u20e31\ufe0f\u20e31\ufe0f\u20e31 1111 1111 1111",
        "4111\u00a01111\u00a01111\u00a01111",
        "(4111111111111111)",
        "card:4111111111111111.",
        "four one one one one one one one one one one one one one one one",
        "Four, one, one, one. One one one one, one one one one, one one one one.",
        "four triple one double one double one triple one, one, four ones",
        "forty one eleven eleven eleven eleven eleven eleven eleven",
        "forty-one eleven, um, eleven eleven and then eleven eleven eleven eleven",
        "four thousand one hundred eleven 1111 1111 1111",
        "4111 eleven eleven 1111 double one 11",
        "4111 1111 1111 1111 12/27 123",
        "4111111111111111|12|27|123",
        "5 5 5 5 5 5 5 5 5 5 5 5 4 4 4 4",
        "five five five five, five five five five, five five five five, double four double four",
        "2223 0031 2200 3222",
        "3782 822463 10005",
        "3782 8224 6310 005",
        "thirty seven eighty two, eighty two, twenty four sixty three, one, oh, oh, oh, five",
        "6011 oh double oh nine nine oh one three nine four two four",
        "30569309025904",
        "3530 1113 3330 0000",
        "4532*0151*1283*0366",
        "it starts 4532 0151 and it ends with 1283 and finally 0366",
        "card=4532015112830366&cvv=",
        "6240 0086 3140 1148",
        "my visa is 4222222222222",
        "for order 48213 please use 4111 1111 1111 1111",
        "the last four are 1111, the whole number is 4111 1111 1111 1111",
    ],
)
def test_a_card_number_is_found_however_it_is_written(text: str) -> None:
    cards = [finding for finding in screen(text) if finding.kind is CARD]
    assert len(cards) == 1
    assert cards[0].confidence >= ACCUSES
    assert cards[0].detector is Detector.TEXT


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112",
        "call me on +1 415 555 0123 or (212) 555-0199",
        "415-555-0123, 415-555-0199, 415-555-0142",
        "2026-03-12 10:30:45.123 error",
        "20260312103045",
        "1741775445123",
        "sent 2026-03-12T10:30:45Z, then 2026-03-12T10:31:02Z",
        "tracking 1Z999AA10123456784",
        "order A4111111111111111",
        "conversation 4b0cf1e1-5a1b-41d4-a716-446655440000",
        "40e1111111111111",
        "41111111111111110000000000000000000000",
        "invoices 1001, 1002, 1003, 1004, 1005 and 1006",
        "IMEI 352099001761481",
        "ICCID 8914800000000000000",
        "we need one or two of the four, and ten for twenty people",
        "pay 1,234,567 and 4,500,000 by 2027",
        "the card ends in 1111",
        "411111******1111",
        "oh oh oh no, two thousand and twenty five was a year",
        "10.0.0.1 and 192.168.0.255",
        "GB82 WEST 1234 5698 7654 32",
    ],
)
def test_other_numbers_are_not_card_numbers(text: str) -> None:
    assert CARD not in kinds(text)


def test_a_word_that_has_had_its_number_says_nothing_of_the_next() -> None:
    [card] = screen("please use this card for order 6384391:\n4185 8190 2034 0073")
    assert card.confidence >= ACCUSES
    [card] = screen("order 6384391, 4185 8190 2034 0073")
    assert card.confidence >= ACCUSES


def test_a_number_called_an_order_number_is_doubted_not_dropped() -> None:
    (finding,) = screen("your order 4111111111111111 has shipped")
    assert finding.kind is CARD
    assert 0.5 <= finding.confidence < 0.75


@pytest.mark.parametrize(
    "text", ["https://shop.example/item/4111111111111111", "ORD-4111111111111111", "lat 51.4111111111111111"]
)
def test_a_number_that_is_part_of_a_longer_name_is_doubted(text: str) -> None:
    assert [finding.confidence < 0.75 for finding in screen(text)] == [True]


@pytest.mark.parametrize(
    "text",
    [
        "the cvv is 123",
        "CVV: 1234",
        "cvc2 one two three",
        "security code 9 8 7",
        "the three digits on the back are 456",
        "123 is the security code",
        "cvv double four one",
        "exp 12/27 cvv 123",
        "CVV2=123",
    ],
)
def test_a_verification_code_is_found_after_its_cue(text: str) -> None:
    assert [(f.kind, f.confidence >= ACCUSES, set(f.masked)) for f in screen(text)] == [(CODE, True, {"*"})]


@pytest.mark.parametrize(
    "text",
    [
        "the security code we texted you is 4821",
        "your one-time security code is 4821",
        "the CVV is the 3 or 4 digit code",
        "the cvv has 3 digits",
        "my zip is 9410 and the house is 221",
        "press 123 for billing",
        "it costs $250, cvv not needed",
        "the code on the back of the box is AB123",
        "the code on the back of the router is 482",
    ],
)
def test_other_short_numbers_are_not_verification_codes(text: str) -> None:
    assert kinds(text) == []


@pytest.mark.parametrize(
    ("text", "sure"),
    [
        ("my ssn is 536-90-4399", True),
        ("536-90-4399", True),
        ("social security number 536904399", True),
        ("SSN: 536 90 4399", True),
        ("my s s n is 536 90 4399", True),
        ("ssn: first three digits 536, next two digits 90, last four digits 4399", True),
        ("my social is five three six, nine oh, four three nine nine", True),
        ("ssn five three six ninety forty three ninety nine", True),
        ("536 90 4399", False),
        ("ref 536-90-4399", False),
    ],
)
def test_a_social_security_number_is_found(text: str, sure: bool) -> None:
    assert [(f.kind, f.confidence >= 0.75, set(f.masked)) for f in screen(text)] == [(SSN, sure, {"*"})]


@pytest.mark.parametrize(
    "text",
    [
        "536904399",
        "ssn 000-12-3456",
        "ssn 666-12-3456",
        "ssn 912-34-5678",
        "ssn 536-00-4399",
        "ssn 536-90-0000",
        "ssn 078-05-1120",
        "zip 94105-1234",
        "call 536-904-399",
        "1-536-90-4399",
        "536-90-4399-1",
        "social media 536904399",
        "536-90.4399",
    ],
)
def test_what_can_not_be_a_social_security_number_is_left(text: str) -> None:
    assert SSN not in kinds(text)


def test_a_number_split_over_messages_is_found_once_and_its_read_back_adds_nothing() -> None:
    found = screen(
        ("agent", 0, "What is the long number on your card?"),
        ("customer", 4_000, "4111 1111"),
        ("agent", 6_000, "4111 1111, go on"),
        ("customer", 9_000, "and then 1111 1111"),
        ("agent", 12_000, "so four one one one, double one double one, 1111, 1111. And the security code?"),
        ("customer", 15_000, "it's 123"),
    )
    assert [(f.kind, f.start_ms, f.end_ms, f.speaker) for f in found] == [
        (CARD, 4_000, 9_000, "customer"),
        (CODE, 15_000, 15_000, "customer"),
    ]


def test_three_digits_named_as_such_may_be_a_code() -> None:
    for before in ("", "expires oh four twenty seven, "):
        (found,) = screen(f"{before}and the three digits are nine eight two")
        assert (found.kind, found.confidence < 0.75) == (CODE, True)
    assert kinds("the last three digits of my phone are 982") == []


def test_numbers_of_different_speakers_or_far_apart_are_not_joined() -> None:
    assert kinds(("customer", 0, "4111 1111"), ("agent", 1_000, "1111 1111")) == []
    assert kinds(("customer", 0, "4111 1111"), ("customer", 61_000, "1111 1111")) == []
    assert kinds(("customer", 0, "4111 1111"), ("customer", 59_000, "1111 1111")) == [CARD]


def test_an_answer_after_a_code_was_given_is_not_a_second_code() -> None:
    found = kinds(
        ("agent", 0, "CVV please?"),
        ("customer", 2_000, "123"),
        ("agent", 4_000, "And the house number?"),
        ("customer", 6_000, "221"),
    )
    assert found == [CODE]


def test_a_social_security_number_answers_the_question_before() -> None:
    assert kinds(("agent", 0, "Your social, please?"), ("customer", 1_000, "536904399")) == [SSN]


def test_several_numbers_come_in_the_order_in_which_they_were_said() -> None:
    found = screen("visa 4111 1111 1111 1111 cvv 123, amex 3782 822463 10005 cvv 9876, ssn 536-90-4399")
    assert [finding.kind for finding in found] == [CARD, CODE, CARD, CODE, SSN]


BINS = ("4", "51", "55", "2221", "2720", "6011", "65", "3528")
SEPARATORS = ("", " ", "-", ".", "  ", " - ", "\n", "\u200b", "\u2013", ", ", "/", "_", "\u00a0")


@st.composite
def cards(draw: st.DrawFn) -> str:
    start = draw(st.sampled_from(BINS))
    return with_check_digit(start + draw(st.text("0123456789", min_size=15 - len(start), max_size=15 - len(start))))


@given(cards(), st.sampled_from(SEPARATORS), st.sampled_from([1, 2, 4, 8, 16]))
@settings(max_examples=300)
def test_any_card_in_any_style_is_found_and_shows_no_more_than_bin_and_last_four(
    card: str, sep: str, size: int
) -> None:
    written = sep.join(card[at : at + size] for at in range(0, 16, size))
    found = screen(f"sure, it is {written} ok?")
    assert [finding.masked for finding in found if finding.kind is CARD] == [f"{card[:6]}******{card[-4:]}"]
    assert card not in repr(found)
    assert card[6:12] not in "".join(finding.masked for finding in found)


@given(cards(), st.data())
@settings(max_examples=200)
def test_any_card_said_in_words_is_found(card: str, data: st.DataObject) -> None:
    words = []
    at = 0
    while at < 16:
        pair, digit = card[at : at + 2], int(card[at])
        if len(pair) == 2 and pair[0] == pair[1] and data.draw(st.booleans()):
            words.append("double " + (data.draw(st.sampled_from(["oh", "zero"])) if digit == 0 else UNITS[digit]))
            at += 2
        else:
            words.append(data.draw(st.sampled_from([UNITS[digit], card[at]])))
            at += 1
    said = data.draw(st.sampled_from([" ", ", ", " uh "])).join(words)
    found = screen(said)
    assert f"{card[:6]}******{card[-4:]}" in [finding.masked for finding in found]


@given(st.text(max_size=300))
@settings(max_examples=200)
def test_no_text_makes_the_screen_fail(text: str) -> None:
    screen(text, text[::-1])


@pytest.mark.parametrize(
    "bait",
    [
        "4 ",
        "one ",
        "1",
        "4-",
        "4, ",
        "double ",
        "1 and ",
        "4111 ",
        "4111111111111111 ",
        "123-45-6789 ",
        "four one ",
        "ssn 1 ",
        "cvv ",
        "oh ",
        "-",
        " ",
        "last 4 ",
        "twenty ",
        "thousand two ",
    ],
)
def test_time_grows_in_proportion_to_the_text(bait: str) -> None:
    def seconds(size: int) -> float:
        transcript = Transcript((Turn("customer", 0, bait * (size // len(bait))),))
        best = float("inf")
        for _ in range(2):
            start = time.process_time()
            screen_text(transcript)
            best = min(best, time.process_time() - start)
        return best

    small, large = seconds(20_000), seconds(80_000)
    assert large < 4 * 2.5 * small + 0.01


def test_a_megabyte_of_bait_is_finished() -> None:
    assert kinds("4 1 1 1-four" * 80_000) == []


# PINs


@pytest.mark.parametrize(
    ("text", "digits"),
    [
        ("my pin is 1234", 4),
        ("PIN: 4821", 4),
        ("the pin number for my debit card is four eight two one", 4),
        ("passcode for the card is 482193", 6),
        ("card pin 4 8 2 1", 4),
        ("4821 is my pin", 4),
    ],
)
def test_a_pin_is_found_after_its_cue(text: str, digits: int) -> None:
    assert [(f.kind, f.confidence >= 0.75, f.masked) for f in screen(text)] == [(PIN, True, "*" * digits)]


def test_a_pin_answers_the_question_before() -> None:
    assert kinds(("agent", 0, "And what is the PIN of your card?"), ("customer", 2_000, "4821")) == [PIN]


@pytest.mark.parametrize(
    "text",
    [
        "the pin for the door is 1234",
        "my sim pin is 1234",
        "pin code 400001, Mumbai, is the postal address",
        "the voicemail pin is 4821",
        "connect pin 4 to pin 12",
        "drop a pin at 4821 Main Street for the delivery",
        "wifi pin 482193",
    ],
)
def test_other_pins_are_left(text: str) -> None:
    assert PIN not in kinds(text)


# Corrections and read-backs


@pytest.mark.parametrize(
    "turns",
    [
        ("4111 1111 1111 1112, no, sorry, 1111",),
        ("four one one one one one one one one one one one one one one five, no, sorry, one",),
        ("4 1 1 1 1 1 1 1 1 1 1 7 wait no 1 1 1 1 1",),
        ("4111 1112, correction, 1111 1111 1111",),
    ],
)
def test_a_slip_that_is_put_right_does_not_hide_the_number(turns: tuple[str, ...]) -> None:
    assert [finding.masked for finding in screen(*turns) if finding.kind is CARD] == ["411111******1111"]


def test_a_correction_may_come_in_the_next_turn_within_a_minute() -> None:
    def said(at: int) -> list[str]:
        return [
            f.masked
            for f in screen(
                ("customer", 0, "it's four one one one, one one one one, one one one one, one one one five"),
                ("agent", at - 1_000, "one one one five?"),
                ("customer", at, "no, sorry, one"),
            )
            if f.kind is CARD
        ]

    assert said(20_000) == ["411111******1111"]
    assert said(70_000) == []


def test_a_read_back_by_the_same_voice_does_not_hide_the_number() -> None:
    found = screen(("0", 0, "4111 1111"), ("0", 4_000, "4111 1111"), ("0", 8_000, "1111 1111"))
    assert [finding.masked for finding in found] == ["411111******1111"]


def test_a_finding_ends_where_its_last_turn_ends_if_that_is_known() -> None:
    turns = (
        Turn("customer", 1_000, "4111 1111", 3_000),
        Turn("agent", 3_500, "yes", 3_800),
        Turn("customer", 4_000, "1111 1111", 7_500),
    )
    [card] = screen_text(Transcript(turns))
    assert (card.start_ms, card.end_ms) == (1_000, 7_500)


def test_the_same_number_has_the_same_fingerprint_however_it_is_written() -> None:
    fingerprint = fingerprints("a key of the test")
    texts = ["4111 1111 1111 1111", "four " + "one " * 15, "４１１１-1111-1111-1111"]
    found = [screen_text(Transcript((Turn("customer", 0, text),)), fingerprint) for text in texts]
    assert {finding.fingerprint for [finding] in found} == {fingerprint(CARD, "4111111111111111")}


@pytest.mark.parametrize("glued", ["card4111111111111111", "visa4111111111111111", "4111111111111111exp 04/27"])
def test_a_number_stuck_to_its_name_is_found(glued: str) -> None:
    assert kinds(glued) == [CARD]


@pytest.mark.parametrize(
    "text",
    [
        "pids 4111, 1111, 1111, 1111, 1112",
        "gift card 4111 1111 1111 1111",
        "loyalty card 4111111111111111",
        "4111111111111111 is my order number",
    ],
)
def test_numbers_that_are_called_something_else_are_doubted(text: str) -> None:
    assert [finding.confidence < 0.75 for finding in screen(text)] == [True]


# Hostile and harmless text, generated


@st.composite
def hostile(draw: st.DrawFn, card: str) -> str:
    """A card number with digits of other scripts, invisible characters and odd separators."""
    zeros = st.sampled_from([0x30, 0x30, 0x30, 0xFF10, 0x660, 0x966])
    invisible = st.sampled_from(["", "", "", "\u200b", "\u200d", "\u2060", "\ufeff", "\u00ad"])
    between = draw(st.sampled_from(["", " ", "-", "\u2011", "\u00a0", "\u2009", "."]))
    written = []
    for at, digit in enumerate(card):
        written.append((between if at and at % 4 == 0 else "") + draw(invisible) + chr(draw(zeros) + int(digit)))
    return "".join(written)


@given(cards(), st.data())
@settings(max_examples=150)
def test_no_disguise_hides_a_card_number(card: str, data: st.DataObject) -> None:
    found = screen(f"here: {data.draw(hostile(card))} ok")
    assert f"{card[:6]}******{card[-4:]}" in [finding.masked for finding in found if finding.kind is CARD]


@given(cards(), st.lists(st.integers(1, 15), min_size=1, max_size=3, unique=True), st.booleans())
@settings(max_examples=150)
def test_a_card_number_split_over_turns_anywhere_is_found(card: str, cuts: list[int], echoed: bool) -> None:
    edges = [0, *sorted(cuts), 16]
    turns: list[str | tuple[str, int, str]] = []
    for at, (start, end) in enumerate(pairwise(edges)):
        turns.append(("customer", 10_000 * at, " ".join(card[start:end])))
        turns.append(("agent", 10_000 * at + 5_000, card[start:end] if echoed else "go on"))
    found = [finding for finding in screen(*turns) if finding.kind is CARD]
    assert f"{card[:6]}******{card[-4:]}" in [finding.masked for finding in found]


@given(cards(), st.integers(1, 9), st.sampled_from(["no sorry", "sorry, I meant", "wait, no,", "correction"]))
@settings(max_examples=150)
def test_a_last_digit_put_right_is_taken_for_the_right_one(card: str, slip: int, sorry: str) -> None:
    wrong = (int(card[-1]) + slip) % 10
    said = " ".join(UNITS[int(digit)] for digit in card[:-1])
    found = screen(f"{said} {UNITS[wrong]}, {sorry} {UNITS[int(card[-1])]}")
    assert f"{card[:6]}******{card[-4:]}" in [finding.masked for finding in found if finding.kind is CARD]


@given(
    st.lists(st.sampled_from(["the", "nine", "lives", "of", "two", "cats", "one", "day", "so", "I", "oh"]), max_size=60)
)
@settings(max_examples=150)
def test_prose_with_a_few_number_words_gives_nothing_away(words: list[str]) -> None:
    assert kinds(" or ".join(words)) == []


@given(st.floats(946_684_800, 2_000_000_000).map(lambda at: datetime.fromtimestamp(at, UTC)), st.uuids())
@settings(max_examples=80)
def test_times_and_uuids_give_nothing_away(time_: datetime, name: uuid.UUID) -> None:
    for text in (
        f"{time_:%Y-%m-%d %H:%M:%S}",
        f"on {time_:%Y-%m-%dT%H:%M:%S.%f}Z",
        f"{time_:%d/%m/%Y %H:%M}",
        f"call me on {time_:%d.%m.%Y at %H:%M}",
        f"at {int(time_.timestamp() * 1000)}",
        f"session {name}",
    ):
        assert kinds(text) == [], text


@pytest.mark.parametrize("bait", ["7", "4", "nine ", "4111 ", "de89", "a@b.", "+1 415 ", "passport ", "no sorry 4 "])
def test_endless_bait_takes_seconds(bait: str) -> None:
    size = 1_000_000 if bait in ("7", "nine ") else 250_000
    transcript = Transcript((Turn("customer", 0, bait * (size // len(bait))),))
    start = time.process_time()
    screen_text(transcript)
    assert time.process_time() - start < size / 50_000


# Messages with known truth, from the benchmark's generator


@pytest.fixture(scope="module")
def messages() -> list[Labelled]:
    return corpus(seed=20260312, count=3000)


@pytest.fixture(scope="module")
def judged(messages: list[Labelled]) -> list[list[tuple[Found, bool]]]:
    return [verdicts(ours(message), message) for message in messages]


@pytest.mark.parametrize(
    ("label", "precision", "recall"),
    [
        ("card", 0.98, 0.99),
        ("SSN", 0.96, 0.99),
        ("IBAN", 0.99, 0.98),
        ("phone", 0.98, 0.97),
        ("e-mail", 0.99, 0.99),
        ("CVV", 0.98, 0.99),
        ("PIN", 0.98, 0.98),
        ("NHS", 0.99, 0.99),
        ("passport", 0.98, 0.98),
    ],
)
def test_precision_and_recall_on_three_thousand_labelled_messages(
    messages: list[Labelled],
    judged: list[list[tuple[Found, bool]]],
    label: str,
    precision: float,
    recall: float,
) -> None:
    got = scores(judged, messages, ACCUSES)[label]
    assert got.precision >= precision
    assert got.recall >= recall


def test_what_is_given_nine_in_ten_or_more_is_right_at_least_that_often(
    judged: list[list[tuple[Found, bool]]],
) -> None:
    sure = [right for pairs in judged for item, right in pairs if item.confidence >= 0.9]
    assert len(sure) > 500
    assert sum(sure) / len(sure) >= 0.97
