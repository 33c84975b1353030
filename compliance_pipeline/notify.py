"""Messages to people, by Apprise: mail, Slack, Teams and the like are addresses, not code of ours.

What is worth a message, and what may stand in one, is the caller's to know.
"""

import logging
from collections.abc import Mapping

from pydantic import SecretStr

SEND_S = 15.0
"""All of one message's sending together; a trickling peer is given up on then."""
_NEVER_SENT = ("NewConnectionError", "NameResolutionError", "ConnectTimeoutError", "Connection refused")
"""In what Apprise notes of an error before anything was sent."""


class NotifyFailed(Exception):
    """A message that was not taken. Says which channel, never its URL: that holds a password or a key.

    unsure: the service had it, maybe, and gave no answer: another try may send it twice.
    """

    def __init__(self, message: str, *, unsure: bool = False) -> None:
        super().__init__(message)
        self.unsure = unsure


def send(urls: Mapping[str, SecretStr], channel: str, title: str, body: str) -> None:
    """Send a plain-text message to the Apprise URL of `channel`.

    Raises NotifyFailed when the channel is unknown, its URL is not Apprise's, or its service has not taken the message
    in SEND_S seconds.
    """
    url = urls.get(channel)
    if url is None:
        raise NotifyFailed(f"channel {channel}: not among COMPLIANCE_NOTIFY_URLS")
    import apprise

    # Apprise logs addresses and answers, which go nowhere but into its results; urllib3 logs paths, which hold keys.
    logging.getLogger("apprise").propagate = False
    logging.getLogger("apprise").setLevel(logging.DEBUG)
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    asset = apprise.AppriseAsset(
        app_id="Compliance pipeline",
        app_desc="Compliance pipeline",
        app_url="",
        image_url_mask=None,
        image_url_logo=None,
        storage_mode=apprise.PersistentStoreMode.MEMORY,
        result_log_disk_size=0,
        service_timeout=SEND_S,
        http_redirects=False,
    )
    try:
        services = apprise.Apprise(asset=asset)
        known = services.add(url.get_secret_value())
        sent = services.notify(title=title, body=body, body_format="text", timeout=SEND_S, log_level=logging.DEBUG)
    except Exception as error:
        raise NotifyFailed(f"channel {channel}: {type(error).__name__}", unsure=True) from None
    if not known:
        raise NotifyFailed(f"channel {channel}: its address in COMPLIANCE_NOTIFY_URLS is not an Apprise URL")
    if not sent:
        said = " ".join(entry.message for entry in sent.logs())
        unanswered = sent.status == apprise.AppriseResultStatus.TIMEOUT or "Socket Exception" in said
        unsure = unanswered and not any(error in said for error in _NEVER_SENT)
        how = "did not answer" if unsure else "did not take the message"
        raise NotifyFailed(f"channel {channel}: its service {how}", unsure=unsure)
