"""All pages in a real browser: the recording's, the review, what happens to figures that age or are renewed, who is
kept out, and what is left without JavaScript."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote
from zoneinfo import ZoneInfo

import httpx
import pytest
from playwright.sync_api import Page, Response, expect

from compliance_pipeline.intake.inbox import Inbox
from compliance_pipeline.settings import Settings
from compliance_pipeline.stack import free_port
from compliance_pipeline_tests.dashboard.boards import END, add, board, publish_at
from compliance_pipeline_tests.dashboard.conftest import HEARD, Site, opened, serving, settled

PAGES = ("Overview", "Violations", "Review", "Operations", "Policies")


def position(page: Page) -> float:
    seconds: float = page.locator("audio").evaluate("audio => audio.currentTime")
    return seconds


# Every page


def test_each_page_is_a_click_away_and_does_nothing_that_it_must_not(page: Page, site: Site) -> None:
    """The fixture fails it for errors on the console, refusals by the CSP, and requests to other hosts."""
    opened(page, site.url)
    for name in (*PAGES[1:], PAGES[0]):
        page.get_by_role("navigation", name="Pages").get_by_role("link", name=name).click()
        expect(page).to_have_title(f"{name} · Compliance pipeline")
        expect(page.locator("html")).to_have_attribute("data-ready", re.compile(r"\d+"))
        expect(page.get_by_role("navigation", name="Pages").locator("[aria-current=page]")).to_have_text(name)


def test_the_view_goes_along_from_page_to_page(page: Page, site: Site) -> None:
    opened(page, f"{site.url}/?range=30d&queue=sales")
    for name in (*PAGES[1:], PAGES[0]):
        page.get_by_role("navigation", name="Pages").get_by_role("link", name=name).click()
        expect(page).to_have_title(re.compile(name))
        expect(page.locator("ul.chips")).to_contain_text("sales")
        assert "range=30d&queue=sales" in page.url


def test_one_can_sign_out_on_a_phone(open_page: Callable[..., Page], site: Site) -> None:
    page = opened(open_page(viewport={"width": 390, "height": 800}), site.url)
    form = "<form class='who'><span>rita</span> <button class='ghost txt'>Sign out</button></form>"
    page.locator(".who").evaluate("(who, form) => { who.outerHTML = form; }", form)
    expect(page.get_by_role("button", name="Sign out")).to_be_visible()
    expect(page.get_by_text("rita")).to_be_hidden()


def test_only_what_is_named_with_its_digest_is_kept_for_a_year(site: Site) -> None:
    for path, kept in (("/static/app.css?1", "public, max-age=31536000, immutable"), ("/static/app.css", "no-cache")):
        assert httpx.get(f"{site.url}{path}").headers["cache-control"] == kept


def test_an_unknown_recording_is_not_found_and_says_so_with_a_way_back(
    page: Page, site: Site, faults: list[str]
) -> None:
    opened(page, site.url)
    box = page.get_by_role("searchbox", name="Find a recording by its id")
    box.fill("rec-nowhere")
    with page.expect_response("**/recordings?id=rec-nowhere") as answer:
        box.press("Enter")
    assert answer.value.status == 404
    expect(page.get_by_role("heading", level=1)).to_have_text("No recording rec-nowhere")
    page.get_by_role("link", name="To the overview").click()
    expect(page.locator("[data-tile=violations]")).to_be_visible()
    assert all("404" in fault for fault in faults)
    faults.clear()


def test_the_search_leads_to_a_recording(page: Page, site: Site) -> None:
    opened(page, site.url)
    box = page.get_by_role("searchbox")
    box.fill(HEARD)
    box.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text(HEARD)


def test_older_violations_are_a_click_away_and_the_newest_a_click_back(page: Page, site: Site) -> None:
    opened(page, f"{site.url}/violations?range=30d")
    rows = page.locator("table.list tbody tr")
    newest = rows.all_inner_texts()
    settled(page, page.get_by_role("link", name="Older").click)
    older = rows.all_inner_texts()
    assert not set(newest) & set(older)
    settled(page, page.get_by_role("link", name="Newest").click)
    assert rows.all_inner_texts() == newest


# A recording


def test_play_from_the_finding_plays_what_comes_before_it_and_the_waveform_seeks(page: Page, site: Site) -> None:
    parts: list[Response] = []
    page.on("response", lambda answer: parts.append(answer) if ".flac" in answer.url else None)
    opened(page, f"{site.url}/recordings/{HEARD}")
    assert parts == [], "nothing is loaded before somebody plays"
    expect(page.locator(".wave rect.masked")).to_have_count(1)
    audio = page.locator("audio")
    page.get_by_role("link", name="Play from the finding").click()
    expect(audio).to_have_js_property("paused", False)
    page.wait_for_function("at => document.querySelector('audio').currentTime > at", arg=4)
    assert position(page) < 8
    box = page.locator(".wave svg").first.bounding_box()
    assert box
    page.mouse.click(box["x"] + box["width"] * 0.75, box["y"] + 40)
    page.wait_for_function("at => document.querySelector('audio').currentTime > at", arg=8.9)
    assert position(page) < 12
    assert {part.status for part in parts} == {206}
    assert {part.headers["content-type"] for part in parts} == {"audio/flac"}


def test_times_are_those_of_the_zone_with_its_name(page: Page, site: Site) -> None:
    opened(page, f"{site.url}/recordings/{HEARD}?tz=Asia/Kathmandu")
    expect(page.locator("dl.facts").first).to_contain_text("2026-05-31 03:05:00 Asia/Kathmandu")


# Reviewing


def press_until(page: Page, selector: str, key: str = "Tab") -> None:
    """Presses `key` until what has the focus is one of these."""
    for _ in range(150):
        if page.evaluate("selector => !!document.activeElement?.matches(selector)", selector):
            return
        page.keyboard.press(key)
    pytest.fail(f"no way by {key} to {selector}")


def test_a_reviewer_decides_with_the_keyboard_alone(page: Page, own_site: Site) -> None:
    opened(page, own_site.url)
    press_until(page, "nav a[href^='/review']")
    page.keyboard.press("Enter")
    expect(page).to_have_title(re.compile("Review"))
    waiting = int(page.locator(".verdict b").first.inner_text())
    press_until(page, "a.btn[href^='/review/next']")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("/recordings/"))
    expect(page.locator("html")).to_have_attribute("data-ready", re.compile(r"\d+"))
    press_until(page, "form.review textarea")
    page.keyboard.type("heard it, a card's code was read out")
    press_until(page, "button[value=confirmed]")
    page.keyboard.press("Enter")
    expect(page.locator(".decide .confirmed")).to_contain_text("Confirmed")
    expect(page.locator(".decide blockquote")).to_have_text("heard it, a card's code was read out")
    expect(page.locator("table", has=page.locator("th", has_text="Entry"))).to_contain_text("confirmed")
    decided = page.get_by_role("heading", level=1).inner_text()
    press_until(page, "main a[href^='/review/next']")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).not_to_have_text(decided)
    expect(page.locator("form.review textarea").first).to_be_visible()
    publish_at(own_site.settings)
    opened(page, f"{own_site.url}/review")
    expect(page.locator(".verdict b").first).to_have_text(str(waiting - 1))


# Figures that age, and new ones


def test_the_badge_turns_amber_and_then_red_while_the_page_is_open(page: Page, own_site: Site) -> None:
    page.clock.install(time=END)
    opened(page, own_site.url)
    badge = page.locator("#fresh")
    expect(badge).to_have_class("fresh fresh")
    colours = [badge.locator("i").evaluate("dot => getComputedStyle(dot).backgroundColor")]
    for minutes, state, words in ((1.5, "late", "late, 90 s old"), (30, "stale", "stale, 30 min old")):
        own_site.now = END + timedelta(minutes=minutes)
        page.clock.run_for(11_000)
        expect(badge).to_have_class(f"fresh {state}")
        expect(badge).to_contain_text(words)
        colours.append(badge.locator("i").evaluate("dot => getComputedStyle(dot).backgroundColor"))
    assert len(set(colours)) == 3


def test_a_server_that_does_not_answer_shows_in_the_badge(page: Page, site: Site, faults: list[str]) -> None:
    page.clock.install(time=END)
    opened(page, site.url)
    page.route("**/api/freshness", lambda route: route.abort())
    page.clock.run_for(11_000)
    expect(page.locator("#fresh")).to_have_class("fresh stale")
    expect(page.locator("#fresh")).to_contain_text("the server does not answer")
    assert len(faults) == 1
    faults.clear()


@pytest.mark.parametrize(
    ("status", "said"),
    [(401, "signed out"), (403, "not allowed any more"), (503, "no figures"), (500, "the server has an error")],
)
def test_a_server_that_refuses_is_not_one_that_does_not_answer(
    page: Page, site: Site, faults: list[str], status: int, said: str
) -> None:
    page.clock.install(time=END)
    opened(page, site.url)
    page.route("**/api/freshness", lambda route: route.fulfill(status=status))
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.locator("#fresh")).to_contain_text(said)
    assert len(faults) == 1
    faults.clear()


def test_a_new_snapshot_between_two_clicks_drops_nothing_and_is_offered(page: Page, own_site: Site) -> None:
    answers: list[int] = []
    page.on("response", lambda answer: answers.append(answer.status))
    page.clock.install(time=END)
    opened(page, own_site.url)
    page.get_by_role("searchbox").focus()
    shown = page.locator("[data-tile=violations] .v").inner_text()
    own_site.now = later = END + timedelta(seconds=30)
    add(own_site.settings, later, recordings=12)
    publish_at(own_site.settings, later)
    page.clock.run_for(11_000)
    offer = page.get_by_role("link", name="Show newer data")
    expect(offer).to_be_visible()
    expect(page.locator("[data-tile=violations] .v")).to_have_text(shown)
    received = page.locator(".verdict").inner_text()
    settled(page, offer.click)
    expect(offer).to_be_hidden()
    assert page.locator(".verdict").inner_text() != received
    settled(page, page.locator("table.heat").get_by_role("link", name="sales").click)
    expect(page.locator("ul.chips")).to_contain_text("sales")
    assert set(answers) <= {200, 304}


def test_a_page_that_nobody_is_busy_with_renews_itself(page: Page, own_site: Site) -> None:
    page.clock.install(time=END)
    opened(page, own_site.url)
    before = page.locator(".verdict").inner_text()
    add(own_site.settings, END + timedelta(seconds=30), recordings=12)
    publish_at(own_site.settings, END + timedelta(seconds=30))
    page.clock.run_for(10_500)
    expect(page.get_by_role("link", name="Show newer data")).to_be_visible()
    assert page.locator(".verdict").inner_text() == before, "somebody was here a moment ago"
    with page.expect_request(f"{own_site.url}/") as asked:
        settled(page, lambda: page.clock.run_for(10_500))
    assert asked.value.headers["x-by-itself"] == "1", "or it would keep its session alive"
    assert page.locator(".verdict").inner_text() != before


def test_a_page_renews_itself_silently_and_not_while_something_of_it_is_unfolded(page: Page, own_site: Site) -> None:
    page.clock.install(time=END)
    opened(page, own_site.url)
    before = page.locator(".verdict").inner_text()
    stages = page.locator("summary", has_text="All stages as a table")
    stages.click()
    add(own_site.settings, END + timedelta(seconds=30), recordings=12)
    publish_at(own_site.settings, END + timedelta(seconds=30))
    for _ in range(4):
        page.clock.run_for(10_500)
    expect(page.get_by_role("link", name="Show newer data")).to_be_visible()
    expect(page.get_by_role("table").filter(has_text="What it is")).to_be_visible()
    assert page.locator(".verdict").inner_text() == before
    stages.click()
    settled(page, lambda: page.clock.run_for(31_000))
    assert page.locator(".verdict").inner_text() != before
    expect(page.get_by_role("status")).to_have_text("")


# Zones, and days that have no 24 hours


@pytest.fixture(scope="module")
def year(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Recordings of the days around both changes of Berlin's clocks, and of every hour of those nights."""
    settings = Settings(_env_file=None, home=tmp_path_factory.mktemp("year"))
    with closing(Inbox(settings.inbox_database_url)) as inbox:
        inbox.create()
    nights = [datetime(2026, 3, 28, 22, 30, tzinfo=UTC), datetime(2026, 10, 24, 21, 30, tzinfo=UTC)]
    times = [night + timedelta(hours=hour) for night in nights for hour in (0, 1, 3, 6, 37)]
    for seed, at in enumerate(times):
        add(settings, at, seed, recordings=3)
    publish_at(settings, max(times))
    with serving(settings, max(times)) as site:
        yield site


