"""Which platform adapter, by one setting, and what all its processes share: budget and circuit breakers.

What an adapter does belongs to it.
"""

import logging
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

_log = logging.getLogger(__name__)

CLOUD_REQUESTS_PER_MINUTE = 300
"""Genesys Cloud's limit for each token of client credentials."""
CLOUD_OPTIONAL_PATHS = (
    "/api/v2/speechandtextanalytics",
    "/api/v2/recording/batchrequests",
    "/api/v2/analytics/conversations/details",
)
"""Transcripts, prefetching and the sweep: recordings are flagged without them, so their trouble holds nothing else."""
BACKGROUND_SHARE = 0.6
"""Of the budget, for what nobody waits for: the rest stays with recordings that come in."""
CLOUD_REGION_HOSTS = frozenset(
    f"api.{region}"
    for region in (
        "mypurecloud.com",
        "mypurecloud.ie",
        "mypurecloud.de",
        "mypurecloud.jp",
        "mypurecloud.com.au",
        "use2.us-gov-pure.cloud",
        "usw2.pure.cloud",
        "cac1.pure.cloud",
        "mxc1.pure.cloud",
        "sae1.pure.cloud",
        "euw2.pure.cloud",
        "euc2.pure.cloud",
        "edee1.eusc-pure.cloud",
        "mec1.pure.cloud",
        "aps1.pure.cloud",
        "apne2.pure.cloud",
        "apne3.pure.cloud",
        "apse1.pure.cloud",
    )
)
"""The API's hosts, by region, as in Genesys Cloud's SDKs (PureCloudRegionHosts). New regions come: to warn, not to
refuse."""
CLOUD_MEDIA_HOSTS = ("*.pure.cloud", "*.mypurecloud.com", "*.amazonaws.com")
"""Genesys Cloud keeps media in Amazon S3, and serves some itself. The region's own domain is added to them."""


def platform_of(settings: "Settings", engine: "sa.Engine", background: bool = False) -> Platform:
    """The adapter for `settings.platform_profile`; `engine`: the operational database. Raises Refused for settings
    that can't be used. background: for sweeps, evidence and backfills, which get `BACKGROUND_SHARE` of the budget."""
    transport = transport_of(settings, engine, background)
    if settings.platform_profile == "cloud":
        from compliance_pipeline.platforms.cloud import CloudPlatform

        return CloudPlatform(
            transport,
            work_item_type=settings.work_item_type,
            workbin=settings.workbin,
            supervisor_number=settings.supervisor_number,
            callback_lag_s=settings.callback_lag_seconds,
        )
    from compliance_pipeline.platforms.guide import GuidePlatform

    return GuidePlatform(transport)


def transport_of(settings: "Settings", engine: "sa.Engine", background: bool = False) -> "Transport":
    """The platform's HTTP, with what its processes share in the operational database. As `platform_of`."""
    from compliance_pipeline.breaker import circuit_breaker
    from compliance_pipeline.platforms.pacing import Budget
    from compliance_pipeline.platforms.transport import Transport

    cloud = settings.platform_profile == "cloud"
    per_minute = settings.requests_per_minute or (CLOUD_REQUESTS_PER_MINUTE if cloud else None)
    # The limit is the client's; its id has no business in a table.
    client = sha256(f"{settings.client_id}\0{settings.platform_url}".encode()).hexdigest()[:16]
    budget = Budget(engine, f"platform:{client}", per_minute) if per_minute else None
    if budget and per_minute and background:
        share = max(1, int(per_minute * BACKGROUND_SHARE))
        budget = Budget(engine, f"platform:{client}/background", share, whole=budget)
    return Transport(
        settings.platform_url,
        settings.client_id,
        settings.platform_client_secret,
        login_url=settings.login_url,
        media_hosts=settings.media_hosts or (_cloud_media_hosts(settings.platform_url) if cloud else ()),
        budget=budget,
        breakers=partial(circuit_breaker, engine),
        optional_paths=CLOUD_OPTIONAL_PATHS if cloud else (),
        refused=partial(_count_refusal, engine),
    )


def _cloud_media_hosts(platform_url: str) -> tuple[str, ...]:
    try:
        host = httpx.URL(platform_url).host
    except httpx.InvalidURL:
        return CLOUD_MEDIA_HOSTS  # the transport says what is wrong with it
    return (f"*.{host.removeprefix('api.')}", *CLOUD_MEDIA_HOSTS) if host.startswith("api.") else CLOUD_MEDIA_HOSTS


def _count_refusal(engine: "sa.Engine", reason: str) -> None:
    from sqlalchemy.exc import SQLAlchemyError

    from compliance_pipeline import tallies

    try:
        tallies.count(engine, {tallies.URL_REFUSED + reason: 1}, utc_now())
    except SQLAlchemyError as error:
        # The refusal stands, and is in the log, whether it can be counted or not.
        _log.warning("address refused (%s), not counted: %s", reason, type(error).__name__)
