"""Card and social security arithmetic, masks, and candidates from keyed and spoken digits."""

import string
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_pipeline.contracts.policy import FindingKind
from compliance_pipeline.screening.findings import Symbol
from compliance_pipeline.screening.numbers import (
    Candidate,
    card_numbers,
    card_spans,
    iin_brand,
    luhn_ok,
    mask_all,
    mask_card,
    spoken_candidates,
    ssn_ok,
    tone_candidates,
)

CARD, LENGTH, CODE = FindingKind.CARD_NUMBER, FindingKind.CARD_LENGTH_NUMBER, FindingKind.CARD_VERIFICATION_CODE
VISA, AMEX = "4111111111111111", "378282246310005"

digit_strings = st.text(string.digits, min_size=1, max_size=30)


def keyed(text: str, start: float = 0.0, step: float = 0.3, confidence: float = 0.99) -> list[Symbol]:
    """One symbol per character; a space is a second of silence."""
    symbols = []
    for char in text:
        if char == " ":
            start += 1.0
            continue
        symbols.append(Symbol(char, start, start + 0.1, confidence))
        start += step
    return symbols


@given(digit_strings)
def test_the_check_digit_makes_any_number_pass_and_any_single_change_fails(payload: str) -> None:
    (valid,) = [payload + check for check in string.digits if luhn_ok(payload + check)]
    for at, digit in enumerate(valid):
        for other in string.digits:
            if other != digit:
                assert not luhn_ok(valid[:at] + other + valid[at + 1 :])


@pytest.mark.parametrize(
    ("digits", "brand"),
    [
        ("4111111111111111", "Visa"),
        ("4222222222222", "Visa"),
        ("4000000000000000006", "Visa"),
        ("411111111111111", None),
        ("5105105105105100", "Mastercard"),
        ("5600000000000000", None),
        ("2221000000000009", "Mastercard"),
        ("2720999999999999", "Mastercard"),
        ("2220999999999999", None),
        ("2721000000000000", None),
        ("378282246310005", "American Express"),
        ("3782822463100050", None),
        ("6011111111111117", "Discover"),
        ("6221260000000000", "Discover"),
        ("6221250000000000", "UnionPay"),
        ("6229250000000000", "Discover"),
        ("6229260000000000", "UnionPay"),
        ("6430000000000000", None),
        ("6440000000000000", "Discover"),
        ("30569309025904", "Diners Club"),
        ("3095000000000000", "Diners Club"),
        ("30600000000000", None),
        ("3528000000000000", "JCB"),
        ("3590000000000000", None),
        ("6759649826438453", "Maestro"),
        ("1234567890123456", None),
        ("41", None),
    ],
)
def test_the_network_is_told_by_range_and_length(digits: str, brand: str | None) -> None:
    assert iin_brand(digits) == brand


@pytest.mark.parametrize(
    ("digits", "spans"),
    [
        (VISA, [(0, 16)]),
        (f"1{VISA}99", [(1, 17)]),
        (f"{VISA}1227123", [(0, 16)]),
        (VISA + AMEX, [(0, 16), (16, 31)]),
        ("4222222222222", [(0, 13)]),
        ("4222222222222000", []),
        ("4111111111111112", []),
        ("", []),
    ],
)
def test_card_numbers_are_found_in_a_longer_run(digits: str, spans: list[tuple[int, int]]) -> None:
    assert card_numbers(digits) == spans


@given(st.text(string.digits, max_size=120))
def test_spans_of_card_numbers_verify_and_never_overlap(digits: str) -> None:
    spans = card_numbers(digits)
    assert all(luhn_ok(digits[a:b]) and iin_brand(digits[a:b]) for a, b in spans)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


@pytest.mark.parametrize(
    ("digits", "valid"),
    [
        ("536904399", True),
        ("001010001", True),
        ("899990001", True),
        ("000123456", False),
        ("666123456", False),
        ("900123456", False),
        ("987654320", False),
        ("536004399", False),
        ("536900000", False),
        ("078051120", False),
        ("219099999", False),
        ("111111111", False),
        ("53690439", False),
        ("5369043990", False),
    ],
)
def test_a_social_security_number_has_a_valid_area_group_and_serial(digits: str, valid: bool) -> None:
    assert ssn_ok(digits) is valid


@given(st.text(string.digits, min_size=1, max_size=24))
def test_a_mask_shows_at_most_bin_and_last_four_and_hides_six_digits_or_all(digits: str) -> None:
    masked = mask_card(digits)
    front, hidden, back = masked.partition("*" * masked.count("*"))
    assert len(masked) == len(digits)
    assert len(front) <= 6
    assert len(back) <= 4
    assert len(hidden) >= min(6, len(digits))
    assert digits.startswith(front)
    assert digits.endswith(back)
    assert mask_all(digits) == "*" * len(digits)


def test_a_sixteen_digit_mask_is_bin_and_last_four() -> None:
    assert mask_card(VISA) == "411111******1111"


def summary(candidates: list[Candidate]) -> list[tuple[FindingKind, int, str | None]]:
    return [(found.kind, found.digits_count, found.brand) for found in candidates]


