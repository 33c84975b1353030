"""What remediation asks of a platform."""

from datetime import datetime

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field


class WorkItem(BaseModel):
    """A task for a reviewer (guide, step 3: the dataset record). `key` makes creating it idempotent."""

    model_config = ConfigDict(frozen=True)

    key: str = Field(description="recording id, rule and action, joined by '/'")
    recording_id: str
    violation_type: str
    queue: str
    priority: str
    summary: str = Field(description="masked; safe to show")
    due_at: AwareDatetime | None = None


class SupervisorCallback(BaseModel):
    """A call back to a supervisor about a recording. `key` makes asking for it idempotent."""

    model_config = ConfigDict(frozen=True)

    key: str
    recording_id: str
    queue: str
    scheduled_at: datetime
    reason: str
