"""Small windows and telephones: nothing is hidden behind something else, nothing sticks out of the page."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.keys import Keys

from pipeline.report.render import swatch
from tests.support.browser_page import Page

OVERLAPS = """
const boxes = [...document.querySelectorAll(".tile")].map((t) => t.getBoundingClientRect());
return boxes.filter((a, i) => boxes.some((b, j) => i < j && a.left < b.right - 1 && b.left < a.right - 1
  && a.top < b.bottom - 1 && b.top < a.bottom - 1)).length;
"""


@pytest.fixture
def resize(browser: Any) -> Iterator[Any]:
    def to(width: int, height: int) -> None:
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)

    yield to
    to(1500, 940)


@pytest.mark.parametrize(("width", "height"), [(390, 844), (800, 600), (1100, 800), (1280, 900)])
def test_the_page_fits_and_no_image_of_the_list_hides_another(page: Page, resize, width: int, height: int) -> None:
    resize(width, height)
    page.open()
    page.until(lambda: len(page.all(".tile")) >= 6)
    assert page.js(OVERLAPS) == 0
    assert page.js("return document.documentElement.scrollWidth") <= width
    in_reach(page, width, "#threshold", "#save-policy", "#accept", "#filter")
    page.keys("c")
    page.until(lambda: page.text("#difference"))
    assert page.js("const d = document.getElementById('difference'); return d.scrollWidth <= d.clientWidth")
    page.keys("c", "?")
    page.until(lambda: page.find("#help").is_displayed())
    assert page.js("return document.getElementById('help').scrollTop") == 0
    page.keys(Keys.ESCAPE, "u")
    page.until(lambda: page.find("#audit-form").is_displayed())
    aligned = [
        page.find(f"#{field}").rect["x"] for field in ("audit-per-class", "certificate-target", "certificate-budget")
    ]
    assert len(set(aligned)) == 1
    page.keys(Keys.ENTER)
    page.until(lambda: page.find("#audit-close").get_attribute("data-item") == "0")
    in_reach(page, width, "#audit-wrong", "#audit-right", "#audit-back", "#audit-results")
    page.keys(Keys.ESCAPE, "q")
    page.until(lambda: page.find("#ask-form").is_displayed() or page.find("#ask-run").get_attribute("data-item"))
    if page.find("#ask-form").is_displayed():
        in_reach(page, width, "#ask-aim", "#ask-start")
        page.find("#ask-budget").send_keys(Keys.ENTER)
    page.until(lambda: page.find("#ask-run").get_attribute("data-item"))
    in_reach(page, width, "#ask-right", "#ask-unsure", "#ask-close", "#ask-classes", "#ask-undo", "#ask-price")
    if width >= 800:
        assert page.find("#ask-classes").rect["y"] + page.find("#ask-classes").rect["height"] < height
    page.keys(Keys.ESCAPE)


def in_reach(page: Page, width: int, *selectors: str) -> None:
    for css in selectors:
        left, right = page.js(
            "const b = document.querySelector(arguments[0]).getBoundingClientRect(); return [b.left, b.right];", css
        )
        assert 0 <= left < right <= width, css


def test_colours_in_captions_of_the_reports_curves_are_small_squares(browser: Any, tmp_path: Path) -> None:
    style = resources.files("pipeline.report").joinpath("style.css").read_text("utf-8")
    chart = "<svg viewBox='0 0 220 130'></svg>"
    (tmp_path / "page.html").write_text(
        f"<!doctype html><style>{style}</style><div class='curves'><figure class='card'>{chart}"
        f"<figcaption>{swatch((128, 64, 128))}road</figcaption></figure></div>"
    )
    browser.get((tmp_path / "page.html").as_uri())
    width = browser.execute_script(
        "return [...document.querySelectorAll('svg')].map((s) => s.getBoundingClientRect().width)"
    )
    assert width[0] > 150
    assert width[1] < 20
