"""Fingerprints: equal numbers are known to be equal, by whoever has the key, and codes leave none."""

import pytest

from compliance_pipeline.contracts.policy import FindingKind
from compliance_pipeline.screening.fingerprint import fingerprints


def test_the_same_number_has_the_same_fingerprint_under_one_key_only() -> None:
    ours, theirs = fingerprints("key"), fingerprints("another key")
    card = ours(FindingKind.CARD_NUMBER, "4111111111111111")
    assert card is not None
    assert len(card) == 32
    assert card == fingerprints("key")(FindingKind.CARD_NUMBER, "4111111111111111")
    assert card not in (
        theirs(FindingKind.CARD_NUMBER, "4111111111111111"),
        ours(FindingKind.CARD_NUMBER, "4111111111111112"),
        ours(FindingKind.GOVERNMENT_ID, "4111111111111111"),
    )


@pytest.mark.parametrize("kind", [FindingKind.CARD_VERIFICATION_CODE, FindingKind.CARD_PIN])
def test_a_code_has_none_because_all_of_them_can_be_tried(kind: FindingKind) -> None:
    assert fingerprints("key")(kind, "123") is None
