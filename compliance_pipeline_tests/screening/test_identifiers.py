"""Identifiers of states, health services and banks, telephone numbers and addresses, in turns of a conversation."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stdnum import iban as iban_check

from compliance_pipeline.contracts.policy import FindingKind
from compliance_pipeline.screening.findings import Finding
from compliance_pipeline.screening.identifiers import australian_medicare, german_health_insurance
from compliance_pipeline.screening.text import screen_text
from compliance_pipeline.screening.transcripts import Transcript, Turn

IBAN, PHONE, EMAIL = FindingKind.BANK_ACCOUNT, FindingKind.PHONE_NUMBER, FindingKind.EMAIL_ADDRESS
STATE, HEALTH = FindingKind.GOVERNMENT_ID, FindingKind.HEALTH_ID


def screen(*turns: str | tuple[str, int, str]) -> list[Finding]:
    made = [Turn("customer", at, turn) if isinstance(turn, str) else Turn(*turn) for at, turn in enumerate(turns)]
    return screen_text(Transcript(tuple(made)), lambda kind, value: f"{kind} {value.upper()}")


def kinds(*turns: str | tuple[str, int, str]) -> list[FindingKind]:
    return [finding.kind for finding in screen(*turns)]


@pytest.mark.parametrize(
    "text",
    [
        "GB82WEST12345698765432",
        "my iban is gb82 west 1234 5698 7654 32 thanks",
        "GB82-WEST-1234-5698-7654-32",
        "GB82 WEST 1234\n5698 7654 32",
        "> GB82 WEST 1234\n> 5698 7654 32",
        "G B 8 2 W E S T 1 2 3 4 5 6 9 8 7 6 5 4 3 2",
        "gb eighty two west one two three four five six nine eight seven six five four three two",
        "IBAN:GB82\u00a0WEST\u00a01234\u00a05698\u00a07654\u00a032.",
        "pay to GB82 WEST 1234 5698 7654 32 and the reference is 12",
    ],
)
def test_an_iban_is_found_however_it_is_written(text: str) -> None:
    [found] = screen(text)
    assert (found.kind, found.masked, found.fingerprint) == (IBAN, "*" * 22, "bank_account GB82WEST12345698765432")
    assert found.confidence >= 0.9


def test_an_iban_split_over_messages_is_found_once_and_the_rest_is_no_card_number() -> None:
    [found] = screen(
        ("customer", 0, "the account I use for this is DE89 3704"),
        ("agent", 4_000, "yes"),
        ("customer", 8_000, "and then 0044 0532"),
        ("customer", 12_000, "0130 00"),
    )
    assert (found.kind, found.start_ms, found.end_ms) == (IBAN, 0, 12_000)


@pytest.mark.parametrize(
    "text", ["GB83 WEST 1234 5698 7654 32", "is 41 1234 5678 9012 3456 7890", "XX82WEST12345698765432", "DE8937040044"]
)
def test_what_fails_the_check_of_an_iban_is_left(text: str) -> None:
    assert IBAN not in kinds(text)


@given(st.text("0123456789", min_size=18, max_size=18), st.sampled_from(["", " ", "-", "\u2009", "\n"]), st.booleans())
@settings(max_examples=150)
def test_any_german_iban_in_any_grouping_is_found(account: str, separator: str, lower: bool) -> None:
    iban = f"DE{iban_check.calc_check_digits(f'DE00{account}')}{account}"
    written = separator.join(iban[at : at + 4] for at in range(0, 22, 4))
    found = screen(f"it is {written.lower() if lower else written}, ok?")
    assert (IBAN, f"bank_account {iban}") in [(finding.kind, finding.fingerprint) for finding in found]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("my NHS number is 943 476 5919", HEALTH),
        ("nhs no: 9434765919", HEALTH),
        ("NHS nine four three, four seven six, five nine one nine", HEALTH),
        ("Medicare number 1EG4-TE5-MK73", HEALTH),
        ("1EG4TE5MK73", HEALTH),
        ("my medicare card is 2123 45670 1", HEALTH),
        ("KVNR A123456780", HEALTH),
        ("my BC services card PHN is 9698 658 215", HEALTH),
        ("my SIN is 123 456 782", STATE),
        ("social insurance number 123456782", STATE),
        ("ITIN 912-90-3456", STATE),
        ("NI number AB 12 34 56 C", STATE),
        ("national insurance ab123456c", STATE),
        ("DNI 54362315K", STATE),
        ("x2482300w", STATE),
        ("Steuer-ID 36 574 261 809", STATE),
        ("codice fiscale RCCMNL83S18D969H", STATE),
        ("numéro de sécurité sociale 2 95 10 99 126 111 93", STATE),
        ("CPF 390.533.447-05", STATE),
        ("390.533.447-05", STATE),
        ("BSN 111222333", STATE),
        ("PESEL 44051401359", STATE),
        ("TFN 123 456 782", STATE),
        ("passport number 533380006", STATE),
        ("my passport is AB 1234567", STATE),
        ("passport no. five three three three eight oh oh oh six", STATE),
    ],
)
def test_an_identifier_is_found_where_it_is_named_or_its_check_is_strong(text: str, kind: FindingKind) -> None:
    found = screen(text)
    assert [(f.kind, set(f.masked)) for f in found] == [(kind, {"*"})]
    assert found[0].confidence >= 0.75


def test_an_identifier_answers_the_question_before() -> None:
    asked = ("agent", 0, "Can I take your NHS number?")
    assert kinds(asked, ("customer", 3_000, "943 476 5919")) == [HEALTH]
    assert kinds(("agent", 0, "Your passport number please"), ("customer", 3_000, "it's 533380006")) == [STATE]


def test_an_identifier_split_over_messages_is_found() -> None:
    assert kinds(("customer", 0, "my nhs number is 943 476"), ("customer", 3_000, "5919")) == [HEALTH]


@pytest.mark.parametrize(
    "text",
    [
        "NHS number 943 476 5918",
        "9434765919",
        "123456782",
        "it is a sin to pay 123456783",
        "part AB123456E",
        "54362315A",
        "medicare was founded in 1965 and has 65 million members",
        "BSN 111222334",
        "my passport expires on 12 10 2027",
        "the passport office is at 12 High Street",
        "TFN 123 456 789",
    ],
)
def test_what_fails_its_check_or_is_not_named_is_no_identifier(text: str) -> None:
    assert {STATE, HEALTH}.isdisjoint(kinds(text))


def test_the_checks_that_python_stdnum_lacks_agree_with_published_examples() -> None:
    assert australian_medicare("2123456701")
    assert not australian_medicare("2123456711")
    assert german_health_insurance("a123456780")
    assert not german_health_insurance("a123456781")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("+1 415 555 2671", "+14155552671"),
        ("(415) 555-2671", "+14155552671"),
        ("415.555.2671", "+14155552671"),
        ("1-415-555-2671", "+14155552671"),
        ("my number is 4155552671", "+14155552671"),
        ("call me on four one five, five five five, two six seven one", "+14155552671"),
        ("+44 (0)20 7946 0123", "+442079460123"),
        ("020 7946 0123", "+442079460123"),
        ("my mobile is 07400 123456", "+447400123456"),
        ("0049 30 90182055", "+493090182055"),
        ("06 12 34 56 78", "+33612345678"),
        ("４１５-５５５-２６７１", "+14155552671"),
        ("4155552671 is my mobile", "+14155552671"),
    ],
)
def test_a_telephone_number_is_found_however_it_is_written(text: str, number: str) -> None:
    assert [(f.kind, f.masked, f.fingerprint) for f in screen(text)] == [(PHONE, "***", f"phone_number {number}")]


@pytest.mark.parametrize(
    "text",
    [
        "order 4155552671",
        "4155552671",
        "call reference 4155552671",
        "invoice 415-555-2671",
        "1741775445",
        "call me on 2026-03-12 10:30",
        "call between 0900-1700",
        "zoom meeting 018 9600 9474",
        "version 415.555.2671.12",
        "10.0.0.1 and 192.168.0.255",
        "tel. ext. 4821",
        "$415,555,267",
    ],
)
def test_other_numbers_are_not_telephone_numbers(text: str) -> None:
    assert kinds(text) == []


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("jane.doe@example.com", "JANE.DOE@EXAMPLE.COM"),
        ("write to <Jane+shop@mail.example.co.uk>.", "JANE+SHOP@MAIL.EXAMPLE.CO.UK"),
        ("jane dot doe at example dot co dot uk", "JANE.DOE@EXAMPLE.CO.UK"),
        ("ｊａｎｅ＠ｅｘａｍｐｌｅ．ｃｏｍ", "JANE@EXAMPLE.COM"),
        ("mailto:jane@example.com?subject=x", "JANE@EXAMPLE.COM"),
    ],
)
def test_an_address_is_found_written_or_said(text: str, address: str) -> None:
    assert [(f.kind, f.masked, f.fingerprint) for f in screen(text)] == [(EMAIL, "***@***", f"email_address {address}")]


@pytest.mark.parametrize(
    "text", ["ask @support_1", "ssh root@host2", "logo@2x.png", "meet at noon dot dot dot", "a @ b", "5 @ 3.50"]
)
def test_what_only_has_an_at_is_no_address(text: str) -> None:
    assert kinds(text) == []


def test_several_kinds_are_told_apart_in_one_message() -> None:
    found = kinds("card 4111 1111 1111 1111, jane@example.com, 415-555-2671, GB82WEST12345698765432, ssn 536-90-4399")
    assert found == [FindingKind.CARD_NUMBER, EMAIL, PHONE, IBAN, STATE]


@given(
    st.lists(
        st.sampled_from(
            [
                *"0123456789 -.()+@abx",
                "415",
                "555",
                "2671",
                "one ",
                "double ",
                "no sorry ",
                "de89",
                "call ",
                "\n",
                "passport ",
            ]
        ),
        max_size=120,
    ).map("".join)
    | st.text(max_size=200)
)
@settings(max_examples=400)
def test_any_text_is_screened_and_shows_no_digit_but_of_a_card(text: str) -> None:
    for finding in screen(text):
        if finding.kind is not FindingKind.CARD_NUMBER:
            assert set(finding.masked) <= {"*", "@"}
