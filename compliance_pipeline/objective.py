"""What was promised: flagged within so many seconds, for so large a share."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compliance_pipeline.settings import Settings

PUBLISHED_EVERY = timedelta(seconds=30)
"""Figures are published so often, if anything changed."""


@dataclass(frozen=True, slots=True)
class Objective:
    """`target` of the flagged recordings are flagged within `seconds`, or in what `by_channel` has for theirs."""

    seconds: float
    target: float = 0.99
    by_channel: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of_settings(cls, settings: "Settings") -> "Objective":
        by_channel = {str(channel): seconds for channel, seconds in settings.objective_seconds_by_channel.items()}
        return cls(settings.objective_seconds, settings.objective_target, by_channel)

    def of(self, channel: str) -> float:
        return self.by_channel.get(channel, self.seconds)

    @property
    def parameters(self) -> dict[str, Any]:
        """What SQL calls $objective_s and $objectives, a list of (channel, seconds)."""
        of_channels = [{"channel": channel, "seconds": seconds} for channel, seconds in self.by_channel.items()]
        return {"objective_s": self.seconds, "objectives": of_channels or [{"channel": "", "seconds": self.seconds}]}
