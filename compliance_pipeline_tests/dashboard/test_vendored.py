"""What others wrote and we serve: as released, each with its licence, and nothing that asks another host."""

import gzip
import hashlib
import re

from compliance_pipeline.dashboard.pages import STATIC

VENDOR = STATIC / "vendor"
LICENCES = {"htmx.min.js": "htmx", "uPlot.iife.min.js": "uplot", "uPlot.min.css": "uplot",
            "inter-latin-wght-normal.woff2": "inter"}  # fmt: skip


def test_each_file_is_the_one_that_was_taken_in() -> None:
    said = dict(line.split()[::-1] for line in (VENDOR / "checksums.txt").read_text().splitlines())
    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in VENDOR.iterdir()
        if path.name != "checksums.txt"
    }
    assert found == said


def test_each_file_has_its_licence_beside_it() -> None:
    assert {path.name for path in VENDOR.iterdir() if not path.name.startswith(("LICENSE", "checksums"))} == set(
        LICENCES
    )
    for name in set(LICENCES.values()):
        assert len((VENDOR / f"LICENSE.{name}").read_text()) > 500


def test_our_own_files_name_no_other_host_and_make_no_code_of_text() -> None:
    for path in (*STATIC.glob("*.js"), *STATIC.glob("*.css"), *STATIC.parent.rglob("*.html")):
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"(https?:)?//[a-z0-9-]+\.[a-z]", text, re.IGNORECASE), path.name
        assert not re.search(r"\beval\(|new Function|innerHTML|document\.write", text), path.name


def test_no_template_has_inline_scripts_styles_or_handlers() -> None:
    for path in STATIC.parent.rglob("*.html"):
        text = path.read_text()
        for script in re.findall(r"<script[^>]*>", text):
            assert "src=" in script or 'type="application/json"' in script, f"{path.name}: {script}"
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:|hx-on", text), path.name


def test_the_files_of_a_first_visit_leave_a_third_of_150_kb_to_the_page() -> None:
    files = [*(VENDOR / name for name in LICENCES), STATIC / "app.js", STATIC / "app.css"]
    sent = sum(
        len(path.read_bytes() if path.suffix == ".woff2" else gzip.compress(path.read_bytes(), 6)) for path in files
    )
    assert sent < 105_000
