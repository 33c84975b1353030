"""The runner of all benchmarks, and the model of capacity. None of the benchmarks itself is run here."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import model
from benchmarks.__main__ import HERE, merged, names, row, run
from benchmarks.model import DAILY, PARTS, PLATFORM, SCREENS, bottleneck, plan

MEASURED = {
    "receiver_cpu_s": 0.0008,
    "run_cpu_s": 0.5,
    "chat_cpu_s": 0.014,
    "audio_minute_cpu_s": 0.17,
    "run_held_s": 0.4,
    "chat_held_s": 0.003,
    "requests": 2.2,
    "operational_bytes": 3_500,
    "clip_bytes": 315_000,
    "stack": {"idle_cores": 0.1, "cpu_s": 60.0, "runs": 20, "recordings": 40},
    "growth": {"bytes": {"warehouse": 2_000}},
    "pages": {"bytes": 100},
}


def test_every_benchmark_says_its_ratios() -> None:
    assert {"capacity", "inbox", "screening"} <= set(names())
    assert [name for name in names() if "ratios" not in (HERE / f"{name}.py").read_text()] == []


@pytest.mark.parametrize("said", ['{"ours / theirs": 3}', '[{"what": "ours / theirs", "ratio": 3}]'])
def test_a_benchmarks_ratios_are_its_last_line_and_its_tables_are_passed_on(
    said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    program = f"""print("| a table |"); print('{{"ratios": {said}}}')"""
    assert run([sys.executable, "-c", program], 60) == {"ours / theirs": 3.0}
    assert capfd.readouterr().out == "| a table |\n"


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("raise SystemExit(3)", "exit code 3"),
        ("print('done')", "no ratios"),
        ("import time; time.sleep(60)", "killed"),
    ],
)
def test_a_benchmark_that_fails_says_so(program: str, why: str) -> None:
    with pytest.raises(RuntimeError, match=why):
        run([sys.executable, "-c", program], 1)


def test_who_interrupts_a_benchmark_ends_what_it_started(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    child = f"import os, pathlib, time; pathlib.Path({str(pid)!r}).write_text(str(os.getpid())); time.sleep(60)"
    # What a shell starts in the background ignores SIGINT.
    heard = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"{heard}; from benchmarks.__main__ import run; run([sys.executable, '-c', {child!r}], 60)"
    with subprocess.Popen([sys.executable, "-c", program], cwd=HERE.parent, stderr=subprocess.DEVNULL) as process:
        while not (pid.exists() and pid.read_text()):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) != 0
    assert not Path("/proc", pid.read_text()).exists()


def test_two_runs_of_an_hour_at_once_take_half_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [plan(MEASURED, daily)["singles"][SCREENS] for daily in DAILY]
    monkeypatch.setattr(model, "RUNS_OF_AN_HOUR", 1)
    alone = [plan(MEASURED, daily)["singles"][SCREENS] for daily in DAILY]
    assert [one / two for one, two in zip(alone, both, strict=True)] == [1, 2, 2]


def test_a_benchmark_that_is_run_again_replaces_its_own_rows_only() -> None:
    both = merged("# Benchmarks\n", {"b": [row("b", "x", "1", "then")], "a": [row("a", "x", "2", "then")]})
    again = merged(both, {"b": [row("b", "y", "3", "now"), row("b", "z", "4", "now")]})
    rows = [line for line in again.splitlines() if line.startswith(("| a ", "| b "))]
    assert rows == ["| a | x | 2 | then |", "| b | y | 3 | now |", "| b | z | 4 | now |"]
    assert again.startswith("# Benchmarks\n")
    assert merged(again, {}) == again


def test_more_recordings_need_more_of_everything() -> None:
    few, some, many = (plan(MEASURED, daily) for daily in DAILY)
    for name in ("cores", "machines", "block_gb", "clips_gb", "deployments"):
        assert few[name] <= some[name] <= many[name]
    assert sum(few["money"].values()) < sum(some["money"].values()) < sum(many["money"].values())
    assert (few["machines"], few["deployments"]) == (1, 1)


def test_the_bottleneck_is_what_the_busiest_hour_fills_first() -> None:
    few, many = plan(MEASURED, 1_000), plan(MEASURED, 10_000_000)
    assert bottleneck(few).startswith("none")
    fullest = max(many["singles"], key=many["singles"].__getitem__)
    assert bottleneck(many) == fullest
    assert fullest in (PLATFORM, SCREENS)


def test_the_page_names_each_part_that_is_measured() -> None:
    source = Path(HERE, "capacity.py").read_text()
    assert [part for part in PARTS if f'"{part}":' not in source] == []
