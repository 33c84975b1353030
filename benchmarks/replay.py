"""How fast a policy is replayed over stored screenings, beside evaluating it recording by recording.

The history is made up in the mix of the capacity model (docs/capacity.md): 70% voice, one recording of twenty with a
violation; see replay_history.sql. No two hours are the same. `first` stores the first verdicts, `next` those of another
policy beside them.

python -m benchmarks.replay [--recordings 1000000] [--hours 24]
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, process_time
from types import SimpleNamespace
from typing import Any, cast

from compliance_pipeline.contracts.event import Channel, Direction
from compliance_pipeline.contracts.policy import Annotation, Detector, FindingKind, PolicyPack
from compliance_pipeline.replay import replay
from compliance_pipeline.screening.findings import Finding
from compliance_pipeline.screening.policy import Facts, evaluate, judge, load_policy
from compliance_pipeline.steps import Pipeline
from compliance_pipeline.warehouse.warehouse import Warehouse

ENGINE = "made-up-1"
START = datetime(2026, 5, 30, tzinfo=UTC)
GOAL_PER_MINUTE = 1_000_000
SAMPLE = 2_000
USUAL = ["asks_name", "asks_number_on_file", "payment_cue", "asks_address", "asks_birth_date", "gives_identity"]
TELLING = ["threat", "profanity", "opt_out", "data_request", "health_disclosure", "health_term", "special_category"]
_MADE = Path(__file__).with_name("replay_history.sql").read_text("utf-8").split(";\n")


class Timed(Warehouse):
    """Notes for how long each transaction held the warehouse, its opening and closing included."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.held_s: list[float] = []

    @contextmanager
    def _locked(self) -> Iterator[float]:
        with super()._locked() as deadline:
            began = monotonic()
            yield deadline
        self.held_s.append(monotonic() - began)


def make(warehouse: Warehouse, recordings: int, hours: int) -> list[datetime]:
    chosen = [START + timedelta(hours=number) for number in range(hours)]
    for number, hour in enumerate(chosen):
        values = {"hour": hour, "engine": ENGINE, "usual": USUAL, "telling": TELLING, "recordings": recordings // hours}
        with warehouse.write() as connection:
            connection.execute("SELECT setseed($seed)", {"seed": 0.42 + number / 1000})
            for statement in _MADE:
                connection.execute(
                    statement, {name: value for name, value in values.items() if f"${name}" in statement}
                )
    return chosen


def plain_per_minute(warehouse: Warehouse, policy: PolicyPack, hour: datetime) -> float:
    """Recordings a minute by `evaluate` and `judge` alone, their facts and findings already in memory."""
    some = warehouse.select(
        "FROM screenings WHERE partition_hour = $hour ORDER BY hash(recording_id) LIMIT $n", {"hour": hour, "n": SAMPLE}
    )
    found: dict[str, list[Finding]] = {row["recording_id"]: [] for row in some}
    for row in warehouse.select("FROM findings WHERE partition_hour = $hour", {"hour": hour}):
        if row["recording_id"] in found:
            found[row["recording_id"]].append(_finding(row))
    facts = [_facts(row) for row in some]
    began = process_time()
    for row, known in zip(some, facts, strict=True):
        judge(
            row["recording_id"], "any", evaluate(found[row["recording_id"]], known, policy), row["unscreenable_reason"]
        )
    return len(some) / (process_time() - began) * 60


def _finding(row: dict[str, Any]) -> Finding:
    return Finding(
        FindingKind(row["kind"]), Detector(row["detector"]), row["speaker"], row["start_ms"], row["end_ms"],
        row["confidence"], row["masked"], phrase=row["phrase"],
    )  # fmt: skip


def _facts(row: dict[str, Any]) -> Facts:
    return Facts(
        channel=Channel(row["channel"]),
        transcript_read=row["words_known"],
        speakers=frozenset(row["speakers"]),
        complete=row["unscreenable_reason"] is None,
        direction=Direction(row["direction"]),
        queue=row["queue"],
        started_at=row["started_at"],
        duration_ms=row["duration_ms"],
        called_time_zone=row["called_time_zone"],
        annotations=frozenset(map(Annotation, row["annotations"])),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recordings", type=int, default=GOAL_PER_MINUTE)
    parser.add_argument("--hours", type=int, default=24)
    wanted = parser.parse_args()
    policy = load_policy()
    with TemporaryDirectory() as home:
        warehouse = Timed(Path(home) / "warehouse.duckdb")
        hours = make(warehouse, wanted.recordings, wanted.hours)
        print(f"made {wanted.recordings:,} recordings in {wanted.hours} hours")
        plain = plain_per_minute(warehouse, policy, hours[0])
        rows = []
        for name, pack in (("first", policy), ("next", policy.model_copy(update={"version": "99.0.0"}))):
            warehouse.held_s.clear()
            engine = SimpleNamespace(version=ENGINE)
            pipeline = cast(
                "Pipeline",
                SimpleNamespace(warehouse=warehouse, policy=pack, engine=engine, clock=lambda: datetime.now(UTC)),
            )
            began, cpu = monotonic(), process_time()
            report = replay(pipeline, hours, f"benchmark-{name}")
            wall_s, cpu_s = monotonic() - began, process_time() - cpu
            held = sorted(warehouse.held_s)
            rows.append((name, report.judged / wall_s * 60, wall_s, cpu_s, held, dict(report.verdicts)))
    titles = ("a minute", "wall s", "CPU s", "held P95 s", "held max s", "held share")
    print("\n" + f"{'replay':<8}" + "".join(f"{title:>12}" for title in titles))
    for name, per_minute, wall_s, cpu_s, held, _ in rows:
        share = sum(held) / wall_s
        p95, longest = held[int(len(held) * 0.95)], held[-1]
        print(f"{name:<8}{per_minute:>12,.0f}{wall_s:>12.1f}{cpu_s:>12.1f}{p95:>12.2f}{longest:>12.2f}{share:>12.0%}")
    print(f"evaluate(), one process: {plain:,.0f} a minute; verdicts: {rows[0][-1]}")
    slowest = min(row[1] for row in rows)
    print(json.dumps({"benchmark": "replay", "ratios": {
        "replay / goal of 1 million a minute": slowest / GOAL_PER_MINUTE,
        "replay / evaluate() per recording": slowest / plain,
    }}))  # fmt: skip


if __name__ == "__main__":
    main()
