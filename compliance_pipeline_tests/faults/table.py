"""The table of docs/faults.md, out of the tests' own docstrings: `python -m compliance_pipeline_tests.faults.table`."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "faults.md"
BEGIN, END = "<!-- faults begin -->", "<!-- faults end -->"
_SAID = re.compile(r"fault: (?P<fault>.+?); invariant: (?P<invariant>.+)", re.DOTALL)


def rows() -> dict[str, list[tuple[str, str]]]:
    """By file, the fault and the invariant of each test. Raises ValueError for a test that doesn't say them."""
    found: dict[str, list[tuple[str, str]]] = {}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        tests = [
            node
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        ]
        for test in tests:
            said = _SAID.match(" ".join((ast.get_docstring(test) or "").split()))
            if said is None:
                raise ValueError(f"{path.name}: {test.name} does not say 'fault: ...; invariant: ...'")
            found.setdefault(path.name, []).append((said["fault"], said["invariant"].rstrip(".")))
    return found


def table() -> str:
    lines = ["| fault | invariant | shown by |", "|---|---|---|"]
    for name, tests in rows().items():
        lines += [f"| {fault} | {invariant} | `{name}` |" for fault, invariant in tests]
    return "\n".join(lines)


def page(before: str) -> str:
    head, _, rest = before.partition(BEGIN)
    return f"{head}{BEGIN}\n\n{table()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
