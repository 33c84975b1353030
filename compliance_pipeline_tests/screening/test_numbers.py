"""Card and social security arithmetic, issuers and masks."""

import string
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_pipeline.screening.numbers import (
    card_numbers,
    iin_brand,
    luhn_ok,
    mask_all,
    mask_card,
    ssn_ok,
)

VISA, AMEX = "4111111111111111", "378282246310005"

digit_strings = st.text(string.digits, min_size=1, max_size=30)


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
