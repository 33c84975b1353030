"""The buckets of sql/snapshot/latency.sql, told apart from it."""

from math import ceil, log

GROWTH = 1.0206


def bucket_of(seconds: float) -> int:
    return ceil(log(max(seconds, 0.001)) / log(GROWTH))


def seconds_of(bucket: int) -> float:
    return 2 * GROWTH**bucket / (1 + GROWTH)