@pytest.mark.parametrize(("day", "hours", "buckets"), [("2026-03-29", 23, 92), ("2026-10-25", 25, 25)])
def test_the_day_of_a_clock_change_has_as_many_hours_as_its_zone_gives_it(
    page: Page, year: Site, day: str, hours: int, buckets: int
) -> None:
    midnight = datetime.fromisoformat(day).replace(tzinfo=ZoneInfo("Europe/Berlin"))
    start, end = (one.astimezone(UTC) for one in (midnight, midnight + timedelta(days=1)))
    assert end - start == timedelta(hours=hours)
    opened(page, f"{year.url}/?from={start:%Y-%m-%dT%H:%MZ}&to={end:%Y-%m-%dT%H:%MZ}&tz=Europe/Berlin")
    next_day = f"{midnight + timedelta(days=1):%-d %b}"
    expect(page.locator("ul.chips li").first).to_contain_text(f"{midnight:%-d %b} 00:00 – {next_day} 00:00")
    drawn = json.loads(page.locator("#page").inner_text())
    assert drawn["span"] == [start.timestamp(), end.timestamp()]
    assert len(drawn["times"]) == buckets
    [told] = year.rows(
        "SELECT count(*) AS n FROM read_parquet($interactions) WHERE available_at >= $start AND available_at < $end",
        start,
        end,
    )
    expect(page.locator(".verdict")).to_contain_text(f"of {told['n']} received")
    without_offset = f"{year.url}/?from={day}T00:00&to={midnight + timedelta(days=1):%Y-%m-%d}T00:00&tz=Europe/Berlin"
    assert json.loads(opened(page, without_offset).locator("#page").inner_text())["span"] == drawn["span"]


