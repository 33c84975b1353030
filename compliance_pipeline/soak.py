"""`compliance soak`: the whole product under a stream of recordings and a platform that misbehaves; what was lost.

Real processes, real HTTP; the truth is the sandbox's. The queue of the cloud profile is moto's server (SQS).
"""

import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from shutil import rmtree
from typing import Any, Literal

from compliance_pipeline.clock import utc_now
from compliance_pipeline.demo import recording_faults, sandbox_says, stage_times, verdicts_by_recording
from compliance_pipeline.intake.inbox import OPEN_STATES, Inbox, InboxItem, State
from compliance_pipeline.platforms.port import PlatformError
from compliance_pipeline.platforms.profiles import platform_of
from compliance_pipeline.promotion import live_policy
from compliance_pipeline.reconcile import reconcile
from compliance_pipeline.sandbox.faults import FaultKind
from compliance_pipeline.screening.engine import from_settings
from compliance_pipeline.stack import Stack, free_port
from compliance_pipeline.steps import Pipeline
from compliance_pipeline.warehouse.warehouse import warehouse_of

SETTLE_TIMEOUT_S = 600.0
SWEEP_EVERY_S = 15.0
LATEST_EVENT = timedelta(days=8)
"""The sandbox's late events are of days ago."""
QUEUE = "recordings"
CALLBACK_LAG_S = 75
"""The sandbox shows a callback after a minute."""
TRIES, LONGEST_BACKOFF_S = 8, 8
"""Of a recording before it is given up on: fewer and closer than live, so that what never comes is settled in time."""
REQUESTS_PER_MINUTE = 6000
"""Above the platform's real 300: two recordings a second need more than one OAuth client has."""
ALARMS = (
    "bearer leaked", "sensitive value received", "inside reached", "forged taken", "replayed taken",
    "malformed taken", "tags of others lost",
)  # fmt: skip
_UNANNOUNCED = {FaultKind.EVENT_LATE, FaultKind.EVENT_LOST}
"""Not announced when it became available: what that took is the platform's time, not ours."""
_QUEUE_ACCOUNT = {"AWS_ACCESS_KEY_ID": "soak", "AWS_SECRET_ACCESS_KEY": "soak", "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass(frozen=True, slots=True)
class SoakResult:
    """sent, faults, alarms: counts by name, as the sandbox saw them. lost, double, wrong: recording → why; refused:
    reason → count, of recordings that a correct client can't judge.

    alarms: what must never happen: a token or a planted value where it must not go, a forged message taken, an
    address inside the network reached, somebody else's tag overwritten.
    """

    sent: Mapping[str, int]
    unique: int
    judged: int
    found_by_sweep: int
    lost: Mapping[str, str]
    double: Mapping[str, str]
    wrong: Mapping[str, str]
    refused: Mapping[str, int]
    faults: Mapping[str, int]
    alarms: Mapping[str, int]
    stages: list[dict[str, Any]]
    seconds: float

    @property
    def passed(self) -> bool:
        return self.judged > 0 and not (self.lost or self.double or self.wrong or self.alarms)


def run_soak(
    home: Path, *, profile: Literal["guide", "cloud"], seconds: float, rate: float, faults: str, seed: int = 1
) -> Iterator[tuple[int, int] | SoakResult]:
    """Yields (settled, recordings on the platform so far) as it goes, and the result in the end. `home` is emptied."""
    begun = time.monotonic()
    if home.exists():
        rmtree(home)
    queue_port = free_port()
    queue = f"http://127.0.0.1:{queue_port}/123456789012/{QUEUE}" if profile == "cloud" else None
    options = f"--profile {profile} --plan soak --rate {rate} --seconds {seconds} --seed {seed} --faults {faults}"
    variables = {
        "COMPLIANCE_MAX_ATTEMPTS": str(TRIES),
        "COMPLIANCE_LONGEST_BACKOFF_SECONDS": str(LONGEST_BACKOFF_S),
        "COMPLIANCE_REQUESTS_PER_MINUTE": str(REQUESTS_PER_MINUTE),
        "COMPLIANCE_SUPERVISOR_NUMBER": "+13175550100",
        "COMPLIANCE_CALLBACK_LAG_SECONDS": str(CALLBACK_LAG_S),
        **_QUEUE_ACCOUNT,
    }
    with Stack(
        home,
        sandbox_options=options + (f" --queue-url sqs+{queue}" if queue else ""),
        profile=profile,
        queue_url=f"sqs+{queue}" if queue else None,
        variables=variables,
    ) as stack:
        if queue:
            stack.run("queue", f"exec moto_server -H 127.0.0.1 -p {queue_port}")
            _make_queue(queue_port)
        stack.start("receiver", "code")
        stack.wait_until_up("receiver", "code")
        stack.start("daemon", "sandbox", *(["consumer"] if queue else []))
        stack.wait_until_up("sandbox")
        yield from _wait(stack, seconds)
        yield _collect(stack, time.monotonic() - begun)


def _make_queue(port: int) -> None:
    import boto3
    from botocore.config import Config

    client = boto3.client(
        "sqs",
        endpoint_url=f"http://127.0.0.1:{port}",
        region_name=_QUEUE_ACCOUNT["AWS_DEFAULT_REGION"],
        aws_access_key_id="soak",
        aws_secret_access_key="soak",  # noqa: S106
        config=Config(retries={"max_attempts": 20, "mode": "standard"}),
    )
    client.create_queue(QueueName=QUEUE, Attributes={"VisibilityTimeout": "15"})


def _wait(stack: Stack, seconds: float) -> Iterator[tuple[int, int]]:
    """Until all is sent and all that is known is settled, and a sweep finds nothing more."""
    inbox = Inbox(stack.settings.inbox_database_url)
    started = utc_now()
    deadline = time.monotonic() + seconds + SETTLE_TIMEOUT_S
    swept_at = time.monotonic()
    listed_again = False
    try:
        while True:
            counts = inbox.counts()
            truth = sandbox_says(stack, "truth?last=0")
            yield counts[State.DONE] + counts[State.DEAD], truth["count"]
            if truth["finished"] and time.monotonic() - swept_at > SWEEP_EVERY_S:
                if not listed_again:
                    # What the sweep does a quarter of an hour after a conversation's end: recordings may come late.
                    ids = {_conversation(said["recordingId"]) for said in sandbox_says(stack, "truth")["recordings"]}
                    inbox.list_again(sorted(ids), utc_now())
                    listed_again = True
                found = _sweep(stack, inbox, started)
                swept_at = time.monotonic()
                counts = inbox.counts()
                if found == 0 and not any(counts[state] for state in OPEN_STATES):
                    return
            if time.monotonic() > deadline:
                return  # what is open by now is lost, and is said to be
            stack.check()
            time.sleep(1.0)
    finally:
        inbox.close()


def _sweep(stack: Stack, inbox: Inbox, started: datetime) -> int | None:
    """What the schedule does every five minutes, without waiting for it; how many it found, None where it failed."""
    settings = stack.settings.model_copy(update={"requests_per_minute": REQUESTS_PER_MINUTE})
    policy = live_policy(settings, inbox.engine)
    with closing(platform_of(settings, inbox.engine)) as platform:
        warehouse = warehouse_of(settings)
        pipeline = Pipeline(settings, inbox, warehouse, platform, policy, from_settings(settings, policy))
        try:
            return reconcile(pipeline, "soak", started - LATEST_EVENT, utc_now()).found_now
        except PlatformError:
            return None


def _collect(stack: Stack, seconds: float) -> SoakResult:
    truth, seen = sandbox_says(stack, "truth"), sandbox_says(stack, "state")
    observed = {row["recordingId"]: row for row in seen["recordings"]}
    warehouse = warehouse_of(stack.settings)
    verdicts = verdicts_by_recording(warehouse)
    ids = {said["recordingId"] for said in truth["recordings"]}
    inbox = Inbox(stack.settings.inbox_database_url)
    try:
        rows = {key: its[0] for key, its in inbox.known(ids | {_conversation(one) for one in ids}).items()}
    finally:
        inbox.close()
    found: dict[str, dict[str, str]] = {"lost": {}, "double": {}, "wrong": {}}
    refused: Counter[str] = Counter()
    for said in truth["recordings"]:
        recording_id = said["recordingId"]
        known = rows.get(recording_id) or rows.get(_conversation(recording_id))
        what, why = _outcome(said, verdicts.get(recording_id, []), observed[recording_id], known)
        if what == "refused":
            refused[_reason(why)] += 1
        elif what != "judged":
            found[what][recording_id] = f"{said['kind']}: {why}"
    unannounced = [said["recordingId"] for said in truth["recordings"] if _UNANNOUNCED & set(said["faults"])]
    counts = {**seen["counts"], "tags of others lost": seen.get("tagsOfOthersLost", 0)}
    return SoakResult(
        sent=seen.get("sent", {}),
        unique=len(truth["recordings"]),
        judged=len(ids & verdicts.keys()),
        found_by_sweep=sum(recording_id in rows and rows[recording_id].found_by_sweep for recording_id in ids),
        lost=found["lost"],
        double=found["double"],
        wrong=found["wrong"],
        refused=dict(refused.most_common()),
        faults=seen.get("struck", {}),
        alarms={name: counts[name] for name in ALARMS if counts.get(name)},
        stages=stage_times(warehouse, without=unannounced),
        seconds=seconds,
    )


def _conversation(recording_id: str) -> str:
    return recording_id.partition(":")[0]


def _outcome(
    truth: Mapping[str, Any], verdicts: list[dict[str, Any]], seen: Mapping[str, Any], row: InboxItem | None
) -> tuple[Literal["judged", "refused", "lost", "double", "wrong"], str]:
    """What became of a recording, and why. Only what a correct client can't judge may be refused."""
    known = f"{row.state}: {row.reason}" if row else "never heard of"
    if len(seen["workItems"]) > 1 or seen["callbacks"] > 1:
        return "double", f"{len(seen['workItems'])} work items, {seen['callbacks']} callbacks"
    if row is None or row.state in OPEN_STATES:
        return "lost", known
    if truth["expectation"] == "verdict":
        if not verdicts:
            return "lost", known
        # The plan has work items deleted by somebody else, after they were made.
        made = {**seen, "workItems": seen["workItems"] or ["deleted"] * min(1, seen.get("workItemsDeleted", 0))}
        faults = "; ".join(recording_faults(truth, verdicts, made))
        return ("wrong", f"{faults} ({known})") if faults else ("judged", "")
    said = verdicts[0]["verdict"] if verdicts else None
    if truth["expectation"] == "unscreenable":
        return ("judged", "") if said == "UNSCREENABLE" else ("wrong", f"{said} of what can't be screened ({known})")
    if said not in (None, "UNSCREENABLE"):
        return "wrong", f"{said} of what can't be fetched"
    if not row.reason and not verdicts:
        return "lost", known
    return "refused", row.reason or f"UNSCREENABLE: {verdicts[0]['unscreenable_reason']}"


def _reason(text: str) -> str:
    """The reason without what differs from one recording to the next."""
    return re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|\(contextId [^)]*\)|after \d+ tries", "…", text)
