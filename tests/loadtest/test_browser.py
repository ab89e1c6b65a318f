"""Report pages in headless Chromium, opened as files."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from typing import TYPE_CHECKING

import pytest

from greeter.loadtest import LoadPlan, LoadReport, load
from greeter.loadtest.report.html import page
from tests.loadtest.report.test_charts import long_run, named, with_thresholds
from tests.loadtest.report.test_html import HOSTILE, hostile
from tests.support.browser import DESK, PHONE, Browser, browser, needs_chromium
from tests.support.loadtest_peers import greet, serving

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.one_interpreter, pytest.mark.thorough, needs_chromium]
selenium = pytest.importorskip("selenium", reason="needs selenium")

__all__ = ["browser"]  # a fixture

# The visible marks of each chart, in the drawing for this width, by colour.
MARKS = """
const visible = (mark) => mark.getBoundingClientRect().width > 0;
const count = (chart) => {
  const found = {};
  for (const mark of chart.querySelectorAll("svg path[fill], svg path[stroke]")) {
    const colour = (mark.getAttribute("fill") || mark.getAttribute("stroke")).match(/^var[(]--(.*)[)]$/);
    if (colour && visible(mark)) found[colour[1]] = (found[colour[1]] || 0) + 1;
  }
  return found;
};
return Object.fromEntries([...document.querySelectorAll(".chart")].map((chart) => [chart.id, count(chart)]));
"""
# Labels of the axes that touch or overlap others of the same axis.
TOUCHING = """
const found = [];
for (const axis of document.querySelectorAll(".chart svg g")) {
  const texts = [...axis.querySelectorAll(":scope > text")].filter((text) => text.textContent.trim());
  const boxes = texts.map((text) => text.getBoundingClientRect()).filter((box) => box.width);
  for (let i = 0; i < boxes.length; i++) {
    for (let j = 0; j < i; j++) {
      const [a, b] = [boxes[i], boxes[j]];
      if (a.left < b.right && b.left < a.right && a.top + 3 < b.bottom && b.top + 3 < a.bottom) {
        found.push([texts[i].textContent, texts[j].textContent]);
      }
    }
  }
}
return found;
"""


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
    """Return the charts and the number of their visible marks by colour. No label touches another."""
    found: dict[str, dict[str, int]] = browser.run(MARKS)
    assert all(found.values()), found
    assert browser.run(TOUCHING) == []
    assert browser.errors == []
    assert browser.requests == []
    return found


def test_a_run_of_one_second(browser: Browser, written: Callable[..., Path]) -> None:
    browser.open(written(asyncio.run(recorded())))
    found = drawn(browser)
    assert set(found) >= {"rates", "open", "latencies", "heat", "percentiles"}
    assert found["latencies"].keys() >= {"p50", "p90", "p95", "p99", "max"}


@pytest.mark.parametrize("name", ["a minute", "ten minutes"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_a_longer_run(
    browser: Browser, written: Callable[..., Path], name: str, size: tuple[int, int]
) -> None:
    browser.open(written(with_thresholds(named(name), "response:p99<20ms")), size)
    found = drawn(browser)
    assert set(found) == {"rates", "open", "failures", "latencies", "heat", "percentiles"}
    assert found["rates"].keys() >= {"greeted", "failed", "begun", "muted"}
    assert found["heat"].keys() >= {f"heat-{step}" for step in range(5)}
    assert found["percentiles"].keys() >= {"connect", "first_byte", "failed"}
    assert (
        browser.run("""return [...document.querySelectorAll("#latencies text")].filter(
        (text) => text.textContent === "response:p99<20ms" && text.getBoundingClientRect().width).length""")
        == 1
    )


def test_a_run_in_which_all_failed(browser: Browser, written: Callable[..., Path]) -> None:
    browser.open(written(named("all failed")))
    assert set(drawn(browser)) == {"rates", "open", "failures", "percentiles"}
    assert "Nothing was greeted; 3 failed: connect_refused." in browser.run("return document.body.innerText")


def test_a_baseline_is_drawn_into_the_charts(browser: Browser, written: Callable[..., Path]) -> None:
    old = long_run(30, slower=0.5, seed=2)
    browser.open(written(named("a minute").against(old, name="old.json"), old))
    found = drawn(browser)
    assert found["heat-before"]
    assert "before" in found["rates"]
    lefts = """return ["latencies", "heat", "heat-before", "rates", "open"].map((id) => {
        const axis = document.querySelector(`#${id} .wide svg > g`).getBoundingClientRect();
        return Math.round(axis.right); })"""
    assert len(set(browser.run(lefts))) == 1, "the time axes are aligned"


def hover(browser: Browser, chart: str, index: int) -> str:
    """Return what a chart shows while the pointer is over one of its parts; "" before."""
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    shown = """return [...document.querySelectorAll("#" + arguments[0] + " .wide .hit text")].filter(
        (text) => getComputedStyle(text).display !== "none").map((text) => text.textContent).join(" | ")"""
    assert browser.run(shown, chart) == ""
    part = browser.driver.find_elements(By.CSS_SELECTOR, f"#{chart} .wide .hit path")[index]
    browser.run("arguments[0].scrollIntoView({block: 'center'})", part)
    ActionChains(browser.driver).move_to_element(part).perform()
    text: str = browser.until(shown, chart)
    return text


def test_hovering_shows_values(browser: Browser, written: Callable[..., Path]) -> None:
    run, old = named("a minute"), long_run(30, seed=2)
    browser.open(written(run, old))
    now, before = hover(browser, "rates", 12).split(" | ")
    assert now == "12 to 13 s: begun 10/s, greeted 10/s, failed 0/s"
    assert before == "before: begun 10/s, greeted 10/s, failed 0/s"
    assert hover(browser, "open", 3) == "3 to 4 s: open 4 | before: open 4"
    assert hover(browser, "latencies", 59).startswith("59 to 60 s: p50 ")
    assert re.fullmatch(r"\d+ to \d+ s: \d+ took .* ms to .* ms", hover(browser, "heat", 40))
    assert re.match(r"p50: connect .*, first_byte = service = response .*", hover(browser, "percentiles", 6))
    assert browser.errors == []


def test_a_page_can_send_nothing(browser: Browser, written: Callable[..., Path]) -> None:
    browser.open(written(named("a minute")))
    # The policy also blocks requests of scripts, such as those of the test itself.
    browser.run("fetch('https://example.invalid/').catch(() => { window.refused = true })")
    browser.until("return window.refused")
    assert "Content Security Policy" in browser.errors[0]


def test_hostile_text_is_escaped(browser: Browser, written: Callable[..., Path]) -> None:
    run = hostile()
    browser.open(written(run, run), PHONE, touch=True)
    drawn(browser)
    assert browser.run("return typeof window.hacked") == "undefined"
    assert browser.run("return document.scripts.length") == 0
    assert HOSTILE in browser.run("return document.querySelector('h1').textContent")
    assert HOSTILE in browser.run("return document.title")
    assert browser.run("return document.documentElement.scrollWidth") == PHONE[0]


def test_colours_follow_the_colour_scheme(browser: Browser, written: Callable[..., Path]) -> None:
    browser.open(written(named("a minute")), scheme="dark")
    ink = """return ["body", "#rates text", "#rates path[fill]"]
        .map((element) => getComputedStyle(document.querySelector(element)))
        .map((style) => style.color + style.fill)"""
    dark = browser.run(ink)
    browser.scheme("light")
    browser.until("return getComputedStyle(document.body).color !== arguments[0]", dark[0])
    light = browser.run(ink)
    assert all(before != after for before, after in zip(dark, light, strict=True))
    drawn(browser)


def test_print_loses_no_column(browser: Browser, written: Callable[..., Path]) -> None:
    """On A4 paper, whose width is 718 CSS pixels within the margins, no table is cut off."""
    old = long_run(30, slower=0.5, seed=2)
    browser.open(written(named("a minute").against(old, name="old.json"), old), (718, 1000))
    browser.cdp("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        cut = """return [...document.querySelectorAll("table, svg")].filter(
            (element) => element.getBoundingClientRect().right > innerWidth).length"""
        assert browser.run("return innerWidth") == 718
        assert browser.run(cut) == 0
        # The folded facts are printed too.
        assert "of a core" in browser.run(
            "return document.querySelector('#generator').closest('details').innerText"
        )
        assert (
            browser.run(
                "return document.querySelector('#plan').closest('details').getBoundingClientRect().height"
            )
            > 200
        )
    finally:
        browser.cdp("Emulation.setEmulatedMedia", {"media": ""})


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
