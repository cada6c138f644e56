"""The report in a real Chromium, without a network: on a phone, a tablet and a desk, in the light and in the dark."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.cluster.kube.host import require_packages
from tests.support.report_run import make_run, report
from visionrl_trainer.report.page import write_page

pytestmark = pytest.mark.slow

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_MS = 120_000
TWO_TURNS_MS = 1_500
"""A film shows a turn for 0.7 s."""
BEFORE, NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC), datetime(2026, 1, 1, 12, 1, tzinfo=UTC)
WIDTHS = (375, 800, 1400)


def program() -> str:
    """Path of a Chromium; on Debian as root it is installed, as the cluster tests install what they need."""
    if not any(shutil.which(name) for name in PROGRAMS) and os.geteuid() == 0 and Path("/etc/debian_version").exists():
        require_packages({"chromium": "chromium"})
    found = next(filter(None, map(shutil.which, PROGRAMS)), None)
    return found or pytest.skip("no Chromium here: install the package chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = program()
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("run"))
    write_page(folder, report(), ended=False)
    return folder.report_file


@pytest.fixture(params=WIDTHS)
def page(request: pytest.FixtureRequest, browser: Browser, file: Path) -> Iterator[Page]:
    """The page with its charts drawn; an error of a script fails the test."""
    touch = request.param == 375
    context = browser.new_context(
        viewport={"width": request.param, "height": 812}, has_touch=touch, offline=True, color_scheme="light"
    )
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-charts=drawn]")
    page.wait_for_function("Bokeh.documents[0].is_idle")
    yield page
    context.close()
    assert errors == []


def test_it_fits_the_screen_plays_a_film_steps_it_enlarges_a_frame_and_tells_a_value(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
    films = page.locator("[data-films]").first
    place, turn = films.locator("output"), films.locator(".numbers").first
    expect(place).to_have_text("1 / 12")
    expect(turn).to_contain_text("turn 1 of 12")

    page.clock.install(time=BEFORE)
    page.clock.pause_at(NOW)  # from here on time passes only when the test says so
    films.locator(".play").click()
    page.clock.run_for(TWO_TURNS_MS)
    expect(place).to_have_text("3 / 12")
    films.locator(".play").click()
    page.clock.run_for(TWO_TURNS_MS)
    expect(place).to_have_text("3 / 12")
    films.locator(".forward").click()
    expect(place).to_have_text("4 / 12")
    films.locator(".play").click()
    page.clock.run_for(10 * TWO_TURNS_MS)
    expect(place).to_have_text("12 / 12")
    expect(films.locator(".play")).to_have_text("▶")
    page.clock.resume()
    films.locator("input").fill("3")
    expect(turn).to_contain_text("turn 4 of 12 · reward +1.00")
    expect(films.locator(".event").first).to_have_text("★ find key")
    films.locator(".back").click()
    expect(turn).to_contain_text("turn 3 of 12")

    small = films.locator("img").first
    small.click()
    large = page.locator("#large img")
    expect(large).to_be_visible()
    assert large.get_attribute("src") == small.get_attribute("src")
    sizes = [image.bounding_box() for image in (large, small)]
    assert sizes[0]
    assert sizes[1]
    assert sizes[0]["width"] > sizes[1]["width"]
    page.keyboard.press("Escape")
    expect(large).not_to_be_visible()

    advantages = page.locator("[data-films]").nth(1).locator(".numbers")
    expect(advantages.first).to_contain_text("advantage −1.00")
    expect(advantages.nth(1)).to_contain_text("advantage +1.00")

    page.locator(".chart").first.scroll_into_view_if_needed()
    hovered = page.evaluate(POINT_OF_AN_EVALUATION)
    page.mouse.move(hovered["x"] + 30, hovered["y"])
    page.mouse.move(hovered["x"], hovered["y"])
    expect(page.locator(".bk-Tooltip").filter(has_text="held out").first).to_contain_text("[4.96, 5.96]")


POINT_OF_AN_EVALUATION = """() => {
  // Where the last evaluation of the first chart is drawn, in the window.
  const plot = Bokeh.documents[0].roots()[0]
  const renderer = plot.renderers[plot.renderers.length - 1]
  const source = renderer.data_source.data
  const last = source.x.length - 1
  const view = Bokeh.index[Object.keys(Bokeh.index).find(id => Bokeh.index[id].model === plot)] ?? Bokeh.index.roots[0]
  const box = view.canvas_view.el.getBoundingClientRect()
  const { x_scale, y_scale } = view.frame
  return { x: box.x + x_scale.compute(source.x[last]), y: box.y + y_scale.compute(source.y[last]) }
}"""


@pytest.mark.parametrize("page", [375], indirect=True)
def test_a_finger_on_a_chart_scrolls_the_page(page: Page) -> None:
    """Charts have no tool that would catch it."""
    assert page.evaluate(
        "[...document.querySelectorAll('.chart > div > *')].every(plot => "
        "getComputedStyle(plot.shadowRoot.querySelector('.bk-Canvas').shadowRoot.querySelector('.bk-events'))"
        ".touchAction === 'auto')"
    )


@pytest.mark.parametrize("page", [1400], indirect=True)
def test_charts_are_readable_in_the_dark_and_change_with_the_screen(page: Page) -> None:
    colour = (
        "[...Bokeh.documents[0].roots()[0].references()].find(each => 'axis_label_text_color' in each.properties)"
        ".axis_label_text_color"
    )
    light = page.evaluate(f"() => {colour}")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"() => ({colour}) !== {light!r}")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == "rgb(21, 24, 28)"
