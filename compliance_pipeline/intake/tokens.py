"""Participant identifiers to keyed tokens (guide, edge case 2). No storage: the same input gives the same token.

What to keep or drop of an event is decided in the receiver, not here.
"""

import hmac
import re
from base64 import b32encode

_TOKEN = re.compile(r"tok_[a-z]+_[a-z2-7]{26}")
_FIELD = re.compile(r"[a-z]+")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_PHONE = re.compile(r"(?:tel:)?[\d\s().+-]+", re.IGNORECASE)
_LONG_NUMBER = re.compile(r"(?:\d[\s().+-]*){7,}")
_PHONE_DIGITS = range(7, 16)  # ITU-T E.164: 15 at most; 7 is the shortest subscriber number in common use


class Tokenizer:
    """Turns identifiers into `tok_<field>_<26 base32 characters>`: 128 bits of HMAC-SHA256, separate for each field."""

    def __init__(self, key: str) -> None:
        if not key:
            raise ValueError("the token key is empty: set COMPLIANCE_TOKEN_KEY")
        self._key = key.encode()

    def token(self, field: str, value: str) -> str:
        """Token of `value`; a token comes back unchanged. `field`: lower-case letters, e.g. 'phone'."""
        if not _FIELD.fullmatch(field):
            raise ValueError("a token's field is made of lower-case letters only")
        if is_token(value):
            return value
        digest = hmac.digest(self._key, f"{field}\0{_normalised(field, value)}".encode(), "sha256")
        return f"tok_{field}_{b32encode(digest[:16]).decode().rstrip('=').lower()}"

    def identifier(self, value: str) -> str:
        """Token of a participant identifier of unknown kind: an e-mail address, a phone number or else an id."""
        return self.token(_kind(value), value)

    def scrubbed(self, field: str, text: str) -> str:
        """`text`, or its token when it holds what looks like an address, a phone, card or social security number."""
        return self.token(field, text) if looks_identifying(text) else text


def is_token(value: str) -> bool:
    return _TOKEN.fullmatch(value) is not None


def looks_identifying(text: str) -> bool:
    """True for an '@' or a number of 7 digits or more; digits inside a UUID don't count."""
    if is_token(text):
        return False
    rest = _UUID.sub("", text)
    return "@" in rest or _LONG_NUMBER.search(rest) is not None


def _kind(value: str) -> str:
    if "@" in value:
        return "email"
    if _PHONE.fullmatch(value.strip()) and sum(map(str.isdigit, value)) in _PHONE_DIGITS:
        return "phone"
    return "id"


def _normalised(field: str, value: str) -> str:
    if field == "phone":
        return "".join(filter(str.isdigit, value))
    if field == "email":
        return value.strip().lower()
    return value.strip()
