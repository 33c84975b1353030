"""Hours of availability, the partitions of everything that follows. Light, so that the code location may import it."""

from datetime import UTC, datetime

PARTITION_FORMAT = "%Y-%m-%d-%H:%M"
"""Dagster's default key format of an hourly partition."""

FIRST_HOUR = datetime(2026, 1, 1, tzinfo=UTC)
"""The oldest partition. A run for an hour that is no partition would fail, and with it the sensor's whole tick."""


def partition_hour(at: datetime) -> str:
    """Key of the hourly partition (UTC) that `at` falls in, e.g. '2026-03-01-14:00'; the first one for older times."""
    return max(at.astimezone(UTC), FIRST_HOUR).replace(minute=0).strftime(PARTITION_FORMAT)


def hour_of(partition_key: str) -> datetime:
    return datetime.strptime(partition_key, PARTITION_FORMAT).replace(tzinfo=UTC)