@pytest.mark.parametrize(("first", "last", "odd", "hours"), [
    ("2026-03-20", "2026-04-05", "2026-03-29", 23), ("2026-10-15", "2026-10-27", "2026-10-25", 25),
])  # fmt: skip
def test_daily_buckets_begin_at_midnight_of_the_zone_through_a_clock_change(
    page: Page, year: Site, first: str, last: str, odd: str, hours: int
) -> None:
    berlin = ZoneInfo("Europe/Berlin")
    opened(page, f"{year.url}/?from={first}T00:00&to={last}T00:00&tz=Europe/Berlin")
    drawn = json.loads(page.locator("#page").inner_text())
    starts = [datetime.fromtimestamp(one, berlin) for one in drawn["times"]]
    assert all((one.hour, one.minute) == (0, 0) for one in starts)
    assert f"{starts[0]:%Y-%m-%d}" == first
    lengths = {f"{one:%Y-%m-%d}": (two.timestamp() - one.timestamp()) / 3600 for one, two in pairwise(starts)}
    assert {day: length for day, length in lengths.items() if length != 24} == {odd: hours}


@pytest.mark.parametrize("day", ["2026-03-29", "2026-10-25"])
def test_marks_of_time_are_round_hours_of_the_zone_through_a_clock_change(page: Page, year: Site, day: str) -> None:
    opened(page, f"{year.url}/?tz=Europe/Berlin")
    noon = datetime.fromisoformat(f"{day}T12:00:00+00:00").timestamp()
    marks = page.evaluate("([from, to]) => timeLabels(0, timeTicks({ width: 1000 }, 0, from, to))",
                          [noon - 144_000, noon + 144_000])  # fmt: skip
    hours = {mark for mark in marks if ":" in mark}
    assert hours == {"06:00", "12:00", "18:00"}
    assert len([mark for mark in marks if ":" not in mark]) == 4


