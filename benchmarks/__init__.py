"""Measurements beside peers, run as `python -m benchmarks.<name>`; what is shipped may not import them."""

import json
from collections.abc import Mapping


def say_ratios(benchmark: str, ratios: Mapping[str, float]) -> None:
    """The last line of a benchmark, for `python -m benchmarks`; a name says what its number is held against."""
    print(json.dumps({"benchmark": benchmark, "ratios": ratios}), flush=True)
