"""Report pages in headless Chromium, opened as files."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from greeter.loadtest import LoadPlan, LoadReport, load
from greeter.loadtest.report.charts import charts
from greeter.loadtest.report.html import page
from tests.conftest import PATIENCE
from tests.loadtest.report.test_charts import long_run, named
from tests.loadtest.report.test_html import HOSTILE, hostile
from tests.support.loadtest_peers import greet, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.one_interpreter,
    pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="needs Debian's chromium and chromium-driver"),
]
selenium = pytest.importorskip("selenium", reason="needs selenium")

OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)
DESK, PHONE = (1280, 900), (360, 740)

# The visible marks of each chart, by kind.
MARKS = """
const marks = (chart) => (what, ok) => [...chart.querySelectorAll(what)].filter(ok).length;
const drawn = (map) => map.href.baseVal.startsWith("data:image/png") && map.getBoundingClientRect().width;
const count = (chart, of = marks(chart)) => ({
  traces: chart.data.length,
  bars: of(".barlayer .trace.bars", (trace) => trace.querySelector(".point path")),
  lines: of(".scatterlayer .trace .js-line", (line) => (line.getAttribute("d") || "").length > 3),
  maps: of(".heatmaplayer image", drawn),
});
return Object.fromEntries([...document.querySelectorAll(".chart")].map((chart) => [chart.id, count(chart)]));
"""
COLOURS = """
const found = [];
const look = (value) => {
  if (value && typeof value === "object") Object.values(value).forEach(look);
  else if (typeof value === "string" && value.includes("var(")) found.push(value);
};
document.querySelectorAll(".chart").forEach((chart) => look([chart.data, chart.layout]));
return found;
"""


class Browser:
    """One tab. Chromium logs its errors and requests."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(
        self, path: Path, size: tuple[int, int] = DESK, *, scheme: str = "light", touch: bool = False
    ) -> None:
        """Open the page at ``path`` with a viewport of ``size`` pixels, and clear both logs."""
        self.driver.get_log("browser")
        self.driver.get_log("performance")
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": touch}
        self.cdp("Emulation.setDeviceMetricsOverride", metrics)
        self.cdp("Emulation.setTouchEmulationEnabled", {"enabled": touch})
        self.scheme(scheme)
        self.driver.get(path.as_uri())

    def scheme(self, scheme: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.cdp("Emulation.setEmulatedMedia", {"features": features})

    def cdp(self, command: str, values: dict[str, Any]) -> Any:
        return self.driver.execute_cdp_cmd(command, values)

    def run(self, script: str, *values: object) -> Any:
        return self.driver.execute_script(script, *values)

    def until(self, script: str, *values: object) -> Any:
        """Wait until ``script`` returns a true value."""
        from selenium.webdriver.support.wait import WebDriverWait

        return WebDriverWait(self.driver, PATIENCE, 0.02).until(lambda _: self.run(script, *values))

    @property
    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]

    @property
    def requests(self) -> list[str]:
        """The URLs that were requested, without the page itself and embedded data."""
        urls = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            params = message["params"]
            # Chromium's own first tab may still be loading.
            if message["method"] == "Network.requestWillBeSent" and "chrome://" not in params["documentURL"]:
                urls.append(params["request"]["url"])
            elif message["method"] == "Network.webSocketCreated":
                urls.append(params["url"])
        assert self.driver.current_url in urls, "the page itself was requested"
        return [url for url in urls if not url.startswith((self.driver.current_url, "data:", "blob:"))]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    assert CHROMIUM is not None
    options.binary_location = CHROMIUM
    for option in [*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # With a path, selenium does not search for a driver.
    driver = webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))
    try:
        yield Browser(driver)
    finally:
        driver.quit()


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    def write(run: LoadReport, baseline: LoadReport | None = None) -> Path:
        path = tmp_path / "report.html"
        path.write_text(page(run, baseline), encoding="utf-8")
        return path

    return write


async def recorded() -> LoadReport:
    """Return the report of a run of one second."""
    async with serving(greet) as target:
        return await load(LoadPlan(target, rate=200, duration=1.0))


