"""Keyed digests of numbers: equal numbers can be told to be equal, and nobody without the key can try them all.
The key is a setting's; where fingerprints are kept belongs to the warehouse."""

import hmac
from collections.abc import Callable

from compliance_pipeline.contracts.policy import FindingKind

Fingerprint = Callable[[FindingKind, str], str | None]
"""Of a kind and its digits (or letters and digits), without separators; None for what must not be kept in any form."""

NEVER_KEPT = frozenset({FindingKind.CARD_VERIFICATION_CODE, FindingKind.CARD_PIN})
"""PCI DSS 4.0.1, 3.3.1. They have so few values that even a keyed digest keeps them."""


def fingerprints(key: str) -> Fingerprint:
    """HMAC-SHA-256 cut to 128 bits, as 32 hexadecimal characters (PCI DSS 4.0.1, 3.5.1.1: keyed, of the whole PAN)."""
    secret = key.encode()

    def fingerprint(kind: FindingKind, number: str) -> str | None:
        if kind in NEVER_KEPT:
            return None
        return hmac.digest(secret, f"{kind}:{number}".encode(), "sha256").hex()[:32]

    return fingerprint
