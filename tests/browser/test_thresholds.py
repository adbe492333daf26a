"""Moving thresholds: every number on the page equals `autolabel inspect --json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from hmsa_core.labels import ConfidenceCode, LabelStore
from hmsa_core.labels.finalise import Recipe, finalise
from hmsa_core.labels.review import UNTOUCHED
from hmsa_core.labels.thresholds.policy import from_threshold
from tests.support.browser_page import Page, page_of
from tests.support.label_scenes import Scenes

EDGES = ConfidenceCode().edges


def test_the_slider_by_keyboard_steps_from_edge_to_edge(page: Page, street: Scenes, inspect) -> None:
    page.open(threshold="0.9")
    slider = page.find("#threshold")
    slider.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert slider.get_attribute("data-edge") == EDGES[EDGES.index("0.90") + 2] == "0.902"
    assert page.kept() == inspect(street.store, "--threshold", "0.902")["kept"]
    slider.send_keys(Keys.PAGE_DOWN)
    assert page.find("#threshold-value").get_attribute("value") == EDGES[EDGES.index("0.902") - 10]
    page.keys(Keys.ESCAPE, "]", "[", "[")
    edge = page.find("#threshold").get_attribute("data-edge")
    assert edge == EDGES[EDGES.index("0.902") - 11]
    assert page.kept() == inspect(street.store, "--threshold", edge)["kept"]


def test_the_slider_by_mouse_snaps_to_an_edge_and_shows_it(page: Page, street: Scenes, inspect) -> None:
    page.open(threshold="0.5")
    slider = page.find("#threshold")
    width = slider.size["width"]
    drag = ActionChains(page.browser, duration=30).move_to_element(slider).click_and_hold()
    for _ in range(8):
        drag = drag.move_by_offset(round(width * 0.037), 0)
    drag.release().perform()
    edge = slider.get_attribute("data-edge")
    assert edge in EDGES
    assert float(edge) > 0.7
    assert float(slider.get_attribute("value")) == float(edge)
    assert page.find("#threshold-value").get_attribute("value") == edge
    assert page.kept() == inspect(street.store, "--threshold", edge)["kept"]


@pytest.mark.parametrize("threshold", ["0.00", "0.37", "0.9", "0.985", "0.9995", "0.9999", "0.99999"])
def test_kept_pixels_of_image_and_store_equal_the_command_line(
    page: Page, street: Scenes, inspect, threshold: str
) -> None:
    page.open(threshold="0.8", image=street.names[1])
    page.set_threshold(threshold)
    found = inspect(street.store, "--threshold", threshold, "--sort", "name", "--limit", "100")
    assert page.kept() == found["kept"]
    assert page.text("#kept-share-total") == f"{found['kept_share']:.2f} %"
    mine = next(row for row in found["most_affected"] if row["name"] == street.names[1])
    assert page.kept("kept-share") == mine["kept"]
    assert page.painted() == mine["kept"]  # what is counted is what is drawn


def test_a_class_has_its_own_slider(page: Page, street: Scenes, inspect) -> None:
    page.open(threshold="0.9")
    car = page.js("return document.querySelector('[data-class=\"car\"] input[type=range]').id")
    page.set_threshold("0.6", f"#{car}")
    found = inspect(street.store, "--threshold", "0.9", "--cut", "car:0.6")
    assert page.kept() == found["kept"]
    row = "[data-class=car] .class-kept"
    kept = next(int(row["kept"]) for row in found["classes"] if row["name"] == "car")
    page.until(lambda: int(page.find(row).get_attribute("data-kept")) == kept)
    page.until(lambda: page.text("[data-class=car] .chip") == "yours")
    page.find(f"#{car}").send_keys(Keys.ARROW_UP)
    page.until(lambda: page.text("[data-class=car] .class-value") == "0.61")
    page.find("#pins-clear").click()
    assert page.kept() == inspect(street.store, "--threshold", "0.9")["kept"]


def test_a_withheld_class_disappears(page: Page, street: Scenes, inspect) -> None:
    page.open(threshold="0.9", **{"class": "car"})
    page.until(lambda: page.all(".class-detail button"))[0].click()
    page.until(lambda: page.text("[data-class=car] .class-value") == "withheld")
    assert page.kept() == inspect(street.store, "--threshold", "0.9", "--cut", "car:withheld")["kept"]


def test_an_off_grid_value_is_refused_with_its_neighbours(page: Page) -> None:
    page.open(threshold="0.9")
    before = page.kept()
    field = page.find("#threshold-value")
    field.click()
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys("0.9051", Keys.ENTER)
    chips = page.all("#threshold-error button")
    assert [chip.text for chip in chips] == ["0.905", "0.906"]
    assert field.get_attribute("aria-invalid") == "true"
    assert page.kept() == before
    chips[1].click()
    assert page.find("#threshold").get_attribute("data-edge") == "0.906"


def test_a_link_off_the_grid_is_refused_and_offers_its_neighbours(page: Page) -> None:
    page.allowed_errors.append("400 (Bad Request)")
    page.open(wait=False, threshold="0.9051", sort="coverage")
    links = page.all("#fatal li a")
    assert [link.text for link in links] == ["0.905", "0.906"]
    links[0].click()
    page.until(lambda: page.js("return document.documentElement.dataset.ready") == "true")
    assert page.find("#threshold").get_attribute("data-edge") == "0.905"
    assert page.find("#sort").get_attribute("value") == "coverage"


def test_dragging_in_the_histogram_and_on_the_curve_moves_the_cut(page: Page) -> None:
    page.open(threshold="0.9")
    for css, share in (("#histogram", 0.3), ("#curve", 0.6)):
        chart = page.find(css)
        before = page.kept()
        offset = round(chart.size["width"] * (share - 0.5))
        ActionChains(page.browser, duration=20).move_to_element_with_offset(chart, offset, 0).click().perform()
        assert page.kept() != before
        assert page.find("#threshold").get_attribute("data-edge") in EDGES
    chart.send_keys(Keys.ARROW_LEFT)
    assert "keeps" in chart.get_attribute("aria-valuetext")


def test_policy_and_one_threshold_can_be_switched(page: Page, street: Scenes, inspect) -> None:
    page.open()
    assert page.kept() == inspect(street.store, "--policy", street.policy)["kept"]
    page.until(lambda: page.text("[data-class=road] .chip") == "measured")
    page.keys("p")
    assert page.kept() == inspect(street.store, "--threshold", "0")["kept"], "one threshold starts with every pixel"
    page.find("#base-policy").click()
    assert page.kept() == inspect(street.store, "--policy", street.policy)["kept"]


def test_the_expected_precision_is_the_one_of_the_command_line(page: Page, street: Scenes, inspect) -> None:
    page.open()
    page.frame()
    found = inspect(street.store, "--policy", street.policy)
    assert page.text("#precision-total") == f"{100 * found['expected_precision']:.2f} %"
    road = next(row for row in found["classes"] if row["name"] == "road")
    assert page.text("[data-class=road] .class-precision") == f"{100 * road['expected_precision']:.1f} %"


def _drawn(_name: str, height: int, width: int) -> tuple[Any, Any]:
    """Corrections of people: the upper half is road."""
    labels = np.full((height, width), UNTOUCHED, np.uint8)
    labels[: height // 2] = 0
    return np.zeros((height, width), bool), labels


def test_a_thresholded_store_is_shown_as_it_is_alone_and_next_to_another(
    browser: Any, street: Scenes, tmp_path: Path
) -> None:
    raw, images = LabelStore.open(street.store), ("--images", str(street.images))
    finalise(raw, Recipe(from_threshold("0.9", raw.classes), reviewed=_drawn), tmp_path / "final")
    final = LabelStore.open(tmp_path / "final")
    labels = {name: final.read_label(name) for name in final.names()}
    kept, pixels = sum(int((label != 255).sum()) for label in labels.values()), sum(x.size for x in labels.values())
    with page_of(browser, final.path, "--policy", street.policy, *images, image=street.names[0]) as page:
        assert (page.kept(), page.painted()) == (kept, int((labels[street.names[0]] != 255).sum()))
        page.find("#histogram").click()
        page.keys("p", "]", "c")
        assert page.kept() == kept
        assert "--compare STORE" in page.text("#toasts")
    with page_of(browser, final.path, "--compare", raw.path, *images, image=street.names[0]) as page:
        page.keys("c")
        page.until(lambda: "swipe" in page.browser.current_url)
        page.browser.refresh()  # its address can be shared
        page.until(lambda: "only A 0.00 %" in page.text("#difference"))
        assert page.text("#kept-total-b") == "100.00 % in B"
        assert not page.find("#compare-value").is_displayed()
    with page_of(
        browser, raw.path, "--compare", final.path, *images, threshold="0.9", compare="0.9", **{"with": "b"}
    ) as page:
        page.until(lambda: page.text("#kept-total-b") == f"{100 * kept / pixels:.2f} % in B")
        assert not page.find("#compare-base").is_displayed()
        assert page.console() == []
