"""Images, layers, compare, address: what the page shows and remembers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from hmsa_core.inference.folder.label_folder import work_of
from hmsa_core.io.atomic import write_json
from pipeline.review.session import Session
from tests.support.browser_page import Page, page_of
from tests.support.label_scenes import Scenes, make_scenes


def tiles(page: Page) -> list[str]:
    return [t.text for t in sorted(page.all(".tile-name"), key=lambda t: (t.location["y"], t.location["x"]))]


@pytest.mark.parametrize("sort", ["coverage", "conflict", "uncertain", "drop:0.8:0.95"])
def test_the_list_comes_in_the_order_of_the_command_line(page: Page, street: Scenes, inspect, sort: str) -> None:
    page.open(threshold="0.9", sort=sort)
    found = inspect(street.store, "--threshold", "0.9", "--sort", sort)
    expected = [row["name"] for row in found["most_affected"]]
    page.until(lambda: page.js("return [...document.querySelectorAll('.tile')].length") == len(expected))
    page.until(lambda: all(page.js("return [...document.querySelectorAll('.tile-name')].map(t => t.textContent)")))
    # The box runs right to left to cut a long name at its beginning; the name itself must not ("-dash" became "dash-").
    directions = "[...document.querySelectorAll('.tile-name > *')].map(t => getComputedStyle(t).direction)"
    assert set(page.js(f"return {directions}")) == {"ltr"}
    shown = page.js(
        "return [...document.querySelectorAll('.tile')].sort((a, b) => parseInt(a.id.slice(5)) - parseInt(b.id.slice(5)))"
        ".map(t => t.querySelector('.tile-name').textContent)"
    )
    assert shown == expected
    assert page.image() == expected[0]


def test_filters_narrow_the_list(page: Page, street: Scenes) -> None:
    page.open(threshold="0.9")
    page.keys("/")
    page.keys("bremen")
    page.until(lambda: page.text("#grid-count") == "4 images")
    page.keys(Keys.ESCAPE)
    page.find("#filter").clear()
    page.js(
        "const f = document.getElementById('filter'); f.value = 'nothing like it'; f.dispatchEvent(new Event('input'))"
    )
    page.until(lambda: page.find("#grid-empty").is_displayed())
    assert "No image matches" in page.text("#grid-empty")
    page.open(threshold="0.9", city="aachen", **{"class": "car"})
    assert "with car" in page.text("#grid-count")
    page.open(wait=False, threshold="0.9", q="nothing like it")
    page.until(lambda: page.find("#grid-all").is_displayed())
    assert page.text("#zoom-level") == ""
    page.find("#grid-all").click()
    page.until(lambda: page.image() == street.names[0])


@pytest.mark.once
def test_the_keyboard_walks_through_images_and_layers(page: Page, street: Scenes) -> None:
    page.open(threshold="0.9")
    first = page.image()
    page.keys(Keys.ARROW_RIGHT)
    page.until(lambda: page.image() == street.names[1])
    page.keys(Keys.ARROW_DOWN)
    page.until(lambda: page.image() == street.names[3])
    page.keys(Keys.ARROW_UP, Keys.ARROW_LEFT)
    page.until(lambda: page.image() == first)
    for key, layer in enumerate(["image", "labels", "heat", "human", "dropped"], 1):
        before = page.find(f"#toggle-{layer}").get_attribute("aria-pressed")
        page.keys(str(key))
        page.until(lambda b=before, n=layer: page.find(f"#toggle-{n}").get_attribute("aria-pressed") != b)
    page.keys("?")
    page.until(lambda: page.find("#help").is_displayed())
    assert "ten steps higher" in page.text("#help")
    page.keys(Keys.ESCAPE)


def test_heat_and_human_layers_show_their_own_pixels(page: Page, street: Scenes) -> None:
    page.open(threshold="0.9", layers="image,heat")
    assert page.find("#layer-heat").is_displayed()
    assert not page.find("#layer-labels").is_displayed()
    assert page.text("#heat-key").startswith("confidence")
    page.open(threshold="0.9", layers="image,human")
    page.until(lambda: page.find("#layer-human").is_displayed())
    colours = page.js(
        "const c = document.getElementById('layer-human'); const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "return new Set(Array.from({length: d.length / 4}, (_, i) => d[4 * i + 3] ? [d[4 * i], d[4 * i + 1], d[4 * i + 2]].join() : '')).size"
    )
    assert colours > 3


def test_the_pixel_under_the_cursor_is_read_out(page: Page, street: Scenes) -> None:
    from hmsa_core.labels import ConfidenceCode, LabelStore

    page.open(threshold="0.9", image=street.names[0])
    label, code = LabelStore.open(street.store).read(street.names[0])
    stage = page.find("#stage")
    ActionChains(page.browser, duration=20).move_to_element(stage).move_by_offset(31, 17).perform()
    said = page.until(lambda: "confidence" in page.text("#readout") and page.text("#readout"))
    x, y = (int(v) for v in page.text(".coordinates").split(","))
    assert street.truth[street.names[0]].shape > (y, x)
    from hmsa_core.taxonomy import cityscapes

    assert cityscapes().classes[label[y, x]] in said
    assert f"≥ {ConfidenceCode().edges[code[y, x]]}" in said
    assert ("kept" in said) == (code[y, x] >= 90)
    assert "P(correct)" in said


def test_a_link_brings_the_whole_view_back(page: Page, street: Scenes) -> None:
    state = {
        "image": street.names[5],
        "threshold": "0.85",
        "cut": ["rider:0.97", "traffic light:withheld"],
        "class": "car",
        "sort": "drop:0.5:0.9",
        "city": "bremen",
        "layers": "image,labels,dropped",
        "opacity": "40",
        "palette": "safe",
        "theme": "dark",
        "alpha": ["sky:0", "road:30"],
        "view": "2.000,200.0,100.0",
        "compare": "policy",
        "swipe": "0.300",
    }
    page.open(**state)
    page.until(lambda: parse_qs(urlsplit(page.browser.current_url).query).get("image"))
    page.frame()
    mask, kept = page.mask(), page.kept()
    assert page.image() == street.names[5]
    address = page.until(lambda: "swipe" in page.browser.current_url and page.browser.current_url)
    assert {k: sorted(v) for k, v in parse_qs(urlsplit(address).query).items()} == {
        k: sorted(v) if isinstance(v, list) else [v] for k, v in state.items()
    }
    page.browser.get("about:blank")
    page.browser.get(address)
    page.until(lambda: page.js("return document.documentElement.dataset.ready") == "true")
    page.until(lambda: page.mask() == mask)
    assert page.kept() == kept
    assert page.js("return getComputedStyle(document.body).backgroundColor") == "rgb(12, 15, 19)"


def test_compare_is_swiped_by_mouse_and_keyboard(page: Page, street: Scenes) -> None:
    page.open(threshold="0.95", image=street.names[0])
    page.keys("c")
    handle = page.until(lambda: page.find("#swipe").is_displayed() and page.find("#swipe"))
    assert page.find("#compare-base").get_attribute("value") == "policy"
    page.until(lambda: "only A" in page.text("#difference"))
    ActionChains(page.browser, duration=30).click_and_hold(handle).move_by_offset(-120, 0).release().perform()
    moved = int(handle.get_attribute("aria-valuenow"))
    assert moved < 45
    handle.send_keys(Keys.ARROW_RIGHT)
    assert int(handle.get_attribute("aria-valuenow")) == moved + 2
    assert page.js("return document.getElementById('layer-labels').style.clipPath").startswith("inset(0")
    page.find("#compare-close").click()
    assert not page.find("#swipe").is_displayed()


def test_zoom_by_wheel_and_keys(page: Page) -> None:
    page.open(threshold="0.9")
    fitted = page.text("#zoom-level")
    page.keys("+", "+")
    page.until(lambda: page.text("#zoom-level") != fitted)
    page.keys("0")
    page.until(lambda: page.text("#zoom-level") == fitted)
    page.js(
        "document.getElementById('stage').dispatchEvent(new WheelEvent('wheel', {deltaY: -300, clientX: 700, clientY: 400, cancelable: true}))"
    )
    page.until(lambda: page.text("#zoom-level") != fitted)


def test_every_control_has_a_name_and_shows_its_focus(page: Page) -> None:
    page.open(threshold="0.9")
    nameless = page.js(
        "return [...document.querySelectorAll('button, input, select, [role=slider], [role=listbox], canvas[tabindex]')]"
        ".filter(e => e.checkVisibility() && !(e.labels?.length && [...e.labels].some(l => l.textContent.trim()))"
        " && !e.getAttribute('aria-label') && !e.textContent.trim()).map(e => e.outerHTML.slice(0, 80))"
    )
    assert nameless == []
    page.keys(Keys.TAB)
    for _ in range(6):
        page.keys(Keys.TAB)
        width = page.js(
            "const s = getComputedStyle(document.activeElement); return s.outlineStyle !== 'none' ? parseFloat(s.outlineWidth) : 0"
        )
        assert width >= 2


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_from_its_ground(page: Page, theme: str) -> None:
    page.open(threshold="0.9", theme=theme, cut="car:0.95")
    ratios = page.js("""
        const parse = (c) => { const k = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
          k.fillStyle = c; k.fillRect(0, 0, 1, 1); return [...k.getImageData(0, 0, 1, 1).data]; };
        const light = ([r, g, b]) => { const f = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
          return 0.2126 * f(r) + 0.7152 * f(g) + 0.0722 * f(b); };
        const ground = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c[3] === 255) return c; } };
        const worst = [];
        for (const e of document.querySelectorAll('#top *, #left .filters *, #panel *, #view-bar *, #review-bar *')) {
          if (!e.checkVisibility() || e.disabled || ![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
          if (e.closest('[disabled], .sr')) continue;
          const [a, b] = [light(parse(getComputedStyle(e).color)), light(ground(e))];
          const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
          if (ratio < 4.5) worst.push([e.textContent.trim().slice(0, 20), Math.round(ratio * 10) / 10]);
        }
        return worst;""")
    assert ratios == []


def test_straight_after_label_the_page_shows_photographs_with_every_pixel_and_says_how_to_measure(
    browser: Any, tmp_path: Path
) -> None:
    scenes = make_scenes(tmp_path, cities=("aachen",), frames=2)
    record = {"absolute": "/gone", "from_store": os.path.relpath(scenes.images, scenes.store.parent)}
    write_json(work_of(scenes.store) / "folder.json", record)  # as `autolabel label` writes it; both were moved since
    with page_of(browser, scenes.store) as page:
        assert page.find("#threshold").get_attribute("data-edge") == "0.00"
        assert page.text("#kept-share-total") == "100.00 %"
        assert not page.find("#no-picture").is_displayed()
        assert page.text("#precision-source") == "not measured yet: judge 5 pixels of each class (u)"
        page.keys("u")
        page.until(lambda: page.find("#audit").is_displayed())
    session = Session(scenes.store)
    drawn = session.draw_audit(session.thresholds(), per_class=6, seed=0, classes=[])
    for number in range(len(drawn.to_json()["items"])):
        session.audits.answer(drawn.id, number, "right")
    with page_of(browser, scenes.store) as page:
        page.until(lambda: page.text("#precision-total") == "100.00 %")
        assert page.text("#precision-source") == "audit"
        assert page.console() == []
