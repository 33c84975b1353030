"""All benchmarks, one after the other: `make bench`, or `python -m benchmarks [--only NAME ...]`.

Each prints its own tables; its last line is JSON, `{"benchmark": name, "ratios": {what: number}}`, where `what` says
what the number is held against, or a list of `what` and `ratio`. These go into one table in docs/benchmarks.md, between
its markers: a benchmark that was not run now keeps its rows, one that fails gets a row that says so, and the others
still run.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from threading import Timer

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- bench begins -->", "<!-- bench ends -->"
HEADER = "| benchmark | what | ratio | measured |\n|---|---|--:|---|"
PARTS_OF_OTHERS = ("__init__", "__main__", "history", "growth", "model", "text", "tones")
"""text and tones are sections of screening."""
TIMEOUT_S = 2 * 3600


def names() -> list[str]:
    return sorted(path.stem for path in HERE.glob("*.py") if path.stem not in PARTS_OF_OTHERS)


def machine() -> str:
    memory = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    return f"{os.cpu_count()} cores, {int(memory.split()[1]) / 1024**2:.0f} GB of memory"


def commit() -> str:
    """The checked out commit, with a + where the tree differs from it; 'unknown' outside a checkout."""
    said = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
        cwd=HERE,
        capture_output=True,
        text=True,
        check=False,
    )
    return said.stdout.strip() or "unknown"


def run(command: Sequence[str], timeout_s: float) -> dict[str, float]:
    """Its ratios; its output is passed on as it comes. Raises RuntimeError if it fails or says none."""
    last = ""
    with subprocess.Popen(
        command, cwd=HERE.parent, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout
        timer = Timer(timeout_s, os.killpg, (process.pid, signal.SIGKILL))
        timer.start()
        try:
            for line in process.stdout:
                if not line.startswith('{"'):
                    print(line, end="", flush=True)
                last = line.strip() or last
        except BaseException:
            # Ctrl-C comes here alone: the child has a group of its own.
            os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            timer.cancel()
    if process.returncode == -signal.SIGKILL:
        raise RuntimeError(f"killed, as it would be after {timeout_s:.0f} s")
    if process.returncode:
        raise RuntimeError(f"ended with exit code {process.returncode}")
    try:
        ratios = json.loads(last)["ratios"]
        pairs = [(one["what"], one["ratio"]) for one in ratios] if isinstance(ratios, list) else ratios.items()
        return {str(what): float(ratio) for what, ratio in pairs}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise RuntimeError("its last line names no ratios") from None


def row(name: str, what: str, ratio: str, when: str) -> str:
    return f"| {name} | {what} | {ratio} | {when} |"


def merged(text: str, new: dict[str, list[str]]) -> str:
    """The document with the rows of the benchmarks in `new` replaced; made at its end where there are no markers."""
    head, _, rest = text.partition(BEGIN)
    table, _, tail = rest.partition(END)
    kept: dict[str, list[str]] = {}
    for line in table.splitlines():
        if line.startswith("| ") and not line.startswith("| benchmark |"):
            kept.setdefault(line.split("|")[1].strip(), []).append(line)
    rows = [line for _, lines in sorted((kept | new).items()) for line in lines]
    if not rest:
        head = f"{text.rstrip()}\n\n## All of them\n\n`make bench` writes this table.\n\n"
    return "\n".join([f"{head}{BEGIN}\n", HEADER, *rows, f"\n{END}{tail if rest else ''}"]) + ("" if rest else "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=names(), action="append", help="may be given more than once")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, help="seconds for each")
    asked = parser.parse_args()
    chosen = asked.only or names()
    failed = []
    for number, name in enumerate(chosen, 1):
        load, begun = os.getloadavg()[0], time.monotonic()
        print(f"[{number}/{len(chosen)}] {name}, load {load:.1f}", file=sys.stderr, flush=True)
        when = f"{datetime.now(UTC):%Y-%m-%d}, {commit()}, {machine()}, load {load:.0f}"
        try:
            ratios = run([sys.executable, "-m", f"benchmarks.{name}"], asked.timeout)
            rows = [row(name, what, f"{ratio:.3g}", when) for what, ratio in ratios.items()]
        except RuntimeError as error:
            failed.append(name)
            rows = [row(name, f"failed: {error}", "", when)]
        # Each at once: whoever stops the rest loses nothing.
        DOCS.write_text(merged(DOCS.read_text("utf-8"), {name: rows}), "utf-8")
        print(f"[{number}/{len(chosen)}] {name}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
