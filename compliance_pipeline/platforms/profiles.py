"""Which platform adapter, by one setting, and what all its processes share: budget and circuit breakers."""

from typing import TYPE_CHECKING

from compliance_pipeline.platforms.port import Platform

if TYPE_CHECKING:
    import sqlalchemy as sa

    from compliance_pipeline.settings import Settings


def platform_of(settings: "Settings", engine: "sa.Engine") -> Platform:  # noqa: ARG001
    """The adapter for `settings.platform_profile`; `engine`: the operational database. Raises Refused for settings
    that can't be used."""
    from compliance_pipeline.platforms.guide import GuidePlatform
    from compliance_pipeline.platforms.transport import Transport

    transport = Transport(settings.platform_url, settings.client_id, settings.platform_client_secret)
    return GuidePlatform(transport)
