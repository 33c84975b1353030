"""kill -9 at random instants of every process of the product, under a stream of recordings; then what came of it.

`python -m compliance_pipeline_tests.faults.chaos --kills 200 --seed 7`; exit code 1 with the faults found.

The sandbox is made to stand still for up to 10 s instead (SIGSTOP): it holds its recordings, work items and the truth
about both in memory, as no real platform does, so a killed one leaves nothing to check against.
"""

import argparse
import os
import random
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from heapq import heappop, heappush
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

import dagster as dg

from compliance_pipeline.demo import recording_faults, sandbox_says, verdicts_by_recording
from compliance_pipeline.intake.inbox import OPEN_STATES, Inbox, State
from compliance_pipeline.orchestration.launcher import is_alive
from compliance_pipeline.stack import Stack, free_port, wait_for_port
from compliance_pipeline.warehouse.warehouse import Warehouse
from compliance_pipeline_tests.end_to_end.demo_run import instance_of

RATE_PER_S = 1.0
KILL_EVERY_S = 4.5
FIRST_KILL_S = 3.0
PAUSE_EVERY = 20
"""One pause of the sandbox for so many kills; beside them, not among them."""
LONGEST_DOWN_S, LONGEST_PAUSE_S = 3.0, 10.0
SETTLE_TIMEOUT_S = 420.0
ENGINE = "exec compliance engine serve"
VICTIMS = ("receiver", "daemon", "code", "run", "engine")
ALARMS = ("bearer leaked", "sensitive value received", "forged taken", "inside reached")

_STARTED = re.compile(r"Started process for run \(pid: (\d+)\)")
PARTIAL = {
    "findings without a verdict": "SELECT recording_id FROM findings ANTI JOIN verdicts USING (recording_id)",
    "violations without a verdict": "SELECT recording_id FROM violations ANTI JOIN verdicts USING (recording_id)",
    "media without a verdict": "SELECT recording_id FROM media ANTI JOIN verdicts USING (recording_id)",
    "a verdict without its time line": "SELECT recording_id FROM verdicts ANTI JOIN "
    "(FROM stage_times WHERE stage = 'judged') USING (recording_id)",
    "a verdict of a violation without its rule": "SELECT recording_id FROM verdicts ANTI JOIN violations "
    "USING (recording_id) WHERE verdict IN ('VIOLATION_DETECTED', 'REVIEW_REQUIRED')",
    "a violation without an action": "SELECT recording_id FROM violations ANTI JOIN remediations "
    "USING (recording_id, rule_id)",
    "an action without its result": "SELECT recording_id FROM latest_remediations WHERE status <> 'done'",
}
"""What must be empty once all is settled."""


@dataclass(frozen=True, slots=True, order=True)
class Strike:
    """at_s: from the start of the stream. down_s: until it is started again, or goes on."""

    at_s: float
    victim: str
    down_s: float


@dataclass(frozen=True, slots=True)
class Chaos:
    """What came of it. struck: by victim. dead: by reason. faults: everything that is wrong."""

    struck: Mapping[str, int]
    recordings: int
    verdicts: Mapping[str, int]
    duplicates: int
    most_tries: int
    dead: Mapping[str, int]
    runs: Mapping[str, int]
    faults: list[str]
    seconds: float