# No JavaScript


def test_without_javascript_every_page_reads_and_filters(open_page: Callable[..., Page], site: Site) -> None:
    page = open_page(java_script_enabled=False)
    page.goto(site.url)
    expect(page.locator("[data-tile=violations] .v")).to_have_text(re.compile(r"\d+"))
    expect(page.locator("[data-chart=bands] .plot")).to_contain_text("P95", use_inner_text=True)
    assert page.locator("#copy").is_hidden()
    page.locator("summary", has_text="Queue").click()
    page.locator(".menu").get_by_role("link", name="sales", exact=True).click()
    expect(page).to_have_url(f"{site.url}/?queue=sales")
    expect(page.locator("ul.chips")).to_contain_text("sales")
    for name in PAGES:
        page.get_by_role("navigation", name="Pages").get_by_role("link", name=name).click()
        expect(page.locator("main h1")).to_be_visible()
    page.goto(f"{site.url}/recordings/{HEARD}")
    expect(page.locator("audio[controls]")).to_be_visible()
    expect(page.locator("form.review textarea")).to_be_visible()


def test_without_javascript_a_decision_can_be_taken(open_page: Callable[..., Page], own_site: Site) -> None:
    page = open_page(java_script_enabled=False)
    page.goto(f"{own_site.url}/recordings/{HEARD}?range=30d")
    page.fill("textarea", "it was a test card")
    page.click("button[value=dismissed]")
    expect(page.locator(".decide .dismissed")).to_contain_text("Dismissed")
    assert "range=30d" in page.url


