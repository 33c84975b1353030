"""Speed, precision and recall of the text screen beside presidio-analyzer's recognisers, on the same messages.

Run as `python -m benchmarks.text`. The peer is left out unless it is installed (`pip install presidio-analyzer`). The
messages are those of the tests, which we wrote: they favour us. 'labelled' is dense with numbers, 'chat' is not.
"""

import importlib
import importlib.util
import time
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from compliance_pipeline.contracts.policy import FindingKind
from compliance_pipeline_tests.screening.test_text import ACCUSES, ORDINARY_CHAT, kinds_found, labelled_messages, score

MESSAGES, SEED, ROUNDS = 3000, 20260312, 5
CARD, SSN = FindingKind.CARD_NUMBER, FindingKind.GOVERNMENT_ID

Screen = Callable[[str], set[FindingKind]]


def presidio() -> Screen:
    """Its card and social security recognisers alone: no language model, so its best speed."""
    recognizers = importlib.import_module("presidio_analyzer.predefined_recognizers")
    cards, ssns = recognizers.CreditCardRecognizer(), recognizers.UsSsnRecognizer()

    def screen(text: str) -> set[FindingKind]:
        found = set()
        if any(result.score > 0.3 for result in cards.analyze(text, ["CREDIT_CARD"], None)):
            found.add(CARD)
        if any(result.score >= 0.3 for result in ssns.analyze(text, ["US_SSN"], None)):
            found.add(SSN)
        return found

    return screen


def main() -> None:
    screens: dict[str, Screen] = {"ours": lambda text: kinds_found(text, ACCUSES)}
    if importlib.util.find_spec("presidio_analyzer"):
        screens["presidio"] = presidio()
    messages = labelled_messages(SEED, MESSAGES)
    labelled, chat = [message.text for message in messages], list(ORDINARY_CHAT) * 300
    table = Table("screen", "chat Mchar/s", "ratio", "labelled Mchar/s", "ratio", "card P", "card R", "SSN P", "SSN R")
    ours = [speed(screens["ours"], texts) for texts in (chat, labelled)]
    for name, screen in screens.items():
        speeds = ours if name == "ours" else [speed(screen, texts) for texts in (chat, labelled)]
        found = [screen(text) for text in labelled]
        figures = [f"{value:.3f}" for kind in (CARD, SSN) for value in score(found, messages, kind)]
        rates = [f"{value:.2f}" for rate, own in zip(speeds, ours, strict=True) for value in (rate, rate / own)]
        table.add_row(name, *rates, *figures)
    Console(width=120).print(table)


def speed(screen: Screen, texts: list[str]) -> float:
    """Million characters a second of CPU, the best of some rounds."""
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.process_time()
        for text in texts:
            screen(text)
        best = min(best, time.process_time() - start)
    return sum(map(len, texts)) / best / 1e6


if __name__ == "__main__":
    main()
