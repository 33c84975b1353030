"""From what `capacity` measured to machines and money, and the text of docs/capacity.md. Prices and workload are the
parameters here; change them for yours."""

from math import ceil
from typing import Any

from benchmarks.screening import table

Measured = dict[str, Any]
PARTS = {"costs": "run_cpu_s", "stack": "stack", "scaling": "scaling", "growth": "growth", "pages": "pages"}
"""What is measured, and a name that it leaves."""
FLAT = 1.2
"""The most that a step over the largest history may cost, of that over the smallest."""
SIZES = (10_000, 1_000_000, 10_000_000)
DAILY = (1_000, 100_000, 10_000_000)

# Prices, USD, as of 2026-11: rounded list prices of the large clouds, on demand, without any discount.
VCPU_HOUR = 0.045
"""A general purpose vCPU with 4 GB of memory."""
DATABASE_VCPU_HOUR = 0.10
"""A managed Postgres vCPU, without standby."""
BLOCK_GB_MONTH = 0.08
"""Solid state block storage."""
OBJECT_GB_MONTH = 0.023
OBJECT_PUTS_1000 = 0.005

# The workload.
VOICE, CALL_MINUTES = 0.7, 5.0
VIOLATIONS = 0.05
CLIPS = 0.7 * VIOLATIONS
EVENTS = 3.0
"""Started, completed and available."""
BUSIEST_HOUR = 0.12
"""Share of a day's recordings."""
BUSY_AT_MOST = 0.6
"""Of the machines' cores, in the busiest hour."""
KEPT_DAYS = 365

# The product and the platform, where not measured here.
RUN_EVERY_S = 4.0
"""From one run of an hour to the next with a warm worker, where they follow each other."""
RUNS_OF_AN_HOUR = 2
"""At once, in the server profile (`compliance/live_hour`); in the local one they follow each other."""
IN_A_RUN = 100
DURABLE_EVENTS_S = 9_000.0
"""`make bench-inbox`."""
PLATFORM_REQUESTS_MINUTE = 300.0
"""Genesys Cloud's default for one token."""
MONTH_HOURS = 730
CORES_A_MACHINE = 4
CORES_A_RUN = 1.0
"""Of its process: Python's interpreter works on one."""
PLATFORM, SCREENS = "the platform's requests, one token", "the runs of an hour, screening in them"
RECEIVER = "a receiver's core"
ROOM = 0.7
"""Of a single resource, in the busiest hour, before its queue makes recordings late."""


def workload_table(measured: Measured) -> str:
    workload = (
        f"{VOICE:.0%} calls of {CALL_MINUTES:g} minutes; {VIOLATIONS:.0%} with a violation, {CLIPS:.1%} with a clip",
        f"{EVENTS:g} events a recording; {BUSIEST_HOUR:.0%} of a day in its busiest hour",
        f"cores at most {BUSY_AT_MOST:.0%} busy then; kept {KEPT_DAYS} days",
    )
    prices = (
        f"vCPU hour with 4 GB ${VCPU_HOUR}, managed Postgres vCPU hour ${DATABASE_VCPU_HOUR:.2f}",
        f"GB-month on block storage ${BLOCK_GB_MONTH} and in objects ${OBJECT_GB_MONTH}",
        f"1,000 puts ${OBJECT_PUTS_1000}",
    )
    return (
        f"### The model\n\nWorkload: {'; '.join(workload)}. Prices (2026-11, rounded list prices of the large clouds, "
        f"on demand): {', '.join(prices)}. Runs of an hour follow each other every {RUN_EVERY_S:g} s with up to "
        f"{IN_A_RUN} recordings, from {DAILY[1]:,} a day on (server profile) {RUNS_OF_AN_HOUR} at once; "
        f"Dagster takes {dagster_cpu_s(measured):.1f} s CPU of each. All are parameters in `benchmarks/model.py`."
    )


def dagster_cpu_s(m: Measured) -> float:
    """CPU of a run beyond its steps, in a process of its own; the demo has a minute of audio in four recordings."""
    its = m["stack"]
    steps = its["runs"] * m["run_cpu_s"] + its["recordings"] * (m["chat_cpu_s"] + 0.25 * m["audio_minute_cpu_s"])
    return max(0.1, float((its["cpu_s"] - steps) / its["runs"]))


def recording_cpu_s(m: Measured) -> float:
    return float(EVENTS * m["receiver_cpu_s"] + m["chat_cpu_s"] + VOICE * CALL_MINUTES * m["audio_minute_cpu_s"])