# Who is kept out


@contextmanager
def command(home: Path, **variables: str) -> Iterator[str]:
    """`compliance dashboard` as it is started; its address."""
    port = free_port()
    env = {name: value for name, value in os.environ.items() if not name.startswith("COMPLIANCE_")}
    env |= {"COMPLIANCE_HOME": str(home), "COMPLIANCE_DASHBOARD_PORT": str(port)} | variables
    program = Path(sys.executable).with_name("compliance")
    started = subprocess.Popen([program, "dashboard"], env=env, cwd=home)
    url = f"http://127.0.0.1:{port}"
    try:
        while started.poll() is None:
            try:
                httpx.get(f"{url}/healthz")
                break
            except httpx.TransportError:
                time.sleep(0.02)
        assert started.poll() is None
        yield url
    finally:
        started.terminate()
        started.wait()


def test_the_command_serves_it_and_who_is_not_signed_in_gets_nothing(
    open_page: Callable[..., Page], site: Site, faults: list[str]
) -> None:
    clip = clip_of(site)
    proxied = {
        "COMPLIANCE_DASHBOARD_AUTH": "proxy",
        "COMPLIANCE_DASHBOARD_TRUSTED_PROXIES": '["127.0.0.1"]',
        "COMPLIANCE_DASHBOARD_ROLES": '{"viewer": ["vera"]}',
    }
    with command(site.settings.home, **proxied) as url:
        stranger = open_page()
        for path in (clip, f"/recordings/{HEARD}", "/", "/violations", "/review", "/operations", "/policies",
                     "/export.csv", "/export.parquet", "/api", "/api/headline", "/api/freshness"):  # fmt: skip
            answer = stranger.request.get(f"{url}{path}")
            assert answer.status == 403, path
            assert b"fLaC" not in answer.body()
            assert b"rec-" not in answer.body()
        stranger.goto(f"{url}/")
        expect(stranger.get_by_role("heading", level=1)).to_have_text("Not allowed")
        assert all("403" in fault for fault in faults)
        faults.clear()
        viewer = opened(open_page(extra_http_headers={"X-Forwarded-User": "vera"}), f"{url}/recordings/{HEARD}")
        assert viewer.request.get(f"{url}{clip}").body()[:4] == b"fLaC"
        assert viewer.locator("form.review").count() == 0