def strikes(seed: int, kills: int) -> list[Strike]:
    rng = random.Random(f"chaos:{seed}")
    victims = [VICTIMS[number % len(VICTIMS)] for number in range(kills)]
    rng.shuffle(victims)
    span = kills * KILL_EVERY_S
    found = [Strike(FIRST_KILL_S + rng.uniform(0, span), victim, rng.uniform(0, LONGEST_DOWN_S)) for victim in victims]
    for _ in range(max(1, kills // PAUSE_EVERY)):
        down_s = rng.uniform(LONGEST_PAUSE_S / 2, LONGEST_PAUSE_S)
        found.append(Strike(FIRST_KILL_S + rng.uniform(0, span), "sandbox", down_s))
    return sorted(found)


def run_chaos(home: Path, *, kills: int, seed: int) -> Iterator[str | Chaos]:
    """Yields a line for each kill and for the rest as it goes, and the result in the end. `home` is emptied."""
    begun = time.monotonic()
    if home.exists():
        rmtree(home)
    seconds = FIRST_KILL_S + kills * KILL_EVERY_S
    engine_port = free_port()
    with Stack(
        home,
        sandbox_options=f"--plan soak --rate {RATE_PER_S} --seconds {seconds} --seed {seed}",
        variables={
            "COMPLIANCE_ENGINE_URL": f"http://127.0.0.1:{engine_port}",
            "COMPLIANCE_ENGINE_PORT": str(engine_port),
            "COMPLIANCE_ENGINE_HOSTS": '["127.0.0.1"]',
            "COMPLIANCE_ENGINE_SECONDS": "20",
            # So that what fails often is settled within minutes.
            "COMPLIANCE_LONGEST_BACKOFF_SECONDS": "8",
            "COMPLIANCE_CLAIM_SECONDS": "20",
        },
    ) as stack:
        stack.run("engine", ENGINE)
        stack.start("receiver", "code")
        stack.wait_until_up("receiver", "code")
        wait_for_port(engine_port, timeout_s=60)
        stack.start("daemon", "sandbox")
        stack.wait_until_up("sandbox")
        while not sandbox_says(stack, "truth?last=0")["count"]:
            time.sleep(0.1)
        with instance_of(home) as instance, closing(Inbox(stack.settings.inbox_database_url)) as inbox:
            driver = _Driver(stack, instance, inbox)
            yield from driver.strike(strikes(seed, kills))
            yield "no more kills: waiting until all is settled"
            unsettled = driver.settle()
            yield driver.collect(time.monotonic() - begun, unsettled)


class _Driver:
    def __init__(self, stack: Stack, instance: dg.DagsterInstance, inbox: Inbox) -> None:
        self._stack = stack
        self._instance = instance
        self._inbox = inbox
        self._begun = time.monotonic()
        self._struck: Counter[str] = Counter()
        self._runs_killed: set[str] = set()

    @property
    def _now_s(self) -> float:
        return time.monotonic() - self._begun

    def strike(self, planned: list[Strike]) -> Iterator[str]:
        """All of them, each as soon after its time as its victim is there; returns when all are up again."""
        due = list(planned)
        back: list[tuple[float, str]] = []
        down: set[str] = set()
        while due or back:
            self._stack.check()
            while back and back[0][0] <= self._now_s:
                name = heappop(back)[1]
                self._start_again(name)
                down.discard(name)
            for one in [one for one in due if one.at_s <= self._now_s and one.victim not in down]:
                if said := self._hit(one):
                    yield f"{self._now_s:7.1f} s  {said}"
                    due.remove(one)
                    if one.victim != "run":
                        down.add(one.victim)
                        heappush(back, (self._now_s + one.down_s, one.victim))
                    break
            time.sleep(0.02)

    def _hit(self, one: Strike) -> str | None:
        """What was done; None while there is nothing to kill."""
        if one.victim == "sandbox":
            self._stack.pause("sandbox")
        elif one.victim == "run":
            process = self._process_of_a_run()
            if process is None:
                return None
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                return None  # it came to its end meanwhile
        else:
            self._stack.kill(one.victim)
        self._struck[one.victim] += 1
        if one.victim == "run":
            return "kill -9 run"
        return f"{'stop' if one.victim == 'sandbox' else 'kill -9'} {one.victim}, down for {one.down_s:.1f} s"

    def _start_again(self, name: str) -> None:
        if name == "sandbox":
            self._stack.resume(name)
        elif name == "engine":
            self._stack.run(name, ENGINE)
        else:
            self._stack.start(name)

    def _process_of_a_run(self) -> int | None:
        for run in self._instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])):
            if run.run_id not in self._runs_killed and is_alive(self._instance, run.run_id):
                for event in self._instance.all_logs(run.run_id):
                    if found := _STARTED.search(event.message):
                        self._runs_killed.add(run.run_id)
                        return int(found.group(1))
        return None

    def settle(self) -> str | None:
        """Wait until nothing is open; what is open still after SETTLE_TIMEOUT_S."""
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        while True:
            self._stack.check()
            finished = sandbox_says(self._stack, "truth?last=0")["finished"]
            counts = self._inbox.counts()
            waiting = {state: counts[state] for state in OPEN_STATES if counts[state]}
            under_way = [run.run_id for run in self._instance.get_runs() if not run.is_finished]
            if finished and not waiting and not under_way:
                return None
            if time.monotonic() > deadline:
                sent = "" if finished else "events not delivered; "
                return f"not settled after {SETTLE_TIMEOUT_S:.0f} s: {sent}{waiting}, runs {under_way}"
            time.sleep(0.5)

    def collect(self, seconds: float, unsettled: str | None) -> Chaos:
        truth, seen = sandbox_says(self._stack, "truth")["recordings"], sandbox_says(self._stack, "state")
        observed = {row["recordingId"]: row for row in seen["recordings"]}
        warehouse = Warehouse(self._stack.settings.warehouse_path)
        verdicts = verdicts_by_recording(warehouse)
        rows = self._inbox.known([said["recordingId"] for said in truth])
        faults = [unsettled] if unsettled else []
        tries = 0
        dead: Counter[str] = Counter()
        for said in truth:
            recording_id = said["recordingId"]
            known = rows.get(recording_id)
            if not known:
                faults.append(f"{recording_id}: never heard of")
                continue
            item = known[0]
            tries = max(tries, item.attempts)
            if item.state is State.DEAD:
                dead[item.reason or "no reason"] += 1
                if not item.reason:
                    faults.append(f"{recording_id}: given up on, and no reason why")
            found = recording_faults(said, verdicts.get(recording_id, []), observed[recording_id])
            faults += [f"{recording_id}: {fault} ({item.state}: {item.reason})" for fault in found]
        for what, query in PARTIAL.items():
            faults += [f"{row['recording_id']}: {what}" for row in warehouse.select(query)]
        faults += [f"{recording_id}: several work items" for recording_id in seen["doubles"]]
        faults += [f"{seen['counts'][name]} times: {name}" for name in ALARMS if seen["counts"].get(name)]
        return Chaos(
            struck=dict(self._struck),
            recordings=len(truth),
            verdicts=dict(Counter(found["verdict"] for its in verdicts.values() for found in its)),
            duplicates=sum(its[0].duplicates for its in rows.values()),
            most_tries=tries,
            dead=dict(dead),
            runs=dict(Counter(run.status.value for run in self._instance.get_runs())),
            faults=faults,
            seconds=seconds,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.randrange(10_000))
    parser.add_argument("--home", type=Path, help="data and logs; emptied first (default: a new temporary folder)")
    given = parser.parse_args()
    home = given.home or Path(mkdtemp(prefix="chaos-")) / "home"
    return int(bool(show(home, kills=given.kills, seed=given.seed).faults))


def show(home: Path, *, kills: int, seed: int) -> Chaos:
    """Run it, printing as it goes."""
    print(f"seed {seed}, {kills} kills; logs: {home / 'logs'}", flush=True)
    for said in run_chaos(home, kills=kills, seed=seed):
        print(said if isinstance(said, str) else table(said), flush=True)
        if isinstance(said, Chaos):
            return said
    raise AssertionError("no result")


def table(result: Chaos) -> str:
    rows: list[tuple[str, Any]] = [
        ("kills", sum(number for name, number in result.struck.items() if name != "sandbox")),
        *((f"  {name}", number) for name, number in sorted(result.struck.items())),
        ("recordings", result.recordings),
        *((f"  {name}", number) for name, number in sorted(result.verdicts.items())),
        ("events twice", result.duplicates),
        ("most tries of a recording", result.most_tries),
        *((f"given up on: {reason}", number) for reason, number in result.dead.items()),
        *((f"Dagster runs {name}", number) for name, number in sorted(result.runs.items())),
        ("seconds", round(result.seconds)),
        ("faults", len(result.faults)),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join([*(f"{name:<{width}}  {number}" for name, number in rows), *result.faults])


if __name__ == "__main__":
    sys.exit(main())
