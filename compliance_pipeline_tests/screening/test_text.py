"""The text detectors, on tables of real-world spellings, properties, and seeded messages with known truth."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compliance_pipeline.contracts.policy import Detector, FindingKind
from compliance_pipeline.screening.findings import Finding
from compliance_pipeline.screening.numbers import luhn_ok
from compliance_pipeline.screening.text import screen_text
from compliance_pipeline.screening.transcripts import Transcript, Turn

CARD, CODE, SSN = FindingKind.CARD_NUMBER, FindingKind.CARD_VERIFICATION_CODE, FindingKind.GOVERNMENT_ID
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
    assert kinds(text) == []


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
        "your pin is 1234",
        "the code on the back of the box is AB123",
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
    assert kinds(text) == []


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
TEEN_WORDS = (
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
)
TENS_WORDS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
UNIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def with_check_digit(payload: str) -> str:
    return next(payload + check for check in "0123456789" if luhn_ok(payload + check))


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
            words.append("double " + (data.draw(st.sampled_from(["oh", "zero"])) if digit == 0 else UNIT_WORDS[digit]))
            at += 2
        else:
            words.append(data.draw(st.sampled_from([UNIT_WORDS[digit], card[at]])))
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


# Messages with known truth


@dataclass(frozen=True)
class Labelled:
    """A message and what it gives away. `told`: the words say that another kind of number follows."""

    text: str
    kind: FindingKind | None
    decoy: str = ""


ORDINARY_CHAT = (
    "Hello there, thanks for getting in touch with us today.",
    "I was wondering whether you could help me with a recent purchase, because it has not arrived yet.",
    "Sure, let me have a look at that for you, it may take one or two minutes.",
    "The delivery was promised for Tuesday and nobody came, so I waited at home the whole day for nothing.",
    "I am sorry to hear that, we will put it right as soon as we can.",
    "Can I change the address on my account before it goes out again?",
    "You were charged twice, once on the 3rd and once on the 5th, and one of the two will be given back.",
    "Our shop is open from 9 to 5, and until 8 on Thursdays.",
    "Is there anything else that I can do for you, or shall I close this conversation?",
    "No, that was all, thank you so much for your patience and have a lovely weekend!",
)


def _words_of(rng: random.Random, card: str) -> str:
    words = []
    at = 0
    while at < len(card):
        digit, pair = int(card[at]), card[at : at + 2]
        if len(pair) == 2 and pair[0] == pair[1] and rng.random() < 0.7:
            words.append(f"double {UNIT_WORDS[digit] if digit else 'oh'}")
            at += 2
        elif len(pair) == 2 and pair > "10" and pair[1] != "0" and rng.random() < 0.3:
            words.append(_two_digits(int(pair)))
            at += 2
        else:
            words.append(rng.choice(["oh", "zero"]) if digit == 0 else UNIT_WORDS[digit])
            at += 1
    return rng.choice([" ", " ", ", "]).join(words)


def _two_digits(value: int) -> str:
    if value < 20:
        return TEEN_WORDS[value - 10]
    return f"{TENS_WORDS[value // 10 - 2]} {UNIT_WORDS[value % 10]}"


_STYLES: tuple[Callable[[random.Random, str], str], ...] = (
    lambda rng, s: s,
    lambda rng, s: "-".join(s[i : i + 4] for i in range(0, len(s), 4)),
    lambda rng, s: " ".join(s[i : i + 4] for i in range(0, len(s), 4)),
    lambda rng, s: ".".join(s[i : i + 4] for i in range(0, len(s), 4)),
    lambda rng, s: " ".join(s),
    lambda rng, s: f"{s[:4]}  {s[4:8]} - {s[8:12]} {s[12:]}",
    lambda rng, s: f"{s[:6]} {s[6:]}",
    lambda rng, s: "\n".join(s[i : i + 4] for i in range(0, len(s), 4)),
    lambda rng, s: s.translate({ord("0") + d: 0xFF10 + d for d in range(10)}),
    lambda rng, s: "\u200b".join(s[i : i + 4] for i in range(0, len(s), 4)),
    lambda rng, s: f"{s[:4]} {s[4:10]} {s[10:]}",
    lambda rng, s: ", ".join(s[i : i + 4] for i in range(0, len(s), 4)),
    _words_of,
    _words_of,
    lambda rng, s: f"{s[:8]} {_words_of(rng, s[8:])}",
)
_SSN_STYLES: tuple[Callable[[str], str], ...] = (
    lambda s: f"{s[:3]}-{s[3:5]}-{s[5:]}",
    lambda s: f"{s[:3]} {s[3:5]} {s[5:]}",
    lambda s: s,
    lambda s: f"{s[:3]}.{s[3:5]}.{s[5:]}",
)


def labelled_messages(seed: int, count: int) -> list[Labelled]:
    """Chat messages, 18% with a card number, 8% with a social security number, 6% with a code, 40% with a decoy."""
    rng = random.Random(seed)

    def digits(length: int) -> str:
        return "".join(rng.choice("0123456789") for _ in range(length))

    def card() -> str:
        if rng.random() < 0.15:
            return with_check_digit(rng.choice(["34", "37"]) + digits(12))
        start = rng.choice(["4", "4", "51", "54", "2221", "2720", "6011", "65", "3530"])
        return with_check_digit(start + digits(15 - len(start)))

    def ssn() -> str:
        area = rng.choice([number for number in range(1, 900) if number != 666])
        return f"{area:03d}{rng.randint(1, 99):02d}{rng.randint(1, 9999):04d}"

    def phone() -> str:
        return rng.choice([f"+1 415 555 0{digits(3)}", f"(212) 555-0{digits(3)}", f"020 7946 0{digits(3)}"])

    decoys: tuple[tuple[str, Callable[[], str]], ...] = (
        ("order", lambda: f"order {digits(16)}"),
        ("order4", lambda: f"my order number is 4{digits(15)}"),
        ("tracking", lambda: f"tracking 1Z{digits(16)}"),
        ("tracking20", lambda: f"tracking number {digits(20)}"),
        ("phone", lambda: f"call me on {phone()} or {phone()}"),
        ("invoice", lambda: f"invoice {digits(9)} and {digits(8)}"),
        ("zip", lambda: f"zip {digits(5)}-{digits(4)}"),
        ("uuid", lambda: f"{rng.getrandbits(128):032x}"),
        ("uuid", lambda: "-".join(f"{rng.getrandbits(4 * n):0{n}x}" for n in (8, 4, 4, 4, 12))),
        (
            "time",
            lambda: f"at 2026-0{rng.randint(1, 9)}-1{digits(1)} 1{digits(1)}:3{digits(1)}:4{digits(1)}.{digits(3)}",
        ),
        ("epoch", lambda: f"1{digits(12)}"),
        ("stamp", lambda: f"log 2026{digits(10)}"),
        ("amount", lambda: f"that is $1,{digits(3)},{digits(3)}.{digits(2)}"),
        ("imei", lambda: f"imei {with_check_digit('35' + digits(12))}"),
        ("iccid", lambda: f"sim {with_check_digit('8944' + digits(14))}"),
        ("iban", lambda: f"iban DE{digits(2)} {digits(4)} {digits(4)} {digits(4)} {digits(4)} {digits(2)}"),
        ("bare", lambda: f"it says {digits(16)} on the box"),
        ("otp", lambda: f"the code we texted you is {digits(rng.choice([4, 6]))}"),
        ("lots", lambda: "sizes " + " ".join(str(rng.randint(1, 60)) for _ in range(12))),
    )
    messages = []
    for _ in range(count):
        said = rng.choice(ORDINARY_CHAT)
        draw = rng.random()
        if draw < 0.18:
            lead = rng.choice([" my card is ", " card number: ", " here you go ", " ", " it's "])
            written = rng.choice(_STYLES)(rng, card())
            messages.append(Labelled(said + lead + written + rng.choice([" thanks", " exp 04/27", "", "."]), CARD))
        elif draw < 0.26:
            lead = rng.choice([" ssn ", " my social security number is ", " social: "])
            messages.append(Labelled(said + lead + rng.choice(_SSN_STYLES)(ssn()), SSN))
        elif draw < 0.32:
            lead = rng.choice([" cvv ", " the security code is ", " cvc: ", " the 3 digits on the back are "])
            code = digits(3)
            messages.append(Labelled(said + lead + rng.choice([code, " ".join(code), _words_of(rng, code)]), CODE))
        elif draw < 0.72:
            name, make = rng.choice(decoys)
            messages.append(Labelled(f"{said} {make()} {rng.choice(['thanks', 'ok?', ''])}", None, name))
        else:
            messages.append(Labelled(said, None))
    return messages


def score(found: list[set[FindingKind]], messages: list[Labelled], kind: FindingKind) -> tuple[float, float]:
    """(precision, recall) for a kind."""
    pairs = list(zip(found, messages, strict=True))
    hits = sum(kind in got and message.kind is kind for got, message in pairs)
    flagged = sum(kind in got for got, _ in pairs)
    true = sum(message.kind is kind for message in messages)
    return hits / max(1, flagged), hits / max(1, true)


def kinds_found(text: str, at_least: float) -> set[FindingKind]:
    return {finding.kind for finding in screen(text) if finding.confidence >= at_least}


@pytest.mark.parametrize(("kind", "precision", "recall"), [(CARD, 0.98, 0.995), (CODE, 0.99, 0.99), (SSN, 0.99, 0.99)])
def test_precision_and_recall_on_three_thousand_labelled_messages(
    kind: FindingKind, precision: float, recall: float
) -> None:
    messages = labelled_messages(seed=20260312, count=3000)
    got = score([kinds_found(message.text, ACCUSES) for message in messages], messages, kind)
    assert got[0] >= precision
    assert got[1] >= recall
