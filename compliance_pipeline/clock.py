"""What time it is: handed to whatever needs it, so that tests can set it. No calendars and no partitions here."""

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    return datetime.now(UTC)