def drawn(browser: Browser) -> dict[str, dict[str, int]]:
    """Return the charts and the number of their marks. Every trace must be visible."""
    found: dict[str, dict[str, int]] = browser.run(MARKS)
    for chart, marks in found.items():
        assert marks["bars"] + marks["lines"] + marks["maps"] == marks["traces"] > 0, (chart, marks)
    assert browser.run(COLOURS) == []
    assert browser.errors == []
    assert browser.requests == []
    return found


def test_a_run_of_one_second(browser: Browser, written: Callable[..., Path]) -> None:
    browser.open(written(asyncio.run(recorded())))
    found = drawn(browser)
    assert set(found) >= {"rates", "open", "latencies", "heat", "percentiles"}
    assert found["latencies"]["lines"] == 4


@pytest.mark.parametrize("name", ["a minute", "ten minutes"])
def test_a_longer_run(browser: Browser, written: Callable[..., Path], name: str) -> None:
    browser.open(written(named(name)))
    found = drawn(browser)
    assert set(found) == {"rates", "open", "failures", "latencies", "heat", "percentiles"}
    assert found["rates"] == {"traces": 4, "bars": 2, "lines": 2, "maps": 0}
    assert found["heat"]["maps"] == 1
    assert found["percentiles"]["lines"] == 5


def test_a_run_in_which_all_failed(browser: Browser, written: Callable[..., Path]) -> None:
    browser.open(written(named("all failed")))
    assert set(drawn(browser)) == {"rates", "open", "failures", "percentiles"}
    assert "Nothing was greeted; 3 failed: connect_refused." in browser.run("return document.body.innerText")


def test_a_baseline_is_drawn_into_the_charts(browser: Browser, written: Callable[..., Path]) -> None:
    old = long_run(30, slower=0.5, seed=2)
    browser.open(written(named("a minute").against(old, name="old.json"), old))
    found = drawn(browser)
    assert found["heat-before"]["maps"] == 1
    assert found["percentiles"]["lines"] == 10
    assert found["latencies"]["lines"] == 6
    tops = "return ['heat', 'heat-before'].map((id) => document.getElementById(id + '-title').offsetTop)"
    now, before = browser.run(tops)
    assert now == before, "side by side on a wide screen"


def hover(browser: Browser, chart: str, x: float | None = None, y: float | None = None) -> str:
    """Return the hover text of a chart at axis values, by default in the middle."""
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    area = browser.driver.find_element(By.CSS_SELECTOR, f"#{chart} .nsewdrag")
    browser.run("arguments[0].scrollIntoView({block: 'center'})", area)
    place = """
        const { xaxis, yaxis } = document.getElementById(arguments[0])._fullLayout;
        return [arguments[1] === null ? 3 : xaxis.d2p(arguments[1]) - xaxis._length / 2,
                arguments[2] === null ? 3 : yaxis.d2p(arguments[2]) - yaxis._length / 2].map(Math.round);
    """
    right, down = browser.run(place, chart, x, y)
    ActionChains(browser.driver).move_to_element_with_offset(area, right, down).perform()
    shown: str = browser.until(
        "return document.querySelector(arguments[0] + ' .hoverlayer').textContent", f"#{chart}"
    )
    return shown


def test_hovering_shows_values(browser: Browser, written: Callable[..., Path]) -> None:
    browser.open(written(named("a minute")))
    assert "10/s begun" in hover(browser, "rates")
    assert "open" in hover(browser, "open")
    assert "failed" in hover(browser, "failures")
    shown = hover(browser, "latencies")
    assert "ms p99" in shown
    assert "ms p50" in shown
    heat = next(chart.figure for chart in charts(named("a minute")) if chart.id == "heat")
    assert heat is not None
    trace = heat["data"][0]
    most, row = max((numbers[30], row) for row, numbers in enumerate(trace["customdata"]))
    assert f"{most} took about " in hover(browser, "heat", 30.5, trace["y"][row] * 1.02)
    median = named("a minute").latency_us["connect"]["p50"]
    assert median is not None
    shown = hover(browser, "percentiles", 2, median / 1e6)
    assert re.search(r"connect4[0-9.]+ % took at most 1[0-9]{2}µs|connect5", shown), shown
    assert browser.errors == []