def test_a_keyed_card_number_is_a_candidate_with_its_times() -> None:
    (found,) = tone_candidates(keyed(VISA + "#", start=10.0))
    assert (found.kind, found.masked, found.brand) == (CARD, "411111******1111", "Visa")
    assert found.confidence == 0.99
    assert found.start_s == 10.0
    assert found.end_s == pytest.approx(10.0 + 15 * 0.3 + 0.1)


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        (f"{VISA}#123#", 0.95),
        (f"{VISA}#1227#123#", 0.95),
        (f"{VISA}#1227#94105#123#", 0.95),
        (f"{VISA}123#", 0.95),
        (f"{VISA}1227123#", 0.95),
        (f"{VISA}          123", 0.95),
        (f"{VISA}#9876#", 0.6),
        (f"{AMEX}#9876#", 0.95),
        (f"{AMEX}#0127#9876#", 0.95),
        (f"{AMEX}#0127#", 0.6),
        (f"1#{VISA}#1#123#", 0.95),
    ],
)
def test_a_code_keyed_after_a_card_number_is_found(keys: str, code: float) -> None:
    card, found = tone_candidates(keyed(keys))
    assert card.kind is CARD
    assert (found.kind, set(found.masked), found.confidence) == (CODE, {"*"}, code)


@pytest.mark.parametrize(
    "keys",
    [f"{VISA}#", f"{VISA}#1227#", f"{VISA}#12345#", f"{VISA}{' ' * 16}123", f"123#{VISA}", f"{VISA}#12#1#"],
)
def test_other_keys_around_a_card_number_are_no_code(keys: str) -> None:
    assert summary(tone_candidates(keyed(keys))) == [(CARD, 16, "Visa")]


def test_a_pause_longer_than_the_gap_ends_an_entry() -> None:
    assert tone_candidates(keyed(f"{VISA[:8]}{' ' * 7}{VISA[8:]}")) == []
    assert summary(tone_candidates(keyed(f"{VISA[:8]}{' ' * 5}{VISA[8:]}"))) == [(CARD, 16, "Visa")]


def test_a_mistyped_card_is_a_number_of_its_length_and_an_account_number_is_nothing() -> None:
    (found,) = tone_candidates(keyed("4111111111111112#"))
    assert (found.kind, found.masked) == (LENGTH, "*" * 16)
    assert tone_candidates(keyed("1234567890123456#")) == []
    assert tone_candidates(keyed("4155550123#")) == []
    assert tone_candidates([]) == []


def test_spoken_digits_verify_or_are_a_number_of_a_cards_length() -> None:
    found = spoken_candidates([keyed(VISA), keyed("123456789012"), keyed(f"12{VISA}21")])
    assert summary(found) == [(CARD, 16, "Visa"), (LENGTH, 12, None), (CARD, 16, "Visa")]
    assert [candidate.confidence for candidate in found[::2]] == [0.95, pytest.approx(0.85)]
    assert 0.60 <= found[1].confidence <= 0.75


def test_two_numbers_with_a_pause_between_are_not_one_number() -> None:
    assert summary(spoken_candidates([keyed("123456  0123456789")])) == []
    assert summary(spoken_candidates([keyed("123456  012345678901")])) == [(LENGTH, 12, None)]
    # 41111111 and 1111111199 said apart: a card number lies across the pause, but with digits to spare
    assert summary(spoken_candidates([keyed(f"{VISA[:8]}  {VISA[8:]}99")])) == []


def test_a_doubtful_digit_that_stands_apart_does_not_shift_the_number() -> None:
    stray, said = "5", "4732983868533591"
    assert {(0, 16), (1, 17)} <= set(card_spans(stray + said)), "the first 16 of the 17 verify as well"
    [card] = spoken_candidates([[*keyed(stray, confidence=0.5), *keyed(said, start=1.2)]])
    assert (card.kind, card.digits_count, card.start_s) == (CARD, 16, 1.2)
    # Clear or close by, it is one of the digits that were said.
    assert spoken_candidates([[*keyed(stray, confidence=0.99), *keyed(said, start=1.2)]])[0].start_s == 0.0


def test_a_card_number_said_with_a_pause_is_found_but_less_sure() -> None:
    [card] = spoken_candidates([keyed(f"{VISA[:8]}  {VISA[8:]}")])
    assert (card.kind, card.digits_count, card.confidence) == (CARD, 16, 0.7)


def test_an_unverified_run_is_the_surer_the_clearer_its_digits() -> None:
    confidences = [
        spoken_candidates([keyed("123456789012", confidence=heard)])[0].confidence for heard in (0.3, 0.7, 0.9, 1.0)
    ]
    assert confidences == sorted(confidences)
    assert (confidences[0], confidences[-1]) == (0.60, 0.75)


@given(st.lists(st.tuples(st.sampled_from("0123456789*#"), st.floats(0.1, 9)), max_size=60))
def test_no_candidate_shows_the_digits_it_stands_for(keys: list[tuple[str, float]]) -> None:
    at = 0.0
    symbols = []
    for char, pause in keys:
        at += pause
        symbols.append(Symbol(char, at, at + 0.05, 0.9))
    spoken = [symbol for symbol in symbols if symbol.char.isdigit()]
    for found in tone_candidates(symbols) + spoken_candidates([spoken] if len(spoken) >= 12 else []):
        assert found.masked.count("*") >= min(6, found.digits_count)
        assert found.end_s >= found.start_s
