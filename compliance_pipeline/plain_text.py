"""What people type and the ledger keeps for ever: reasons and names. Checked before it is stored anywhere."""

import re

from compliance_pipeline.contracts.policy import FindingKind


class NotPlain(ValueError):
    """Not to be stored; the message quotes nothing of the text."""


def refuse_sensitive(text: str, what: str) -> None:
    """Raises NotPlain for a text with a number of a card or person in it, or no valid Unicode.

    what: whose text it is, in words. E-mail addresses may stand: people go by them.
    """
    # Imported where used: the detectors would cost every command their loading time.
    from compliance_pipeline.screening.numbers import card_numbers
    from compliance_pipeline.screening.text import screen_text
    from compliance_pipeline.screening.transcripts import Transcript, Turn

    try:
        text.encode()
    except UnicodeEncodeError:
        raise NotPlain(f"{what} is no valid Unicode text: type it again in plain characters") from None
    found = any(one.kind != FindingKind.EMAIL_ADDRESS for one in screen_text(Transcript((Turn("agent", 0, text),))))
    if found or any(card_numbers(re.sub(r"\D", "", run)) for run in re.findall(r"\d(?:\W{0,3}\d)+", text)):
        raise NotPlain(
            f"{what} holds what looks like a number of a card, an account or a person, which the ledger would keep for "
            "ever: leave it out, or name the case by its reference"
        )