def test_charts_over_time_are_zoomed_together(browser: Browser, written: Callable[..., Path]) -> None:
    browser.open(written(named("a minute")))
    browser.run("Plotly.relayout('rates', {'xaxis.range': [10, 20]})")
    ranges = (
        "return ['open', 'failures', 'latencies', 'heat'].every((id) => "
        "String(document.getElementById(id).layout.xaxis.range) === arguments[0])"
    )
    browser.until(ranges, "10,20")
    assert browser.run("return document.getElementById('percentiles').layout.xaxis.range[0]") == 0


def test_a_page_can_send_nothing(browser: Browser, written: Callable[..., Path]) -> None:
    browser.open(written(named("a minute")))
    buttons = browser.run(
        "return [...document.querySelectorAll('.modebar-btn')].map((b) => b.dataset.title || b.ariaLabel)"
    )
    assert len(buttons) == 4 * 6
    assert len(set(buttons)) == 4
    assert not any(word in title.lower() for title in buttons for word in ("share", "cloud", "edit"))
    # The policy also blocks requests of other scripts.
    browser.errors  # noqa: B018  # reading the log empties it
    browser.run("fetch('https://example.invalid/').catch(() => { window.refused = true })")
    browser.until("return window.refused")
    assert "Content Security Policy" in browser.errors[0]


def test_hostile_text_is_escaped(browser: Browser, written: Callable[..., Path]) -> None:
    run = hostile()
    browser.open(written(run, run), PHONE, touch=True)
    drawn(browser)
    assert browser.run("return typeof window.hacked") == "undefined"
    assert browser.run("return document.scripts.length") == 3
    assert HOSTILE in browser.run("return document.querySelector('h1').textContent")
    assert HOSTILE in browser.run("return document.title")
    assert browser.run("return document.documentElement.scrollWidth") == PHONE[0]


def test_colours_follow_the_colour_scheme(browser: Browser, written: Callable[..., Path]) -> None:
    browser.open(written(named("a minute")), scheme="dark")
    ink = "return [getComputedStyle(document.body).color, document.getElementById('rates').layout.font.color]"
    dark = browser.run(ink)
    browser.scheme("light")
    browser.until("return document.getElementById('rates').layout.font.color !== arguments[0]", dark[1])
    light = browser.run(ink)
    assert dark[0] != light[0]
    assert len(browser.run(MARKS)) == 6
    drawn(browser)


@pytest.mark.parametrize("name", ["a minute", "all failed"])
def test_a_phone_needs_no_horizontal_scrolling(
    browser: Browser, written: Callable[..., Path], name: str
) -> None:
    run = named(name).against(named("a second"), name="b" * 200)
    run = dataclasses.replace(run, target="unix:/" + 100 * "x")
    browser.open(written(run, named("a second")), PHONE, touch=True)
    drawn(browser)
    browser.run("document.querySelectorAll('details').forEach((details) => { details.open = true })")
    assert browser.run("return document.documentElement.scrollWidth") == PHONE[0]
    widths = "return [...document.querySelectorAll('.chart')].map((c) => c.getBoundingClientRect().right)"
    assert max(browser.run(widths)) <= PHONE[0]
    assert browser.run("return document.querySelectorAll('.modebar-btn').length") == 0


def test_keyboard_navigation(browser: Browser, written: Callable[..., Path]) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    browser.open(written(named("a second")))
    keys = ActionChains(browser.driver)
    keys.send_keys(Keys.TAB).perform()
    assert browser.run("return document.activeElement.textContent") == "Skip to the verdict"
    browser.run("document.querySelector('summary').focus()")
    keys.send_keys(Keys.ENTER).perform()
    assert browser.run("return document.querySelector('details').open")
    keys.send_keys(Keys.TAB).perform()
    region = browser.run("const { role, ariaLabel } = document.activeElement; return [role, ariaLabel]")
    assert region[0] == "region"
    assert region[1]


def test_the_accessibility_tree_describes_every_chart(browser: Browser, written: Callable[..., Path]) -> None:
    browser.open(written(named("a minute")))
    nodes = browser.cdp("Accessibility.getFullAXTree", {})["nodes"]
    named_nodes = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node["ignored"] and "role" in node
    ]
    images = [name for role, name in named_nodes if role in ("img", "image") and "The table below" in name]
    assert len(images) == 6
    assert ("heading", "Percentiles") in named_nodes
