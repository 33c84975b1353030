"""Which platform adapter, by one setting, and what all its processes share: budget and circuit breakers.

What an adapter does belongs to it.
"""

from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING

import httpx

from compliance_pipeline.clock import utc_now
from compliance_pipeline.platforms.port import Platform

if TYPE_CHECKING:
    import sqlalchemy as sa

    from compliance_pipeline.platforms.transport import Transport
    from compliance_pipeline.settings import Settings

CLOUD_REQUESTS_PER_MINUTE = 300
"""Genesys Cloud's limit for each token of client credentials."""
CLOUD_MEDIA_HOSTS = ("*.pure.cloud", "*.mypurecloud.com", "*.amazonaws.com")
"""Genesys Cloud keeps media in Amazon S3, and serves some itself. The region's own domain is added to them."""


def platform_of(settings: "Settings", engine: "sa.Engine") -> Platform:
    """The adapter for `settings.platform_profile`; `engine`: the operational database. Raises Refused for settings
    that can't be used."""
    transport = transport_of(settings, engine)
    if settings.platform_profile == "cloud":
        from compliance_pipeline.platforms.cloud import CloudPlatform

        return CloudPlatform(
            transport,
            work_item_type=settings.work_item_type,
            workbin=settings.workbin,
            supervisor_number=settings.supervisor_number,
        )
    from compliance_pipeline.platforms.guide import GuidePlatform

    return GuidePlatform(transport)


def transport_of(settings: "Settings", engine: "sa.Engine") -> "Transport":
    """The platform's HTTP, with what its processes share in the operational database. Raises Refused as above."""
    from compliance_pipeline.breaker import circuit_breaker
    from compliance_pipeline.platforms.pacing import Budget
    from compliance_pipeline.platforms.transport import Transport

    cloud = settings.platform_profile == "cloud"
    per_minute = settings.requests_per_minute or (CLOUD_REQUESTS_PER_MINUTE if cloud else None)
    # The limit is the client's; its id has no business in a table.
    client = sha256(f"{settings.client_id}\0{settings.platform_url}".encode()).hexdigest()[:16]
    return Transport(
        settings.platform_url,
        settings.client_id,
        settings.platform_client_secret,
        login_url=settings.login_url,
        media_hosts=settings.media_hosts or (_cloud_media_hosts(settings.platform_url) if cloud else ()),
        budget=Budget(engine, f"platform:{client}", per_minute) if per_minute else None,
        breakers=partial(circuit_breaker, engine),
        refused=partial(_count_refusal, engine),
    )


def _cloud_media_hosts(platform_url: str) -> tuple[str, ...]:
    try:
        host = httpx.URL(platform_url).host
    except httpx.InvalidURL:
        return CLOUD_MEDIA_HOSTS  # the transport says what is wrong with it
    return (f"*.{host.removeprefix('api.')}", *CLOUD_MEDIA_HOSTS) if host.startswith("api.") else CLOUD_MEDIA_HOSTS


def _count_refusal(engine: "sa.Engine", reason: str) -> None:
    from compliance_pipeline import tallies

    tallies.count(engine, {tallies.URL_REFUSED + reason: 1}, utc_now())