def plan(m: Measured, daily: int) -> dict[str, Any]:
    """Of one size: what it needs in the busiest hour and what that costs a month."""
    each, run = recording_cpu_s(m), m["run_cpu_s"] + dagster_cpu_s(m)
    peak = daily * BUSIEST_HOUR / 3600
    steps_s = m["run_cpu_s"] + IN_A_RUN * m["chat_cpu_s"]
    screening_s = IN_A_RUN * VOICE * CALL_MINUTES * m["audio_minute_cpu_s"] / CORES_A_RUN
    """Of a run."""
    at_once = 1 if daily < DAILY[1] else RUNS_OF_AN_HOUR

    def runs_s(at: float) -> float:
        return min(at, max(at_once / RUN_EVERY_S, at / IN_A_RUN))

    def cores(at: float) -> float:
        return float(at * each + runs_s(at) * run)

    idle = float(m["stack"]["idle_cores"])
    singles = {
        PLATFORM: peak * m["requests"] / (PLATFORM_REQUESTS_MINUTE / 60),
        SCREENS: peak / IN_A_RUN * max(RUN_EVERY_S, steps_s + screening_s) / at_once,
        "the runs of an hour, screening by engine services": peak / IN_A_RUN * max(RUN_EVERY_S, steps_s) / at_once,
        "the warehouse's one writer": runs_s(peak) * m["run_held_s"] + peak * m["chat_held_s"],
        "the inbox's disk": peak * EVENTS / DURABLE_EVENTS_S,
        RECEIVER: peak * EVENTS * m["receiver_cpu_s"],
    }
    mended = (PLATFORM, SCREENS, RECEIVER)
    """By more tokens, engine services, receivers; for the rest there must be more deployments, each with its queues."""
    deployments = max(1, ceil(max(load for name, load in singles.items() if name not in mended) / ROOM))
    busiest = cores(peak) + deployments * idle
    machines = max(1, ceil(busiest / BUSY_AT_MOST / CORES_A_MACHINE))
    # Workers follow the load; half a machine a deployment stays.
    paid_cores = max(
        2.0 if daily < DAILY[1] else CORES_A_MACHINE / 2 * deployments,
        (cores(daily / 86_400) + deployments * idle) / BUSY_AT_MOST,
    )
    recordings = daily * KEPT_DAYS
    bytes_each = (
        m["operational_bytes"]
        + m.get("growth", {}).get("bytes", {}).get("warehouse", 1_700)
        + m.get("pages", {}).get("bytes", 100)
    )
    block_gb, clips_gb = recordings * bytes_each / 1e9, recordings * CLIPS * m["clip_bytes"] / 1e9
    database = 0.0 if daily < DAILY[1] else 2 * deployments * DATABASE_VCPU_HOUR * MONTH_HOURS
    money = {
        "cores": paid_cores * VCPU_HOUR * MONTH_HOURS,
        "databases": database,
        "block storage": block_gb * BLOCK_GB_MONTH,
        "clips": clips_gb * OBJECT_GB_MONTH + daily * 30 * CLIPS / 1000 * OBJECT_PUTS_1000,
    }
    return {
        "peak": peak,
        "cores": busiest,
        "machines": machines,
        "deployments": deployments,
        "block_gb": block_gb,
        "clips_gb": clips_gb,
        "money": money,
        "singles": singles,
        "screening": VOICE * CALL_MINUTES * m["audio_minute_cpu_s"] * peak / busiest,
    }


def plan_table(m: Measured) -> str:
    plans = {daily: plan(m, daily) for daily in DAILY}
    header = ["recordings a day", *(f"{daily:,}" for daily in DAILY)]

    def row(name: str, of: Any) -> list[str]:
        return [name, *(of(its) for its in plans.values())]

    rows = [
        row("a second, busiest hour", lambda its: f"{its['peak']:.2f}"),
        row("cores busy then", lambda its: f"{its['cores']:,.1f}"),
        row("of these, screening audio", lambda its: f"{its['screening']:.0%}"),
        row(f"machines of {CORES_A_MACHINE} vCPU then", lambda its: f"{its['machines']:,}"),
        row("deployments (inbox, Dagster, warehouse)", lambda its: f"{its['deployments']:,}"),
        row("operational database, warehouse, snapshots after a year, GB", lambda its: f"{its['block_gb']:,.1f}"),
        row("clips after a year, GB", lambda its: f"{its['clips_gb']:,.1f}"),
        row("USD a month: cores", lambda its: f"{its['money']['cores']:,.0f}"),
        row("USD a month: databases", lambda its: f"{its['money']['databases']:,.0f}"),
        row("USD a month: storage", lambda its: f"{its['money']['block storage'] + its['money']['clips']:,.0f}"),
        row("**USD a month**", lambda its: f"**{sum(its['money'].values()):,.0f}**"),
        row("**bottleneck**", bottleneck),
    ]
    names = next(iter(plans.values()))["singles"]
    loads = [[name, *(share(its["singles"][name]) for its in plans.values())] for name in names]
    return (
        table(header, rows)
        + "\n\nWhat there is one of in a deployment, and how much of it the busiest hour takes:\n\n"
        + table(header, loads)
    )


def share(load: float) -> str:
    return f"{load:.1%}" if load < 1 else f"**{load:,.1f} of them**"


def bottleneck(its: Measured) -> str:
    name, load = max(its["singles"].items(), key=lambda single: float(single[1]))
    return f"none: of {name} {load:.0%}" if load < 0.1 else name


def document(m: Measured) -> str:
    texts = (costs_table(m), growth_table(m), scaling_table(m["scaling"]), workload_table(m), plan_table(m))
    return "\n\n".join(texts)


