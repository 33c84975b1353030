"""Precision, recall, calibration and speed of the text screen beside presidio-analyzer, on the same labelled texts.

Run as `python -m benchmarks.text`; the peer takes part where it is installed (`pip install presidio-analyzer`). The
corpus is generated from a seed, and we wrote the generator: it favours us, so read the figures as a comparison of
habits, not of traffic.
"""

import importlib
import importlib.util
import logging
import math
import random
import re
import time
import unicodedata
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import say_ratios
from compliance_pipeline.contracts.policy import FindingKind
from compliance_pipeline.screening.numbers import luhn_ok, ssn_ok
from compliance_pipeline.screening.text import screen_text
from compliance_pipeline.screening.transcripts import Transcript, Turn

MESSAGES, SEED, ROUNDS = 6000, 20260312, 3
ACCUSES = 0.75
"""The confidence from which the default pack speaks of a violation."""

UNITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEENS = (
    *("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")

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


@dataclass(frozen=True, slots=True)
class Labelled:
    """A conversation and what it gives away: (label, value without separators) pairs. decoy: what it only resembles."""

    turns: tuple[str, ...]
    truth: tuple[tuple[str, str], ...] = ()
    decoy: str = ""

    @property
    def text(self) -> str:
        return "\n".join(self.turns)

    def transcript(self) -> Transcript:
        speakers = ("customer", "agent")
        return Transcript(tuple(Turn(speakers[at % 2], 5_000 * at, text) for at, text in enumerate(self.turns)))


def with_check_digit(payload: str) -> str:
    return next(payload + check for check in "0123456789" if luhn_ok(payload + check))


class Numbers:
    """Random numbers of each kind, from one generator."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def digits(self, length: int) -> str:
        return "".join(self.rng.choice("0123456789") for _ in range(length))

    def card(self) -> str:
        if self.rng.random() < 0.15:
            return with_check_digit(self.rng.choice(["34", "37"]) + self.digits(12))
        start = self.rng.choice(["4", "4", "51", "54", "2221", "2720", "6011", "65", "3530"])
        return with_check_digit(start + self.digits(15 - len(start)))

    def ssn(self) -> str:
        while True:
            if ssn_ok(number := self.digits(9)):
                return number

    def iban(self) -> str:
        from stdnum import iban

        country, bban = self.rng.choice(
            [
                ("DE", "n" * 18),
                ("GB", "aaaa" + "n" * 14),
                ("NL", "aaaa" + "n" * 10),
                ("FR", "n" * 10 + "c" * 11 + "nn"),
                ("AT", "n" * 16),
                ("CH", "n" * 17),
                ("PL", "n" * 24),
                ("IE", "aaaa" + "n" * 14),
                ("SE", "n" * 20),
                ("IT", "a" + "n" * 10 + "c" * 12),
            ]
        )
        letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
        alphabets = {"n": "0123456789", "a": letters, "c": "0123456789"}
        account = "".join(self.rng.choice(alphabets[kind]) for kind in bban)
        return country + iban.calc_check_digits(f"{country}00{account}") + account

    def phone(self) -> tuple[str, str]:
        """(E.164, as written)."""
        rng = self.rng
        area, line = rng.choice(["415", "212", "303", "617", "512"]), self.digits(4)
        office = f"{rng.randint(2, 9)}{rng.randint(2, 9)}{rng.randint(0, 9)}"
        sign = rng.choice
        style = rng.randrange(4)
        if style == 0:
            written = sign(
                [
                    f"({area}) {office}-{line}",
                    f"{area}-{office}-{line}",
                    f"{area}.{office}.{line}",
                    f"{area} {office} {line}",
                    f"1-{area}-{office}-{line}",
                    f"+1 {area} {office} {line}",
                    f"+1{area}{office}{line}",
                    f"+1 ({area}) {office}-{line}",
                    f"{area}{office}{line}",
                ]
            )
            return f"+1{area}{office}{line}", written
        if style == 1:
            rest = f"7400 {rng.randint(100, 999)}{self.digits(3)}"
            compact = rest.replace(" ", "")
            return f"+44{compact}", sign([f"0{rest}", f"+44 {rest}", f"+44{compact}", f"0{compact}", f"+44 (0){rest}"])
        if style == 2:
            tail = self.digits(3)
            return f"+442079460{tail}", sign([f"020 7946 0{tail}", f"+44 20 7946 0{tail}", f"(020) 7946 0{tail}"])
        rest = f"30 901820{self.digits(2)}"
        compact = rest.replace(" ", "")
        return f"+49{compact}", sign([f"+49 {rest}", f"0{rest}", f"+49{compact}", f"0049 {rest}"])

    def email(self) -> tuple[str, str]:
        rng = self.rng
        name = rng.choice(["jane", "tom", "li.wei", "ana-maria", "o.brien", "sam_k", "x99"]) + self.digits(
            rng.randint(0, 2)
        )
        host = rng.choice(["example.com", "mail.example.org", "post.example.co.uk", "firma.example.de", "gmail.com"])
        address = f"{name}@{host}"
        spoken = address.replace(".", " dot ").replace("@", " at ").replace("_", " underscore ").replace("-", " dash ")
        written = rng.choice([address, address, address.upper(), f"<{address}>", f"mailto:{address}", spoken])
        return address, written

    def nhs(self) -> str:
        from stdnum.gb import nhs

        while True:
            if nhs.is_valid(number := self.rng.choice("4679") + self.digits(9)):
                return number

    def dni(self) -> str:
        number = self.digits(8)
        return number + "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23]

    def mbi(self) -> str:
        letters = "ACDEFGHJKMNPQRTUVWXY"
        form = "9AX0AX0AA00"
        make = {"9": "123456789", "0": "0123456789", "A": letters, "X": letters + "0123456789"}
        return "".join(self.rng.choice(make[char]) for char in form)

    def nino(self) -> str:
        return self.rng.choice(["AB", "CE", "JG", "WM", "PX"]) + self.digits(6) + self.rng.choice("ABCD")


def words_of(rng: random.Random, number: str) -> str:
    """Digits as people say them: one by one, 'double four', 'forty one eleven'."""
    said = []
    at = 0
    while at < len(number):
        digit, pair = int(number[at]), number[at : at + 2]
        if len(pair) == 2 and pair[0] == pair[1] and rng.random() < 0.7:
            said.append(f"double {UNITS[digit] if digit else 'oh'}")
            at += 2
        elif len(pair) == 2 and pair > "10" and pair[1] != "0" and rng.random() < 0.3:
            said.append(TEENS[int(pair) - 10] if pair < "20" else f"{TENS[int(pair[0]) - 2]} {UNITS[int(pair[1])]}")
            at += 2
        else:
            said.append(rng.choice(["oh", "zero"]) if digit == 0 else UNITS[digit])
            at += 1
    return rng.choice([" ", " ", ", "]).join(said)


def _grouped(number: str, separator: str, size: int = 4) -> str:
    return separator.join(number[at : at + size] for at in range(0, len(number), size))


_FULL_WIDTH = {ord("0") + digit: 0xFF10 + digit for digit in range(10)}
_Style = Callable[[random.Random, str], str]
CARD_STYLES: tuple[_Style, ...] = (
    lambda _, s: s,
    lambda _, s: _grouped(s, "-"),
    lambda _, s: _grouped(s, " "),
    lambda _, s: _grouped(s, "."),
    lambda _, s: " ".join(s),
    lambda _, s: f"{s[:4]}  {s[4:8]} - {s[8:12]} {s[12:]}",
    lambda _, s: f"{s[:6]} {s[6:]}",
    lambda _, s: _grouped(s, "\n"),
    lambda _, s: s.translate(_FULL_WIDTH),
    lambda _, s: _grouped(s, "\u200b"),
    lambda _, s: _grouped(s, "\u00a0"),
    lambda _, s: _grouped(s, "\u2011"),
    lambda _, s: f"{s[:4]} {s[4:10]} {s[10:]}",
    lambda _, s: _grouped(s, ", "),
    words_of,
    words_of,
    lambda rng, s: f"{s[:8]} {words_of(rng, s[8:])}",
)
_SSN_STYLES: tuple[_Style, ...] = (
    lambda _, s: f"{s[:3]}-{s[3:5]}-{s[5:]}",
    lambda _, s: f"{s[:3]}-{s[3:5]}-{s[5:]}",
    lambda _, s: f"{s[:3]} {s[3:5]} {s[5:]}",
    lambda _, s: s,
    lambda _, s: f"{s[:3]}.{s[3:5]}.{s[5:]}",
    lambda _, s: f"{s[:3]}\u2013{s[3:5]}\u2013{s[5:]}",
    lambda _, s: f"{s[:3]}-{s[3:5]}-{s[5:]}".translate(_FULL_WIDTH),
    words_of,
)
_IBAN_STYLES: tuple[_Style, ...] = (
    lambda _, s: s,
    lambda _, s: s,
    lambda _, s: _grouped(s, " "),
    lambda _, s: _grouped(s, " "),
    lambda _, s: s.lower(),
    lambda _, s: _grouped(s.lower(), " "),
    lambda _, s: _grouped(s, "-"),
    lambda _, s: _grouped(s, "\u00a0"),
    lambda _, s: f"{s[:12]}\n{s[12:]}",
    lambda _, s: " ".join(s),
)


def _split(rng: random.Random, number: str, lead: str) -> tuple[str, ...]:
    """A number given in two or three messages, the other side answering between them."""
    size = rng.choice([4, 8]) if len(number) > 9 else 3
    first, *rest = [number[at : at + size] for at in range(0, len(number), size)]
    rest = rest if len(rest) < 4 else [rest[0], "".join(rest[1:])]
    answers = ["ok", "go on", "and then?", "yes", first]
    turns = [f"{lead}{first}"]
    for part in rest:
        turns += [rng.choice(answers), rng.choice(["", "then ", "and "]) + part]
    return tuple(turns)


def _corrected(rng: random.Random, card: str, lead: str) -> tuple[str, ...]:
    """A number read out with a slip that is put right at once, or in the next turn."""
    wrong = str((int(card[-1]) + rng.randint(1, 9)) % 10)
    said = rng.random() < 0.5

    def say(digits: str) -> str:
        return " ".join(UNITS[int(digit)] if said else digit for digit in digits)

    sorry = rng.choice(["no, sorry, ", "sorry, I meant ", "no wait, ", "correction, "])
    if rng.random() < 0.5:
        return (f"{lead}{say(card[:-1])} {say(wrong)}, {sorry}{say(card[-1])}",)
    return f"{lead}{say(card[:-1])} {say(wrong)}", "thank you", f"{sorry}{say(card[-1])}"


def corpus(seed: int, count: int) -> list[Labelled]:
    """Conversations of one to seven turns: about half give something away, a third hold what only resembles it."""
    rng = random.Random(seed)
    make = Numbers(rng)
    return [_conversation(rng, make) for _ in range(count)]


def _conversation(rng: random.Random, make: Numbers) -> Labelled:
    said = rng.choice(ORDINARY_CHAT)
    draw = rng.random()
    if draw < 0.16:
        return _card(rng, make, said)
    if draw < 0.23:
        number = make.ssn()
        lead = rng.choice(["my ssn is ", "my social security number is ", "social: ", "SSN ", "it's "])
        if rng.random() < 0.15:
            return Labelled(_split(rng, number, f"{said} my ssn is "), (("SSN", number),))
        styles = _SSN_STYLES[:2] if lead == "it's " else _SSN_STYLES
        return Labelled((f"{said} {lead}{rng.choice(styles)(rng, number)}",), (("SSN", number),))
    if draw < 0.29:
        number = make.iban()
        lead = rng.choice(["my IBAN is ", "iban: ", "please pay to ", "the account is ", ""])
        if rng.random() < 0.15:
            return Labelled(_split(rng, number, f"{said} {lead}"), (("IBAN", number),))
        return Labelled((f"{said} {lead}{rng.choice(_IBAN_STYLES)(rng, number)} thanks",), (("IBAN", number),))
    if draw < 0.38:
        number, written = make.phone()
        named = written[0] in "+" or not written.isdigit()
        lead = rng.choice(["call me on ", "my mobile is ", "phone: ", "tel. ", "my number is ", *([""] * 3 * named)])
        end = rng.choice(["", " please", ", thanks", ". Bye"])
        if rng.random() < 0.08:
            digits = number[2:] if number.startswith("+1") else "0" + number[3:]
            return Labelled((f"{said} call me on {words_of(rng, digits)}{end}",), (("phone", number),))
        return Labelled((f"{said} {lead}{written}{end}",), (("phone", number),))
    if draw < 0.43:
        address, written = make.email()
        lead = rng.choice(["my email is ", "write to ", "", "it's "])
        return Labelled((f"{said} {lead}{written}",), (("e-mail", address),))
    if draw < 0.54:
        return _lesser(rng, make, said)
    if draw < 0.88:
        name, text = _decoy(rng, make)
        return Labelled((f"{said} {text} {rng.choice(['thanks', 'ok?', ''])}",), (), name)
    return Labelled((said,))


def _card(rng: random.Random, make: Numbers, said: str) -> Labelled:
    number = make.card()
    lead = rng.choice(["my card is ", "card number: ", "here you go ", "", "it's "])
    draw = rng.random()
    if draw < 0.12:
        return Labelled(_split(rng, number, f"{said} {lead}"), (("card", number),))
    if draw < 0.2:
        return Labelled(_corrected(rng, number, f"{said} {lead}"), (("card", number),))
    written = rng.choice(CARD_STYLES)(rng, number)
    draw = rng.random()
    if draw < 0.1:
        written = f"for order {make.digits(7)} use {written}"
    elif draw < 0.18:
        lead = rng.choice(
            [
                "I don't know the transaction on ",
                "refund my order to ",
                "the invoice was paid with ",
                "case 4471, it's ",
            ]
        )
    return Labelled((f"{said} {lead}{written}{rng.choice([' thanks', ' exp 04/27', '', '.'])}",), (("card", number),))


def _lesser(rng: random.Random, make: Numbers, said: str) -> Labelled:
    def one(label: str, value: str, written: str) -> Labelled:
        return Labelled((f"{said} {written}",), ((label, value),))

    choice = rng.randrange(7)
    if choice == 0:
        number = make.digits(3)
        lead = rng.choice(["cvv ", "the security code is ", "cvc: ", "the 3 digits on the back are "])
        return one("CVV", number, lead + rng.choice([number, " ".join(number), words_of(rng, number)]))
    if choice == 1:
        number = make.digits(rng.choice([4, 4, 6]))
        lead = rng.choice(["my pin is ", "PIN: ", "the pin for my card is ", "card pin "])
        return one("PIN", number, lead + rng.choice([number, " ".join(number)]))
    if choice == 2:
        number = make.nhs()
        written = rng.choice([number, f"{number[:3]} {number[3:6]} {number[6:]}", words_of(rng, number)])
        return one("NHS", number, rng.choice(["my NHS number is ", "nhs no: "]) + written)
    if choice == 3:
        number = make.dni()
        return one("DNI", number, rng.choice(["mi DNI es ", "dni ", ""]) + rng.choice([number, number.lower()]))
    if choice == 4:
        number = make.mbi()
        written = rng.choice([number, f"{number[:4]}-{number[4:7]}-{number[7:]}"])
        return one("MBI", number, rng.choice(["my Medicare number is ", "MBI ", ""]) + written)
    if choice == 5:
        number = make.nino()
        written = rng.choice([number, f"{number[:2]} {_grouped(number[2:8], ' ', 2)} {number[8]}"])
        return one("NINO", number, rng.choice(["national insurance number ", "NI number: ", ""]) + written)
    number = make.digits(9)
    return one("passport", number, rng.choice(["passport number ", "my passport no. is "]) + number)


def _decoy(rng: random.Random, make: Numbers) -> tuple[str, str]:
    d = make.digits
    stamp = datetime.fromtimestamp(rng.randint(1_700_000_000, 1_800_000_000), UTC)
    dead = make.iban()
    dead = dead[:-1] + str((int(dead[-1], 36) + 1) % 10)
    said = ["the code is", "voucher code", "the sticker says", "serial"]
    bad_card = make.card()
    bad_card = bad_card[:-1] + str((int(bad_card[-1]) + 1) % 10)
    decoys: tuple[Callable[[], tuple[str, str]], ...] = (
        lambda: ("order 16", f"order {d(16)}"),
        lambda: ("order 16", f"my order number is 4{d(15)}"),
        lambda: ("order 16", f"4{d(15)} is my order number"),
        lambda: ("order 10", f"order {d(10)}"),
        lambda: ("order 3-7-7", f"order {d(3)}-{d(7)}-{d(7)}"),
        lambda: ("tracking", f"tracking 1Z{d(16)}"),
        lambda: ("tracking", f"tracking number {d(20)}"),
        lambda: ("tracking", f"the parcel is {d(12)}"),
        lambda: ("tracking", f"shipment {d(4)} {d(4)} {d(4)}"),
        lambda: ("bare 16", f"it says {d(16)} on the box"),
        lambda: ("bare 16", d(16)),
        lambda: ("bare 10", f"I was given {d(10)}"),
        lambda: ("bare 9", f"I was given {d(9)}"),
        lambda: ("card with a wrong digit", f"my card is {_grouped(bad_card, ' ')}"),
        lambda: ("IBAN with a wrong digit", f"iban {_grouped(dead, ' ')}"),
        lambda: ("invoice", f"invoice {d(9)} and {d(8)}"),
        lambda: ("zip", f"zip {d(5)}-{d(4)}"),
        lambda: ("uuid", str(uuid.UUID(int=rng.getrandbits(128)))),
        lambda: ("uuid", f"{rng.getrandbits(128):032x}"),
        lambda: ("time", f"at {stamp:%Y-%m-%d %H:%M:%S}.{d(3)}"),
        lambda: ("time", f"log {stamp:%Y%m%d%H%M%S}"),
        lambda: ("time", f"{stamp:%d.%m.%Y} to {stamp:%d/%m/%Y}"),
        lambda: ("time", f"{stamp:%Y-%m-%dT%H:%M:%SZ}"),
        lambda: ("epoch", f"{int(stamp.timestamp())}{rng.choice(['', d(3)])}"),
        lambda: ("amount", f"that is $1,{d(3)},{d(3)}.{d(2)}"),
        lambda: ("amount", f"it cost {d(3)}.{d(2)} and {d(4)}.{d(2)} EUR"),
        lambda: ("imei", f"imei {with_check_digit('35' + d(12))}"),
        lambda: ("iccid", f"sim {with_check_digit('8944' + d(14))}"),
        lambda: ("ean", f"the item is 978{d(10)}"),
        lambda: ("account", f"account {d(8)} sort code {d(2)}-{d(2)}-{d(2)}"),
        lambda: ("one-time code", f"the code we texted you is {d(rng.choice([4, 6]))}"),
        lambda: ("other PIN", f"the {rng.choice(['door', 'sim', 'alarm', 'voicemail'])} pin is {d(4)}"),
        lambda: ("meeting", f"zoom meeting {d(3)} {d(4)} {d(4)}"),
        lambda: ("ip", f"{rng.randint(1, 255)}.{rng.randint(0, 255)}.{rng.randint(0, 255)}.{rng.randint(1, 254)}"),
        lambda: ("position", f"lat {rng.uniform(-90, 90):.14f}, lon {rng.uniform(-180, 180):.12f}"),
        lambda: ("version", f"version {d(1)}.{d(2)}.{d(4)} build {d(5)}"),
        lambda: ("sizes", "sizes " + " ".join(str(rng.randint(1, 60)) for _ in range(12))),
        lambda: ("handle", f"ask @support_{d(3)} or ssh root@host{d(2)}"),
        lambda: ("file", f"logo{d(1)}@2x.png"),
        lambda: ("part", f"part {d(3)}-{d(2)}-{d(4)}"),
        lambda: ("words", "between one and two of the three, maybe four or five, no more than twenty one"),
        lambda: ("other card", f"gift card {d(4)} {d(4)} {d(4)} {d(4)}"),
        lambda: ("other card", f"my loyalty card is 6{d(15)}"),
        lambda: ("bare 4-4-4-4", f"{d(4)} {d(4)} {d(4)} {d(4)}"),
        lambda: ("phone-like", f"call reference {rng.choice(['415', '212'])}{rng.randint(2, 9)}{d(6)}"),
        lambda: ("phone-like", f"invoice 415-{rng.randint(200, 999)}-{d(4)}"),
        lambda: ("phone-like", f"customer number 212{rng.randint(200, 999)}{d(4)}"),
        lambda: ("time", f"call me on {stamp:%Y-%m-%d %H:%M}, or between 0900-1700"),
        lambda: ("code", f"the code on the back of the {rng.choice(['router', 'box', 'book'])} is {d(3)}"),
        lambda: ("code", f"{rng.choice(said)} {rng.choice(['AB', 'CE', 'XK', 'QT'])}{d(6)}{rng.choice('ABCDEFGH')}"),
        lambda: ("code", f"{rng.choice(said)} {d(8)}{rng.choice('ABCDEFGHJKLMNPQRSTVWXYZ')}"),
        lambda: (
            "code",
            f"{rng.choice(said)} {rng.choice('123')}{rng.choice('AXK')}{d(2)}{rng.choice('EGH')}{d(2)}TQ{d(2)}",
        ),
        lambda: ("dashed", f"it says {d(3)}-{d(2)}-{d(4)}{rng.choice(['', *[' on the label'] * 4])}"),
        lambda: ("serial", f"serial {rng.choice('CFGH')}{d(2)}{rng.choice('KLMN')}{d(5)}Q"),
    )
    return rng.choice(decoys)()


# What was found, by whom


@dataclass(frozen=True, slots=True)
class Found:
    label: str
    value: str
    confidence: float


Screen = Callable[[Labelled], list[Found]]
_NOT_ALNUM = re.compile(r"[^0-9A-Z]")


def plain(text: str) -> str:
    """Letters and digits in one form, for comparing."""
    return _NOT_ALNUM.sub("", unicodedata.normalize("NFKC", text).upper())


def same(label: str, found: str, truth: str) -> bool:
    """Telephone numbers agree in their last nine digits: one side keeps the country code, the other does not."""
    if label == "phone":
        return plain(found)[-9:] == plain(truth)[-9:]
    return plain(found) == plain(truth)


_LABELS = {
    FindingKind.CARD_NUMBER: "card",
    FindingKind.CARD_VERIFICATION_CODE: "CVV",
    FindingKind.CARD_PIN: "PIN",
    FindingKind.BANK_ACCOUNT: "IBAN",
    FindingKind.PHONE_NUMBER: "phone",
    FindingKind.EMAIL_ADDRESS: "e-mail",
}


def _label(kind: FindingKind, value: str) -> str:
    """Kinds that cover several identifiers are told apart by their form."""
    value = plain(value)
    if kind is FindingKind.HEALTH_ID:
        return "NHS" if value.isdigit() else "MBI"
    if kind is FindingKind.GOVERNMENT_ID:
        if re.fullmatch(r"[A-Z]{2}\d{6}[A-D]", value):
            return "NINO"
        return "DNI" if re.fullmatch(r"\d{8}[A-Z]", value) else "SSN"
    return _LABELS[kind]


def ours(labelled: Labelled) -> list[Found]:
    found = screen_text(labelled.transcript(), lambda kind, value: f"{kind}|{value}")
    return [_ours(finding.fingerprint or "", finding.confidence, labelled) for finding in found]


def _ours(key: str, confidence: float, labelled: Labelled) -> Found:
    kind, _, value = key.partition("|")
    label = _label(FindingKind(kind), value)
    if label == "SSN" and any(name == "passport" and same(name, value, truth) for name, truth in labelled.truth):
        label = "passport"
    return Found(label, value, confidence)


_ENTITIES = {
    "CREDIT_CARD": "card",
    "US_SSN": "SSN",
    "IBAN_CODE": "IBAN",
    "PHONE_NUMBER": "phone",
    "EMAIL_ADDRESS": "e-mail",
    "UK_NHS": "NHS",
}


def presidio_engine(with_lemmas: bool) -> Any:
    """Its own engine with a blank tokeniser (no model to download) and its predefined recognisers.

    with_lemmas: give it each word as its own lemma, so that its context words raise scores as they do with a model.
    """
    logging.disable(logging.WARNING)
    spacy = importlib.import_module("spacy")
    analyzer = importlib.import_module("presidio_analyzer")
    spacy_engine = importlib.import_module("presidio_analyzer.nlp_engine").SpacyNlpEngine
    pipeline = spacy.blank("en")
    if with_lemmas:

        def lemmas(doc: Any) -> Any:
            for token in doc:
                token.lemma_ = token.lower_
            return doc

        importlib.import_module("spacy.language").Language.component("words_as_lemmas", func=lemmas)
        pipeline.add_pipe("words_as_lemmas")
    engine = spacy_engine(models=[{"lang_code": "en", "model_name": "blank"}])
    engine.nlp = {"en": pipeline}
    return analyzer.AnalyzerEngine(nlp_engine=engine, supported_languages=["en"])


def presidio() -> Screen:
    """Its findings; where two overlap, the one with the higher score, as its anonymiser takes them."""
    engine = presidio_engine(with_lemmas=True)

    def screen(labelled: Labelled) -> list[Found]:
        text = labelled.text
        results = engine.analyze(text, "en", entities=list(_ENTITIES))
        kept: list[Any] = []
        for result in sorted(results, key=lambda result: -result.score):
            if all(result.end <= other.start or other.end <= result.start for other in kept):
                kept.append(result)
        return [Found(_ENTITIES[r.entity_type], text[r.start : r.end], r.score) for r in kept]

    return screen


# Scores


@dataclass(frozen=True, slots=True)
class Score:
    right: int
    wrong: int
    truth: int

    @property
    def precision(self) -> float:
        return self.right / max(1, self.right + self.wrong)

    @property
    def recall(self) -> float:
        return self.right / max(1, self.truth)

    @property
    def f1(self) -> float:
        return 2 * self.right / max(1, self.right + self.wrong + self.truth)


def verdicts(found: Sequence[Found], labelled: Labelled) -> list[tuple[Found, bool]]:
    """Each thing found, and whether it is one of those given away (each counts once)."""
    left = list(labelled.truth)
    judged = []
    for item in sorted(found, key=lambda item: -item.confidence):
        match = next((pair for pair in left if pair[0] == item.label and same(item.label, item.value, pair[1])), None)
        if match:
            left.remove(match)
        judged.append((item, match is not None))
    return judged


def scores(
    judged: Sequence[list[tuple[Found, bool]]], messages: Sequence[Labelled], at_least: float
) -> dict[str, Score]:
    """By label, of what was found with at least this confidence."""
    right: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    truth = Counter(label for message in messages for label, _ in message.truth)
    for item, is_right in (pair for pairs in judged for pair in pairs):
        if item.confidence >= at_least:
            (right if is_right else wrong)[item.label] += 1
    return {label: Score(right[label], wrong[label], truth[label]) for label in truth}


def interval(hits: int, of: int) -> tuple[float, float]:
    """95% by Wilson."""
    if not of:
        return 0.0, 1.0
    z, p = 1.96, hits / of
    middle, spread = p + z * z / (2 * of), z * math.sqrt(p * (1 - p) / of + z * z / (4 * of * of))
    return (middle - spread) / (1 + z * z / of), (middle + spread) / (1 + z * z / of)


def speed(screen: Callable[[Any], object], texts: Sequence[Any], characters: int) -> float:
    """Million characters a second of CPU, the best of some rounds."""
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.process_time()
        for text in texts:
            screen(text)
        best = min(best, time.process_time() - start)
    return characters / best / 1e6


def _share(hits: int, of: int) -> str:
    low, high = interval(hits, of)
    return f"{hits / max(1, of):.3f} ({low:.2f}-{high:.2f}) {hits}/{of}"


def accuracy_table(name: str, score: dict[str, Score], labels: Iterable[str]) -> Table:
    table = Table("kind", "precision (95%)", "recall (95%)", "F1", title=name, title_justify="left")
    for label in labels:
        s = score.get(label, Score(0, 0, 0))
        table.add_row(label, _share(s.right, s.right + s.wrong), _share(s.right, s.truth), f"{s.f1:.3f}")
    return table


_BINS = (0.0, 0.55, 0.7, 0.83, 0.92, 0.96, 1.01)


def reliability_table(judged: Sequence[list[tuple[Found, bool]]]) -> Table:
    """Of what was given a confidence, how much is right."""
    bins: dict[int, list[tuple[float, bool]]] = defaultdict(list)
    for item, is_right in (pair for pairs in judged for pair in pairs):
        bins[max(at for at, low in enumerate(_BINS) if item.confidence >= low)].append((item.confidence, is_right))
    table = Table("confidence given", "mean", "right (95%)", title="Reliability, all kinds", title_justify="left")
    for at, pairs in sorted(bins.items()):
        mean = sum(confidence for confidence, _ in pairs) / len(pairs)
        span = f"{_BINS[at]:.2f}-{min(1.0, _BINS[at + 1]):.2f}"
        table.add_row(span, f"{mean:.3f}", _share(sum(right for _, right in pairs), len(pairs)))
    return table


def main() -> None:
    console = Console(width=120)
    messages = corpus(SEED, MESSAGES)
    judged = [verdicts(ours(message), message) for message in messages]
    labels = list(Counter(label for message in messages for label, _ in message.truth))
    own = scores(judged, messages, ACCUSES)
    console.print(f"{MESSAGES} conversations, seed {SEED}, {sum(len(message.text) for message in messages)} characters")
    console.print(accuracy_table(f"ours, from confidence {ACCUSES}", own, labels))
    console.print(reliability_table(judged))
    wrong = Counter(
        (item.label, m.decoy) for m, pairs in zip(messages, judged, strict=True) for item, ok in pairs if not ok
    )
    console.print(
        "false, at any confidence:", ", ".join(f"{n}x {a} in {b or 'text'}" for (a, b), n in wrong.most_common(12))
    )
    chat = list(ORDINARY_CHAT) * 100
    labelled = messages[:1000]
    plain_chat = [Labelled((text,)) for text in chat]
    texts = {
        "ordinary chat": plain_chat,
        "one message in ten from the corpus": [m for at in range(100) for m in (labelled[at], *plain_chat[:9])],
        "the corpus (numbers in nearly every message)": labelled,
    }
    sizes = {name: sum(len(message.text) for message in group) for name, group in texts.items()}
    rates = {
        name: speed(screen_text, [message.transcript() for message in group], sizes[name])
        for name, group in texts.items()
    }
    if not importlib.util.find_spec("presidio_analyzer"):
        console.print("presidio-analyzer is not installed here: pip install presidio-analyzer to see it beside ours")
        console.print(f"ours: {', '.join(f'{rate:.1f} Mchar/s on {name}' for name, rate in rates.items())}")
        say_ratios("text", {})
        return
    peer = presidio()
    theirs = [verdicts(peer(message), message) for message in messages]
    best = {
        label: max((scores(theirs, messages, cut)[label] for cut in (0.0, 0.3, 0.45, 0.7, 0.99)), key=lambda s: s.f1)
        for label in _ENTITIES.values()
    }
    console.print(accuracy_table("presidio, each kind at the score threshold that suits it best", best, best))
    engine = presidio_engine(with_lemmas=False)
    ratios: dict[str, float] = {}
    table = Table("text", "ours Mchar/s", "presidio Mchar/s", "ratio", title="Speed, one thread", title_justify="left")
    for name, group in texts.items():
        peers = speed(
            lambda text: engine.analyze(text, "en", entities=list(_ENTITIES)), [m.text for m in group], sizes[name]
        )
        table.add_row(name, f"{rates[name]:.2f}", f"{peers:.3f}", f"{rates[name] / peers:.1f}")
        ratios[f"speed, {name} / presidio (goal 10)"] = rates[name] / peers
    console.print(table)
    say_ratios("text", ratios)


if __name__ == "__main__":
    main()