def clip_of(site: Site) -> str:
    page = httpx.get(f"{site.url}/recordings/{HEARD}").text
    [found] = re.findall(r'<audio[^>]* src="([^"]+)"', page)
    return str(found)


def test_no_address_leads_to_unmasked_audio(site: Site) -> None:
    """Only verified clips are served, whatever is asked for; all else of the home stays there."""
    clip = clip_of(site).partition("?")[0]
    folder, name = clip.rpartition("/")[0], f"/recordings/{HEARD}"
    home = site.settings.home
    inside = [str(path.relative_to(home)) for path in sorted(home.rglob("*")) if path.suffix != ".parquet"]
    inside = [path for path in inside if (home / path).is_file() and not path.startswith("snapshots/")]
    assert any("vault" in path for path in inside), inside
    asked = [
        *(f"{folder}/{other}.flac" for other in ("0", "2", "-1", "01x", "1.flac/../original", "original")),
        *(f"{name}/{other}" for other in ("original", "media", "original.flac", "evidence/engine-1/1.flac", "clips/")),
        *(f"{trick}{path}" for path in inside for trick in ("/", "/static/", "/static/../../", f"{folder}/../../../")),
        *(f"/static/{quote('../' * deep + path, safe='')}" for path in inside for deep in (1, 4)),
        "/static/..%2f..%2f..%2f..%2fetc/passwd", "/static/....//....//etc/passwd", "/static//etc/passwd",
        f"{clip}?v=00000000", f"{clip}%00.flac", f"{folder}/%31%2f..%2foriginal.flac",
    ]  # fmt: skip
    with httpx.Client(base_url=site.url) as http:
        good = http.get(clip)
        assert good.content[:4] == b"fLaC"
        for path in asked:
            request = http.build_request("GET", site.url)
            request.url = request.url.copy_with(raw_path=path.encode())
            answer = http.send(request)
            assert answer.status_code in (400, 404), path
            assert b"fLaC" not in answer.content
            assert not answer.headers["content-type"].startswith("audio/")


def test_audio_cannot_be_had_by_another_method_or_from_another_site(site: Site) -> None:
    clip = clip_of(site)
    with httpx.Client(base_url=site.url) as http:
        for method in ("POST", "PUT", "DELETE", "PROPFIND"):
            assert http.request(method, clip).status_code in (403, 404, 405)
        answer = http.get(clip, headers={"Host": "evil.test"})
        assert answer.status_code == 421
        assert http.get(clip).headers["cross-origin-resource-policy"] == "same-origin"


def test_before_anything_is_published_the_page_says_when_to_come_back(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, home=tmp_path)
    with command(settings.home) as url:
        answer = httpx.get(url)
    assert answer.status_code == 503
    assert "no figures were published yet" in answer.text.lower()


def test_a_board_is_served_from_where_it_lies(tmp_path: Path) -> None:
    with command(board(tmp_path / "home").home) as url:
        assert "violations to review" in httpx.get(url).text