def ms(seconds: float, digits: int = 0) -> str:
    return f"{1000 * seconds:,.{digits}f}"


def costs_table(m: Measured) -> str:
    held = f"{ms(m['run_held_s'])} ms, {ms(m['chat_held_s'], 1)} ms"
    rows = [
        ["an event: signature, tokens, inbox (receiver)", f"{ms(m['receiver_cpu_s'], 2)} ms CPU"],
        ["a run's steps, whatever it holds", f"{ms(m['run_cpu_s'])} ms CPU"],
        ["a recording in it: claim, fetch, a chat's screening, verdict, actions", f"{ms(m['chat_cpu_s'], 1)} ms CPU"],
        ["a minute of a call, two channels, decoded and screened", f"{ms(m['audio_minute_cpu_s'])} ms CPU"],
        ["the platform's requests, one violation in twenty", f"{m['requests']:.1f} a recording"],
        ["the warehouse held by a run, and by each recording in it", held],
        ["inbox row and ledger entries", f"{m['operational_bytes'] / 1000:.1f} kB a recording"],
        [
            "warehouse: rows of all tables and their keys",
            f"{m['growth']['bytes']['warehouse'] / 1000:.1f} kB a recording",
        ],
        ["published snapshot", f"{m['pages']['bytes'] / 1000:.2f} kB a recording"],
        ["a clip in the vault, 22 s on two channels", f"{m['clip_bytes'] / 1000:.0f} kB"],
    ]
    its = m["stack"]
    each = f"{its['cpu_s'] / its['runs']:.1f} s CPU a run ({its['runs']} runs of {its['recordings']} recordings)"
    rows.append(["receiver, dashboard and Dagster at rest", f"{its['idle_cores']:.2f} cores"])
    rows.append(["all of it with the demo's recordings, beyond that; a process for each run", each])
    return "### What it costs\n\n" + table(["what", "measured"], rows)


def growth_table(m: Measured) -> str:
    its, page = m["growth"], m["pages"]

    def told(ratio: float) -> str:
        return f"{ratio:.2f}" if ratio <= FLAT else f"**{ratio:.2f}**"

    def row(name: str, step: Measured, digits: int) -> list[str]:
        return [name, *(f"{one:,.{digits}f}" for one in step["ms"]), told(step["ratio"][-1])]

    def sizes(of: Measured) -> list[str]:
        return [f"{size:,}" for size in of["sizes"]]

    rows = [[*row(name, step, 1), told(step["cpu_ratio"])] for name, step in its["steps"].items()]
    return (
        "### As history grows\n\nMilliseconds, the best of rounds in which the sizes took turns, load "
        f"{its['load']:.0f}; the ratios are of the largest to the smallest (limit {FLAT}). An hour has "
        "1,000 recordings in each; the larger history is longer.\n\n"
        + table(["over so many recordings", *sizes(its), "ratio", "of CPU"], rows)
        + "\n\nThirty days of history, which are denser where it is larger:\n\n"
        + table(["SQL of a page", *sizes(page), "ratio"], [row("overview of 7 days", page, 0)])
        + f"\n\nThe largest beside its own last 8 days alone: **{page['longer']:.2f}**."
    )


def scaling_table(its: Measured) -> str:
    def row(name: str, one: float, two: float, of_ideal: float | None, digits: int) -> list[str]:
        shown = "" if of_ideal is None else f"{of_ideal:.2f}"
        return [name, f"{one:.{digits}f}", f"{two:.{digits}f}", shown]

    rows = [
        row("CPU a recording, s", its["cpu_1"], its["cpu_2"], its["cpu_1"] / its["cpu_2"], 3),
        row("cores that they got", its["busy_1"], its["busy_2"], its["busy_2"] / its["busy_1"] / 2, 2),
        row("waited for the warehouse, s a recording", its["waited_1"], its["waited_2"], None, 3),
        row("recordings by the wall clock, as many", 1, its["speedup"], its["speedup"] / 2, 2),
    ]
    return (
        "### One worker, two workers\n\nCalls of a minute from one inbox, in batches of 10 so that both have work "
        "until the end, taking turns. Limit: 0.85 of ideal. The CPU says what sharing costs; the wall clock also who "
        "else had the machine.\n\n" + table(["", "one", "two", "of ideal"], rows)
    )


def ratios(m: Measured) -> dict[str, float]:
    """What make bench shows."""
    grown = dict(m.get("growth", {}).get("steps", {}))
    if "pages" in m:
        grown["overview of 7 days, denser and longer"] = m["pages"]
    found = {f"{name}, largest history / smallest (limit {FLAT})": step["ratio"][-1] for name, step in grown.items()}
    if "pages" in m:
        found[f"overview of 7 days, 30 days of history / 8 days of it (limit {FLAT})"] = m["pages"]["longer"]
    if its := m.get("scaling"):
        found["two workers, CPU a recording, of ideal (limit 0.85)"] = its["cpu_1"] / its["cpu_2"]
        found["two workers, recordings by the wall clock, of ideal (limit 0.85)"] = its["speedup"] / 2
    return found
