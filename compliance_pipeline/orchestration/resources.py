"""The one resource that assets, checks and sensors take: inbox, warehouse, platform and policy from the settings."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
from dagster._core.storage.tags import GRPC_INFO_TAG
from pydantic import Field, PrivateAttr

from compliance_pipeline.engines import engine_of
from compliance_pipeline.orchestration.launcher import hold_alive
from compliance_pipeline.platforms.canary import with_canaries
from compliance_pipeline.platforms.port import Platform
from compliance_pipeline.steps import Pipeline, is_triggered_by_inbox
from compliance_pipeline.warehouse.warehouse import warehouse_of

if TYPE_CHECKING:
    from compliance_pipeline.intake.inbox import Inbox
    from compliance_pipeline.settings import Settings


NICENESS = 10


def give_way(run: dg.DagsterRun) -> None:
    """Let live runs have the processor first, where this process is the run's own."""
    if GRPC_INFO_TAG in run.tags and not is_triggered_by_inbox(run.tags):
        os.setpriority(os.PRIO_PROCESS, 0, max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))


class PipelineResource(dg.ConfigurableResource["PipelineResource"]):
    """Built from COMPLIANCE_* variables when a run starts; nothing is opened at import."""

    home: str | None = Field(
        default=None,
        description="A data folder with its own inbox; default: as COMPLIANCE_* say.",
    )
    folder: str | None = Field(
        default=None, description="A folder of recordings to take in place of the platform (`compliance scan`)."
    )
    policy: str | None = Field(
        default=None, description="The pack that judges, as JSON; default: the one that is live."
    )
    _pipeline: Pipeline = PrivateAttr()

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator["PipelineResource"]:
        # Imported where used: SQLAlchemy, settings and HTTP client would cost the code location a second.
        from compliance_pipeline.contracts.policy import PolicyPack
        from compliance_pipeline.intake.inbox import Inbox
        from compliance_pipeline.promotion import live_policy
        from compliance_pipeline.settings import Settings

        if context.instance and context.run:
            hold_alive(context.instance, context.run)
            give_way(context.run)
        settings = (
            Settings(home=Path(self.home), inbox_url=None, engine_url=None, warehouse_url=None)
            if self.home
            else Settings()
        )
        with ExitStack() as opened:
            inbox = Inbox(settings.inbox_database_url)
            opened.callback(inbox.close)
            inbox.create()
            policy = PolicyPack.model_validate_json(self.policy) if self.policy else live_policy(settings, inbox.engine)
            live = context.run is not None and is_triggered_by_inbox(context.run.tags)
            platform = with_canaries(self._platform(settings, inbox, background=not live), policy)
            opened.callback(platform.close)
            engine = engine_of(settings, policy, inbox)
            opened.callback(engine.close)
            warehouse = warehouse_of(settings)
            warehouse.gives_way = not live and self.home is None
            self._pipeline = Pipeline(settings, inbox, warehouse, platform, policy, engine)
            yield self

    def _platform(self, settings: "Settings", inbox: "Inbox", *, background: bool) -> Platform:
        """background: for all but what is new: backfills, sweeps and clips leave live recordings their share."""
        if self.folder:
            from compliance_pipeline.platforms import folder

            return folder.from_settings(Path(self.folder), settings)
        from compliance_pipeline.platforms.profiles import platform_of

        return platform_of(settings, inbox.engine, background=background)

    @property
    def pipeline(self) -> Pipeline:
        return self._pipeline
