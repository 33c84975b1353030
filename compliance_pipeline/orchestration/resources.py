"""The one resource that assets, checks and sensors take: inbox, warehouse, platform and policy from the settings."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field, PrivateAttr

from compliance_pipeline.engines import engine_of
from compliance_pipeline.orchestration.launcher import hold_alive
from compliance_pipeline.platforms.port import Platform
from compliance_pipeline.screening.policy import load_policy
from compliance_pipeline.steps import Pipeline, is_triggered_by_inbox
from compliance_pipeline.warehouse.warehouse import Warehouse

if TYPE_CHECKING:
    from compliance_pipeline.intake.inbox import Inbox
    from compliance_pipeline.settings import Settings


class PipelineResource(dg.ConfigurableResource["PipelineResource"]):
    """Built from COMPLIANCE_* variables when a run starts; nothing is opened at import."""

    home: str | None = Field(
        default=None,
        description="A data folder with its own inbox; default: as COMPLIANCE_* say.",
    )
    folder: str | None = Field(
        default=None, description="A folder of recordings to take in place of the platform (`compliance scan`)."
    )
    _pipeline: Pipeline = PrivateAttr()

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator["PipelineResource"]:
        # Imported where used: SQLAlchemy, settings and HTTP client would cost the code location a second.
        from compliance_pipeline.intake.inbox import Inbox
        from compliance_pipeline.settings import Settings

        if context.instance and context.run:
            hold_alive(context.instance, context.run)
        settings = Settings(home=Path(self.home), inbox_url=None, engine_url=None) if self.home else Settings()
        policy = load_policy(settings.policy)
        with ExitStack() as opened:
            inbox = Inbox(settings.inbox_database_url)
            opened.callback(inbox.close)
            inbox.create()
            live = context.run is not None and is_triggered_by_inbox(context.run.tags)
            platform = self._platform(settings, inbox, background=not live)
            opened.callback(platform.close)
            engine = engine_of(settings, policy, inbox)
            opened.callback(engine.close)
            self._pipeline = Pipeline(settings, inbox, Warehouse(settings.warehouse_path), platform, policy, engine)
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
