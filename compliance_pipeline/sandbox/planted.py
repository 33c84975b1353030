"""Clear values that only media and raw events hold, and whether a request brings one back. Requests are not kept."""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

_WINDOW: Final = 8
"""Shorter than the shortest value that is planted (nine digits), long enough to meet one by chance hardly ever."""


class PlantedValues:
    """Cards, SSNs, phones, e-mail addresses by owner. A look-up costs what the text is long, however many there are."""

    def __init__(self) -> None:
        self._by_start: dict[str, dict[str, str]] = {}

    def add(self, values: Iterable[str], owner: str) -> None:
        for value in values:
            compact = _compact(value)
            self._by_start.setdefault(compact[:_WINDOW], {})[compact] = owner

    def owners_in(self, body: bytes) -> set[str]:
        """Who owns what `body` holds, however it is spaced or hyphenated, and escaped where it is JSON."""
        text = body.decode(errors="replace")
        return set().union(*map(self._owners, [text, *_decoded(text)]))

    def _owners(self, text: str) -> set[str]:
        text = _compact(text)
        windows = {text[at : at + _WINDOW] for at in range(len(text) - _WINDOW + 1)}
        return {
            owner
            for start in windows & self._by_start.keys()
            for value, owner in self._by_start[start].items()
            if value in text
        }


def _decoded(text: str) -> Iterator[str]:
    """The strings of a JSON text without their escapes; raw, `\\u0040` is no at sign and a line break is a letter."""
    if "\\" not in text:
        return
    try:
        left: list[Any] = [json.loads(text)]
    except (ValueError, RecursionError):
        return
    while left:
        value = left.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            left += [*value, *value.values()]
        elif isinstance(value, list):
            left += value


def _compact(text: str) -> str:
    return re.sub(r"[^0-9a-z@]", "", text.casefold())
