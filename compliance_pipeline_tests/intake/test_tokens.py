import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from compliance_pipeline.intake.tokens import Tokenizer, is_token, looks_identifying

TOKENS = Tokenizer("a key for tests")
FIELDS = st.from_regex(r"[a-z]{1,12}", fullmatch=True)


@given(FIELDS, st.text(max_size=300))
def test_a_token_is_stable_well_formed_and_its_own_token(field: str, value: str) -> None:
    token = TOKENS.token(field, value)
    assert token == Tokenizer("a key for tests").token(field, value)
    assert is_token(token)
    assert TOKENS.token(field, token) == TOKENS.identifier(token) == TOKENS.scrubbed(field, token) == token


@given(FIELDS, FIELDS, st.text(max_size=50), st.text(max_size=50))
def test_fields_values_and_keys_separate_tokens(one: str, other: str, value: str, another: str) -> None:
    assume(not is_token(value))
    if one != other:
        assert TOKENS.token(one, value)[-26:] != TOKENS.token(other, value)[-26:]
    if value.strip() != another.strip():
        assert TOKENS.token("id", value) != TOKENS.token("id", another)
    assert TOKENS.token("id", value) != Tokenizer("another key").token("id", value)


def test_a_token_keeps_its_value_over_releases() -> None:
    # Computed by hand: base32(HMAC-SHA256("a key for tests", "phone\0" "15551234567")[:16]).
    import base64
    import hashlib
    import hmac

    digest = hmac.new(b"a key for tests", b"phone\x0015551234567", hashlib.sha256).digest()[:16]
    assert TOKENS.token("phone", "+1 555 123-4567") == "tok_phone_" + base64.b32encode(digest).decode()[:26].lower()


def test_one_phone_or_address_has_one_token_however_it_is_written() -> None:
    phones = {TOKENS.identifier(text) for text in ("+1 (555) 123-4567", "15551234567", "tel:+1.555.123.4567")}
    assert len(phones) == 1
    assert phones.pop().startswith("tok_phone_")
    addresses = {TOKENS.identifier(text) for text in ("Ann@Example.com", " ann@example.com ")}
    assert len(addresses) == 1
    assert addresses.pop().startswith("tok_email_")
    assert TOKENS.identifier("a1b2c3d4-e5f6-7890-abcd-ef1234567890").startswith("tok_id_")
    assert TOKENS.identifier("12345678-1234-1234-1234-123456789012").startswith("tok_id_")


@pytest.mark.parametrize(
    "text", ["VIP +1 555 123 4567", "ann@example.com", "4111 1111 1111 1111", "078-05-1120 (SSN)", "q4111111111111111"]
)
def test_free_text_with_a_number_or_address_is_replaced(text: str) -> None:
    assert is_token(TOKENS.scrubbed("queue", text))


@pytest.mark.parametrize("text", ["Billing", "Tier 2, line 404", "a1b2c3d4-e5f6-7890-abcd-ef1234567890", ""])
def test_plain_names_stay_readable(text: str) -> None:
    assert TOKENS.scrubbed("queue", text) == text


@given(st.from_regex(r"[0-9]([ .()+-]{0,2}[0-9]){6,18}", fullmatch=True), st.text(alphabet="abc _/", max_size=5))
def test_no_long_number_passes_whatever_its_separators(number: str, around: str) -> None:
    assert looks_identifying(around + number + around)


def test_an_empty_key_and_an_odd_field_are_refused() -> None:
    with pytest.raises(ValueError, match="COMPLIANCE_TOKEN_KEY"):
        Tokenizer("")
    with pytest.raises(ValueError, match="lower-case"):
        TOKENS.token("Phone!", "1")
